"""What the conformance suite stands on: a simulated provider, the sidecar before it, and a client of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sidecar import Sidecar
from sidecar.config import Breaker, Caller, Config, Key, Provider, Retry, Server as ServerSettings
from sidecar.providers import ROWS, Provider as Row
from sidecar.secret import Secret
from sidecar.server import Server
from sidecar.simulator import Seen, Settings, Simulator
from sidecar.simulator.settings import FLAVOURS
from tests.conformance.client import Client, Headers, Reply, connected

PROVIDER_KEY = "pk-canary-of-the-provider-0123456789"
CALLER_KEY = "ck-canary-of-the-caller-9876543210"
MODEL = "maker/sim-large:free@1"  # with everything that names of models have
CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization")
_OURS = ("content-length", "transfer-encoding", "connection", "keep-alive", "date")  # framing is of each hop
_METRIC = re.compile(r'^sidecar_(\w+)_tokens_total\{endpoint="([^"]*)",provider="([^"]*)",model="([^"]*)"\} (\d+)$')


def base_path(row: Row) -> str:
    """The path that the real provider's endpoints share."""
    return urlsplit(row.base_url).path or {"azure": "/openai/v1", "openai-compatible": "/v1"}.get(row.name, "")


def flavour(row: Row) -> str:
    return row.name if row.name in FLAVOURS else "openai"


def config(name: str, port: int, *, keyed: bool = True, **options: Any) -> Config:
    """One provider, whose table has the name (or other name) of its row, and one caller."""
    table = Provider(
        breaker=Breaker(consecutive_failures=1000),
        base_url=f"http://127.0.0.1:{port}{base_path(ROWS[name])}",
        api_key=Key(source="inline", secret=Secret(PROVIDER_KEY)) if keyed else None,
        **options,
    )
    caller = Caller(key=Key(source="sha256:", digest=hashlib.sha256(CALLER_KEY.encode()).digest()))
    return Config(
        server=ServerSettings(listen=("127.0.0.1:0",)),
        providers={name: table},
        callers={"someone": caller},
        retry=Retry(attempts=0),  # what a provider says is what is told here: once, and every time
    )


@asynccontextmanager
async def serving(settings: Config) -> AsyncIterator[tuple[Client, Sidecar]]:
    """A client connected to a sidecar; at the end nothing of it is in use."""
    app = Sidecar(settings)
    async with Server(app, settings.server) as server:
        async with connected(int(server.addresses[0].rpartition(":")[2])) as client:
            yield client, app
            assert all(each["busy"] == 0 for each in _stats(app)), app.pool
    await app.aclose()


def _stats(app: Sidecar) -> list[Any]:
    stats: Any = app.pool.stats()
    return list(stats.values()) if isinstance(stats, dict) else list(stats)


class Ground:
    """A provider played by the simulator and a twin of it, to which the same requests go directly."""

    def __init__(self, row: Row, name: str, simulator: Simulator, twin: Simulator, client: Client) -> None:
        self.row = row
        self.name = name
        self.client = client
        self.simulator = simulator
        self._twin = twin

    async def ask(self, path: str, body: bytes | dict[str, Any], *headers: tuple[str, str]) -> Reply:
        """Ask the sidecar, with the caller's key and in the provider's own name of the model."""
        data = body if isinstance(body, bytes) else msgspec.json.encode({"model": f"{self.name}/{MODEL}", **body})
        sent: Headers = [("authorization", f"Bearer {CALLER_KEY}"), ("content-type", "application/json"), *headers]
        reply = await self.client.ask("POST", path, sent, data)
        assert PROVIDER_KEY.encode() not in reply.bare + reply.body
        assert CALLER_KEY.encode() not in reply.bare + reply.body
        return reply

    @property
    def seen(self) -> Seen:
        """The last request that the provider got."""
        return self.simulator.requests[-1]

    @property
    def asked(self) -> dict[str, Any]:
        """Its body."""
        found = msgspec.json.decode(self.seen.body)
        assert isinstance(found, dict)
        return found

    def check_head(self, dialect: str) -> None:
        """The last request went to the right place, with the provider's key in its header and none of the caller's."""
        seen, row = self.seen, self.row
        assert (seen.method, seen.path) == ("POST", base_path(row) + dict(row.speaks)[dialect])
        assert seen.header("host") == f"127.0.0.1:{self.simulator.port}"
        own = ("authorization", f"Bearer {PROVIDER_KEY}") if row.auth == "bearer" else (row.auth, PROVIDER_KEY)
        assert [pair for pair in seen.headers if pair[0] in CREDENTIALS] == [own]
        assert seen.header("content-type") == "application/json"
        assert CALLER_KEY not in repr(seen.headers)
        assert CALLER_KEY.encode() not in seen.body
        assert not any(name.startswith("x-sidecar-") for name, _ in seen.headers)

    async def direct(self) -> Reply:
        """What the provider answered to its last request: what its twin answers to the same."""
        seen = self.seen
        headers = [pair for pair in seen.headers if pair[0] not in ("host", "content-length")]
        async with connected(self._twin.port) as client:
            reply = await client.ask("POST", seen.path, headers, seen.body)
        assert self._twin.requests[-1].number == seen.number
        return reply

    async def check_answer(self, reply: Reply, *, hidden: bool = False) -> Reply:
        """The client got the provider's answer: status, headers, every byte (but for the usage event when hidden)."""
        direct = await self.direct()
        assert reply.status == direct.status, reply.body
        assert reply.body == (without_usage(direct.body) if hidden else direct.body)
        missing = [pair for pair in direct.headers if pair[0] not in _OURS and pair not in reply.headers]
        assert not missing
        assert reply.header("x-sidecar-provider") == self.name
        assert reply.header("x-sidecar-model") == MODEL
        return direct

    async def tokens(self) -> dict[str, int]:
        """Tokens counted so far, by kind."""
        text = (await self.client.ask("GET", "/metrics", [])).body.decode()
        totals: dict[str, int] = {}
        for line in text.splitlines():
            if (match := _METRIC.match(line)) is not None:
                assert (match[3], match[4]) == (self.name, MODEL)
                totals[match[1]] = totals.get(match[1], 0) + int(match[5])
        return totals


@asynccontextmanager
async def ground(name: str, *, keyed: bool = True) -> AsyncIterator[Ground]:
    """A row of the table under one of its names, with its provider simulated in its own flavour."""
    row = ROWS[name]
    settings = Settings(flavour=flavour(row), tokens=6)
    async with Simulator(settings) as simulator, Simulator(settings) as twin:
        async with serving(config(name, simulator.port, keyed=keyed)) as (client, _):
            yield Ground(row, name, simulator, twin, client)


def events(stream: bytes) -> list[bytes]:
    """The events of a stream, each with its end."""
    assert stream.endswith(b"\n\n")
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


def values(stream: bytes) -> list[Any]:
    """What the events hold, without comments and [DONE]."""
    lines = [line for event in events(stream) for line in event.split(b"\n") if line.startswith(b"data: {")]
    return [msgspec.json.decode(line[6:]) for line in lines]


def without_usage(stream: bytes) -> bytes:
    """A stream less the event that holds usage and nothing else."""
    return b"".join(event for event in events(stream) if not _only_usage(event))


def _only_usage(event: bytes) -> bool:
    if not event.startswith(b"data: {"):
        return False
    value = msgspec.json.decode(event[6:])
    return value.get("choices") == [] and bool(value.get("usage"))
