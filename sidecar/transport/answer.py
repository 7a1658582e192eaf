"""One exchange without a server: the sidecar answers on one side, a client of httpx or httpx2 reads on the other.

Requests of the hot paths go straight to the spine (`Direct`), as they do from our own server: no scope, no messages, no
task for what is answered at once. All others go through ASGI (`Asgi`). Either owns its exchange: closed, it tells it
that its client has gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import ModuleType
from typing import Any, Final

from sidecar.app import Sidecar
from sidecar.drive import Drive, Lazy
from sidecar.errors import BodyTooLarge
from sidecar.exchange import Lane, Over
from sidecar.types import Headers, Hold, Message, Scope, freely

HIGH_WATER: Final = 64 * 1024  # bytes of an answer held for a client that does not read
_BODILESS: Final = (204, 304)


class Answer:
    """What has come of an answer, for one reader. `module`: the client's library, whose errors and classes it knows.

    `timeouts`: its client's, in seconds; of them only `read` means anything here.
    """

    def __init__(self, timeouts: dict[str, float | None], module: ModuleType) -> None:
        self.loop = asyncio.get_running_loop()
        self.module = module
        self.complete = False
        self.over = False  # the exchange is
        self.status = 0
        self._seconds = timeouts.get("read")
        self._headers: Headers = []
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # -- the exchange's side

    def _put(self, data: bytes, *, more: bool) -> None:
        if data:
            self._pieces.append(data)
            self._size += len(data)
        self.complete = not more
        self._wake()

    async def _taken(self) -> None:
        """Wait until the client has read."""
        self._writer = self.loop.create_future()
        await self._writer

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _let_write(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # -- the client's side

    async def begin(self) -> None:
        """Wait for the head, and the first bytes with it."""
        try:
            await self._wait()
        except BaseException:
            await self.close()
            raise
        if not self.status:
            raise self.module.RemoteProtocolError("the sidecar ended the exchange without an answer")

    def response(self, stream: Any) -> Any:
        extensions = {"http_version": b"HTTP/1.1"}
        return self.module.Response(self.status, headers=self._headers, stream=stream, extensions=extensions)

    async def next(self) -> bytes:
        """The next bytes, b"" at the end. Raises the library's ReadTimeout, or RemoteProtocolError for a cut answer."""
        if not self._pieces and not self.complete:
            await self._wait()
        if not self._pieces:
            if self.complete:
                return b""
            raise self.module.RemoteProtocolError("peer closed connection without sending complete message body")
        data = self.take()
        self._let_write()
        return data

    def take(self) -> bytes:
        """What has come. Of a complete answer it is the rest, and may be taken in any thread."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._size = 0
        return data

    async def _wait(self) -> None:
        if self._pieces or self.complete or self.over:
            return
        reader = self._reader = self.loop.create_future()
        timer = None if self._seconds is None else self.loop.call_later(self._seconds, _too_late, reader)
        try:
            await reader
        except TimeoutError:
            raise self.module.ReadTimeout(f"no byte of the answer within {self._seconds} s") from None
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """The client is done: if the exchange is not, it is told that the client has gone."""
        raise NotImplementedError


class Direct(Answer):
    """An exchange as the spine sees its client (exchange.Direct), and as `direct` and `again` of Sidecar take it."""

    tcp = False  # it came by no port
    method = "POST"

    def __init__(
        self,
        path: bytes,
        query: bytes,
        headers: Headers,
        index: dict[bytes, bytes],
        notes: dict[str, Any],
        data: bytes,
        timeouts: dict[str, float | None],
        module: ModuleType,
    ) -> None:
        super().__init__(timeouts, module)
        self.path = path
        self.query = query
        self.headers = headers
        self.index = index
        self.notes = notes
        self.gone = False
        self.stay = False
        self._data = data
        self._work: Drive | Lane | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None

    def start(self, sidecar: Sidecar) -> bool:
        """Has the sidecar taken it directly?"""
        work = sidecar.again(self, self._data) or sidecar.direct(self)
        if work is None:
            return False
        if isinstance(work, Lane):
            if not self.complete:
                self._work = work
        elif not isinstance(work, Over):
            self.follow(work)
        return True

    def follow(self, work: Coroutine[Any, Any, None]) -> Drive:
        """Run what the spine does; or go on with it, where it has begun without a coroutine."""
        self._work = drive = Drive(self.loop, work, self._end)
        drive.resume()
        return drive

    def _end(self, error: BaseException | None) -> None:
        """The exchange has ended. What it raised is a bug of ours: its client has an answer that is cut."""
        self.over = True
        self._wake()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # -- the exchange's side: types.Client

    def body(self, most: int) -> bytes:
        """The whole body. Raises BodyTooLarge."""
        if len(self._data) > most:
            raise BodyTooLarge(f"the body has {len(self._data)} bytes; at most {most} are taken")
        return self._data

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        """The same: all of it has always come."""
        return self.body(most)

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The head, with the first bytes of the body."""
        if self.gone:
            return None
        self._headers = headers + [
            (name, value) for name, _, value in (line.partition(b": ") for line in lines.splitlines())
        ]
        if not more and status not in _BODILESS:
            self._headers.append((b"content-length", b"%d" % len(data)))
        self.status = status
        return self.write(data, more=more)

    @property
    def plain(self) -> bool:
        """Its client is there, and reads."""
        return not self.gone

    def finish_with(self, lines: bytes, data: bytes) -> None:
        """All of an answer whose status is 200, and the end."""
        self.over = type(self._work) is not Drive
        self.answer(200, [], lines, data, more=False)

    def begin_with(self, headers: bytes, lines: bytes, data: bytes) -> None:
        """The head of a stream, and the first of its bytes."""
        self.answer(200, [], headers + lines, data, more=True)

    def end(self) -> None:
        """The end of a stream that was begun so."""
        self.write(b"", more=False)
        self._end(None)

    def pipe(self) -> None:
        return None

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The next bytes. What it answers is to be waited for: the client does not read."""
        if self.gone:
            return None
        self._put(data, more=more)
        return Lazy(self._taken) if more and self._size > HIGH_WATER else None

    # -- the client's side

    async def begin(self) -> None:
        await super().begin()
        if not self.over:
            self._keep()

    def _keep(self) -> asyncio.Task[None]:
        """A task for what goes on behind the head, so that whoever ends the loop's tasks ends it too."""
        if self._keeper is None:
            self._keeper = self.loop.create_task(self._until_it_ends())
        return self._keeper

    async def _until_it_ends(self) -> None:
        if self.over:
            return
        self._ended = self.loop.create_future()
        try:
            await self._ended
        finally:
            self._cancel()

    def _cancel(self) -> None:
        if self._work is not None and not self.over:
            self._work.cancel()

    async def close(self) -> None:
        if self.over:
            return
        if not self.complete:
            self.gone = True
            self._let_write()
            if not self.stay:
                self._cancel()
        if not self.over:
            await asyncio.wait([self._keep()])


