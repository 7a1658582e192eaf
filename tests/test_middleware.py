"""The sidecar inside another app: what is whose, whose lifespan it is, and a client's going under a foreign server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from sidecar import Config, Sidecar, SidecarMiddleware
from sidecar.clock import now
from sidecar.config import Provider
from sidecar.simulator import Simulator
from sidecar.types import ASGIApp, Receive, Scope, Send
from tests.asgi import Lifespan, ask
from tests.e2e.doors import CALLER_KEY, Door, cancelled, config_for, hello, ours, uvicorns
from tests.faults.ground import nothing_left
from tests.faults.peer import FIN, RST, STOP_READING, Expect, RawClient, Step

CHAT: Any = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {CALLER_KEY}"}
SOME = Config(providers={"lab": Provider(kind="openai-compatible", base_url="http://127.0.0.1:1/v1")})
SERVERS = pytest.mark.parametrize("serve", [ours, uvicorns])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that is not the sidecar, without a lifespan: it answers with the path that it sees."""
    assert scope["type"] == "http"
    await PlainTextResponse(f"{scope.get('root_path', '')}|{scope['path']}")(scope, receive, send)


# -- what is whose


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/llm/v1/models", ""),
        ("/api/llm/v1/models", "/api"),
        ("/llm/v1/models", "/api"),
        ("/llm/llm/v1/models", "/llm"),
    ],
)
async def test_below_the_prefix_it_is_the_sidecar(path: str, root: str) -> None:
    answer = await ask(SidecarMiddleware(echo, SOME), "GET", path, root_path=root)
    assert answer.json["object"] == "list"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/", ""), ("/llmx/v1/models", ""), ("/v1/models", ""), ("/a/llm/v1/models", ""), ("/LLM/v1/models", ""),
        ("/llm/v1/models", "/llm"), ("/api/v1/models", "/api"),
    ],
)  # fmt: skip
async def test_everything_else_is_the_apps(path: str, root: str) -> None:
    answer = await ask(SidecarMiddleware(echo, SOME), "GET", path, root_path=root)
    assert answer.body.decode() == f"{root}|{path}"


async def test_the_prefix_itself_is_the_sidecars_root() -> None:
    app = SidecarMiddleware(echo, SOME, prefix="/llm/")
    for path in ("/llm", "/llm/"):
        assert (await ask(app, "GET", path)).json["name"] == "sidecar"
        assert (await ask(app, "HEAD", path)).status == 200
        assert (await ask(app, "POST", path)).get(b"x-sidecar-error") == b"caller_method_not_allowed"
    unknown = await ask(app, "GET", "/llm/nowhere")
    assert unknown.json["error"]["message"].startswith("nothing is served at /llm/nowhere")


@pytest.mark.parametrize("prefix", ["", "/", "//", "llm", "llm/"])
def test_a_prefix_that_is_none(prefix: str) -> None:
    with pytest.raises(ValueError, match="must begin with a slash"):
        SidecarMiddleware(echo, SOME, prefix=prefix)


async def test_two_of_them() -> None:
    other = Config(providers={"other": Provider(kind="openai-compatible", base_url="http://127.0.0.1:1/v1")})
    app = SidecarMiddleware(SidecarMiddleware(echo, SOME, prefix="/llm"), other, prefix="/llm/other")
    for prefix, name in (("/llm", "lab"), ("/llm/other", "other")):
        answer = await ask(app, "POST", f"{prefix}/v1/chat/completions", HEADERS, {**CHAT, "model": "nobody"})
        assert f"providers: {name})" in answer.json["error"]["message"]
    assert (await ask(app, "GET", "/")).body == b"|/"


# -- whose lifespan it is


