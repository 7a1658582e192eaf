"""The sidecar with no socket before it: an `httpx` or `httpx2` transport, for asynchronous and synchronous clients.

Either library's request comes in and the same library's response goes out, so neither is imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from sidecar.app import Sidecar
from sidecar.config import Config, load
from sidecar.transport.answer import Answer, Asgi, Direct
from sidecar.types import Headers, Scope

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
Noted = tuple[bytes, bytes, Headers, dict[bytes, bytes], dict[str, Any]]  # path, query, headers, by name, and notes

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
        self._last: Noted = (b"", b"", [], {}, {})

    async def handle_async_request(self, request: Any) -> Any:
        answer = await self._begin(request, await _body(request))
        return answer.response(_stream_type(answer.module, "AsyncByteStream")(answer))

    def handle_request(self, request: Any) -> Any:
        data = b"".join(request.stream)
        thread = self._loop_thread()
        answer = thread.run(self._begin(request, data))
        return answer.response(_stream_type(answer.module, "SyncByteStream")(answer, thread))

    async def _begin(self, request: Any, data: bytes) -> Answer:
        """Its answer, of which the head has come: straight from the spine, or by ASGI where the path is no hot one."""
        sidecar, module, timeouts = self._sidecar(), _library(request), _timeouts(request)
        answer: Direct | Asgi
        if request.method == "POST":
            answer = Direct(*self._noted(request), data, timeouts, module)
            if answer.start(sidecar):
                await answer.begin()
                return answer
        answer = Asgi(sidecar, _scope(request), data, timeouts, module)
        await answer.begin()
        return answer

    def _noted(self, request: Any) -> Noted:
        """The head of a request, but for its length, and what is made of it: mostly it is that of the last."""
        path, _, query = request.url.raw_path.partition(b"?")
        headers = [(name.lower(), value) for name, value in request.headers.raw if name.lower() != b"content-length"]
        noted = self._last
        if noted[2] != headers or noted[0] != path or noted[1] != query:
            noted = self._last = (path, query, headers, dict(headers), {})
        return noted

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


class _AsyncBody:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._answer.next():
                yield data
        except BaseException:  # a read that timed out: nobody will read on
            await self._answer.close()
            raise

    async def aclose(self) -> None:
        await self._answer.close()


class _SyncBody:
    def __init__(self, answer: Answer, thread: _LoopThread) -> None:
        self._answer = answer
        self._thread = thread

    def __iter__(self) -> Iterator[bytes]:
        answer = self._answer
        try:
            while not answer.complete:
                yield self._thread.run(answer.next())
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