class Asgi(Answer):
    """An exchange by ASGI messages."""

    def __init__(
        self, app: Sidecar, scope: Scope, data: bytes, timeouts: dict[str, float | None], module: ModuleType
    ) -> None:
        super().__init__(timeouts, module)
        scope["extensions"] = {"sidecar.gone": self._when_gone}
        self._data: bytes | None = data
        self._bodiless = scope["method"] == "HEAD"
        self._gone: Callable[[], object] | None = None
        self._task = self.loop.create_task(app(scope, self._receive, self._send))
        self._task.add_done_callback(self._end)

    # -- the app's side

    def _when_gone(self, callback: Callable[[], object]) -> None:
        self._gone = callback

    async def _receive(self) -> Message:
        if self._data is not None:
            data, self._data = self._data, None
            return {"type": "http.request", "body": data, "more_body": False}
        await self.loop.create_future()  # until the exchange is cancelled: nobody leaves but through close()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._headers = message["status"], message["headers"]
            return
        self._put(b"" if self._bodiless else message.get("body", b""), more=message.get("more_body", False))
        if self._size > HIGH_WATER and not self.complete:
            await self._taken()

    def _end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()
        self.over = True
        self._wake()

    # -- the client's side

    async def close(self) -> None:
        if self.over:
            return
        if not self.complete:
            if self._gone is not None:
                self._gone()
                self._let_write()
            else:
                self._task.cancel()
        await asyncio.wait([self._task])


def _too_late(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_exception(TimeoutError())
