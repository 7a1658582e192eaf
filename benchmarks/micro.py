"""The real protocol objects driven with canned bytes and mock transports: no sockets, only our own work."""

from __future__ import annotations

import asyncio
import cProfile
import hashlib
import pstats
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks import harness
from sidecar.app import Sidecar
from sidecar.config import Caller, Config, Key, Limits, Model, Pool, Provider, Server as Settings
from sidecar.pool.connection import Connection as Upstream
from sidecar.secret import Secret
from sidecar.server.connection import MAX_REQUESTS, Connection
from sidecar.server.listen import Server
from sidecar.simulator import answers
from sidecar.simulator.faults import Playing, plain

ROUNDS: Final = 10_000  # of the loop, in which an exchange must move on
DAY_SECONDS: Final = 86_400.0  # for whatever valgrind makes slow
TOKENS: Final = 60  # of an answer: with what begins and ends it, 64 events


class Case(NamedTuple):
    """A request as a client sends it, its answer as the provider does, a read each, and how that ends at the client."""

    asked: bytes
    pieces: Sequence[bytes]
    end: bytes


class Transport:
    """Takes what is written; nothing else."""

    def __init__(self, sock: socket.socket, told: Callable[[], object] | None = None) -> None:
        self.written: list[bytes] = []
        self._sock = sock
        self._told = told

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if self._told is not None:
            self._told()

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else ("127.0.0.1", 1)

    def set_write_buffer_limits(self, high: int) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def config(*, providers: int = 1, callers: int = 1, models: int = 0) -> Config:
    """As `harness.SIDECAR` has it, with so many of each. More providers are p1, p2, ..., and models m0, m1, ..."""
    key = Key(source="inline", secret=Secret("sk-bench-provider"))
    limits = Limits(requests_per_minute=100_000_000, concurrency=100_000)
    pool = Pool(max_connections=100_000, keepalive_seconds=DAY_SECONDS, max_age_seconds=DAY_SECONDS)
    provider = Provider(base_url="http://127.0.0.1:9/v1", api_key=key, limits=limits, pool=pool)
    others = {
        f"p{number}": Provider(
            kind="openai-compatible", base_url=f"http://127.0.0.1:{10_000 + number}/v1", api_key=key, limits=limits
        )
        for number in range(1, providers)
    }
    return Config(
        providers={"openai": provider, "anthropic": provider, **others},
        callers={f"c{number}": _caller(number) for number in range(callers)},
        models={f"m{number}": Model(targets=(f"openai/sim-{number}",)) for number in range(models)},
    )


def _caller(number: int) -> Caller:
    return Caller(
        key=Key(source="inline", digest=hashlib.sha256(key_of(number).encode()).digest()),
        models=("*",),
        requests_per_minute=100_000_000,
        concurrency=100_000,
    )


def key_of(caller: int) -> str:
    """The key of the caller of this number."""
    return f"{harness.KEY}-{caller:05d}"


def request(*, stream: bool, model: str = harness.MODEL, caller: int = 0, agent: int = 3) -> bytes:
    """Of 2 KB, as an SDK sends it. `agent`: its version, which tells one client's head from another's."""
    body = harness.body(stream=stream).replace(harness.MODEL.encode(), model.encode())
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:4000\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key_of(caller)}\r\naccept: application/json\r\nuser-agent: OpenAI/Python {agent}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _played(answer: answers.Answer) -> list[bytes]:
    """An answer in the pieces that a provider would write it in."""
    return [step.do for step in plain(answer, Playing(gap=0.005)) if isinstance(step.do, bytes)]


def cases() -> dict[str, Case]:
    """What is measured: a whole answer, a stream in the client's dialect, a stream that has to be translated."""
    said: dict[str, Any] = {"model": "sim-large", "messages": [{"role": "user", "content": "hi"}]}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = b"0\r\n\r\n"
    return {
        "unary": Case(request(stream=False), _played(answers.chat(said, 1, 2 * TOKENS)), b"}"),
        "stream": Case(request(stream=True), _played(answers.chat({**said, **usage}, 1, TOKENS)), streamed),
        "translated": Case(
            request(stream=True, model="anthropic/claude-sim"),
            _played(answers.messages({**said, "stream": True, "max_tokens": 1000}, 1, TOKENS)),
            streamed,
        ),
    }


