"""The sidecar with no socket before it: an `httpx` or `httpx2` transport, for asynchronous and synchronous clients.

Either library's request comes in and the same library's response goes out, so neither is imported here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from sidecar.app import Sidecar
from sidecar.config import Config, load
from sidecar.types import Message, Scope

if TYPE_CHECKING:
    import httpx
    import httpx2

    class _Transport(  # what type checkers see; at run time both clients only call the methods
        httpx.BaseTransport, httpx.AsyncBaseTransport, httpx2.BaseTransport, httpx2.AsyncBaseTransport
    ): ...
else:
    _Transport = object

T = TypeVar("T")

_HIGH_WATER = 64 * 1024  # bytes of an answer held for a client that does not read


class SidecarTransport(_Transport):
    """`OpenAI(http_client=httpx2.Client(transport=SidecarTransport(config)))`: the whole gateway, in process.

    `config`: a Config, a path, or nothing for zero-config. Raises ConfigError. An asynchronous client is served on its own
    event loop, a synchronous one on a loop in a thread of this transport. Closing the client closes the transport.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        self._config = config if isinstance(config, Config) else load(config)
        self._sidecars: dict[asyncio.AbstractEventLoop, Sidecar] = {}  # a pool lives on one loop
        self._thread: _LoopThread | None = None

    async def handle_async_request(self, request: Any) -> Any:
        module = _library(request)
        answer = _Answer(self._sidecar(), _scope(request), await _body(request), _timeouts(request), module)
        await answer.begin()
        return answer.response(_stream_type(module, "AsyncByteStream")(answer))

    def handle_request(self, request: Any) -> Any:
        module = _library(request)
        data = b"".join(request.stream)
        if self._thread is None:
            self._thread = _LoopThread()
        thread = self._thread

        async def start() -> _Answer:
            answer = _Answer(self._sidecar(), _scope(request), data, _timeouts(request), module)
            await answer.begin()
            return answer

        answer = thread.run(start())
        return answer.response(_stream_type(module, "SyncByteStream")(answer, thread))

    async def aclose(self) -> None:
        sidecar = self._sidecars.pop(asyncio.get_running_loop(), None)
        if sidecar is not None:
            await sidecar.aclose()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.run(self.aclose())
            self._thread.close()
            self._thread = None

    def __enter__(self) -> SidecarTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> SidecarTransport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _sidecar(self) -> Sidecar:
        loop = asyncio.get_running_loop()
        if loop not in self._sidecars:
            for gone in [each for each in self._sidecars if each.is_closed()]:
                del self._sidecars[gone]
            self._sidecars[loop] = Sidecar(self._config)
        return self._sidecars[loop]


class _LoopThread:
    """An event loop of one thread, for clients that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sidecar-transport", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Answer:
    """One exchange driven without a server: its ASGI messages on one side, the client's reads on the other.

    It owns the task of the exchange; closing it tells the app that the client has gone.
    """

    def __init__(
        self, app: Sidecar, scope: Scope, data: bytes, timeouts: dict[str, float | None], module: ModuleType
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = scope
        scope["extensions"] = {"sidecar.gone": self._when_gone}
        self._data: bytes | None = data
        self._timeouts = timeouts
        self._module = module
        self._gone: Any = None
        self._start: Message | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._complete = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._task = self._loop.create_task(app(scope, self._receive, self._send))
        self._task.add_done_callback(self._over)

    # -- the app's side

    def _when_gone(self, callback: Any) -> None:
        self._gone = callback

    async def _receive(self) -> Message:
        if self._data is not None:
            data, self._data = self._data, None
            return {"type": "http.request", "body": data, "more_body": False}
        await self._loop.create_future()  # until the exchange is cancelled: nobody leaves but through close()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if piece := message.get("body", b""):
            self._pieces.append(piece)
            self._size += len(piece)
        self._complete = not message.get("more_body", False)
        self._wake()
        if self._size > _HIGH_WATER and not self._complete:
            self._writer = self._loop.create_future()
            await self._writer

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # -- the client's side

    async def begin(self) -> None:
        """Wait for the head, and the first bytes with it."""
        try:
            await self._wait()
        except BaseException:
            await self.close()
            raise
        if self._start is None:
            raise self._module.RemoteProtocolError("the sidecar ended the exchange without an answer")

    def response(self, stream: Any) -> Any:
        assert self._start is not None
        return self._module.Response(
            self._start["status"],
            headers=self._start["headers"],
            stream=stream,
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises the library's ReadTimeout, or RemoteProtocolError for a cut answer."""
        if not self._pieces and not self._complete:
            await self._wait()
        if not self._pieces:
            if self._complete:
                return b""
            raise self._module.RemoteProtocolError("peer closed connection without sending complete message body")
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        return data

    async def _wait(self) -> None:
        if self._pieces or self._complete or self._task.done():
            return
        self._reader = self._loop.create_future()
        seconds = self._timeouts.get("read")
        try:
            async with asyncio.timeout(seconds):
                await self._reader
        except TimeoutError:
            raise self._module.ReadTimeout(f"no byte of the answer within {seconds} s") from None
        finally:
            self._reader = None

    async def close(self) -> None:
        """The client is done: if the exchange is not, it is told that the client has gone."""
        if self._task.done():
            return
        if self._complete:
            await asyncio.wait([self._task])
            return
        if self._gone is not None:
            self._gone()
        else:
            self._task.cancel()
        await asyncio.wait([self._task])


class _AsyncBody:
    def __init__(self, answer: _Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._answer.read():
            yield data

    async def aclose(self) -> None:
        await self._answer.close()


class _SyncBody:
    def __init__(self, answer: _Answer, thread: _LoopThread) -> None:
        self._answer = answer
        self._thread = thread

    def __iter__(self) -> Iterator[bytes]:
        while data := self._thread.run(self._answer.read()):
            yield data

    def close(self) -> None:
        self._thread.run(self._answer.close())


_STREAMS: dict[tuple[str, str], type] = {}


def _stream_type(module: ModuleType, base: str) -> Any:
    """A byte stream of the client's own library: its clients insist on their class."""
    key = (module.__name__, base)
    if key not in _STREAMS:
        ours = _AsyncBody if base == "AsyncByteStream" else _SyncBody
        _STREAMS[key] = type(ours.__name__, (ours, getattr(module, base)), {})
    return _STREAMS[key]


def _library(request: Any) -> ModuleType:
    """The package that a request's class comes from: httpx or httpx2."""
    return sys.modules[type(request).__module__.partition(".")[0]]


async def _body(request: Any) -> bytes:
    return b"".join([piece async for piece in request.stream])


def _timeouts(request: Any) -> dict[str, float | None]:
    timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeouts


def _scope(request: Any) -> Scope:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": (url.host, url.port or 80),
        "state": {},
    }
