"""The sidecar with no socket before it: an `httpx` or `httpx2` transport, for asynchronous and synchronous clients.

Either library's request comes in and the same library's response goes out, so neither is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
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
    ):
        def handle_request(self, request: Any) -> Any: ...

        async def handle_async_request(self, request: Any) -> Any: ...
else:
    _Transport = object

T = TypeVar("T")

_HIGH_WATER = 64 * 1024  # bytes of an answer held for a client that does not read
_END_SECONDS = 1.0


class SidecarTransport(_Transport):
    """`OpenAI(http_client=httpx2.Client(transport=SidecarTransport(config)))`: the whole gateway, in process.

    `config`: a Config, a path, or nothing for zero-config. Raises ConfigError. An asynchronous client is served on its
    own event loop, a synchronous one on a loop in a thread of this transport; each loop has connections and limits of
    its own. Threads may share it. Closing the client closes the transport.

    A provider that fails is an answer (502, 503, 504), as it is over a socket. Of the library's exceptions there are
    ReadTimeout, when its client's own `read` timeout passes, RemoteProtocolError, for an answer that was cut, and
    ReadError, for one that was being read when the transport was closed.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        self._config = config if isinstance(config, Config) else load(config)
        self._lock = threading.Lock()  # of the two below, held for no longer than it takes to look
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
        thread = self._loop_thread()

        async def start() -> _Answer:
            answer = _Answer(self._sidecar(), _scope(request), data, _timeouts(request), module)
            await answer.begin()
            return answer

        answer = thread.run(start())
        return answer.response(_stream_type(module, "SyncByteStream")(answer, thread))

    async def aclose(self) -> None:
        with self._lock:
            sidecar = self._sidecars.pop(asyncio.get_running_loop(), None)
        if sidecar is not None:
            await sidecar.aclose()

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close(self.aclose())

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
        with self._lock:
            if loop not in self._sidecars:
                for gone in [each for each in self._sidecars if each.is_closed()]:
                    del self._sidecars[gone]
                self._sidecars[loop] = Sidecar(self._config)
            return self._sidecars[loop]

    def _loop_thread(self) -> _LoopThread:
        with self._lock:
            if self._thread is None or not self._thread.alive:  # it is not, in a process that was forked
                self._thread = _LoopThread()
            return self._thread


class _Closed(RuntimeError):
    """The transport was closed."""


class _LoopThread:
    """An event loop of one thread, for clients that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="sidecar-transport", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to its end, in the thread. Whatever ends the wait (Control-C) ends it too. Raises _Closed."""
        with self._lock:
            if self._closed:
                coroutine.close()
                raise _Closed("the transport is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, and end what other threads still wait for."""
        with self._lock:
            self._closed = True  # nothing comes behind the last
            future = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        future.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def join(self) -> None:
        """Wait until it is closed, by another thread."""
        self._thread.join()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        await last
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # without their connections they end by themselves, but for what its client does not read
            _, left = await asyncio.wait(left, timeout=_END_SECONDS)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)


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
        self.module = module
        self._bodiless = scope["method"] == "HEAD"
        self._gone: Any = None
        self._start: Message | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.complete = False
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
        if (piece := message.get("body", b"")) and not self._bodiless:
            self._pieces.append(piece)
            self._size += len(piece)
        self.complete = not message.get("more_body", False)
        self._wake()
        if self._size > _HIGH_WATER and not self.complete:
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
            raise self.module.RemoteProtocolError("the sidecar ended the exchange without an answer")

    def response(self, stream: Any) -> Any:
        assert self._start is not None
        return self.module.Response(
            self._start["status"],
            headers=self._start["headers"],
            stream=stream,
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises the library's ReadTimeout, or RemoteProtocolError for a cut answer."""
        if not self._pieces and not self.complete:
            await self._wait()
        if not self._pieces:
            if self.complete:
                return b""
            raise self.module.RemoteProtocolError("peer closed connection without sending complete message body")
        data = self.take()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        return data

    def take(self) -> bytes:
        """What has come. Of a complete answer it is the rest, and may be taken in any thread."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return data

    async def _wait(self) -> None:
        if self._pieces or self.complete or self._task.done():
            return
        self._reader = self._loop.create_future()
        seconds = self._timeouts.get("read")
        try:
            async with asyncio.timeout(seconds):
                await self._reader
        except TimeoutError:
            raise self.module.ReadTimeout(f"no byte of the answer within {seconds} s") from None
        finally:
            self._reader = None

    async def close(self) -> None:
        """The client is done: if the exchange is not, it is told that the client has gone."""
        if self._task.done():
            return
        if self.complete:
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
        try:
            while data := await self._answer.read():
                yield data
        except BaseException:  # a read that timed out: nobody will read on
            await self._answer.close()
            raise

    async def aclose(self) -> None:
        await self._answer.close()


class _SyncBody:
    def __init__(self, answer: _Answer, thread: _LoopThread) -> None:
        self._answer = answer
        self._thread = thread

    def __iter__(self) -> Iterator[bytes]:
        answer = self._answer
        try:
            while not answer.complete:
                yield self._thread.run(answer.read())
        except _Closed as error:
            self._thread.join()  # it lets exchanges end, with a word of why
            if not answer.complete:
                raise answer.module.ReadError(str(error)) from None
        except BaseException:
            self.close()
            raise
        yield answer.take()

    def close(self) -> None:
        if not self._answer.complete:
            with contextlib.suppress(_Closed):  # which has ended the exchange
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
    names = (each.__module__.partition(".")[0] for each in type(request).__mro__)
    return sys.modules[next(name for name in names if name in ("httpx", "httpx2"))]


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
        "server": (url.host, url.port or (443 if url.scheme == "https" else 80)),
        "state": {},
    }
