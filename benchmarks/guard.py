"""Did an exchange become dearer? Instructions are counted, not time: a busy machine changes them by less than 1 %.

Each case runs under valgrind, warmed up, and is given in units of a fixed piece of Python that runs beside it: another
build of the interpreter then matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from benchmarks import harness, micro
from sidecar.server.run import calm_collector

BASELINE: Final = Path(__file__).parent / "results" / "guard.json"
TOLERANCE: Final = 0.10  # the same code differs by 0.2 %, another build of Python by 5 %
ROUNDS: Final = {"unary": 200, "stream": 20, "translated": 10}  # that are counted
WARM: Final = {"unary": 50, "stream": 2, "translated": 2}  # and those before them
CALIBRATIONS: Final = 20
SECONDS: Final = 1800


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)  # that is counted
    options = parser.parse_args()
    if options.child:
        uvloop.run(work())
        return 0
    if harness.binary("valgrind") is None:
        print("guard: valgrind is not installed (Debian package valgrind)")
        return 1
    found = measure()
    if options.update:
        BASELINE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return judge(found, msgspec.json.decode(BASELINE.read_bytes(), type=dict[str, float]))


def measure() -> dict[str, float]:
    """What each case costs a round, in calibrations."""
    calibrations, *counts = instructions(["-m", "benchmarks.guard", "--child"])
    unit = calibrations / CALIBRATIONS
    print(f"guard: one calibration is {unit / 1e6:.2f} million instructions here")
    return {case: round(count / ROUNDS[case] / unit, 4) for case, count in zip(ROUNDS, counts, strict=True)}


def judge(found: dict[str, float], baseline: dict[str, float]) -> int:
    """Print how the cases compare. Answers the exit code."""
    verdict = 0
    for case, cost in found.items():
        change = cost / baseline[case] - 1
        word = "ok"
        if change > TOLERANCE:
            word, verdict = "MISS", 1
        elif change < -TOLERANCE:
            word = "better: keep it with --update"
        print(f"guard: {case:<10} {cost:.4f} calibrations, baseline {baseline[case]:.4f}, {change:+.1%}  {word}")
    return verdict


def instructions(arguments: Sequence[str]) -> list[int]:
    """That Python takes, with these arguments, from each `mark` to the next, but for the first two."""
    command = [harness.binary("valgrind") or "valgrind", "--tool=cachegrind", "--cache-sim=no"]
    command += ["--cachegrind-out-file=/dev/null", sys.executable, *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr[-1000:]}")
    return between(done.stderr)


def between(told: str) -> list[int]:
    """What each process has told at its end, as differences, without what a mark itself costs: the first of them.

    The last one, of the process that made the marks, goes beyond them.
    """
    totals = [int(count.replace(",", "")) for count in re.findall(r"I\s+refs:\s+([\d,]+)", told)]
    own, *costs = (after - before for before, after in pairwise(totals[:-1]))
    return [cost - own for cost in costs]


def mark() -> None:
    """Have valgrind tell of the instructions so far: a fork has its parent's count, and tells it at its end."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


async def work() -> None:
    """In the child: warm up, then everything, between marks."""
    bench, cases = micro.Bench(), micro.cases()
    await bench.start()
    for name, case in cases.items():
        await bench.repeat(case, WARM[name])
    calm_collector()
    mark()
    mark()
    for _ in range(CALIBRATIONS):
        calibrate()
    mark()
    for name, rounds in ROUNDS.items():
        await bench.repeat(cases[name], rounds)
        mark()


def calibrate() -> int:
    """Some of everything that Python code does: calls, attributes, dictionaries, bytes, futures."""
    loop = asyncio.get_running_loop()
    total = 0
    for number in range(400):
        record = {"number": number, "name": b"x-%d" % number}
        future: asyncio.Future[int] = loop.create_future()
        future.set_result(len(msgspec.json.encode({"n": number, "words": ["a", "b", "c"]})))
        total += future.result() + len(b": ".join((record["name"], b"value")).partition(b":")[2])  # type: ignore[arg-type]
        total += sum(each for each in range(10) if each % 3)
    return total


if __name__ == "__main__":
    sys.exit(main())
