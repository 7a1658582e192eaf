"""M12: what a second worker brings: how many requests two could serve on two free cores, against one on one.

Where there are four cores, that is measured: workers on two of them, load and mock on the others. On a smaller machine
the load would take a worker's core; so both workers share the proxies' one, and what two cores could serve is told by
CPU time: as many requests as until the worker that pays more of it has used a core up. It cannot show there what two
cores lose by sharing caches and memory.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import harness
from benchmarks.bench_unary import LUA, verify, wrk

BAR: Final = 1.8  # times one worker
SPREAD_BAR: Final = 0.6  # of the connections, at most, at one of two workers
CONNECTIONS: Final = 256  # that are spread
ENOUGH_CORES: Final = 4
REST_SECONDS: Final = 0.5
WORKERS: Final = (1, 2)


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, seconds = (3, 2) if options.quick else (7, 4)
    found: dict[int, list[tuple[float, float, float]]] = {count: [] for count in WORKERS}
    spread: dict[int, list[float]] = {count: [] for count in WORKERS}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA.format(key=harness.KEY, body=harness.body(stream=False).decode()))
        script.flush()
        with contextlib.ExitStack() as stack:
            parts = {count: stack.enter_context(harness.parts(["sidecar"], config=config(count))) for count in WORKERS}
            for count, each in parts.items():
                verify(f"{count} workers", each["sidecar"].port)
                place(workers(each["sidecar"], count))
            for number in range(rounds + 1):
                for count, each in parts.items():
                    measured = measure(each["sidecar"], count, script.name, seconds)
                    if number:  # the first round warms up
                        found[count].append(measured)
                        spread[count].append(fullest(each["sidecar"], count))
    free = cores() >= ENOUGH_CORES
    one, two = ([each[0 if free else 1] for each in found[count]] for count in WORKERS)
    ratio = statistics.median(more / less for more, less in zip(two, one, strict=True))
    full = statistics.median(spread[2])
    how = "throughput" if free else "by CPU time of one shared core"
    checks = {
        f"two workers on two free cores: {ratio:.2f} x one, {how} (>= {BAR})": ratio >= BAR,
        f"of {CONNECTIONS} connections, at the fuller of two workers: {full:.0%} (<= {SPREAD_BAR:.0%})": full
        <= SPREAD_BAR,
    }
    rows = [row(count, found[count], spread[count]) for count in WORKERS]
    where = "workers on a core each" if free else f"{cores()} cores: workers share one, and the other is the load's"
    about = (
        f"wrk, 64 connections, unary, {rounds} rounds of {seconds} s; {where}; requests/s of full cores: of as many"
        f" cores as workers, by the CPU of the worker that pays most; {harness.METHOD}"
    )
    return harness.report("bench_workers", about, rows, checks, options.json)


def config(count: int) -> str:
    return harness.SIDECAR.replace("[server]\n", f"[server]\nworkers = {count}\n")


def cores() -> int:
    return len(os.sched_getaffinity(0))


def row(count: int, found: list[tuple[float, float, float]], spread: list[float]) -> dict[str, Any]:
    rate, capacity, cpu = (statistics.median(each) for each in zip(*found, strict=True))
    return {
        "workers": count,
        "requests/s here": round(rate),
        "requests/s of full cores": round(capacity),
        "CPU us/request": cpu,
        "fullest has of connections": statistics.median(spread),
    }


def workers(part: harness.Part, count: int) -> list[int]:
    """The processes that serve: the one itself, or its children once all of them are there."""
    if count == 1:
        return [part.process.pid]
    for _ in range(500):
        pids = [pid for pid in part._tree() if pid != part.process.pid]
        if len(pids) == count:
            return pids
        time.sleep(0.01)
    raise RuntimeError(f"{count} workers did not begin")


def place(pids: list[int]) -> None:
    """A core each for workers where there are enough, and none of the load's among them."""
    if cores() >= ENOUGH_CORES:
        for pid, core in zip(pids, sorted(os.sched_getaffinity(0), reverse=True), strict=False):
            os.sched_setaffinity(pid, {core})


def measure(part: harness.Part, count: int, script: str, seconds: int) -> tuple[float, float, float]:
    """Requests a second; those of full cores; microseconds of CPU a request. Raises RuntimeError where one failed."""
    pids = workers(part, count)
    before = [cpu_seconds(pid) for pid in pids]
    requests, failed = wrk(f"http://127.0.0.1:{part.port}/v1/chat/completions", script, seconds, timeout_seconds=10)
    if failed:
        raise RuntimeError(f"{count} workers: failed requests: {failed}")
    used = [cpu_seconds(pid) - began for pid, began in zip(pids, before, strict=True)]
    return requests / seconds, requests / max(used), sum(used) / requests * 1e6


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / harness.TICKS


def fullest(part: harness.Part, count: int) -> float:
    """The largest share of many connections that one worker has."""
    pids = workers(part, count)
    time.sleep(REST_SECONDS)  # for those of the load to be let go
    before = [sockets(pid) for pid in pids]
    held = [0 for _ in pids]
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", part.port)))
        for _ in range(500):
            held = [sockets(pid) - idle for pid, idle in zip(pids, before, strict=True)]
            if sum(held) >= CONNECTIONS:
                break
            time.sleep(0.01)
    return max(held) / CONNECTIONS


def sockets(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


if __name__ == "__main__":
    sys.exit(main())
