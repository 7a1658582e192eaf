"""M10: CPU per megabyte of request, from 0.2 KB to 20 MB, and for up to 500 000 one-byte messages; linear, in one run.

The provider is played here, and compares what comes to it with what was sent, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import statistics
import sys
from typing import Any, Final, NamedTuple, cast

import uvloop

from benchmarks import harness

BAR: Final = 2.0  # of nginx's CPU per MB, for text of 1 MB and more
LINEAR_BAR: Final = 1.25  # of the CPU per MB of a body that is a tenth or a twentieth as large
CLIENTS: Final = 4
SECONDS: Final = 120.0  # the most that a round may take
LARGE: Final = 1_000_000  # bytes, from which on a body costs by its bytes and not by its request
TEXT: Final = 'The quick brown fox jumps over the lazy dog, and says:\\n\\t\\"so what?\\" '  # as JSON has it
ANSWER: Final = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}'
)
OK: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")


class Size(NamedTuple):
    """A body: so many bytes of text in one message, or so many messages of one byte."""

    name: str
    amount: int
    messages: bool = False

    def body(self) -> bytes:
        head = f'{{"model":"{harness.MODEL}","stream":false,"messages":['
        tail = '],"temperature":0.7}'
        if self.messages:
            return (head + ",".join(['{"role":"user","content":"x"}'] * self.amount) + tail).encode()
        head += '{"role":"user","content":"'
        tail = '"}' + tail
        room = max(self.amount - len(head) - len(tail), 1)
        text = TEXT * (room // len(TEXT))
        return f"{head}{text}{'x' * (room - len(text))}{tail}".encode()


SIZES: Final = (
    *(Size(f"{kb:g} KB", round(kb * 1000)) for kb in (0.2, 4, 10, 50, 200)),
    *(Size(f"{mb} MB", mb * LARGE) for mb in (1, 5, 20)),
    *(Size(f"{count:_} messages".replace("_", " "), count, messages=True) for count in (50_000, 500_000)),
)


class Expected:
    """What the provider is to be sent: by the sidecar with the model's name as the provider has it, else as it was."""

    bodies: tuple[bytes, ...] = ()


class Provider(asyncio.Protocol):
    """Reads a request to its end, compares it, answers."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._pieces: list[bytes] = []
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            held = b"".join([*self._pieces, data])
            head, blank, data = held.partition(b"\r\n\r\n")
            if not blank:
                self._pieces = [held]
                return
            length = LENGTH.search(head + b"\r\n")
            assert length is not None, head
            self._left, self._pieces = int(length[1]), []
        self._pieces.append(data)
        self._left -= len(data)
        if not self._left:
            whole = b"".join(self._pieces)
            self._pieces = []
            self._transport.write(OK if whole in self._expected.bodies else OK.replace(b"200 OK", b"500 No", 1))


class Client(asyncio.Protocol):
    """Sends the same request so many times, each after the answer to the last."""

    def __init__(self, request: bytes, times: int, done: asyncio.Future[None]) -> None:
        self._request = request
        self._left = times
        self._done = done
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._got.endswith(ANSWER):
            return
        if not self._got.startswith(b"HTTP/1.1 200"):
            self._transport.abort()
            return
        self._got = b""
        self._left -= 1
        if self._left:
            self._transport.write(self._request)
        else:
            self._done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(f"a wrong answer: {self._got[:300]!r}"))


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, most, least = (
        (3, 80, 2000) if options.quick else (7, 200, 3600)
    )  # fewer than the sidecar serves on a connection
    names = harness.available()
    cpu: dict[Size, dict[str, list[float]]] = {size: {name: [] for name in names} for size in SIZES}
    with socket.socket() as provider:
        provider.bind(("127.0.0.1", 0))
        provider.listen(64)
        with harness.parts(names, upstream=provider.getsockname()[1]) as parts:
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {harness.cores()[1]})
            for size in SIZES:
                ours = size.body()
                theirs = ours.replace(harness.MODEL.encode(), harness.MODEL.partition("/")[2].encode(), 1)
                times = max(CLIENTS, min(least, most * LARGE // len(ours)))
                for number in range(rounds + 1):
                    for name in names:
                        before = parts[name].cpu_seconds()
                        uvloop.run(measure(provider.dup(), parts[name].port, (ours, theirs), times))
                        took = parts[name].cpu_seconds() - before
                        if number:  # the first round warms up
                            cpu[size][name].append(took / (times // CLIENTS * CLIENTS * len(ours) / LARGE) * 1000)
            os.sched_setaffinity(0, everywhere)
            rss = {name: part.rss_mb() for name, part in parts.items()}
    rows = [row(size, name, cpu[size]) for size in SIZES for name in names]
    about = (
        f"unary requests, {CLIENTS} at a time, of about {most} MB a round or {least} requests, {rounds} rounds; every"
        f" body compared at the provider; RSS behind it: {', '.join(f'{name} {rss[name]:.0f} MB' for name in names)};"
        f" {harness.METHOD}"
    )
    return harness.report("bench_bodies", about, rows, checks(cpu), options.json)


def row(size: Size, name: str, cpu: dict[str, list[float]]) -> dict[str, Any]:
    each = statistics.median(cpu[name])
    return {
        "body": size.name,
        "proxy": name,
        "CPU ms/MB": each,
        "CPU ms/request": each * len(size.body()) / LARGE,
        "of nginx": harness.median_ratio(cpu, name, "nginx"),
        "of Envoy": harness.median_ratio(cpu, name, "envoy"),
    }


def checks(cpu: dict[Size, dict[str, list[float]]]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    texts = [size for size in SIZES if not size.messages and size.amount >= LARGE]
    for size in texts:
        ratio = harness.median_ratio(cpu[size], "sidecar", "nginx")
        if ratio is None:
            return {"nginx is here to compare with (Debian nginx-light)": False}
        found[f"a body of {size.name}: CPU per MB <= {BAR} x nginx ({ratio:.2f})"] = ratio <= BAR
    for less, more in ((texts[0], texts[-1]), (SIZES[-2], SIZES[-1])):
        pair = {"less": cpu[less]["sidecar"], "more": cpu[more]["sidecar"]}
        ratio = harness.median_ratio(pair, "more", "less") or 0.0
        words = f"linear: CPU per MB of {more.name} <= {LINEAR_BAR} x that of {less.name} ({ratio:.2f})"
        found[words] = ratio <= LINEAR_BAR
    return found


async def measure(provider: socket.socket, port: int, bodies: tuple[bytes, bytes], times: int) -> None:
    """So many requests in all. Raises RuntimeError where an answer, or what came to the provider, is wrong."""
    loop, expected = asyncio.get_running_loop(), Expected()
    expected.bodies = bodies
    server = await loop.create_server(lambda: Provider(expected), sock=provider)
    lines = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {harness.KEY}\r\naccept: application/json\r\ncontent-length: {len(bodies[0])}\r\n\r\n"
    )
    request = lines.encode() + bodies[0]
    waiting: list[asyncio.Future[None]] = []
    async with asyncio.timeout(SECONDS):
        for _ in range(CLIENTS):
            done: asyncio.Future[None] = loop.create_future()
            waiting.append(done)
            await loop.create_connection(lambda done=done: Client(request, times // CLIENTS, done), "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*waiting)
    server.close()


if __name__ == "__main__":
    sys.exit(main())
