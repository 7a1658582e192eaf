"""One request and its answer on a client's connection (see connection.py)."""

from __future__ import annotations

import asyncio
import errno
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import msgspec

from sidecar.drive import Drive, Lazy, Signal
from sidecar.errors import BodyTooLarge, ClientGone
from sidecar.server.again import remembered
from sidecar.server.lines import DATE, STATUS_LINES
from sidecar.server.sending import HIGH_WATER
from sidecar.types import Headers, Hold, Message, Scope, freely
from sidecar.wire import body as json
from sidecar.wire.framing import LAST_CHUNK, chunk, connection_tokens
from sidecar.wire.heads import RequestHead, head_lines

if TYPE_CHECKING:
    from sidecar.server.connection import Connection

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_OWN_HEADERS: Final = frozenset((b"transfer-encoding", b"connection", b"keep-alive"))
_BODILESS: Final = (204, 304)
_OK: Final = STATUS_LINES[200]


class Work(Protocol):
    """What an app does for one request: a task, a Drive, or something of its own."""

    def cancel(self) -> object: ...


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
    stay: bool = False  # the app goes on without its client
    on_gone: Callable[[], object] | None = None
    work: Work | None = None
    status: int = 0  # of the answer
    answer_headers: Headers = []
    lines: bytes = b""  # more of them, in the form of the wire
    began: bool = False  # the head of the answer is on the wire
    complete: bool = False
    unchunked: bool = False  # no chunks: a length was declared, or the end is the connection's
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
        direct = self.connection.server.direct
        if direct is None or (coroutine := direct(self)) is None:
            return False
        self.follow(coroutine)
        return True

    def follow(self, coroutine: Coroutine[Any, Any, None]) -> Drive:
        """Run the app's coroutine; or go on with it, where the app has begun without one."""
        server = self.connection.server
        if self.work is not None:
            server.work.discard(self.work)
        self.work = drive = Drive(server.loop, coroutine, self._over)
        self.on_gone = drive.cancel
        server.work.add(drive)
        drive.resume()
        return drive

    def leave(self) -> None:
        """The client has gone: the app is told in both of its ways."""
        if self.gone or self.complete:
            return
        self.gone = True
        if self.on_gone is not None and not self.stay:
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

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        """As Client.read."""
        while (data := self.body(most)) is None:
            hold(self.held if self.length is None else self.length)
            await self._gather(most, hold)
            if self.held > most:
                raise BodyTooLarge(f"the body has more than the {most} bytes that are taken")
        return data

    async def _gather(self, most: int, hold: Hold) -> None:
        connection = self.connection
        if self.expect:
            self.expect = False
            connection.write(_CONTINUE)
        connection.bound = most
        connection.unhold()
        room: BytesIO | None = None
        try:
            while not self.whole and self.held <= most:
                if self.gone:
                    raise ClientGone("the client left before its request had ended")
                await self.signal
                hold(self.held)
                if room is None and self.held > json.LONG_BYTES and self.length is not None:
                    room = json.room(self.length, self.held)
                if room is not None:
                    room.writelines(self.pieces)
                    self.pieces.clear()
        finally:
            connection.bound = HIGH_WATER
        if room is not None:
            self.pieces.append(room.getvalue())

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The head, with the first bytes of the body. What it answers is to be waited for: the client does not read."""
        connection = self.connection
        if self.gone or connection.transport is None:
            return None
        odd = more or self.close or not self.whole or status in _BODILESS
        if odd or not self.head.plain or connection.server.draining:
            self.status, self.answer_headers, self.lines = status, headers, lines
            self._send_body(data, more=more)
        else:  # nearly every answer that is one body: nothing about it needs a decision
            head = b"%b%b%b%b" % (STATUS_LINES[status], head_lines(headers), lines, DATE.line())
            self.began = self.complete = self.unchunked = True
            connection.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(data), data))
            connection.answered(self)
        return None if connection.writable else Lazy(connection.drained)

    @property
    def over(self) -> bool:
        """There is nothing to hear from the client any more."""
        return self.gone or self.complete

    @property
    def plain(self) -> bool:
        """Its client is there, takes what it is sent, and is kept: nothing about its answer needs a decision."""
        connection = self.connection
        kept = self.head.plain and not (self.gone or self.close or connection.server.draining)
        return kept and connection.writable

    def finish_with(self, lines: bytes, data: bytes) -> None:
        """All of an answer whose status is 200, while `plain`, and the end. `lines`: of its headers."""
        self.end(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (_OK, lines, DATE.line(), len(data), data))

    def begin_with(self, headers: bytes, lines: bytes, data: bytes) -> None:
        """The head of a chunked answer whose status is 200, while `plain`, and the first of its bytes."""
        self.began, self.status = True, 200
        head = b"%b%btransfer-encoding: chunked\r\n%b%b\r\n" % (_OK, headers, lines, DATE.line())
        self.connection.write(head + chunk(data) if data else head)

    def end(self, data: bytes = LAST_CHUNK) -> None:
        """The end of an answer, while `plain`; of one that was begun so, its last chunk."""
        connection = self.connection
        self.complete = True
        self.on_gone = None
        connection.server.work.discard(self.work)
        self.work = None  # which knows this: a circle is left to the garbage collector
        connection.write(data)
        connection.answered(self)

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The next bytes. What it answers is to be waited for: the client does not read."""
        if self.gone:
            return None
        connection = self.connection
        if more and data and self.began and not self.unchunked:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._send_body(data, more=more)
        return None if connection.writable else Lazy(connection.drained)

    def pipe(self) -> Connection | None:
        """As types.Client has it."""
        return self.connection if self.began and not (self.unchunked or self.complete or self.gone) else None

    def _over(self, error: BaseException | None) -> None:
        """The app's coroutine has ended."""
        connection = self.connection
        server = connection.server
        if self.work is not None:
            server.forget_work(self.work)
        self.on_gone = self.work = None
        if error is None:
            if connection.again is None:
                connection.again = remembered(self.head)
        elif not isinstance(error, asyncio.CancelledError):
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
        if self.complete:
            raise RuntimeError("the answer has ended already")
        connection = self.connection
        out = [] if self.began else [self._write_head(data, more=more)]
        if self.head.method == "HEAD" or self.status in (204, 304):
            data = b""
        elif self.left is not None:
            self.left -= len(data)
            if self.left < 0 or (self.left and not more):
                connection.abort()  # never a lie on the wire: the client sees a cut, not a wrong body
                raise RuntimeError("the body is not as long as its content-length says")
        if data:
            out += (data,) if self.unchunked else (b"%x\r\n" % len(data), data, b"\r\n")
        if not more:
            self.complete = True
            if not self.unchunked:
                out.append(LAST_CHUNK)
                self.unchunked = True  # a piece more would not be one of these chunks
        if out:
            connection.write(b"".join(out))
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
            self.unchunked = True
        elif not more:
            self.unchunked = True
            ours.append((b"content-length", b"%d" % len(data)))
        elif head.version == "1.0":
            self.unchunked = self.close = True
        else:
            ours.append((b"transfer-encoding", b"chunked"))
        if closing or not self.whole or self.connection.server.draining:
            self.close = True
        if self.close:
            ours.append((b"connection", b"close"))
        elif head.version == "1.0":
            ours.append((b"connection", b"keep-alive"))
        line = STATUS_LINES[status]
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
        self.status, self.left, self.unchunked = 500, None, False
        self.answer_headers = [(b"content-type", b"application/json"), (b"x-sidecar-error", b"sidecar_internal")]
        error = {"message": "an internal error", "type": "api_error", "param": None, "code": "sidecar_internal"}
        self._send_body(json.encode({"error": error}), more=False)
