"""One client's connection: requests in, one exchange at a time and in order, answers out.

The codec (wire.http1) frames; this file moves bytes, keeps deadlines, and tells the app when its client has gone.
A connection has one alarm, whose meaning is its phase's:

    HEAD      waiting for a request: kept alive, or (from its first byte on) within the header deadline
    BODY      reading a body: idle and total deadlines, unless it is we who hold it back
    SERVING   the request is whole: no deadline, but that of a client which does not read
    LINGER    answered without reading all: what still comes is thrown away for a moment, so that the answer can be read
    CLOSED
"""

from __future__ import annotations

import asyncio
import enum
import errno
import re
import socket
import struct
import traceback
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import unquote

import msgspec

from sidecar.clock import Alarm, wall
from sidecar.drive import Drive, Signal
from sidecar.errors import BodyTooLarge, ClientGone, Malformed
from sidecar.types import Headers, Message, Scope
from sidecar.wire import body as json
from sidecar.wire.http1 import END, LAST_CHUNK, RequestHead, RequestReader, connection_tokens, head_lines

if TYPE_CHECKING:
    from sidecar.server.listen import Server

HIGH_WATER: Final = 64 * 1024  # bytes held of a request body, of pipelined requests, and of answers not yet taken
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4 * 1024 * 1024
MAX_REQUESTS: Final = 1000  # of one connection
MIN_BODY_RATE: Final = 1024  # bytes a second, once a body has had the idle time
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CODES: Final = {413: "caller_body_too_large", 408: "caller_body_timeout"}
_OWN_HEADERS: Final = frozenset((b"transfer-encoding", b"connection", b"keep-alive"))


class Phase(enum.Enum):
    HEAD = "idle"
    BODY = "reading"
    SERVING = "serving"
    LINGER = "lingering"
    CLOSED = "closed"


class Date:
    """The `date` header line, made once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(wall())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


DATE: Final = Date()


_BODILESS: Final = (204, 304)
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,10})(?=\r\n)")
_REMEMBERED_BYTES: Final = 4096


class Again(NamedTuple):
    """The head of a connection's last request, before and behind the digits of its length, and what it meant."""

    before: bytes
    after: bytes
    head: RequestHead


