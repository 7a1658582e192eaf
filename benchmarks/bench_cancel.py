"""M7: a client leaves, and its provider's connection closes: milliseconds, in every phase, streaming and not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import socket
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, cast

import msgspec
import uvloop

from benchmarks import harness

BAR: Final = 50.0  # ms, p99
OTHERS: Final = 32  # streams under way meanwhile, an event each 5 ms
LATE_SECONDS: Final = 2.0  # by which a connection must be closed, or counts as never
CONFIG: Final = """
[server]
listen = ["127.0.0.1:{port}"]
[providers.openai]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_PROVIDER_KEY"
[providers.narrow]
kind = "openai-compatible"
base_url = "http://127.0.0.1:{upstream}/v1"
limits.concurrency = 1
[providers.hole]
kind = "openai-compatible"
base_url = "http://127.0.0.1:HOLE/v1"
[providers.tls]
kind = "openai-compatible"
base_url = "https://127.0.0.1:SILENT/v1"
[queue]
wait_seconds = 600
[timeouts]
connect_seconds = 60
[callers.bench]
key = "env:BENCH_CALLER_KEY"
models = ["openai/*", "narrow/*", "hole/*", "tls/*"]
[log]
file = "{log}"
"""
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"word "},"finish_reason":null}]}\n\n'
)
CHUNK: Final = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
HALF: Final = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"id":"c",'
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
ASKED: Final = re.compile(rb"(?i)\r\nx-bench: (\d+) (\w+)")
LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # close() then sends RST


class Phase(NamedTuple):
    """Where a request is when its client leaves. `play`: what the provider does; `seen`: who knows that it is there."""

    name: str
    stream: bool
    model: str = "openai/m"
    play: str = "silent"
    seen: str = "provider"  # or "queue", "kernel", "handshake"


PHASES: Final = (
    *(Phase("queued", stream, "narrow/m", seen="queue") for stream in (True, False)),
    *(Phase("connecting (TCP)", stream, "hole/m", seen="kernel") for stream in (True, False)),
    *(Phase("connecting (TLS)", stream, "tls/m", seen="handshake") for stream in (True, False)),
    *(Phase("before the first byte", stream) for stream in (True, False)),
    Phase("streaming", stream=True, play="events"),
    Phase("streaming, provider silent", stream=True, play="pause"),
    Phase("inside of a whole answer", stream=False, play="half"),
)


class Seen(NamedTuple):
    """One request at the provider, or one handshake. `closed`: with the time when its connection was."""

    begun: asyncio.Future[None]
    closed: asyncio.Future[float]


class Book:
    """What the provider has seen, by the number of the request; handshakes under 0."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}
        self.loop = asyncio.get_running_loop()

    def expect(self, number: int) -> Seen:
        seen = self.seen[number] = Seen(self.loop.create_future(), self.loop.create_future())
        return seen


class Peer(asyncio.Protocol):
    """One connection to the provider. It does as the `x-bench` header of a request says: `NUMBER PLAY`."""

    def __init__(self, book: Book, number: int | None = None) -> None:
        self._book = book
        self._number = number
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._number is not None:
            self._begun(self._number)

    def data_received(self, data: bytes) -> None:
        if self._number is not None:  # a handshake: it is not answered
            return
        self._data += data
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length is None or len(body) < int(length[1]):
            return
        asked = ASKED.search(head)
        assert asked is not None, head
        number, play = asked[1], asked[2].decode()
        self._number = int(number)
        if play != "silent":
            self._transport.write(HALF if play == "half" else HEAD + CHUNK * 3)
        if play == "events":
            self._again()
        self._begun(self._number)

    def _again(self) -> None:
        self._transport.write(CHUNK)
        self._timer = self._book.loop.call_later(0.005, self._again)

    def _begun(self, number: int) -> None:
        seen = self._book.seen.get(number)
        if seen is not None and not seen.begun.done():
            seen.begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seen = self._book.seen.get(-1 if self._number is None else self._number)
        if seen is not None and not seen.closed.done():
            seen.closed.set_result(time.perf_counter())


def main() -> int:
    options = harness.options(__doc__ or "")
    times = 60 if options.quick else 400
    names = harness.available()
    with (
        socket.socket() as provider,
        socket.socket() as silent,
        socket.socket() as hole,
        contextlib.ExitStack() as full,
    ):
        for sock, backlog in ((provider, 2048), (silent, 2048), (hole, 0)):
            sock.bind(("127.0.0.1", 0))
            sock.listen(backlog)
        for _ in range(4):  # its backlog is full then: whoever connects now gets no answer
            filler = full.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        config = CONFIG.replace("HOLE", str(hole.getsockname()[1])).replace("SILENT", str(silent.getsockname()[1]))
        with harness.parts(names, upstream=provider.getsockname()[1], config=config) as parts:
            ports = {name: parts[name].port for name in names}
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {harness.cores()[1]})
            found = uvloop.run(measure(ports, parts["sidecar"].process.pid, provider, silent, times))
            os.sched_setaffinity(0, everywhere)
    rows = [row(name, phase, found[name, phase]) for phase in PHASES for name in names if (name, phase) in found]
    ours = [each for each in rows if each["proxy"] == "sidecar"]
    worst = max(each["p99 ms"] for each in ours)
    checks = {
        f"client gone -> provider closed, p99 <= {BAR:.0f} ms in every phase ({worst:.1f})": worst <= BAR,
        "client gone -> every connection to the provider was closed": all(each["never"] == 0 for each in ours),
    }
    about = (
        f"{times} clients a phase leave, half by FIN and half by RST, {OTHERS} streams being under way; from close()"
        " until the provider sees its connection closed, /status shows no place in a queue, or the sidecar no socket;"
        " proxies on one core, all else on another"
    )
    return harness.report("bench_cancel", about, rows, checks, options.json)


