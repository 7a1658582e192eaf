"""The real protocol objects driven with canned bytes and mock transports: no sockets, only our own work."""

from __future__ import annotations

import asyncio
import cProfile
import hashlib
import pstats
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

from benchmarks import harness
from sidecar.app import Sidecar
from sidecar.config import Caller, Config, Key, Limits, Provider, Server as Settings
from sidecar.pool.connection import Connection as Upstream
from sidecar.secret import Secret
from sidecar.server.connection import MAX_REQUESTS, Connection
from sidecar.server.listen import Server
from sidecar.simulator.server import _BENCH_STREAM, _BENCH_UNARY

ROUNDS = 1000  # of the loop, in which an exchange must move on


class Transport:
    """Takes what is written; nothing else."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.sock, self.other = socket.socketpair()

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else ("127.0.0.1", 1)

    def set_write_buffer_limits(self, high: int) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def config() -> Config:
    key = Key(source="inline", secret=Secret("sk-bench-provider"))
    limits = Limits(requests_per_minute=100_000_000, concurrency=100_000)
    caller = Caller(
        key=Key(source="inline", digest=hashlib.sha256(harness.KEY.encode()).digest()),
        models=("openai/*",),
        requests_per_minute=100_000_000,
        concurrency=100_000,
    )
    return Config(
        providers={"openai": Provider(base_url="http://127.0.0.1:9/v1", api_key=key, limits=limits)},
        callers={"bench": caller},
    )


def request(*, stream: bool) -> bytes:
    body = harness.body(stream=stream)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:4000\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {harness.KEY}\r\naccept: application/json\r\nuser-agent: OpenAI/Python 3\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Bench:
    """One client connection and one provider connection, wired to mock transports."""

    def __init__(self) -> None:
        self.app = Sidecar(config())
        self.server = Server(self.app, Settings(listen=("127.0.0.1:0",)))
        self.up = Transport()
        self.down = Transport()
        self.upstream: Upstream | None = None
        self.app.pool._dialer.dial = self._dial  # type: ignore[method-assign]
        self._left = 0  # requests that the server takes on this connection

    def _connect(self) -> None:
        self.client = Connection(self.server, secure=False)
        self.client.connection_made(self.down)  # type: ignore[arg-type]
        self._left = MAX_REQUESTS - 1  # the last one closes it

    async def _dial(self, origin: Any, deadline: Any, make: Any) -> Upstream:
        self.upstream = make()
        self.upstream.connection_made(self.up)  # type: ignore[arg-type]
        return self.upstream

    async def exchange(self, asked: bytes, pieces: list[bytes]) -> None:
        """One request, and its answer in as many reads as there are pieces."""
        if not self._left:
            self._connect()
        self._left -= 1
        self.client.data_received(asked)
        await _until(lambda: self.up.written)
        assert self.upstream is not None
        for piece in pieces:
            self.upstream.data_received(piece)
            await asyncio.sleep(0)  # the exchange takes it, and waits for the next
        await _until(lambda: self.client in self.server.idle)
        self.up.written.clear()
        self.down.written.clear()


async def _until(done: Callable[[], object]) -> None:
    for _ in range(ROUNDS):
        if done():
            return
        await asyncio.sleep(0)
    raise RuntimeError("the exchange stands still")


def pieces(*, stream: bool) -> list[bytes]:
    """The provider's answer, a read each."""
    return [step.do for step in (_BENCH_STREAM if stream else _BENCH_UNARY) if isinstance(step.do, bytes)]


async def repeat(bench: Bench, count: int, *, stream: bool = False) -> float:
    """CPU seconds of so many exchanges."""
    asked, answer = request(stream=stream), pieces(stream=stream)
    began = time.process_time()
    for _ in range(count):
        await bench.exchange(asked, answer)
    took = time.process_time() - began
    bench.app._ledger.drain()
    return took


async def main() -> None:
    bench = Bench()
    await bench.server.start()
    await repeat(bench, 500)
    if "--profile" in sys.argv:
        with cProfile.Profile() as profile:
            await repeat(bench, 2000)
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)
        return
    events = len(pieces(stream=True))
    for _ in range(5):
        unary, streamed = await repeat(bench, 3000), await repeat(bench, 100, stream=True)
        print(f"unary {unary / 3000 * 1e6:.1f} us, stream {streamed / 100 / events * 1e6:.1f} us an event", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