class Connection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_again",
        "_alarm",
        "_body_began",
        "_body_bytes",
        "_discarded",
        "_drained",
        "_held_at",
        "_left",
        "_loop",
        "_reading",
        "_requests",
        "_unflushed",
        "_unflushed_bytes",
        "_unsent",
        "_writable",
        "bound",
        "client",
        "cycle",
        "local",
        "phase",
        "reader",
        "scheme",
        "server",
        "signal",
        "transport",
    )

    def __init__(self, server: Server, *, secure: bool) -> None:
        self.server = server
        self.scheme = "https" if secure else "http"
        self.transport: asyncio.Transport | None = None
        self.client: tuple[str, int] | None = None
        self.local: tuple[str, int | None] | None = None
        self.phase = Phase.HEAD
        self.reader = RequestReader(server.limits)
        self.cycle: Cycle | None = None
        self._again: Again | None = None
        self._loop = server.loop
        self._alarm = Alarm(server.loop, self._ring)
        self.signal = Signal(server.loop)  # for whoever waits for a request's body, or for its client's going
        self.bound = HIGH_WATER  # bytes held of a body before the client is held back
        self._requests = 0
        self._reading = True
        self._writable = True
        self._drained: asyncio.Future[None] | None = None  # of a send() that waits for the client to take bytes
        self._body_began = 0.0
        self._body_bytes = 0
        self._held_at = 0.0  # since when the client is held back
        self._discarded = 0
        self._left = False  # the client has ended its side
        self._unflushed: list[bytes] = []  # written in this round of the loop
        self._unflushed_bytes = 0
        self._unsent = 0  # bytes of an answer that its client had not taken at the last look

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.client = _address(transport.get_extra_info("peername"))
        local = transport.get_extra_info("sockname")
        self.local = (local, None) if isinstance(local, str) else _address(local)
        self.server.connections.add(self)
        self.server.idle[self] = None
        self._alarm.set(self._loop.time() + self.server.settings.header_seconds)

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if phase is Phase.LINGER:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES and self._reading and self.transport is not None:
                self._reading = False  # not closed: a reset would tear away what is still being taken
                self.transport.pause_reading()
            return
        if self._again is not None and phase is Phase.HEAD and self._same_again(self._again, data):
            return
        try:
            began = phase is Phase.HEAD and self.reader.idle
            events = self.reader.feed(data)
            if events:
                self._take(events)
            elif began and self._requests and not self.reader.idle:  # of a new connection it runs since it was made
                self._alarm.set(self._loop.time() + self.server.settings.header_seconds)
            elif self.reader.excess > HIGH_WATER:
                self._hold()
        except Malformed as error:
            self._refuse(error)

    def _same_again(self, again: Again, data: bytes) -> bool:
        """Serve a request whose head is the last one's but for its length, as nearly all of a kept-alive client's are.

        Its bytes mean what they meant before, so they are compared and not parsed. True when that was so.
        """
        before, after, head = again
        if not data.startswith(before) or not self.reader.idle:
            return False
        at = len(before)
        stop = data.find(b"\r", at, at + 11)
        if stop < 0 or not data.startswith(after, stop):
            return False
        digits, body = data[at:stop], data[stop + len(after) :]
        if not digits.isdigit() or len(body) != int(digits):
            return False
        self.reader.pass_over()
        self._requests += 1
        self.server.idle.pop(self, None)
        self.phase = Phase.SERVING
        self._alarm.clear()
        cycle = self.cycle = _cycle(self, head, close=self._requests >= MAX_REQUESTS)
        cycle.length = cycle.held = len(body)
        cycle.pieces.append(body)
        cycle.whole = True
        if not cycle.start_directly():  # the app has another mind by now
            self._again = None
            cycle.head = _with_length(head, digits)
            cycle.headers, cycle.index = cycle.head.headers, cycle.head.index
            cycle.start()
        return True

    def _remember(self, cycle: Cycle) -> None:
        """After a request that was served directly: its head, cut where the length stands."""
        head = cycle.head
        if head.raw and head.length and len(head.raw) <= _REMEMBERED_BYTES and not head.expect_continue:
            match = _LENGTH.search(head.raw)
            if match is not None:
                self._again = Again(head.raw[: match.start(1)], head.raw[match.end(1) :], head)

    def eof_received(self) -> bool:
        """A client that ends its side has gone: nobody would read the answer (and a cancelled one should not cost)."""
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self.phase = Phase.CLOSED
        self._alarm.close()
        self._watch(hangup=False)
        self.transport = None
        self.server.forget(self)

    def pause_writing(self) -> None:
        self._writable = False
        self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def resume_writing(self) -> None:
        self._writable = True
        if self.phase is Phase.SERVING:
            self._alarm.clear()
            if self.cycle is None:  # the next request has waited for this
                self._loop.call_soon(self._next)
        self._let_send()

    # -- requests

    def _take(self, events: list[Any]) -> None:
        cycle = self.cycle
        for event in events:
            if type(event) is bytes:
                assert cycle is not None
                cycle.pieces.append(event)
                cycle.held += len(event)
                self._body_bytes += len(event)
            elif event is END:
                assert cycle is not None
                self.phase = Phase.SERVING
                self._alarm.clear()
                cycle.whole = True
            else:
                cycle = self._begin(event)
        if self.phase is Phase.BODY:
            self._read_on()
        elif self.reader.excess > HIGH_WATER:
            self._hold()
        if cycle is not None:
            if cycle.work is None:
                cycle.start()
            else:
                self.signal.wake()  # for whoever reads the body

    def _begin(self, head: RequestHead) -> Cycle:
        self._requests += 1
        self.server.idle.pop(self, None)
        self.phase = Phase.BODY
        self._body_began = self._loop.time()
        self._body_bytes = 0
        last = not head.keep_alive or self._requests >= MAX_REQUESTS
        cycle = self.cycle = _cycle(self, head, close=last)
        return cycle

    def _read_on(self) -> None:
        """Set the deadline for the next bytes of a body, or hold the client back when the app is slower."""
        assert self.cycle is not None
        if self.cycle.held > self.bound:
            self._hold()
            return
        settings, now = self.server.settings, self._loop.time()
        slow = self._body_began + settings.body_idle_seconds + self._body_bytes / MIN_BODY_RATE
        until = min(now + settings.body_idle_seconds, self._body_began + settings.body_seconds)
        self._alarm.set(min(until, slow))

    def _hold(self) -> None:
        """Stop reading; its going is then seen by the hang-up watch, since nothing else would tell."""
        if self._reading and self.transport is not None:
            self._reading = False
            self._held_at = self._loop.time()
            self.transport.pause_reading()
            if self.phase is Phase.BODY:
                self._alarm.clear()
            self._watch(hangup=True)

    def unhold(self) -> None:
        """Read again, after the app has taken what was held."""
        if not self._reading and self.transport is not None:
            self._reading = True
            self._watch(hangup=False)
            self.transport.resume_reading()
            if self.phase is Phase.BODY:
                self._body_began += self._loop.time() - self._held_at  # the wait was ours
                self._read_on()

    def _watch(self, *, hangup: bool) -> None:
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None:  # a TLS transport that has closed has none
            if hangup:
                self.server.hangups.add(sock.fileno(), self)
            else:
                self.server.hangups.discard(sock.fileno())

    def hung_up(self) -> None:
        """The client has gone while nothing was read from it."""
        self.abort()

    # -- answers

    def write(self, data: bytes) -> None:
        """Send at the end of the loop's round (drive.Round), together with what else it brings for this client."""
        if self.transport is None:
            return
        if self._unflushed:
            self._unflushed.append(data)
            self._unflushed_bytes += len(data)
            if self._unflushed_bytes > HIGH_WATER:  # an app that never waits is told by this to wait
                self.flush()
        else:
            self._unflushed.append(data)
            self._unflushed_bytes = len(data)
            self.server.round.later(self.flush)

    def flush(self) -> None:
        """Send what was written in this round."""
        pieces, self._unflushed = self._unflushed, []
        if pieces and self.transport is not None:
            self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def drained(self) -> None:
        """Wait until the client has taken enough, or has gone."""
        while not self._writable and self.transport is not None and not self._left:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    @property
    def writable(self) -> bool:
        return self._writable

    def _let_send(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def answered(self, cycle: Cycle) -> None:
        """The answer is written. On to the next request, or to the end."""
        if self.cycle is not cycle or self.phase is Phase.CLOSED:
            return
        self.cycle = None
        if not cycle.whole:  # part of the body is still to come, and nobody wants it
            self._linger()
        elif cycle.close or self.server.draining:
            if self.reader.excess:  # never to be read, and a reset would tear the answer away
                self._linger()
            else:
                self.close()
        elif self.reader.excess:  # a pipelined request: not inside the call that answered the one before it
            self._loop.call_soon(self._next)
        else:
            self._next()

    def _next(self) -> None:
        if self.transport is None or self.phase is not Phase.SERVING or self.cycle is not None:
            return
        if not self._writable:  # who does not take answers gets no more of them
            return
        self.phase = Phase.HEAD
        self.server.idle[self] = None
        settings = self.server.settings
        try:
            events = self.reader.next()
            wait = settings.keepalive_seconds if self.reader.idle else settings.header_seconds
            self._alarm.set(self._loop.time() + wait)
            if events:
                self._take(events)
            if not self._reading and self.reader.excess <= HIGH_WATER:
                self.unhold()
        except Malformed as error:
            self._refuse(error)

    def _refuse(self, error: Malformed) -> None:
        """Answer a request that is not plain, and close: what follows it cannot be told apart."""
        self.server.note("refused", error.message, self.client)
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.leave()
            if cycle.began:
                self.abort()
                return
        code = _CODES.get(error.status, "caller_request_invalid")
        kind = "request_timeout" if error.status == 408 else "invalid_request_error"
        data = json.encode({"error": {"message": error.message, "type": kind, "param": None, "code": code}})
        lines: Headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(data)),
            (b"x-sidecar-error", code.encode()),
            (b"connection", b"close"),
        ]
        self.write(_STATUS_LINES[error.status] + head_lines(lines) + DATE.line() + b"\r\n" + data)
        self._linger()

    def _linger(self) -> None:
        """Close in a way that lets the client read: a reset for bytes we never read would tear the answer away."""
        transport = self.transport
        if transport is None:
            return
        self.phase = Phase.LINGER
        self.server.idle.pop(self, None)
        self.unhold()
        self._alarm.set(self._loop.time() + LINGER_SECONDS)
        self.flush()
        if transport.can_write_eof():
            transport.write_eof()

    def _gone(self) -> None:
        """The client is not there any more: tell the app now, whatever it waits for."""
        self._left = True
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.leave()
        self._let_send()

    def close(self) -> None:
        """Close once what is written has been taken."""
        if self.transport is not None:
            self.phase = Phase.CLOSED
            self.server.idle.pop(self, None)
            self.flush()
            self.transport.close()
            self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def abort(self) -> None:
        if self.transport is not None:
            self.phase = Phase.CLOSED
            self.server.idle.pop(self, None)
            self.flush()  # what was sent before it broke
            self.transport.abort()

    def _ring(self) -> None:
        """A deadline has passed."""
        if self.phase is Phase.LINGER and self.transport is not None:
            unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
            if self._unsent and self._unsent != unsent:  # the answer is still being taken
                self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)
                return
        if self.phase in (Phase.LINGER, Phase.CLOSED) or not self._writable:
            if not self._writable:
                self.server.note("stalled", "the client does not take its answer", self.client)
            self.abort()
        elif self.phase is Phase.BODY:
            self._refuse(Malformed("the body took too long to arrive", 408))
        elif not self.reader.idle:
            self._refuse(Malformed("the head of the request took too long to arrive", 408))
        else:
            self.close()

    def peer(self) -> tuple[int, int, int] | None:
        """(pid, uid, gid) of the process at the other end of a unix socket."""
        if self.transport is None:
            return None
        sock = self.transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            return None
        pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, uid, gid

    def __repr__(self) -> str:
        return f"<Connection {self.client} {self.phase.value}, request {self._requests}>"