def row(name: str, phase: Phase, times: list[float]) -> dict[str, Any]:
    ordered = sorted(times)
    return {
        "phase": phase.name,
        "asked": "stream" if phase.stream else "whole",
        "proxy": name,
        "p50 ms": statistics.median(ordered),
        "p99 ms": ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)],
        "most ms": ordered[-1],
        "never": sum(each >= LATE_SECONDS * 1000 for each in ordered),
    }


async def measure(
    ports: dict[str, int], pid: int, provider: socket.socket, silent: socket.socket, times: int
) -> dict[tuple[str, Phase], list[float]]:
    """Milliseconds, by proxy and phase. A plain proxy has no queue, and its dials are not asked about.

    `pid`: of the sidecar.
    """
    book = Book()
    found: dict[tuple[str, Phase], list[float]] = {}
    servers = [
        await book.loop.create_server(lambda: Peer(book), sock=provider),
        await book.loop.create_server(lambda: Peer(book, 0), sock=silent),
    ]
    numbers = itertools.count(1)
    for name, port in ports.items():
        others = [await ask(port, Phase("", stream=True, play="events"), 0) for _ in range(OTHERS)]
        readers = [book.loop.create_task(drink(sock)) for sock in others]
        narrow = await ask(port, Phase("", stream=True, model="narrow/m"), 0) if name == "sidecar" else None
        for phase in PHASES:
            if name != "sidecar" and phase.seen != "provider":
                continue
            trial = Trial(book, port, pid, phase)
            for at in range(-5, times):  # the first few warm up
                took = await trial.once(next(numbers), reset=at % 2 == 0)
                if at >= 0:
                    found.setdefault((name, phase), []).append(took * 1000)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for sock in [*others, *([narrow] if narrow is not None else [])]:
            sock.close()
    for server in servers:
        server.close()
    return found


class Trial:
    """One client that comes as far as the phase, and leaves."""

    def __init__(self, book: Book, port: int, pid: int, phase: Phase) -> None:
        self._book = book
        self._port = port
        self._held = f"/proc/{pid}/fd"
        self._before = len(os.listdir(self._held))
        self._phase = phase

    async def once(self, number: int, *, reset: bool) -> float:
        """Seconds from its leaving until nothing is left of it upstream; LATE_SECONDS where something stays."""
        phase = self._phase
        key = 0 if phase.seen == "handshake" else number
        seen = self._book.expect(key)
        sock = await ask(self._port, phase, number)
        if phase.seen == "queue":
            await until(self._queued)
        elif phase.seen == "kernel":
            await until(self._dialing)
        else:
            await asyncio.wait_for(seen.begun, LATE_SECONDS)
        if phase.play not in ("silent", "half"):
            await self._book.loop.sock_recv(sock, 65536)
        await asyncio.sleep(0.002)  # whatever is on its way has come
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        left = time.perf_counter()
        sock.close()
        try:
            if phase.seen == "queue":
                await until(self._queued, False)
                closed = time.perf_counter()
                if seen.begun.done():
                    raise RuntimeError("a request that was queued, and left, came to the provider")
            elif phase.seen == "kernel":
                await until(self._holds_nothing)
                closed = time.perf_counter()
            else:
                closed = await asyncio.wait_for(seen.closed, LATE_SECONDS)
        except TimeoutError:
            return LATE_SECONDS
        finally:
            del self._book.seen[key]
        return closed - left

    async def _queued(self) -> bool:
        """Does a request wait for the narrow provider?"""
        status = msgspec.json.decode(await get(self._port, "/status"))
        return any(each["key"] == "provider:narrow" and each["waiting"] for each in status["limits"])

    async def _holds_nothing(self) -> bool:
        return len(os.listdir(self._held)) <= self._before

    async def _dialing(self) -> bool:
        """Does the sidecar hold a socket that dials, beside its client's? The kernel says."""
        return len(os.listdir(self._held)) - self._before >= 2


async def until(true: Callable[[], Awaitable[bool]], wanted: bool = True) -> None:
    deadline = time.perf_counter() + LATE_SECONDS
    while await true() is not wanted:
        if time.perf_counter() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.0005)


async def ask(port: int, phase: Phase, number: int) -> socket.socket:
    """A client that has sent its request."""
    body = b'{"model":"%b","stream":%b,"messages":[{"role":"user","content":"hello"}]}' % (
        phase.model.encode(),
        b"true" if phase.stream else b"false",
    )
    sock = await connected(port)
    await asyncio.get_running_loop().sock_sendall(
        sock,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\nx-bench: %d %b\r\ncontent-length: %d\r\n\r\n%b"
        % (harness.KEY.encode(), number, phase.play.encode(), len(body), body),
    )
    return sock


async def connected(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def drink(sock: socket.socket) -> None:
    """Read a stream that does not end."""
    while await asyncio.get_running_loop().sock_recv(sock, 65536):
        pass


async def get(port: int, path: str) -> bytes:
    loop = asyncio.get_running_loop()
    with await connected(port) as sock:
        lines = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nauthorization: Bearer {harness.KEY}\r\n"
        await loop.sock_sendall(sock, f"{lines}connection: close\r\n\r\n".encode())
        got = b""
        while data := await loop.sock_recv(sock, 65536):
            got += data
    return got.partition(b"\r\n\r\n")[2]


if __name__ == "__main__":
    sys.exit(main())
