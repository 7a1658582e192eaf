"""Every door by which a client comes to a sidecar, and the official SDKs' clients that stand before it.

Behind each door is the same configuration: provider `lab` speaks OpenAI's language and `ant` Anthropic's, both played
by one simulator, each with a key of its own; callers need one too.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import fastapi
import httpx
import httpx2
import msgspec
import uvicorn
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from sidecar import Config, Sidecar, SidecarMiddleware, SidecarTransport
from sidecar.clock import now
from sidecar.config import Caller, Key, Model, Provider, Retry, Server as Settings
from sidecar.secret import Secret
from sidecar.server import Server
from sidecar.simulator import Seen, Simulator
from sidecar.types import ASGIApp
from tests.faults.ground import nothing_left

CALLER_KEY: Final = "caller-key-0000000001"
LAB_KEY: Final = "lab-key-000000000002"
ANT_KEY: Final = "ant-key-000000000003"
SECONDS: Final = 5.0  # that an SDK waits, at most
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reading the system's roots takes 50 ms a client


def config_for(simulator: Simulator, **lab: Any) -> Config:
    """`lab`: options of the provider of that name."""
    return Config(
        server=Settings(listen=("127.0.0.1:0",)),
        retry=Retry(attempts=0),
        providers={
            "lab": Provider(
                kind="openai-compatible",
                base_url=lab.pop("base_url", simulator.base_url),
                api_key=Key(source="inline", secret=Secret(LAB_KEY)),
                **lab,
            ),
            "ant": Provider(
                kind="anthropic",
                base_url=simulator.base_url.removesuffix("/v1"),
                api_key=Key(source="inline", secret=Secret(ANT_KEY)),
            ),
        },
        models={"fast": Model(targets=("lab/m", "ant/m"))},
        callers={"web": caller()},
    )


def caller(key: str = CALLER_KEY, **options: Any) -> Caller:
    return Caller(key=Key(source="sha256:...", digest=hashlib.sha256(key.encode()).digest()), **options)


class Door(msgspec.Struct, kw_only=True):
    """A way in. `url`: the base URL without /v1; `sync`, `async_`: the HTTP clients that lead through it."""

    url: str
    sync: Callable[[], Any]
    async_: Callable[[], Any]

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", http_client=self.sync(), **_DEFAULTS | options)

    def openai_async(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", http_client=self.async_(), **_DEFAULTS | options)

    def anthropic(self, **options: Any) -> Anthropic:
        return Anthropic(base_url=self.url, http_client=self.sync(), **_DEFAULTS | options)

    def anthropic_async(self, **options: Any) -> AsyncAnthropic:
        return AsyncAnthropic(base_url=self.url, http_client=self.async_(), **_DEFAULTS | options)


_DEFAULTS: Final[dict[str, Any]] = {"api_key": CALLER_KEY, "max_retries": 0, "timeout": SECONDS}


def _at(url: str) -> Door:
    """A door that is a socket."""
    return Door(
        url=url,
        sync=lambda: httpx2.Client(verify=_NO_TLS, trust_env=False),
        async_=lambda: httpx2.AsyncClient(verify=_NO_TLS, trust_env=False),
    )


@asynccontextmanager
async def ours(app: ASGIApp, prefix: str = "") -> AsyncIterator[Door]:
    """The app on the sidecar's own server."""
    async with Server(app, Settings(listen=("127.0.0.1:0",))) as server:
        yield _at(f"http://{server.addresses[0]}{prefix}")


@asynccontextmanager
async def uvicorns(app: ASGIApp, prefix: str = "") -> AsyncIterator[Door]:
    """The app on uvicorn."""
    async with _running(uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none")) as server:
        yield _at(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{prefix}")


@asynccontextmanager
async def _running(config: uvicorn.Config) -> AsyncIterator[uvicorn.Server]:
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), "uvicorn did not start"
        await asyncio.sleep(0)
    try:
        yield server
    finally:
        server.should_exit = True
        await serving


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the app's own")


def _wrapped(config: Config) -> ASGIApp:
    return SidecarMiddleware(Starlette(routes=[Route("/hello", hello)]), config)


def _mounted(config: Config) -> ASGIApp:
    sidecar = Sidecar(config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with sidecar:  # Starlette tells its mounts nothing of its lifespan
            yield

    return Starlette(routes=[Route("/hello", hello), Mount("/llm", sidecar)], lifespan=lifespan)


def _added(config: Config) -> ASGIApp:
    app = fastapi.FastAPI()
    app.add_middleware(SidecarMiddleware, config=config, prefix="/llm")

    @app.middleware("http")  # as many apps have one; it stands before ours, and sees all that passes
    async def count(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-counted"] = "1"
        return response

    return app


@asynccontextmanager
async def _in_process(config: Config, library: Any) -> AsyncIterator[Door]:
    transport = SidecarTransport(config)
    yield Door(
        url="http://sidecar",
        sync=lambda: library.Client(transport=transport),
        async_=lambda: library.AsyncClient(transport=transport),
    )
    await transport.aclose()
    await asyncio.to_thread(transport.close)


_DOORS: Final[dict[str, Callable[[Config], AbstractAsyncContextManager[Door]]]] = {
    "server": lambda config: ours(Sidecar(config)),
    "middleware": lambda config: ours(_wrapped(config), "/llm"),
    "middleware-uvicorn": lambda config: uvicorns(_wrapped(config), "/llm"),
    "mount": lambda config: ours(_mounted(config), "/llm"),
    "mount-uvicorn": lambda config: uvicorns(_mounted(config), "/llm"),
    "fastapi-uvicorn": lambda config: uvicorns(_added(config), "/llm"),
    "transport": lambda config: _in_process(config, httpx2),
    "transport-httpx": lambda config: _in_process(config, httpx),
}
ALL: Final = tuple(_DOORS)
FEW: Final = ("server", "middleware-uvicorn", "transport")  # where the number of cases matters


def door(name: str, config: Config) -> AbstractAsyncContextManager[Door]:
    return _DOORS[name](config)


@asynccontextmanager
async def behind(name: str, **lab: Any) -> AsyncIterator[tuple[Door, Simulator]]:
    """A door with the sidecar and its providers behind it. Afterwards no task and no socket is left of them."""
    async with nothing_left(), Simulator() as simulator, door(name, config_for(simulator, **lab)) as way:
        yield way, simulator


@asynccontextmanager
async def behind_uvicorn() -> AsyncIterator[tuple[Door, Simulator, Callable[[], None]]]:
    """The middleware on uvicorn, and how to stop it: it does not wait long."""
    async with nothing_left(), Simulator() as simulator:
        app = _wrapped(config_for(simulator))
        config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=0)
        async with _running(config) as server:
            port = server.servers[0].sockets[0].getsockname()[1]
            yield _at(f"http://127.0.0.1:{port}/llm"), simulator, lambda: setattr(server, "should_exit", True)


async def cancelled(simulator: Simulator, left_at: float, count: int = 1) -> Seen:
    """The provider's last request, once it was cancelled: within a second of its client's leaving."""
    while not (len(simulator.requests) >= count and simulator.requests[-1].cancelled_at is not None):
        assert now() - left_at < 1.0, f"the provider still works: {simulator!r}"
        await asyncio.sleep(0.002)
    return simulator.requests[-1]
