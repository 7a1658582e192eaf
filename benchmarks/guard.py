"""Did an exchange become dearer? Instructions are counted, not time: a busy machine changes them by less than 1 %.

Each case runs under valgrind with few and with many rounds; the difference is what the rounds cost, start-up excluded.
It is given in units of a fixed piece of Python run the same way: another build of the interpreter then matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import uvloop

from benchmarks import harness, micro

BASELINE = Path(__file__).parent / "results" / "guard.json"
TOLERANCE = 0.10  # the same code differs by 0.5 %, another build of Python by 5 %
ROUNDS = {
    "calibration": 20,
    "unary": 200,
    "stream": 20,
    "translated": 10,
}  # that are counted, beyond the few of every run
WARM = {"unary": 50, "stream": 2, "translated": 2}  # rounds, in every run
SECONDS = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="make what is measured now the baseline")
    parser.add_argument("--rounds", help=argparse.SUPPRESS)  # of the child that is counted
    options = parser.parse_args()
    if options.rounds:
        uvloop.run(work(msgspec.json.decode(options.rounds, type=dict[str, int])))
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
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        base, *counts = pool.map(instructions, [{}, *({case: rounds} for case, rounds in ROUNDS.items())])
    cost = {case: (count - base) / ROUNDS[case] for case, count in zip(ROUNDS, counts, strict=True)}
    unit = cost.pop("calibration")
    print(f"guard: one calibration is {unit / 1e6:.2f} million instructions here")
    return {case: round(each / unit, 4) for case, each in cost.items()}


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


def instructions(rounds: dict[str, int]) -> int:
    """That a child process takes for so many rounds of each case."""
    command = [harness.binary("valgrind") or "valgrind", "--tool=cachegrind", "--cache-sim=no"]
    command += ["--cachegrind-out-file=/dev/null", sys.executable, "-m", "benchmarks.guard", "--rounds"]
    done = subprocess.run(
        [*command, msgspec.json.encode(rounds).decode()],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    counted = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or counted is None:
        raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr[-1000:]}")
    return int(counted[1].replace(",", ""))


async def work(rounds: dict[str, int]) -> None:
    """In the child: warm up, then the rounds asked for."""
    bench, cases = micro.Bench(), micro.cases()
    await bench.start()
    for name, case in cases.items():
        await bench.repeat(case, WARM[name])
    gc.collect()
    gc.freeze()
    for _ in range(rounds.get("calibration", 0)):
        calibrate()
    for name, case in cases.items():
        await bench.repeat(case, rounds.get(name, 0))


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
