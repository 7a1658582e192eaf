"""One client's connection: requests in, one exchange at a time and in order, answers out.

The codec (wire.http1) frames; this file moves bytes, keeps deadlines, and tells the app at once when its client has gone.
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
import socket
import struct
import traceback
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

from sidecar.clock import Alarm, wall
from sidecar.errors import Malformed
from sidecar.types import Headers, Message, Scope
from sidecar.wire import body as json
from sidecar.wire.http1 import END, LAST_CHUNK, RequestHead, RequestReader, head_lines

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


class Connection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_alarm",
        "_body_began",
        "_body_bytes",
        "_discarded",
        "_drained",
        "_loop",
        "_reading",
        "_requests",
        "_writable",
        "client",
        "cycle",
        "local",
        "phase",
        "reader",
        "scheme",
        "server",
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
        self._loop = server.loop
        self._alarm = Alarm(server.loop, self._ring)
        self._requests = 0
        self._reading = True
        self._writable = True
        self._drained: asyncio.Future[None] | None = None  # of a send() that waits for the client to take bytes
        self._body_began = 0.0
        self._body_bytes = 0
        self._discarded = 0

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
            if self._discarded > LINGER_BYTES:
                self.close()
            return
        try:
            if phase is Phase.HEAD and self.reader.idle:
                self._alarm.set(self._loop.time() + self.server.settings.header_seconds)
            self._take(self.reader.feed(data))
        except Malformed as error:
            self._refuse(error)

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
        self._let_send()

    # -- requests

    def _take(self, events: list[Any]) -> None:
        cycle = self.cycle
        for event in events:
            if type(event) is bytes:
                assert cycle is not None
                cycle.add(event)
                self._body_bytes += len(event)
            elif event is END:
                assert cycle is not None
                self.phase = Phase.SERVING
                self._alarm.clear()
                cycle.whole()
            else:
                cycle = self._begin(event)
        if self.phase is Phase.BODY:
            self._read_on()
        elif self.reader.excess > HIGH_WATER:
            self._hold()
        if cycle is not None and cycle.task is None:
            cycle.start()

    def _begin(self, head: RequestHead) -> Cycle:
        self._requests += 1
        self.server.idle.pop(self, None)
        self.phase = Phase.BODY
        self._body_began = self._loop.time()
        self._body_bytes = 0
        last = not head.keep_alive or self._requests >= MAX_REQUESTS
        cycle = self.cycle = Cycle(self, head, close=last)
        return cycle

    def _read_on(self) -> None:
        """Set the deadline for the next bytes of a body, or hold the client back when the app is slower."""
        assert self.cycle is not None
        if self.cycle.held > HIGH_WATER:
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
                self._body_began = self._loop.time() - self._body_bytes / MIN_BODY_RATE  # the wait was ours
                self._read_on()

    def _watch(self, *, hangup: bool) -> None:
        if self.transport is not None:
            fd: int = self.transport.get_extra_info("socket").fileno()
            if hangup:
                self.server.hangups.add(fd, self)
            else:
                self.server.hangups.discard(fd)

    def hung_up(self) -> None:
        """The client has gone while nothing was read from it."""
        self.abort()

    # -- answers

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    async def drained(self) -> None:
        """Wait until the client has taken enough, or has gone."""
        while not self._writable and self.transport is not None:
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
        if not self.reader.done:  # part of the body is still to come, and nobody wants it
            self._linger()
        elif cycle.close or self.server.draining:
            self.close()
        else:
            self._next()

    def _next(self) -> None:
        self.phase = Phase.HEAD
        self.server.idle[self] = None
        settings = self.server.settings
        try:
            events = self.reader.next()
            wait = settings.keepalive_seconds if self.reader.idle else settings.header_seconds
            self._alarm.set(self._loop.time() + wait)
            if not self._writable:  # the last answer is not all taken: its own deadline is the nearer one
                self._alarm.set(self._loop.time() + min(wait, settings.send_stall_seconds))
            if events:
                self._take(events)
            if self.reader.excess <= HIGH_WATER:
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
        if transport.can_write_eof():
            transport.write_eof()

    def _gone(self) -> None:
        """The client is not there any more: tell the app now, whatever it waits for."""
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.leave()
        self._let_send()

    def close(self) -> None:
        """Close once what is written has been taken."""
        if self.transport is not None:
            self.phase = Phase.CLOSED
            self.server.idle.pop(self, None)
            self.transport.close()
            self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def abort(self) -> None:
        if self.transport is not None:
            self.phase = Phase.CLOSED
            self.server.idle.pop(self, None)
            self.transport.abort()

    def _ring(self) -> None:
        """A deadline has passed."""
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


class Cycle:
    """One request and its answer: what ASGI calls the connection scope, with its `receive` and `send`."""

    __slots__ = (
        "_body",
        "_connection",
        "_expect",
        "_head",
        "_headers",
        "_left",
        "_on_gone",
        "_plain",
        "_status",
        "_waiter",
        "_whole",
        "began",
        "close",
        "complete",
        "gone",
        "held",
        "task",
    )

    def __init__(self, connection: Connection, head: RequestHead, *, close: bool) -> None:
        self._connection = connection
        self._head = head
        self._expect = head.expect_continue
        self._body: list[bytes] = []
        self.held = 0
        self._whole = False
        self._waiter: asyncio.Future[None] | None = None
        self.gone = False
        self._on_gone: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.close = close
        self._status = 0
        self._headers: Headers = []
        self.began = False  # the head of the answer is on the wire
        self.complete = False
        self._plain = False  # no chunks: a length was declared, or the end is the connection's
        self._left: int | None = None  # bytes still to come of a declared length

    # -- the connection's side

    def start(self) -> None:
        connection = self._connection
        server = connection.server
        self.task = task = server.loop.create_task(self._run())
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)

    def add(self, data: bytes) -> None:
        self._body.append(data)
        self.held += len(data)
        self._wake()

    def whole(self) -> None:
        self._whole = True
        self._wake()

    def leave(self) -> None:
        """The client has gone: the app is told in both of its ways."""
        if self.gone or self.complete:
            return
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the app's side

    def scope(self) -> Scope:
        head, connection = self._head, self._connection
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": head.version.decode("ascii"),
            "method": head.method,
            "scheme": connection.scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.local,
            "state": connection.server.state.copy(),
            "extensions": {"sidecar.gone": self.when_gone, "sidecar.peer": connection.peer},
        }

    def when_gone(self, callback: Callable[[], None]) -> None:
        """ASGI extension `sidecar.gone`: call `callback` (no arguments, must not wait) the moment the client goes."""
        if self.gone:
            callback()
        else:
            self._on_gone = callback

    async def receive(self) -> Message:
        while not self._body and not self._whole and not self.gone:
            if self._expect:
                self._expect = False
                if not self.began:
                    self._connection.write(_CONTINUE)
            await self._wait()
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        if self._body or (self._whole and self.held >= 0):
            data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            more = not self._whole
            self.held = -1 if not more else 0  # -1: the end has been told
            if more:
                self._connection.unhold()
            return {"type": "http.request", "body": data, "more_body": more}
        while not self.gone and not self.complete:
            await self._wait()
        return {"type": "http.disconnect"}

    async def _wait(self) -> None:
        self._waiter = self._connection.server.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone:
            return
        if kind == "http.response.start":
            if self._status:
                raise RuntimeError("http.response.start was sent twice")
            self._status = message["status"]
            self._headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
            return
        if kind != "http.response.body":
            raise RuntimeError(f"unexpected message {kind}")
        if not self._status or self.complete:
            raise RuntimeError("http.response.body was sent before the start or after the end")
        self._send_body(message.get("body", b""), more=message.get("more_body", False))
        if not self._connection.writable:
            await self._connection.drained()

    def _send_body(self, data: bytes, *, more: bool) -> None:
        """One write for whatever can go now: head, piece and end together."""
        connection = self._connection
        out = [] if self.began else [self._write_head(data, more=more)]
        if self._head.method == "HEAD" or self._status in (204, 304):
            data = b""
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                connection.abort()  # never a lie on the wire: the client sees a cut, not a wrong body
                raise RuntimeError("the body is not as long as its content-length says")
        if data and not self._plain:
            out += (b"%x\r\n" % len(data), data, b"\r\n")
        elif data:
            out.append(data)
        if not more:
            self.complete = True
            if not self._plain:
                out.append(LAST_CHUNK)
        if out:
            connection.write(out[0] if len(out) == 1 else b"".join(out))
        if not more:
            self._wake()
            connection.answered(self)

    def _write_head(self, data: bytes, *, more: bool) -> bytes:
        """The head of the answer. Raises Malformed where a header would split it; nothing is written then."""
        status, head = self._status, self._head
        headers = [pair for pair in self._headers if pair[0] not in _OWN_HEADERS]
        bodiless = head.method == "HEAD" or status in (204, 304)
        length = dated = False
        for name, value in headers:
            if name == b"content-length":
                length = True
                if not bodiless:
                    self._left = int(value)
            elif name == b"date":
                dated = True
        if bodiless or length:
            self._plain = True
        elif not more:
            self._plain = True
            headers.append((b"content-length", b"%d" % len(data)))
        elif head.version == b"1.0":
            self._plain = self.close = True
        else:
            headers.append((b"transfer-encoding", b"chunked"))
        if any(pair == (b"connection", b"close") for pair in self._headers) or self._connection.server.draining:
            self.close = True
        if not self._whole:
            self.close = True
        if self.close:
            headers.append((b"connection", b"close"))
        elif head.version == b"1.0":
            headers.append((b"connection", b"keep-alive"))
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        lines = head_lines(headers)
        self.began = True
        return line + lines + (b"\r\n" if dated else DATE.line() + b"\r\n")

    async def _run(self) -> None:
        server = self._connection.server
        try:
            await server.app(self.scope(), self.receive, self.send)
        except asyncio.CancelledError:
            if not server.stopping:
                raise
        except Exception:  # noqa: BLE001  # the border to ASGI: told once, and the client gets a 500 or a cut
            server.bug(traceback.format_exc())
        finally:
            self._on_gone = None
            if not self.complete and not self.gone:
                self._unanswered()

    def _unanswered(self) -> None:
        """The app has left its client without an answer, or in the middle of one."""
        connection = self._connection
        if self.began:
            connection.abort()
            return
        self._status, self._left, self._plain = 500, None, False
        self._headers = [(b"content-type", b"application/json"), (b"x-sidecar-error", b"sidecar_internal")]
        error = {"message": "an internal error", "type": "api_error", "param": None, "code": "sidecar_internal"}
        self._send_body(json.encode({"error": error}), more=False)


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
