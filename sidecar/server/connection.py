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
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from sidecar.clock import Alarm
from sidecar.drive import Signal
from sidecar.errors import Malformed
from sidecar.server.cycle import DATE, HIGH_WATER, STATUS_LINES, Cycle
from sidecar.types import Headers
from sidecar.wire import body as json
from sidecar.wire.framing import END
from sidecar.wire.http1 import RequestHead, RequestReader, head_lines

if TYPE_CHECKING:
    from sidecar.server.listen import Server

LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4 * 1024 * 1024
MAX_REQUESTS: Final = 1000  # of one connection
MIN_BODY_RATE: Final = 1024  # bytes a second, once a body has had the idle time
_CODES: Final = {413: "caller_body_too_large", 408: "caller_body_timeout"}


class Phase(enum.Enum):
    HEAD = "idle"
    BODY = "reading"
    SERVING = "serving"
    LINGER = "lingering"
    CLOSED = "closed"


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
        "writable",
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
        self.writable = True
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
        if (again := self._again) is not None:
            if phase is Phase.HEAD:
                if self._same_again(again, data):
                    return
            elif phase is Phase.SERVING and not self.reader.done:  # the request it serves was never the reader's
                self.reader.pass_over()
        if phase is Phase.LINGER:
            self._discard(data)
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

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES and self._reading and self.transport is not None:
            self._reading = False  # not closed: a reset would tear away what is still being taken
            self.transport.pause_reading()

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
        self._requests += 1
        self.server.idle.pop(self, None)
        self.phase = Phase.SERVING
        self._alarm.at = None
        size = len(body)
        close = self._requests >= MAX_REQUESTS
        cycle = self.cycle = self._cycle(head, size, [body], size, close=close, whole=True)
        if not cycle.start_directly():  # the app has another mind by now
            self._again = None
            self.reader.pass_over()
            cycle.head = _with_length(head, digits)
            cycle.headers, cycle.index = cycle.head.headers, cycle.head.index
            cycle.start()
        return True

    def _cycle(
        self, head: RequestHead, length: int | None, pieces: list[bytes], held: int, *, close: bool, whole: bool
    ) -> Cycle:
        return Cycle(
            self,
            head,
            head.method,
            head.path,
            head.query,
            head.headers,
            head.index,
            head.notes,
            self.signal,
            close,
            head.expect_continue,
            length,
            pieces,
            held,
            whole,
        )

    def remember(self, cycle: Cycle) -> None:
        """After a request that was served directly: its head, cut where the length stands."""
        if self._again is not None:
            return
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
        self.writable = False
        self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def resume_writing(self) -> None:
        self.writable = True
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
        cycle = self.cycle = self._cycle(head, head.length, [], 0, close=last, whole=False)
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
        while not self.writable and self.transport is not None and not self._left:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None

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
        elif not self.reader.done:  # which knows nothing of this request: its head was the last one's
            self._rest(self.server.settings.keepalive_seconds)
        elif self.reader.excess:  # a pipelined request: not inside the call that answered the one before it
            self._loop.call_soon(self._next)
        else:
            self._next()

    def _rest(self, seconds: float) -> None:
        """Between requests, for so long at most; but who does not take answers gets no more of them."""
        if self.writable and self.transport is not None:
            self.phase = Phase.HEAD
            self.server.idle[self] = None
            self._alarm.set(self._loop.time() + seconds)

    def _next(self) -> None:
        if self.transport is None or self.phase is not Phase.SERVING or self.cycle is not None:
            return
        if not self.writable:  # who does not take answers gets no more of them
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
        self.write(STATUS_LINES[error.status] + head_lines(lines) + DATE.line() + b"\r\n" + data)
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
        if self.phase in (Phase.LINGER, Phase.CLOSED) or not self.writable:
            if not self.writable:
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


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def _with_length(head: RequestHead, digits: bytes) -> RequestHead:
    """The same head with another length, and no notes."""
    headers = [(name, digits if name == b"content-length" else value) for name, value in head.headers]
    return msgspec.structs.replace(head, headers=headers, index=dict(headers), length=int(digits), notes={})
