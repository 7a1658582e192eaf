"""What a decision of limits costs: in memory, and by a shared Redis, in CPU of this process and of Redis."""

from __future__ import annotations

import asyncio
import gc
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import harness
from sidecar.clock import now
from sidecar.config import Config, Store, place
from sidecar.exchange import share
from sidecar.exchange.shared import Shared
from sidecar.limits import Limits
from sidecar.rates import NO_TOKENS, TokenLimits

BAR = 2.0  # us, in memory
MANY = 1_000_000_000  # a limit that is never reached
RUNNING = 100  # at once, in memory
TOGETHER = (1, 8, 64)  # decisions that are asked for at once


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, count = (5, 20_000) if options.quick else (11, 100_000)
    kinds: tuple[tuple[str, TokenLimits], ...] = (
        ("requests, slots", NO_TOKENS),
        ("requests, slots, tokens", (MANY, None, None)),
        ("requests, slots, tokens in, out and both", (MANY, MANY, MANY)),
    )
    rows: list[dict[str, Any]] = []
    worst = 0.0
    gc.set_threshold(20_000, 50, 100)  # as `sidecar serve` does
    gc.freeze()
    for what, tokens in kinds:
        decided, whole = zip(*(in_memory(tokens, count) for _ in range(rounds)), strict=True)
        worst = max(worst, statistics.median(decided))
        rows.append(_row("memory", what, statistics.median(decided), statistics.median(whole), None))
    if shutil.which("redis-server") is None:
        print("redis-server is not there: no figures of it")
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows += runner.run(by_redis(3 if options.quick else 7, 2_000 if options.quick else 10_000))
    checks = {f"a decision in memory, with tokens, <= {BAR:.0f} us ({worst:.2f})": worst <= BAR}
    return harness.report("bench_limits", f"{rounds} rounds, medians", rows, checks, options.json)


def _row(where: str, what: str, decided: float | None, whole: float, redis: float | None) -> dict[str, Any]:
    return {
        "decided by": where,
        "limits": what,
        "CPU us a decision": decided,
        "settled and given back": whole,
        "of it Redis' own": redis,
    }


def in_memory(tokens: TokenLimits, count: int) -> tuple[float, float]:
    """Microseconds of a decision, and of one with all that follows: by CPU time, so that nobody else's work counts."""
    counter, moment = Limits().counter("caller:bench", MANY, MANY, tokens), now()
    decided = whole = 0.0
    for _ in range(count // RUNNING):
        permits, enter, begun = [], counter.enter, time.process_time()
        if tokens is NO_TOKENS:
            for _ in range(RUNNING):
                permits.append(enter(moment))  # noqa: PERF401  # what is measured is no comprehension
        else:
            for _ in range(RUNNING):
                permits.append(enter(moment, 500, 500))  # noqa: PERF401  # as above
        decided += time.process_time() - begun
        for permit in permits:
            _end(permit, settled=tokens is not NO_TOKENS)
        whole += time.process_time() - begun
        moment += 0.01
    assert counter.running == 0
    return decided / count * 1e6, whole / count * 1e6


def _end(permit: Any, *, settled: bool) -> None:
    if settled:
        permit.settle(480, 120)
    permit.release()


async def by_redis(rounds: int, count: int) -> list[dict[str, Any]]:
    """CPU of this process and of a Redis on a unix socket; each decision is of requests, slots and tokens."""
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-") as folder:
        path = Path(folder) / "redis.sock"
        process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not path.exists():
                await asyncio.sleep(0.01)
            limits = Limits()
            store = share(Config(store=Store(url=place(f"unix://{path}"))), limits, lambda event: None)
            assert store is not None
            store.open()
            await store.ready()
            shared = limits.counter("caller:bench", MANY, 1_000_000, (MANY, None, None))
            assert isinstance(shared, Shared)
            rows = [await _rounds(shared, together, rounds, count, process.pid) for together in TOGETHER]
            await store.aclose()
        finally:
            process.kill()
            process.wait()
    return rows


async def _rounds(shared: Shared, together: int, rounds: int, count: int, redis: int) -> dict[str, Any]:
    ours, theirs = list[float](), list[float]()
    for _ in range(rounds):
        used, of_redis = time.process_time(), _cpu(redis)
        for _ in range(count // together):
            for permit in await asyncio.gather(*(shared.ask(500, 500) for _ in range(together))):
                _end(permit, settled=True)
        ours.append((time.process_time() - used) / count * 1e6)
        theirs.append((_cpu(redis) - of_redis) / count * 1e6)
    ours_, theirs_ = statistics.median(ours), statistics.median(theirs)
    return _row("Redis", f"requests, slots, tokens; {together} at once", None, ours_ + theirs_, theirs_)


def _cpu(pid: int) -> float:
    """Seconds of a process."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


if __name__ == "__main__":
    sys.exit(main())
