"""The endpoint table, the cold routes, the guard, and the life of the app."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from sidecar import Config, ConfigError, Sidecar
from sidecar.app import ENDPOINTS, below
from sidecar.config import KEY_VARIABLES, Breaker, Model, Provider, Server as Settings
from sidecar.simulator import Simulator
from sidecar.types import Message
from tests.asgi import Lifespan, ask
from tests.e2e.doors import CALLER_KEY, caller, config_for, ours

CHAT: Any = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}
ANTHROPIC = {"anthropic-version": "2023-06-01"}
KEY = {"authorization": f"Bearer {CALLER_KEY}"}
ALIASES = Config(
    providers={"lab": Provider(kind="openai-compatible", base_url="http://127.0.0.1:1/v1")},
    models={"fast": Model(targets=("lab/one", "lab/two")), "slow": Model(targets=("lab/two",))},
)
PAGE = "https://app.example"


@pytest.fixture
def anyio_backend() -> str:
    """One loop is enough: what the app does by itself asks nothing of it."""
    return "asyncio"


@pytest.fixture
def app() -> Sidecar:
    return Sidecar(ALIASES)


@pytest.fixture
def guarded() -> Sidecar:
    return Sidecar(msgspec.structs.replace(ALIASES, server=Settings(allow_origins=(PAGE,))), guard=True)


# -- cold routes


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_models_in_openais_shape(app: Sidecar, path: str) -> None:
    answer = await ask(app, "GET", path)
    assert (answer.status, answer.get(b"cache-control")) == (200, b"private, no-store")
    assert answer.json["object"] == "list"
    assert [(each["id"], each["object"], each["owned_by"]) for each in answer.json["data"]] == [
        ("fast", "model", "sidecar"),
        ("slow", "model", "sidecar"),
        ("lab/one", "model", "lab"),
        ("lab/two", "model", "lab"),
    ]
    one = await ask(app, "GET", f"{path}/lab/one")
    assert one.json == answer.json["data"][2]


async def test_models_in_anthropics_shape(app: Sidecar) -> None:
    answer = await ask(app, "GET", "/v1/models", ANTHROPIC)
    assert (answer.json["first_id"], answer.json["last_id"], answer.json["has_more"]) == ("fast", "lab/two", False)
    assert {each["type"] for each in answer.json["data"]} == {"model"}
    one = await ask(app, "GET", "/v1/models/slow", ANTHROPIC)
    assert (one.json["id"], one.json["display_name"], one.json["type"]) == ("slow", "slow", "model")
    none = await ask(Sidecar(Config()), "GET", "/v1/models", ANTHROPIC)
    assert none.json == {"data": [], "has_more": False, "first_id": None, "last_id": None}


async def test_an_unknown_model_in_either_shape(app: Sidecar) -> None:
    answer = await ask(app, "GET", "/v1/models/nobody")
    assert (answer.status, answer.json["error"]["code"]) == (404, "caller_model_unknown")
    answer = await ask(app, "GET", "/v1/models/nobody", ANTHROPIC)
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (404, "error", "not_found_error")
    assert answer.get(b"request-id") == answer.json["request_id"].encode()


async def test_callers_see_the_models_they_may_use() -> None:
    app = Sidecar(msgspec.structs.replace(ALIASES, callers={"web": caller(models=("f*", "lab/two"))}))
    assert (await ask(app, "GET", "/v1/models")).status == 401
    answer = await ask(app, "GET", "/v1/models", {"x-api-key": CALLER_KEY})
    assert [each["id"] for each in answer.json["data"]] == ["fast", "lab/two"]
    assert (await ask(app, "GET", "/v1/models/slow", KEY)).status == 404
    assert (await ask(app, "GET", "/status")).status == 401
    assert (await ask(app, "GET", "/status", KEY)).status == 200


async def test_status_tells_callers_of_no_name_that_only_another_has_asked_for() -> None:
    for callers, told in (({"web": caller()}, ["lab/one"]), ({}, ["lab/one", "lab/secret-project"])):
        app = Sidecar(msgspec.structs.replace(ALIASES, callers=callers))
        for name in ("lab/one", "lab/secret-project"):
            app._duty.health.target(name, Breaker())
        health = (await ask(app, "GET", "/status", KEY)).json["health"]
        assert [row["target"] for row in health] == told


async def test_operations(app: Sidecar) -> None:
    assert (await ask(app, "GET", "/")).json["name"] == "sidecar"
    assert (await ask(app, "HEAD", "/")).status == 200
    for path in ("/livez", "/readyz", "/startupz"):
        answer = await ask(app, "GET", path)
        assert (answer.status, answer.body) == (200, b"ok\n")
    metrics = await ask(app, "GET", "/metrics")
    assert metrics.get(b"content-type") == b"text/plain; version=0.0.4; charset=utf-8"
    assert set((await ask(app, "GET", "/status")).json) == {
        *("draining", "providers", "limits", "health", "cache", "memory", "requests")
    }
    app.drain()
    answer = await ask(app, "GET", "/readyz")
    assert (answer.status, answer.get(b"retry-after")) == (503, b"1")
    assert (await ask(app, "GET", "/livez")).status == 200


# -- the endpoint table


@pytest.mark.parametrize("path", [*ENDPOINTS, "/openai/deployments/lab/m/chat/completions"])
async def test_endpoints_take_post(app: Sidecar, path: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
        answer = await ask(app, method, path)
        assert (answer.status, answer.get(b"allow")) == (405, b"POST")
        assert answer.get(b"x-sidecar-error") == b"caller_method_not_allowed"
        assert ("type" in answer.json) == ("/messages" in path)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/status"])
async def test_cold_routes_take_get(app: Sidecar, path: str) -> None:
    answer = await ask(app, "POST", path)
    assert (answer.status, answer.get(b"allow")) == (405, b"GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/v2/chat/completions", "/v1/chat/completions/", "//v1/chat/completions", "/v1/Chat/completions", "/v1"]
)
async def test_what_is_not_served_is_told_with_what_is(app: Sidecar, path: str) -> None:
    answer = await ask(app, "POST", path, JSON, CHAT)
    assert (answer.status, answer.json["error"]["code"]) == (404, "caller_path_unknown")
    assert answer.json["error"]["message"].startswith(f"nothing is served at {path}; the endpoints are /v1/chat/comple")


async def test_a_wrong_host_does_not_confuse_what_is_told(app: Sidecar) -> None:
    answer = await ask(app, "GET", "/nowhere", {"host": "a/b?c#d:99999"})
    assert "served at /nowhere;" in answer.json["error"]["message"]


AZURE = [
    ("/openai/deployments/lab/m/chat/completions", "/v1/chat/completions", "m"),
    ("/openai/deployments/lab/chat/completions/chat/completions", "/v1/chat/completions", "chat/completions"),
    ("/openai/deployments/fast/completions", "/v1/completions", "one"),
    ("/openai/deployments/lab/a/b/embeddings", "/v1/embeddings", "a/b"),
]


@pytest.mark.parametrize(("path", "route", "model"), AZURE)
async def test_azures_paths_name_the_model(path: str, route: str, model: str) -> None:
    async with Simulator() as simulator:
        config = config_for(simulator)
        aliases = {"fast": Model(targets=("lab/one",))}
        async with Sidecar(msgspec.structs.replace(config, callers={}, models=aliases)) as app:
            body: Any = {"model": "ignored", "prompt": "p", "input": "i", "messages": CHAT["messages"]}
            sent = {name: body[name] for name in ("model", _FIELDS[route])}
            answer = await ask(app, "POST", path, JSON, sent)
    assert answer.status == 200
    assert simulator.requests[0].path == route
    assert msgspec.json.decode(simulator.requests[0].body)["model"] == model


_FIELDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input"}


@pytest.mark.parametrize(
    "path", ["/openai/deployments/chat/completions", "/openai/deployments//chat/completions", "/openai/deployments/m"]
)
async def test_azures_paths_that_name_none(app: Sidecar, path: str) -> None:
    assert (await ask(app, "POST", path, JSON, CHAT)).status == 404


@pytest.mark.parametrize(
    ("path", "root", "inner"),
    [
        ("/llm/v1/models", "/llm", "/v1/models"),
        ("/llm", "/llm", ""),
        ("/llmx/v1", "/llm", "/llmx/v1"),
        ("/v1/models", "/llm", "/v1/models"),
        ("/v1/models", "", "/v1/models"),
    ],
)
async def test_the_path_below_a_root(app: Sidecar, path: str, root: str, inner: str) -> None:
    assert below(path, root) == inner
    if inner == "/v1/models":
        assert (await ask(app, "GET", path, root_path=root)).status == 200


async def test_what_is_not_http_is_refused(app: Sidecar) -> None:
    told: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        told.append(message)

    await app({"type": "websocket", "path": "/v1/chat/completions", "headers": []}, receive, send)
    assert [message["type"] for message in told] == ["websocket.close"]
    with pytest.raises(RuntimeError, match="not carrier-pigeon"):
        await app({"type": "carrier-pigeon"}, receive, send)


# -- the guard


async def test_a_page_is_refused_in_the_words_of_the_api(guarded: Sidecar) -> None:
    for path, shape in (("/v1/chat/completions", "error"), ("/v1/messages", "type")):
        answer = await ask(guarded, "POST", path, JSON | {"origin": "https://evil.example"}, CHAT)
        assert (answer.status, answer.get(b"x-sidecar-error")) == (403, b"policy_origin_forbidden")
        assert shape in answer.json
        assert answer.get(b"access-control-allow-origin") is None
        answer = await ask(guarded, "POST", path, JSON | {"host": "127.evil.example:4000"}, CHAT)
        assert answer.status == 403
        answer = await ask(guarded, "POST", path, {"content-type": "text/plain"}, CHAT)
        assert (answer.status, answer.get(b"x-sidecar-error")) == (415, b"caller_media_type_unsupported")
    assert (await ask(guarded, "GET", "/v1/models", {"host": "evil.example"})).status == 403
    assert (
        await ask(guarded, "GET", "/v1/models", {"host": "evil.example"}, server=("/run/s.sock", None))
    ).status == 200
    assert (await ask(guarded, "GET", "/v1/models")).status == 200


async def test_a_key_is_guard_enough() -> None:
    app = Sidecar(msgspec.structs.replace(ALIASES, callers={"web": caller()}), guard=True)
    answer = await ask(app, "GET", "/v1/models", KEY | {"origin": "https://evil.example", "host": "sidecar.example"})
    assert answer.status == 200
    assert answer.get(b"access-control-allow-origin") is None


async def test_an_allowed_page_may_ask_and_read(guarded: Sidecar) -> None:
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        "access-control-request-private-network": "true",
    }
    answer = await ask(guarded, "OPTIONS", "/v1/chat/completions", asks)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.get(b"access-control-allow-origin") == PAGE.encode()
    assert answer.get(b"access-control-allow-headers") == b"authorization,content-type,x-stainless-lang"
    assert b"POST" in (answer.get(b"access-control-allow-methods") or b"")
    assert answer.get(b"access-control-allow-private-network") == b"true"
    assert answer.get(b"vary") == b"origin"
    for path in ("/v1/models", "/nowhere"):
        told = await ask(guarded, "GET", path, {"origin": PAGE})
        assert told.get(b"access-control-allow-origin") == PAGE.encode()
        assert told.get(b"access-control-expose-headers") == b"*"
    refused = await ask(guarded, "OPTIONS", "/v1/chat/completions", asks | {"origin": "https://evil.example"})
    assert refused.status == 403


# -- life


async def test_a_lifespan_may_come_again() -> None:
    async with Simulator() as simulator:
        app = Sidecar(msgspec.structs.replace(config_for(simulator), callers={}))
        for _ in range(2):
            life = Lifespan(app)
            await life.startup()
            assert (await ask(app, "POST", "/v1/chat/completions", JSON, CHAT)).status == 200
            assert "1 idle" in repr(app.pool)
            await life.shutdown()
            assert life.told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
            assert app.pool.closed
            while simulator.connections:
                await asyncio.sleep(0.002)


def test_another_loop_gets_connections_of_its_own() -> None:
    async def once() -> int:
        async with Simulator() as simulator:
            moving.reload(msgspec.structs.replace(config_for(simulator), callers={}))
            status = (await ask(moving, "POST", "/v1/chat/completions", JSON, CHAT)).status
            await moving.aclose()
            return status

    moving = Sidecar(ALIASES)
    assert [asyncio.run(once()), asyncio.run(once())] == [200, 200]


def test_another_loop_of_a_server_gets_connections_of_its_own() -> None:
    async def once() -> list[int]:
        async with Simulator() as simulator:
            moving.reload(msgspec.structs.replace(config_for(simulator), callers={}))
            async with ours(moving) as door, httpx2.AsyncClient(base_url=door.url, trust_env=False) as client:
                return [(await client.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(2)]

    moving = Sidecar(ALIASES)
    assert [asyncio.run(once()), asyncio.run(once())] == [[200, 200]] * 2


async def test_a_reload_is_for_what_comes_after_it() -> None:
    async with Simulator() as simulator:
        async with Sidecar(msgspec.structs.replace(config_for(simulator), callers={})) as app:
            headers = JSON | {"x-sim-latency-ms": "100"}
            first = asyncio.create_task(ask(app, "POST", "/v1/chat/completions", headers, CHAT))
            while not simulator.requests:
                await asyncio.sleep(0.002)
            app.reload(ALIASES)
            assert (await ask(app, "POST", "/v1/chat/completions", JSON, CHAT)).status == 502
            assert (await first).status == 200
            assert app.config is ALIASES


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No configuration to be found anywhere."""
    for name in ("SIDECAR_CONFIG", *KEY_VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_zero_config(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no provider's key in the environment; set "):
        Sidecar()
    monkeypatch.setenv("XAI_API_KEY", "xai-0000000000000001")
    assert list(Sidecar().config.providers) == ["xai"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path(bare: Path, kind: type[str | Path]) -> None:
    file = bare / "mine.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        Sidecar(kind(file))
    file.write_text('[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1"\n')
    file.chmod(0o600)
    assert list(Sidecar(kind(file)).config.providers) == ["lab"]
    file.write_text("[providers.lab]\nkinds = 1\n")
    with pytest.raises(ConfigError, match='unknown option "kinds"'):
        Sidecar(kind(file))
