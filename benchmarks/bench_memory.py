"""M5: memory when idle, and for each of 5 000 streams that are open and wait for their provider."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import statistics
import sys
from typing import Any, Final, cast

import uvloop

from benchmarks import harness

IDLE_BAR: Final = 45.0  # MB
STREAM_BAR: Final = 25.0  # KB a stream
STREAMS: Final = 5000
AT_ONCE: Final = 100  # that begin together
SECONDS: Final = 60.0  # the most that opening or closing all of them may take
DESCRIPTORS: Final = 2 * STREAMS + 500
REST_SECONDS: Final = 0.5  # for what is under way to come to its end
CONFIG: Final = harness.SIDECAR.replace(
    "[providers.openai]\n", f"max_connections = {STREAMS + 100}\n[providers.openai]\n"
).replace("[callers.bench]", f"[providers.openai.pool]\nmax_connections = {STREAMS + 100}\n[callers.bench]")
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"word "},"finish_reason":null}]}\n\n'
)
BEGUN: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: req_0123456789abcdef\r\n"
    b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(EVENT), EVENT)
)


class Provider(asyncio.Protocol):
    """Begins a stream, and is silent from then on."""

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if length is not None and len(body) >= int(length[1]):
            self._data = b""
            self._transport.write(BEGUN)


class Client(asyncio.Protocol):
    """Asks for a stream, and is content once its first event has come."""

    def __init__(self, request: bytes, begun: asyncio.Future[None]) -> None:
        self._request = request
        self._got = b""
        self._begun = begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if EVENT in self._got and not self._begun.done():
            self._begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._begun.done():
            self._begun.set_exception(ConnectionError(f"a stream ended before it began: {self._got[:300]!r}"))


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds = 1 if options.quick else 3
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        print(f"{DESCRIPTORS} descriptors are needed, and {hard} allowed: ulimit -Hn {DESCRIPTORS}")
        return 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))  # of the proxies, too
    names = harness.available()
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for name in names:  # each alone, and new: memory once had is kept
            found.setdefault(name, []).append(measure(name))
    rows = [row(name, found[name]) for name in names]
    ours = next(each for each in rows if each["proxy"] == "sidecar")
    idle, stream = ours["idle MB"], ours["KB/stream"]
    checks = {
        f"idle: {idle:.1f} MB <= {IDLE_BAR:.0f}": idle <= IDLE_BAR,
        f"an open stream, of {STREAMS}: {stream:.1f} KB <= {STREAM_BAR:.0f}": stream <= STREAM_BAR,
    }
    about = (
        f"resident memory; idle: started and asked once; then {STREAMS} streams open whose provider is silent behind"
        f" the first event, a connection each on both sides, {AT_ONCE} begun at a time, requests of 2 KB; after: all of"
        f" them closed; {rounds} rounds, medians; each proxy alone in its round"
    )
    return harness.report("bench_memory", about, rows, checks, options.json)


def row(name: str, rounds: list[tuple[float, float, float]]) -> dict[str, Any]:
    idle, full, after = (statistics.median(each) for each in zip(*rounds, strict=True))
    return {
        "proxy": name,
        "idle MB": idle,
        f"{STREAMS} streams MB": full,
        "KB/stream": (full - idle) * 1024 / STREAMS,
        "after MB": after,
    }


def measure(name: str) -> tuple[float, float, float]:
    """Megabytes of one proxy: idle, with all the streams, and behind them."""
    with socket.socket() as provider:
        provider.bind(("127.0.0.1", 0))
        provider.listen(2048)
        with harness.parts([name], upstream=provider.getsockname()[1], config=CONFIG) as parts:
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {harness.cores()[1]})
            try:
                return uvloop.run(_measure(provider, parts[name]))
            finally:
                os.sched_setaffinity(0, everywhere)


async def _measure(provider: socket.socket, part: harness.Part) -> tuple[float, float, float]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Provider, sock=provider, backlog=2048)
    (await opened(part.port, 1))[0].abort()
    await asyncio.sleep(REST_SECONDS)
    idle = part.rss_mb()
    clients: list[asyncio.Transport] = []
    async with asyncio.timeout(SECONDS):
        while len(clients) < STREAMS:
            clients += await opened(part.port, min(AT_ONCE, STREAMS - len(clients)))
    await asyncio.sleep(REST_SECONDS)
    full = part.rss_mb()
    for client in clients:
        client.abort()
    await asyncio.sleep(4 * REST_SECONDS)
    after = part.rss_mb()
    server.close()
    return idle, full, after


async def opened(port: int, count: int) -> list[asyncio.Transport]:
    """So many streams, of which the first event has come. Raises ConnectionError where one has another answer."""
    loop = asyncio.get_running_loop()
    data = harness.body(stream=True)
    lines = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {harness.KEY}\r\naccept: text/event-stream\r\nuser-agent: OpenAI/Python 3\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    request = lines.encode() + data
    transports: list[asyncio.Transport] = []
    begun: list[asyncio.Future[None]] = []
    for _ in range(count):
        begun.append(loop.create_future())
        transport, _ = await loop.create_connection(lambda: Client(request, begun[-1]), "127.0.0.1", port)
        transports.append(transport)
    await asyncio.gather(*begun)
    return transports


if __name__ == "__main__":
    sys.exit(main())
