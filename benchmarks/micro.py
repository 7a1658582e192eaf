"""The real protocol objects driven with canned bytes and mock transports: no sockets, so only our own work is counted."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
import time
from typing import Any

import uvloop

from benchmarks import harness
from sidecar.app import Sidecar
from sidecar.config import Caller, Config, Key, Limits, Provider, Server as Settings
from sidecar.pool.connection import Connection as Upstream
from sidecar.secret import Secret
from sidecar.server.connection import Connection
from sidecar.server.listen import Server
from sidecar.simulator.faults import head
from sidecar.simulator.server import _BENCH_UNARY


class Transport:
    """Takes what is written; nothing else."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.sock = socket.socket()

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

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.app = Sidecar(config())
        self.server = Server(self.app, Settings())
        self.server.loop = loop
        self.down = Transport()
        self.up = Transport()
        self.client = Connection(self.server, secure=False)
        self.client.connection_made(self.down)  # type: ignore[arg-type]
        self.upstream: Upstream | None = None
        self.app.pool._dialer.dial = self._dial  # type: ignore[method-assign]

    async def _dial(self, origin: Any, deadline: Any, make: Any) -> Upstream:
        self.upstream = make()
        self.upstream.connection_made(self.up)  # type: ignore[arg-type]
        return self.upstream

    async def unary(self, asked: bytes, answer: bytes) -> None:
        self.client.data_received(asked)
        while not self.up.written:
            await asyncio.sleep(0)
        self.up.written.clear()
        assert self.upstream is not None
        self.upstream.data_received(answer)
        while not self.down.written:
            await asyncio.sleep(0)
        self.down.written.clear()


async def main() -> None:
    bench = Bench(asyncio.get_running_loop())
    asked, answer = request(stream=False), _BENCH_UNARY[0].do
    assert isinstance(answer, bytes)
    for _ in range(500):
        await bench.unary(asked, answer)
    bench.app._ledger.drain()
    if "--profile" in sys.argv:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        profile.enable()
        for _ in range(2000):
            await bench.unary(asked, answer)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(70)
        return
    for _ in range(5):
        began = time.process_time()
        for _ in range(3000):
            await bench.unary(asked, answer)
        print(f"{(time.process_time() - began) / 3000 * 1e6:.1f} us")
        bench.app._ledger.drain()


if __name__ == "__main__":
    uvloop.run(main())
