"""The real sidecar between raw peers: a client's socket on one side, a scripted provider's on the other.

After each test, whatever it did: no exchange, no connection in use, no permit, no task, no socket is left, a control
request is answered, and the log tells of no bug.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sidecar.app import Sidecar
from sidecar.config import Breaker, Config, Key, Limits, Model, Provider, Retry, Server as Settings, Timeouts
from sidecar.secret import Secret
from sidecar.server import Server
from tests.faults.ground import nothing_left
from tests.faults.peer import RawClient, RawServer, Script
from tests.faults.transcripts import Way

ONE_TRY: Final = Retry(attempts=0)
NEVER: Final = Breaker(consecutive_failures=100_000)  # is any target left alone
KEY: Final = "sk-canary-of-the-provider"
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Reply:
    """An answer as a client reads it. `ended`: its body ended as its head said."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    ended: bool
    rest: bytes = b""  # bytes behind it

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Stand:
    """The sidecar, the provider behind it, and how to speak to it."""

    app: Sidecar
    server: Server
    peer: RawServer
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.addresses[0].rpartition(":")[2])

    def client(self, **options: Any) -> RawClient:
        return RawClient(self.port, **options)

    async def ask(self, request: bytes) -> Reply:
        """One request on a connection of its own, which the server closes behind the answer."""
        async with asyncio.timeout(8), self.client() as client:
            client.write(closing(request))
            return read(await client.rest())

    def idle(self) -> bool:
        """Nothing is under way."""
        duty = self.app._duty
        quiet = all(row[name] == 0 for row in self.app.pool.stats() for name in ("dialing", "busy", "waiting"))
        quiet = quiet and all(row.get("in_flight", 0) == 0 for row in duty.health.stats())
        quiet = quiet and not duty.active and " 0 under way" in repr(duty.retries)
        return quiet and not self.server.work and repr(self.app._limits) == "<Limits 0 running, 0 waiting>"

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        self.log += [msgspec.json.decode(line) for line in self.app._ledger.drain().splitlines()]
        return self.log

    async def recorded(self, count: int = 1) -> list[dict[str, Any]]:
        """The log lines of that many exchanges, once they are over."""
        rows: list[dict[str, Any]] = []

        def enough() -> bool:
            rows[:] = [line for line in self.lines() if "status" in line]
            return len(rows) >= count

        await comes_true(enough, f"{count} exchanges over")
        return rows


async def comes_true(true: Callable[[], object], what: str, seconds: float = 1.0) -> None:
    """Wait until something holds; a second at most, which is what the rules give."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not true():
        assert loop.time() < until, f"within {seconds} s it did not become true: {what}"
        await asyncio.sleep(0.002)


def provider(peer: RawServer | int, kind: str = "openai-compatible", **options: Any) -> Provider:
    """A provider's table for a peer."""
    port = peer if isinstance(peer, int) else peer.port
    path = "" if kind == "anthropic" else "/v1"
    options = {
        "base_url": f"http://127.0.0.1:{port}{path}",
        "limits": Limits(concurrency=500),
        "breaker": NEVER,
        **options,
    }
    return Provider(kind=kind, api_key=Key(source="inline", secret=Secret(KEY)), **options)


@asynccontextmanager
async def standing(
    script: Script | Callable[[int], Script],
    *,
    timeouts: Mapping[str, float] | None = None,
    models: Mapping[str, tuple[str, ...] | Model] | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    peer: Mapping[str, Any] | None = None,
    more: Callable[[RawServer], Mapping[str, Provider]] | None = None,
    **config: Any,
) -> AsyncIterator[Stand]:
    """The sidecar before a peer, which is the provider "lab" (speaks chat) and the provider "claude" (messages).

    Nothing is asked twice of one target, unless `retry` says so. `options`: of both providers' tables; `settings`: of
    [server]; `peer`: of the peer; `more`: further providers.
    """
    async with nothing_left():
        async with RawServer(script, **(peer or {})) as raw:
            times = {"timeouts": Timeouts(**(timeouts or {})), **(options or {})}
            both = {"lab": provider(raw, **times), "claude": provider(raw, "anthropic", **times)}
            full = Config(
                server=Settings(listen=("127.0.0.1:0",), drain_seconds=0.5, **(settings or {})),
                providers={**both, **(more(raw) if more else {})},
                models={
                    name: each if isinstance(each, Model) else Model(targets=each)
                    for name, each in (models or {}).items()
                },
                **{"retry": ONE_TRY, **config},
            )
            app = Sidecar(full, guard=True)
            app._ledger.open = True  # as with a log that is written
            async with Server(app, full.server, log=app.note) as server:
                stand = Stand(app, server, raw)
                yield stand
                await comes_true(stand.idle, f"idle: {app!r} {app._limits!r} {server!r}")
                control = await stand.ask(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (control.status, control.body) == (200, b"ok\n")
                bugs = [line for line in stand.lines() if line.get("event") == "bug"]
                assert not bugs, bugs[0]["trace"]
            assert all(row["idle"] == 0 for row in app.pool.stats()), repr(app.pool)


# -- the client's side


def post(path: str, body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    """A request as clients send it."""
    size = len(body) if length is None else length
    lines = b"".join(line + b"\r\n" for line in (b"content-type: application/json", *headers))
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%b\r\n%b" % (path.encode(), size, lines, body)


def ask(way: Way, *headers: bytes, stream: bool = True, model: str | None = None, **members: Any) -> bytes:
    """A request in a way's dialect."""
    body = {"model": model or way.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, **members}
    return post(way.path, msgspec.json.encode({**body, "stream": stream}), *headers)


def closing(request: bytes) -> bytes:
    """The same, with the connection to be closed behind its answer."""
    line, _, rest = request.partition(b"\r\n")
    return line + b"\r\nconnection: close\r\n" + rest


def read(data: bytes) -> Reply:
    """Read one answer. Raises AssertionError where it is not plain HTTP/1.1."""
    head, blank, body = data.partition(b"\r\n\r\n")
    match = _STATUS.match(head)
    assert blank, data
    assert match, data
    if match[1] == b"100":
        return read(body)
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    headers = [(name, value) for name, _, value in lines]
    reply = Reply(int(match[1]), headers, body, ended=match[1] == b"204")  # RFC 9110 8.6: it has no length
    if (length := reply.get(b"content-length")) is not None:
        size = int(length)
        reply.body, reply.rest, reply.ended = body[:size], body[size:], len(body) >= size
    elif reply.get(b"transfer-encoding") == b"chunked":
        _unchunk(reply, body)
    return reply


def _unchunk(reply: Reply, body: bytes) -> None:
    reply.body = b""
    while (line := body.partition(b"\r\n"))[1]:
        size = int(line[0], 16)
        if not size:
            reply.ended, reply.rest = line[2].startswith(b"\r\n"), line[2][2:]
            return
        reply.body += line[2][:size]
        if len(line[2]) < size + 2:
            return
        assert line[2][size : size + 2] == b"\r\n", body[:80]
        body = line[2][size + 2 :]
