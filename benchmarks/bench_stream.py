"""M2: CPU per streamed event (64 events 5 ms apart, 128 streams), against a plain reverse proxy, in one run."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import sys
from typing import cast

import uvloop

from benchmarks import harness

BAR = 0.9  # of Envoy's CPU per event
STREAMS = 128
SECONDS = 30.0  # the most that a round may take
CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")
REQUEST = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    "authorization: Bearer {key}\r\naccept: text/event-stream\r\nuser-agent: OpenAI/Python 3\r\n"
    "content-length: {length}\r\n\r\n"
)


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, each = (3, 4) if options.quick else (7, 10)
    names = harness.available()
    with harness.parts(names) as parts:
        wanted = load(parts["direct"].port, 1, 1)[0]
        events = wanted.count(b"\n\n")
        cpu: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, part in parts.items():
                before = part.cpu_seconds()
                answers = load(part.port, STREAMS, each)
                if wrong := [answer for answer in answers if answer != wanted]:  # a wrong answer is not a fast answer
                    print(f"{name}: {len(wrong)} wrong answers, as {wrong[0][-200:]!r}")
                    return 1
                if number and name in cpu:  # the first round warms up
                    cpu[name].append((part.cpu_seconds() - before) / (STREAMS * each * events) * 1e6)
        rss = {name: part.rss_mb() for name, part in parts.items()}
    rows = [
        {
            "proxy": name,
            "CPU us/event": statistics.median(cpu[name]),
            "CPU us/stream": round(statistics.median(cpu[name]) * events),
            "of Envoy": harness.median_ratio(cpu, name, "envoy"),
            "RSS MB": round(rss[name]),
        }
        for name in names
    ]
    about = f"{STREAMS} streams of {events} events 5 ms apart, {each} after another, {rounds} rounds; {harness.METHOD}"
    return harness.report("bench_stream", about, rows, harness.bar(cpu, BAR), options.json)


class Reader(asyncio.Protocol):
    """One client connection: sends the request, collects the answer until its last chunk, asks again."""

    def __init__(self, request: bytes, times: int, done: asyncio.Future[list[bytes]]) -> None:
        self._request = request
        self._times = times
        self._done = done
        self._data: list[bytes] = []
        self._answers: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data.append(data)
        if not data.endswith(b"0\r\n\r\n"):
            return
        self._answers.append(b"".join(self._data))
        self._data.clear()
        if len(self._answers) < self._times:
            self._transport.write(self._request)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result([*self._answers, *([b"".join(self._data)] if self._data else [])])


def load(port: int, streams: int, times: int) -> list[bytes]:
    """The bodies of the answers, on the load's core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {harness.cores()[1]})
    try:
        answers = uvloop.run(_load(port, streams, times))
    finally:
        os.sched_setaffinity(0, everywhere)
    return [body(answer) for answer in answers]


async def _load(port: int, streams: int, times: int) -> list[bytes]:
    loop = asyncio.get_running_loop()
    data = harness.body(stream=True)
    request = REQUEST.format(key=harness.KEY, length=len(data)).encode() + data
    waiting: list[asyncio.Future[list[bytes]]] = []
    async with asyncio.timeout(SECONDS):
        for _ in range(streams):
            done: asyncio.Future[list[bytes]] = loop.create_future()
            waiting.append(done)
            await loop.create_connection(lambda done=done: Reader(request, times, done), "127.0.0.1", port)  # type: ignore[misc]
        return [answer for answers in await asyncio.gather(*waiting) for answer in answers]


def body(answer: bytes) -> bytes:
    """What a chunked answer holds, its head left out; b"" where it is no 200."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return b""
    pieces, at = [], 0
    while match := CHUNK.match(rest, at):
        size = int(match[1], 16)
        pieces.append(rest[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(pieces)


if __name__ == "__main__":
    sys.exit(main())
