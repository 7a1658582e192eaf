"""What the garbage collector costs, by its settings: CPU per request, p99 and pauses, beside thousands of streams.

The micro-benchmark, in a process of its own for each setting and round: streams are opened and left open, so that there
is something to look through; then whole answers are timed one by one.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Final

import msgspec
import uvloop

from benchmarks import harness, micro
from benchmarks.launch import COLLECTORS, set_collector
from sidecar.server.run import calm_collector

STREAMS: Final = 2000
REQUESTS: Final = 4000
WORDS: Final = {
    "ours": "as the server has it: what is there at its start frozen, and seldom",
    "default": "as Python has it",
    "frozen": "what is there at the start frozen",
    "thresholds": "seldom",
    "off": "never",
}
PAUSE_BAR: Final = 0.25  # of the longest pause by the settings of Python


class Told(msgspec.Struct):
    """By one process: CPU time in microseconds, so that nobody else's is in it. A pause is a collection."""

    cpu: float  # of a request
    p99: float
    opening: list[float]  # pauses while streams are opened
    serving: list[float]  # and while answers are timed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    parser.add_argument("--child", choices=COLLECTORS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        uvloop.run(work(options.child))
    found: dict[str, list[Told]] = {name: [] for name in COLLECTORS}
    for _ in range(3 if options.quick else 9):
        for name, told in found.items():
            told.append(measure(name))
    rows = [row(name, found[name]) for name in COLLECTORS]
    about = (
        f"{STREAMS} streams open, then {REQUESTS} whole answers, {len(found['ours'])} rounds, each setting in turn; "
        "CPU time throughout; medians over the rounds, the longest pause over all; "
        + "; ".join(f"{name}: {words}" for name, words in WORDS.items())
    )
    return harness.report("bench_gc", about, rows, checks(rows), options.json)


def measure(name: str) -> Told:
    command = ["taskset", "-c", str(harness.cores()[0]), sys.executable, "-m", "benchmarks.bench_gc", "--child", name]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return msgspec.json.decode(out, type=Told)


def row(name: str, told: list[Told]) -> dict[str, Any]:
    return {
        "collector": name,
        "CPU us/request": statistics.median(each.cpu for each in told),
        "p99 us": statistics.median(each.p99 for each in told),
        "pauses while opening": statistics.median(len(each.opening) for each in told),
        "ms of them": statistics.median(sum(each.opening) for each in told) / 1e3,
        "longest ms": max((pause for each in told for pause in each.opening), default=0.0) / 1e3,
        "pauses while serving": statistics.median(len(each.serving) for each in told),
        "longest ms ": max((pause for each in told for pause in each.serving), default=0.0) / 1e3,
    }


def checks(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether there is nothing more to win, and the settings are better than those of Python."""
    by = {each["collector"]: each for each in rows}
    ours, default = by["ours"], by["default"]
    pause, theirs = ours["longest ms"], default["longest ms"]
    return {
        f"garbage collection: none in {REQUESTS} requests ({ours['pauses while serving']:.0f})": not ours[
            "pauses while serving"
        ],
        f"garbage collection: {pause:.1f} ms at most while {STREAMS} streams are opened (by Python's settings "
        f"{theirs:.1f})": pause <= theirs * PAUSE_BAR,
    }


async def work(name: str) -> None:
    """In a process of its own."""
    bench, cases = micro.Bench(), micro.cases()
    await bench.start()
    unary, stream = cases["unary"], cases["stream"]
    await bench.repeat(unary, 50)
    set_collector(name, calm_collector)
    pauses: list[float] = []
    _time_pauses(pauses)
    for _ in range(STREAMS):
        await bench.begin(bench.connect(), stream.asked, stream.pieces[0])
    opening = pauses.copy()
    pauses.clear()
    clock, times = time.thread_time, []
    client = bench.connect()
    cpu = time.process_time()
    for number in range(REQUESTS):
        if number % 900 == 899:  # a connection takes a thousand
            client.connection_lost(None)
            client = bench.connect()
        began = clock()
        await bench.exchange(client, unary.asked, unary.pieces)
        times.append(clock() - began)
        if number % 500 == 499:  # the log's thread does, otherwise
            bench.account()
    cpu = time.process_time() - cpu
    told = Told(cpu / REQUESTS * 1e6, statistics.quantiles(times, n=100)[98] * 1e6, opening, pauses)
    sys.stdout.buffer.write(msgspec.json.encode(told))
    sys.stdout.flush()
    os._exit(0)  # thousands of streams need not be ended one by one


def _time_pauses(pauses: list[float]) -> None:
    """Note the microseconds of each collection from now on."""
    began = 0.0

    def told(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time()
        else:
            pauses.append((time.thread_time() - began) * 1e6)

    gc.callbacks.append(told)


if __name__ == "__main__":
    sys.exit(main())