class Cycle(msgspec.Struct, eq=False):
    """One request and its answer, with two faces: what ASGI calls `scope`, `receive` and `send`; and types.Client, for
    an app that takes requests directly (see `Server.direct`): the same bytes, without a scope, messages and a task.
    """

    connection: Connection
    head: RequestHead
    method: str
    path: bytes
    query: bytes
    headers: Headers
    index: dict[bytes, bytes]
    notes: dict[str, Any]
    signal: Signal
    close: bool
    expect: bool
    length: int | None  # declared, of the body
    pieces: list[bytes] = []  # of the body, which the app has not taken
    held: int = 0  # bytes of them
    whole: bool = False  # the body has all come
    told: bool = False  # and so has the app been told
    gone: bool = False
    on_gone: Callable[[], object] | None = None
    work: asyncio.Task[None] | Drive | None = None
    status: int = 0  # of the answer
    answer_headers: Headers = []
    lines: bytes = b""  # more of them, in the form of the wire
    began: bool = False  # the head of the answer is on the wire
    complete: bool = False
    plain: bool = False  # no chunks: a length was declared, or the end is the connection's
    left: int | None = None  # bytes still to come of a declared length

    # -- the connection's side

    def start(self) -> None:
        if self.start_directly():
            return
        server = self.connection.server
        self.work = task = server.loop.create_task(self._run())
        server.work.add(task)
        task.add_done_callback(server.forget_work)

    def start_directly(self) -> bool:
        """Has the app taken it directly?"""
        server = self.connection.server
        if server.direct is None or (coroutine := server.direct(self)) is None:
            return False
        self.work = drive = Drive(server.loop, coroutine, self._over)
        self.on_gone = drive.cancel
        server.work.add(drive)
        drive.resume()
        return True

    def leave(self) -> None:
        """The client has gone: the app is told in both of its ways."""
        if self.gone or self.complete:
            return
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()
        self.signal.wake()

    # -- the side of an app that takes requests directly (types.Client)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """That it is served on."""
        return self.connection.server.loop

    @property
    def tcp(self) -> bool:
        """It came by a port, and not by a unix socket."""
        local = self.connection.local
        return local is not None and local[1] is not None

    def body(self, most: int) -> bytes | None:
        """The whole body, if it is here already. Raises BodyTooLarge: unread, where the length is declared."""
        declared = self.length
        if declared is not None and declared > most:
            raise BodyTooLarge(f"the body has {declared} bytes; at most {most} are taken")
        if not self.whole:
            return None
        if self.held > most:
            raise BodyTooLarge(f"the body has more than the {most} bytes that are taken")
        body, self.pieces = self.pieces, []
        return body[0] if len(body) == 1 else b"".join(body)

    async def read(self, most: int) -> bytes:
        """The whole body. Raises BodyTooLarge above `most` bytes, and ClientGone."""
        while (data := self.body(most)) is None:
            await self._gather(most)
            if self.held > most:
                raise BodyTooLarge(f"the body has more than the {most} bytes that are taken")
        return data

    async def _gather(self, most: int) -> None:
        connection = self.connection
        if self.expect:
            self.expect = False
            connection.write(_CONTINUE)
        connection.bound = most
        connection.unhold()
        try:
            while not self.whole and self.held <= most:
                if self.gone:
                    raise ClientGone("the client left before its request had ended")
                await self.signal
        finally:
            connection.bound = HIGH_WATER

    async def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> None:
        """The head, with the first bytes of the body. Waits while the client does not read."""
        connection = self.connection
        if self.gone or connection.transport is None:
            return
        plain = not more and self.whole and self.plain_peer and status not in _BODILESS
        if not plain or self.close or connection.server.draining:
            self.status, self.answer_headers, self.lines = status, headers, lines
            self._send_body(data, more=more)
        else:  # nearly every answer that is one body: nothing about it needs a decision
            head = (
                _STATUS_LINES.get(status) or _status_line(status),
                head_lines(headers),
                lines,
                DATE.line(),
                b"content-length: %d\r\n\r\n" % len(data),
                data,
            )
            self.began = self.complete = True
            connection.write(b"".join(head))
            connection.answered(self)
        if not connection.writable:
            await connection.drained()

    @property
    def over(self) -> bool:
        """There is nothing to hear from the client any more."""
        return self.gone or self.complete

    @property
    def plain_peer(self) -> bool:
        """It speaks HTTP/1.1, and did not ask for the head alone."""
        return self.method != "HEAD" and self.head.version == "1.1"

    async def write(self, data: bytes, *, more: bool) -> None:
        """The next bytes. Waits while the client does not read."""
        if self.gone:
            return
        self._send_body(data, more=more)
        if not self.connection.writable:
            await self.connection.drained()

    def _over(self, error: BaseException | None) -> None:
        """The app's coroutine has ended."""
        connection = self.connection
        server = connection.server
        if self.work is not None:
            server.forget_work(self.work)
        self.on_gone = None
        if connection._again is None and error is None:
            connection._remember(self)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            server.bug("".join(traceback.format_exception(error)))
        if not self.complete and not self.gone:
            self._unanswered()

    # -- the ASGI side

    def scope(self) -> Scope:
        head, connection = self.head, self.connection
        path = self.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": head.version,
            "method": head.method,
            "scheme": connection.scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": self.path,
            "query_string": self.query,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.local,
            "state": connection.server.state.copy(),
            "extensions": {"sidecar.gone": self.when_gone, "sidecar.peer": connection.peer},
        }

    def when_gone(self, callback: Callable[[], object]) -> None:
        """ASGI extension `sidecar.gone`: call `callback` (no arguments, must not wait) the moment the client goes."""
        if self.gone:
            callback()
        else:
            self.on_gone = callback

    async def receive(self) -> Message:
        while not self.pieces and not self.whole and not self.gone:
            if self.expect:
                self.expect = False
                if not self.began:
                    self.connection.write(_CONTINUE)
            await self.signal
        if not self.told and not self.over:
            data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            self.pieces.clear()
            self.held = 0
            self.told = self.whole
            if not self.whole:
                self.connection.unhold()
            return {"type": "http.request", "body": data, "more_body": not self.whole}
        while not self.over:
            await self.signal
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone:
            raise OSError(errno.EPIPE, "the client has gone")  # ASGI 2.4
        if kind == "http.response.start":
            if self.status:
                raise RuntimeError("http.response.start was sent twice")
            self.status = message["status"]
            self.answer_headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            return
        if kind != "http.response.body":
            raise RuntimeError(f"unexpected message {kind}")
        if not self.status or self.complete:
            raise RuntimeError("http.response.body was sent before the start or after the end")
        self._send_body(message.get("body", b""), more=message.get("more_body", False))
        if not self.connection.writable:
            await self.connection.drained()

    def _send_body(self, data: bytes, *, more: bool) -> None:
        """One write for whatever can go now: head, piece and end together."""
        connection = self.connection
        out = [] if self.began else [self._write_head(data, more=more)]
        if self.head.method == "HEAD" or self.status in (204, 304):
            data = b""
        elif self.left is not None:
            self.left -= len(data)
            if self.left < 0 or (self.left and not more):
                connection.abort()  # never a lie on the wire: the client sees a cut, not a wrong body
                raise RuntimeError("the body is not as long as its content-length says")
        if data and not self.plain:
            out += (b"%x\r\n" % len(data), data, b"\r\n")
        elif data:
            out.append(data)
        if not more:
            self.complete = True
            if not self.plain:
                out.append(LAST_CHUNK)
        if out:
            connection.write(out[0] if len(out) == 1 else b"".join(out))
        if not more:
            self.signal.wake()
            connection.answered(self)

    def _write_head(self, data: bytes, *, more: bool) -> bytes:
        """The head of the answer. Raises Malformed where a header would split it; nothing is written then."""
        status, head, headers = self.status, self.head, self.answer_headers
        index = dict(headers)
        closing = b"close" in connection_tokens(headers) if b"connection" in index else False
        if not _OWN_HEADERS.isdisjoint(index):
            headers = [pair for pair in headers if pair[0] not in _OWN_HEADERS]
        ours: Headers = []
        bodiless = head.method == "HEAD" or status in (204, 304)
        length = index.get(b"content-length")
        if length is not None and not bodiless:
            self.left = int(length)
        if bodiless or length is not None:
            self.plain = True
        elif not more:
            self.plain = True
            ours.append((b"content-length", b"%d" % len(data)))
        elif head.version == "1.0":
            self.plain = self.close = True
        else:
            ours.append((b"transfer-encoding", b"chunked"))
        if closing or not self.whole or self.connection.server.draining:
            self.close = True
        if self.close:
            ours.append((b"connection", b"close"))
        elif head.version == "1.0":
            ours.append((b"connection", b"keep-alive"))
        line = _STATUS_LINES.get(status) or _status_line(status)
        lines = head_lines([*headers, *ours] if ours else headers) + self.lines
        self.began = True
        return line + lines + (b"\r\n" if b"date" in index else DATE.line() + b"\r\n")

    async def _run(self) -> None:
        server = self.connection.server
        try:
            await server.app(self.scope(), self.receive, self.send)
        except asyncio.CancelledError:
            if not server.stopping:
                raise
        except Exception as error:  # noqa: BLE001  # the border to ASGI: told once, and the client gets a 500 or a cut
            if not (self.gone and isinstance(error, OSError)):
                server.bug(traceback.format_exc())
        finally:
            self.on_gone = None
            if not self.complete and not self.gone:
                self._unanswered()

    def _unanswered(self) -> None:
        """The app has left its client without an answer, or in the middle of one."""
        connection = self.connection
        if self.began:
            connection.abort()
            return
        self.status, self.left, self.plain = 500, None, False
        self.answer_headers = [(b"content-type", b"application/json"), (b"x-sidecar-error", b"sidecar_internal")]
        error = {"message": "an internal error", "type": "api_error", "param": None, "code": "sidecar_internal"}
        self._send_body(json.encode({"error": error}), more=False)


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d \r\n" % status


def _cycle(connection: Connection, head: RequestHead, *, close: bool) -> Cycle:
    path, _, query = head.target.partition(b"?")
    return Cycle(
        connection,
        head,
        head.method,
        path,
        query,
        head.headers,
        head.index,
        head.notes,
        connection.signal,
        close,
        head.expect_continue,
        head.length,
    )


def _with_length(head: RequestHead, digits: bytes) -> RequestHead:
    """The same head with another length, and no notes."""
    headers = [(name, digits if name == b"content-length" else value) for name, value in head.headers]
    return msgspec.structs.replace(head, headers=headers, index=dict(headers), length=int(digits), notes={})