def sidecar_in(lines: list[str], **how: Any) -> tuple[SidecarMiddleware, list[str]]:
    """A Starlette app that writes down its lifespan, in the middleware."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        lines.append("app up")
        if how.get("fails") == "startup":
            raise RuntimeError("no database")
        yield {"of": "the app"}
        lines.append(f"app down, pool closed: {wrapped.sidecar.pool.closed}")
        if how.get("fails") == "shutdown":
            raise RuntimeError("no end")

    async def state(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.of)

    wrapped = SidecarMiddleware(Starlette(lifespan=lifespan, routes=[Route("/state", state)]), SOME)
    return wrapped, lines


async def test_the_apps_lifespan_and_ours() -> None:
    wrapped, lines = sidecar_in([])
    life = Lifespan(wrapped)
    await life.startup()
    assert not wrapped.sidecar.pool.closed
    await life.shutdown()
    assert life.told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert lines == ["app up", "app down, pool closed: False"]  # the app may still ask when it shuts down
    assert wrapped.sidecar.pool.closed


@pytest.mark.parametrize("fails", ["startup", "shutdown"])
async def test_an_app_that_fails(fails: str) -> None:
    wrapped, _ = sidecar_in([], fails=fails)
    life = Lifespan(wrapped)
    await life.startup()
    if fails == "shutdown":
        await life.shutdown()
    assert life.told[-1] == f"lifespan.{fails}.failed"
    while life.error is None:
        await asyncio.sleep(0)
    assert isinstance(life.error, RuntimeError)
    assert wrapped.sidecar.pool.closed


async def asserts(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"


async def returns(scope: Scope, receive: Receive, send: Send) -> None:
    return None


async def hears_and_returns(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


@pytest.mark.parametrize("app", [asserts, returns, hears_and_returns])
async def test_an_app_without_a_lifespan_gets_ours(app: ASGIApp) -> None:
    wrapped = SidecarMiddleware(app, SOME)
    life = Lifespan(wrapped)
    await life.startup()
    await life.shutdown()
    assert life.told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert wrapped.sidecar.pool.closed


async def test_an_app_that_breaks_before_it_says_anything() -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise RuntimeError("no database")

    wrapped = SidecarMiddleware(breaks, SOME)
    life = Lifespan(wrapped)
    await life.startup()
    assert life.told == ["(over)"]  # as the app alone would have had it: some servers go on without a lifespan
    assert isinstance(life.error, RuntimeError)
    assert not wrapped.sidecar.pool.closed


async def test_a_test_client_comes_and_goes() -> None:
    """Each has an event loop of its own, and with it a lifespan, or none."""

    def use(config: Config) -> None:
        app = Starlette(routes=[Route("/hello", hello)], middleware=[Middleware(SidecarMiddleware, config)])
        for _ in range(2):
            with TestClient(app) as client:
                assert client.post("/llm/v1/chat/completions", headers=HEADERS, json=CHAT).status_code == 200
                assert client.post("/llm/v1/chat/completions", headers=HEADERS, json=CHAT).status_code == 200
                assert client.get("/hello").text == "the app's own"

    async with Simulator() as simulator:
        await asyncio.to_thread(use, config_for(simulator))
        assert len(simulator.requests) == 4
        assert simulator.accepted == 2


# -- under real servers


def wrapped_for(simulator: Simulator) -> SidecarMiddleware:
    return SidecarMiddleware(Starlette(routes=[Route("/hello", hello)]), config_for(simulator))


@SERVERS
async def test_the_app_answers_beside_the_sidecar(serve: Any) -> None:
    async with nothing_left(), Simulator() as simulator, serve(wrapped_for(simulator)) as door:
        async with httpx2.AsyncClient(base_url=door.url, headers=HEADERS, trust_env=False) as client:
            asks = [client.post("/llm/v1/chat/completions", json=CHAT) for _ in range(8)]
            answers = await asyncio.gather(*asks, client.get("/hello"), client.get("/llm/livez"))
        assert [answer.status_code for answer in answers] == [200] * 10
        assert answers[8].text == "the app's own"


@SERVERS
async def test_mounted_twice_in_one_app(serve: Any) -> None:
    async with nothing_left(), Simulator() as simulator:
        first, second = Sidecar(config_for(simulator)), Sidecar(config_for(simulator))

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with first, second:
                yield

        inner = Starlette(routes=[Mount("/llm", first)])
        app = Starlette(routes=[Mount("/a", inner), Mount("/llm", second)], lifespan=lifespan)
        async with serve(app) as door, httpx2.AsyncClient(base_url=door.url, headers=HEADERS) as client:
            for prefix in ("/a/llm", "/llm"):
                assert (await client.post(f"{prefix}/v1/chat/completions", json=CHAT)).status_code == 200
                assert (await client.get(f"{prefix}/v1/models/lab/m")).json()["id"] == "lab/m"
            assert (await client.get("/v1/models")).status_code == 404


def request(ask: Any = CHAT, **headers: str) -> bytes:
    body = msgspec.json.encode(ask)
    own = {"host": "127.0.0.1", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (own | HEADERS | headers).items())
    return f"POST /llm/v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


def port_of(door: Door) -> int:
    return int(door.url.rpartition(":")[2])


@SERVERS
async def test_a_client_that_leaves_inside_its_body_asks_nothing(serve: Any) -> None:
    async with nothing_left(), Simulator() as simulator, serve(wrapped_for(simulator)) as door:
        async with RawClient(port_of(door)) as client:
            client.write(request(**{"content-length": "500"}))
            await asyncio.sleep(0.02)
        async with RawClient(port_of(door)) as client:
            client.write(request(connection="close"))
            assert b" 200 OK\r\n" in await client.rest()
        assert len(simulator.requests) == 1


@SERVERS
@pytest.mark.parametrize("how", [FIN, RST])
@pytest.mark.parametrize("fault", ["stall", "stall_after:2"])
async def test_a_client_that_leaves_has_its_provider_cancelled(serve: Any, fault: str, how: Step) -> None:
    async with nothing_left(), Simulator() as simulator, serve(wrapped_for(simulator)) as door:
        async with RawClient(port_of(door)) as client:
            client.write(request({**CHAT, "stream": True}, **{"x-sim-fault": fault}))
            while not simulator.requests:
                await asyncio.sleep(0.002)
            if fault != "stall":
                await client.run(Expect(b"data: "))
            await client.run(how)
            await cancelled(simulator, now())


@SERVERS
async def test_a_client_that_does_not_read_holds_its_provider_back(serve: Any) -> None:
    ask = {**CHAT, "model": "lab/" + "m" * 400, "stream": True}  # which each of its events repeats: 12 MB in all
    async with nothing_left(), Simulator() as simulator, serve(wrapped_for(simulator)) as door:
        async with RawClient(port_of(door), receive_buffer=4096) as client:
            await client.run(STOP_READING)
            client.write(request(ask, **{"x-sim-tokens": "20000"}))
            while not simulator.requests:
                await asyncio.sleep(0.002)
            held = 0
            deadline = now() + 10
            while held < 15 and now() < deadline:
                await asyncio.sleep(0.02)
                held = held + 1 if any(peer._paused for peer in simulator.connections) else 0
            assert held == 15  # for 0.3 s nobody took a byte of it
        left_at = now()
        while simulator.connections:
            assert now() - left_at < 1.0
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("app", ["middleware", "mount"])
async def test_a_websocket_is_refused_in_its_handshake(app: str) -> None:
    config = uvicorn.Config(
        SidecarMiddleware(echo, SOME) if app == "middleware" else Starlette(routes=[Mount("/llm", Sidecar(SOME))]),
        port=0,
        ws="wsproto",
        log_level="critical",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    offer = (
        b"GET /llm/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    async with RawClient(server.servers[0].sockets[0].getsockname()[1]) as client:
        client.write(offer)
        assert (await client.rest()).startswith(b"HTTP/1.1 403 ")
    server.should_exit = True
    await serving
