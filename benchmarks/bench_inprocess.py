"""M9: the in-process transport against our own sidecar over loopback: what each adds to a call, in one run.

The client is httpx2's (what the openai package uses), the same in all three: straight to the provider, through a
sidecar over loopback, and with the sidecar as its transport. What is added may be less than nothing: in process, the
sidecar's pool stands in for the client's own.
"""

from __future__ import annotations

import gc
import os
import re
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx2
import uvloop

from benchmarks import harness
from sidecar import SidecarTransport

BAR: Final = 0.5  # of what the sidecar over loopback adds, at the median
KINDS: Final = {
    "whole": "asynchronous client, whole answer",
    "first": "asynchronous client, first token of a stream",
    "sync": "synchronous client, whole answer",
}
WAYS: Final = ("direct", "loopback", "in process")
PATH: Final = "/v1/chat/completions"
TOKEN: Final = re.compile(rb'"content":"[^"]')


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, calls = (3, 200) if options.quick else (9, 500)
    os.environ.update(BENCH_PROVIDER_KEY="sk-bench-provider", BENCH_CALLER_KEY=harness.KEY)
    found: dict[tuple[str, str], list[float]] = {}
    with TemporaryDirectory(prefix="sidecar-bench-") as folder, harness.parts(["sidecar"]) as parts:
        upstream = parts["direct"].port
        file = Path(folder) / "sidecar.toml"
        file.write_text(harness.SIDECAR.format(port=1, upstream=upstream, log=Path(folder) / "access.log"))
        file.chmod(0o600)
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {harness.cores()[1]})
        gc.collect()
        gc.disable()  # a pause of the client would be taken for the sidecar's
        for number in range(rounds + 1):
            for way in WAYS:
                port = parts["sidecar"].port if way == "loopback" else upstream
                inside = str(file) if way == "in process" else None
                took = {**uvloop.run(_asynchronous(port, inside, calls)), "sync": _synchronous(port, inside, calls)}
                for kind, times in took.items():
                    if number:  # the first round warms up
                        found.setdefault((kind, way), []).append(statistics.median(times))
            gc.collect()
        os.sched_setaffinity(0, everywhere)
    rows = [
        {
            "what": KINDS[kind],
            "way": way,
            "p50 us": statistics.median(found[kind, way]),
            "added p50 us": added(kind, way, found) if way != "direct" else None,
        }
        for kind in KINDS
        for way in WAYS
    ]
    checks = {}
    for kind, words in KINDS.items():
        ours, theirs = added(kind, "in process", found), added(kind, "loopback", found)
        checks[f"in process, {words}: {ours:.0f} us added <= {BAR} x over loopback ({theirs:.0f})"] = (
            ours <= BAR * theirs
        )
    about = (
        f"httpx2 {httpx2.__version__}, one call after another, {calls} a round, {rounds} rounds, medians; added: more"
        " than without a sidecar; client and provider on one core, the sidecar over loopback on another"
    )
    return harness.report("bench_inprocess", about, rows, checks, options.json)


def added(kind: str, way: str, found: dict[tuple[str, str], list[float]]) -> float:
    """The median over rounds of what a way adds to the median call, in microseconds."""
    pairs = zip(found[kind, way], found[kind, "direct"], strict=True)
    return statistics.median(each - direct for each, direct in pairs)


def _request(*, stream: bool) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {harness.KEY}", "content-type": "application/json"}
    return {"content": harness.body(stream=stream), "headers": headers}


async def _asynchronous(port: int, inside: str | None, calls: int) -> dict[str, list[float]]:
    whole: list[float] = []
    first: list[float] = []
    transport = None if inside is None else SidecarTransport(inside)
    asked, streamed = _request(stream=False), _request(stream=True)
    async with httpx2.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
        for number in range(calls + 20):
            began = time.perf_counter()
            answer = await client.post(PATH, **asked)
            took = (time.perf_counter() - began) * 1e6
            _check(answer.content, b'"finish_reason":"stop"')
            if number >= 20:  # the first few warm up
                whole.append(took)
        for number in range(calls // 20 + 2):
            began = time.perf_counter()
            async with client.stream("POST", PATH, **streamed) as answer:
                pieces, data = answer.aiter_raw(), b""
                while TOKEN.search(data) is None:  # the role alone is held back: until then another target may be asked
                    data += await anext(pieces)
                took = (time.perf_counter() - began) * 1e6
                data += b"".join([piece async for piece in pieces])
            _check(data, b"data: [DONE]\n\n")
            if number >= 2:
                first.append(took)
    return {"whole": whole, "first": first}


def _synchronous(port: int, inside: str | None, calls: int) -> list[float]:
    times: list[float] = []
    transport = None if inside is None else SidecarTransport(inside)
    asked = _request(stream=False)
    with httpx2.Client(transport=transport, base_url=f"http://127.0.0.1:{port}") as client:
        for number in range(calls + 20):
            began = time.perf_counter()
            answer = client.post(PATH, **asked)
            took = (time.perf_counter() - began) * 1e6
            _check(answer.content, b'"finish_reason":"stop"')
            if number >= 20:
                times.append(took)
    return times


def _check(data: bytes, end: bytes) -> None:
    """A wrong answer is not a fast answer."""
    if end not in data:
        raise RuntimeError(f"a wrong answer: {data[-300:]!r}")


if __name__ == "__main__":
    sys.exit(main())
