"""M11: what a provider's bad day costs the requests that it serves well: resets, stalls, 429s among them; open loop."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import uvloop

from benchmarks import harness

BAR: Final = 1.1  # of the added p99 without faults
RATE: Final = 200  # requests a second, whatever becomes of those before
FAULTS: Final = (("reset", 0.01), ("stall", 0.01), ("429:0", 0.05))  # at the first try of a request
GIVE_UP_SECONDS: Final = 1.5
SIMULATE: Final = ("--latency-ms", "20", "--tokens", "16")
CONFIG: Final = """
[server]
listen = ["127.0.0.1:{port}"]
[providers.openai]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_PROVIDER_KEY"
[providers.second]
kind = "openai-compatible"
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_PROVIDER_KEY"
[models.fast]
targets = ["openai/sim-large", "second/sim-large"]
[timeouts]
first_byte_seconds = 1
[callers.bench]
key = "env:BENCH_CALLER_KEY"
models = ["fast"]
requests_per_minute = 100_000_000
[log]
file = "{log}"
"""
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")


class Run(msgspec.Struct):
    """What came of one round: milliseconds from the intended start, endless where there was no right answer."""

    healthy: list[float] = []
    faulty: list[float] = []
    late: list[float] = []  # how much later than intended a request was sent

    @property
    def failed(self) -> int:
        return sum(map(math.isinf, self.healthy))

    @property
    def mended(self) -> int:
        return sum(map(math.isfinite, self.faulty))


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, seconds = (5, 2) if options.quick else (12, 2)
    names = harness.available()
    found: dict[tuple[str, bool], list[Run]] = {}
    with harness.parts(names, simulate=SIMULATE, config=CONFIG) as parts:
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {harness.cores()[1]})
        for number in range(rounds + 1):
            for name, part in parts.items():
                for bad in (False, True):
                    if name == "direct" and bad:  # nobody stands between: only the provider's own time is of interest
                        continue
                    run = uvloop.run(load(name, part.port, seconds if number else 1, seed=number, bad=bad))
                    if number:  # the first round warms up
                        found.setdefault((name, bad), []).append(run)
        os.sched_setaffinity(0, everywhere)
    rows = [row(name, bad, runs, found) for (name, bad), runs in found.items()]
    ratio = added("sidecar", True, found) / added("sidecar", False, found)
    failed = sum(run.failed for bad in (False, True) for run in found["sidecar", bad])
    checks = {
        f"added p99 of the healthy <= {BAR} x without faults ({ratio:.2f})": ratio <= BAR,
        f"no healthy request failed ({failed})": failed == 0,
    }
    parts_of = ", ".join(f"{share:.0%} {name.partition(':')[0]}" for name, share in FAULTS)
    about = (
        f"open loop, {RATE} requests a second, half of them streams, from the intended start to the last byte; provider"
        f" answers after 20 ms; faults at the first try: {parts_of}; {rounds} rounds of {seconds} s; {harness.METHOD}"
    )
    return harness.report("bench_faults", about, rows, checks, options.json)


def row(name: str, bad: bool, runs: list[Run], found: dict[tuple[str, bool], list[Run]]) -> dict[str, Any]:
    more = added(name, bad, found) if name != "direct" else None
    less = added(name, False, found) if name != "direct" and bad else None
    faulty = sum(len(run.faulty) for run in runs)
    return {
        "proxy": name,
        "faults": "yes" if bad else "no",
        "healthy": sum(len(run.healthy) for run in runs),
        "failed": sum(run.failed for run in runs),
        "p50 ms": statistics.median(percentile(run.healthy, 0.5) for run in runs),
        "p99 ms": p99(runs),
        "added p99 ms": more,
        "of without": more / less if more is not None and less else None,
        "faulty mended": f"{sum(run.mended for run in runs)}/{faulty}" if faulty else None,
        "sent late p99 ms": statistics.median(percentile(run.late, 0.99) for run in runs),
    }


def added(name: str, bad: bool, found: dict[tuple[str, bool], list[Run]]) -> float:
    """What a proxy adds to the p99 of the healthy requests, in milliseconds."""
    return max(p99(found[name, bad]) - p99(found["direct", False]), 0.01)


def p99(runs: list[Run]) -> float:
    return statistics.median(percentile(run.healthy, 0.99) for run in runs)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def load(name: str, port: int, seconds: int, *, seed: int, bad: bool) -> Run:
    """One round. The same seed has the same requests, but for their faults."""
    run = Run()
    chance = random.Random(seed)
    idle: list[Line] = []
    async with asyncio.TaskGroup() as group:
        began = time.perf_counter() + 0.05
        for number in range(seconds * RATE):
            fault = drawn(chance.random())
            intended = began + number / RATE
            await asyncio.sleep(intended - time.perf_counter())
            group.create_task(
                one(port, idle, run, intended, f"{name}-{seed}-{number}", fault if bad else "", number % 2)
            )
    for line in idle:
        line.close()
    return run


def drawn(at: float) -> str:
    """The fault of a request, or none."""
    for name, share in FAULTS:
        if at < share:
            return name
        at -= share
    return ""


async def one(port: int, idle: list[Line], run: Run, intended: float, key: str, fault: str, stream: int) -> None:
    run.late.append((time.perf_counter() - intended) * 1000)
    line = idle.pop() if idle else Line()
    took = math.inf
    try:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            answer = await line.ask(port, request(key, fault, stream=bool(stream)))
        if answer.startswith(b"HTTP/1.1 200") and (b"[DONE]" if stream else b'"finish_reason":"stop"') in answer:
            took = (time.perf_counter() - intended) * 1000
    except (TimeoutError, OSError, EOFError):
        line.close()
    else:
        if b"connection: close" in answer.lower():
            line.close()
        else:
            idle.append(line)
    (run.faulty if fault else run.healthy).append(took)


class Line:
    """A client's connection, kept alive. One that was closed while it was idle is replaced, as every client does."""

    def __init__(self) -> None:
        self._way: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, port: int, data: bytes) -> bytes:
        """The whole answer. Raises EOFError where it is cut."""
        reused = self._way is not None
        try:
            return await self._ask(port, data)
        except (OSError, EOFError) as error:
            if not reused or error.args == ("cut",):
                raise
        self.close()
        return await self._ask(port, data)

    async def _ask(self, port: int, data: bytes) -> bytes:
        if self._way is None:
            self._way = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = self._way
        writer.write(data)
        got = b""
        while not whole(got):
            piece = await reader.read(65536)
            if not piece:
                raise EOFError("cut" if got else "closed")
            got += piece
        return got

    def close(self) -> None:
        if self._way is not None:
            self._way[1].close()
            self._way = None


def whole(got: bytes) -> bool:
    head, blank, body = got.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r\n")
    if length is not None:
        return bool(blank) and len(body) >= int(length[1])
    return got.endswith(b"0\r\n\r\n")


def request(key: str, fault: str, *, stream: bool) -> bytes:
    """Its fault is the simulated provider's to play, once: a second try finds a provider that is well."""
    body = b'{"model":"fast","stream":%b,"messages":[{"role":"user","content":"%b"}]}' % (
        b"true" if stream else b"false",
        b"word " * 400,
    )
    sick = f"x-sim-fault: {fault}\r\nx-sim-times: 1\r\nx-sim-key: {key}\r\n" if fault else ""
    lines = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {harness.KEY}\r\n{sick}content-length: {len(body)}\r\n\r\n"
    )
    return lines.encode() + body


if __name__ == "__main__":
    sys.exit(main())