class Bench:
    """A server and its pool, wired to mock transports on both sides."""

    def __init__(self, settings: Config | None = None) -> None:
        self.app = Sidecar(settings or config())
        patient = Settings(listen=("127.0.0.1:0",), header_seconds=DAY_SECONDS, keepalive_seconds=DAY_SECONDS)
        self.server = Server(self.app, patient)
        self.app.pool._dialer.dial = self._dial  # type: ignore[method-assign]
        self._sock, self._other = socket.socketpair()  # whom a connection asks whether there is anything to read
        self._sent: list[Upstream] = []  # that have been sent a request
        self._left = 0  # requests that the server takes on the present connection
        self.client: Connection

    async def start(self) -> None:
        """Before all else: on the loop that it is to run on."""
        await self.server.start()

    def close(self) -> None:
        """Sockets only: the connections are none."""
        self.server.hangups.close()
        for sock in (self._sock, self._other, *self.server._sockets):
            sock.close()

    def connect(self) -> Connection:
        """One more client."""
        client = Connection(self.server, secure=False)
        client.connection_made(Transport(self._sock))  # type: ignore[arg-type]
        return client

    async def _dial(self, origin: Any, deadline: Any, make: Callable[[], Upstream]) -> Upstream:
        upstream = make()
        upstream.connection_made(Transport(self._sock, lambda: self._sent.append(upstream)))  # type: ignore[arg-type]
        return upstream

    async def exchange(self, client: Connection, asked: bytes, pieces: Sequence[bytes]) -> bytes:
        """One request, and its answer in as many reads as there are pieces. Answers the last that was written."""
        upstream = await self.begin(client, asked, pieces[0])
        for piece in pieces[1:]:
            upstream.data_received(piece)
            await asyncio.sleep(0)  # the exchange takes it, and waits for the next
        return await self._ended(client, upstream)

    async def begin(self, client: Connection, asked: bytes, piece: bytes) -> Upstream:
        """One request, and the first read of its answer: what comes next is to be given to what this answers."""
        client.data_received(asked)
        await self._until_sent(1)
        upstream = self._sent.pop()
        upstream.data_received(piece)
        await asyncio.sleep(0)
        return upstream

    async def burst(self, clients: Sequence[Connection], asked: Sequence[bytes], pieces: Sequence[bytes]) -> None:
        """A request of each client, all under way at once; then the answers, piece by piece. `asked`: in turn."""
        for number, client in enumerate(clients):
            client.data_received(asked[number % len(asked)])
        await self._until_sent(len(clients))
        upstreams, self._sent = self._sent, []
        for piece in pieces:
            for upstream in upstreams:
                upstream.data_received(piece)
            await asyncio.sleep(0)
        for client, upstream in zip(clients, upstreams, strict=True):
            await self._ended(client, upstream)

    async def _until_sent(self, count: int) -> None:
        for _ in range(ROUNDS):
            if len(self._sent) >= count:
                return
            await asyncio.sleep(0)
        raise RuntimeError("a request has not been sent on")

    async def _ended(self, client: Connection, upstream: Upstream) -> bytes:
        idle = self.server.idle
        for _ in range(ROUNDS):
            if client in idle and not client.unflushed:
                break
            await asyncio.sleep(0)
        else:
            raise RuntimeError("an answer has not come to its end")
        down, up = client.transport, upstream._transport
        assert isinstance(down, Transport)
        assert isinstance(up, Transport)
        last = down.written[-1] if down.written else b""
        down.written.clear()
        up.written.clear()
        return last

    async def repeat(self, case: Case, count: int) -> float:
        """CPU seconds of so many exchanges on one connection."""
        asked, pieces, end = case
        last = end
        began = time.process_time()
        for _ in range(count):
            if not self._left:
                self._reconnect()
            self._left -= 1
            last = await self.exchange(self.client, asked, pieces)
        self.account()
        took = time.process_time() - began
        if not last.endswith(end):
            raise RuntimeError(f"a wrong answer is not a fast answer: {last[-200:]!r}")
        return took

    def account(self) -> None:
        """What waits to be done for exchanges that are over: their lines are made, and they are counted."""
        self.app._ledger.drain()
        self.app._ledger.stats()

    def _reconnect(self) -> None:
        if hasattr(self, "client"):
            self.client.connection_lost(None)
        self.client = self.connect()
        self._left = MAX_REQUESTS - 1  # the last one closes it


async def main() -> None:
    bench, measured = Bench(), cases()
    await bench.start()
    for case in measured.values():
        await bench.repeat(case, 300)
    if "--profile" in sys.argv:
        with cProfile.Profile() as profile:
            await bench.repeat(measured["unary"], 2000)
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)
        return
    for _ in range(5):
        words = []
        for name, case in measured.items():
            events = len(case.pieces)
            count = 3000 // events
            took = await bench.repeat(case, count) / count / events * 1e6
            words.append(f"{name} {took:.1f} us" if events == 1 else f"{name} {took:.1f} us an event")
        print(", ".join(words), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
