"""The scenarios of compare.py: what is asked of each proxy, round by round, and what is noted of it."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import answers, harness, openloop, rivals, streams, table
from benchmarks.bench_unary import wrk
from benchmarks.rivals import Rival
from benchmarks.table import Found

EVENTS: Final = 64  # of a stream
PILOT: Final = 32  # streams, to see what one costs; a quarter for those who are slow anyway
SETTLE_SECONDS: Final = 0.1  # after a rest
LATENCIES: Final = (*table.SHARES, "first p50", "first p99", "gap p99")
RATES: Final = (1000, 500, 200, 100, 50, 20, 10, 5)  # requests a second in the open loop: the same for all who can
TINY_RATES: Final = (2500, *RATES)  # TensorZero's own: 10 000 a second on four cores
STREAMS: Final = 128
LUA = """
wrk.method = "POST"
{headers}
wrk.body = [[{body}]]
wrong = 0
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
  if status == 200 and not string.find(body, [[{wanted}"]], 1, true) then wrong = wrong + 1 end
end
function done()
  local all = 0
  for _, thread in ipairs(threads) do all = all + thread:get("wrong") end
  print("Wrong answers: " .. all)
end
"""


class Size(NamedTuple):
    """How long a run takes. Rounds by scenario; `slow`: seconds that a slow one may take for a round."""

    starts: int
    rounds: dict[str, int]
    seconds: int
    slow: int
    each: int  # streams a connection


FULL: Final = Size(3, {"unary": 5, "open": 3, "stream": 3, "tiny": 2, "big": 2}, seconds=3, slow=12, each=5)
QUICK: Final = Size(1, {"unary": 2, "open": 1, "stream": 1, "tiny": 1, "big": 1}, seconds=2, slow=4, each=2)


class Runner(NamedTuple):
    """One that is there. `known`: its `capacity`, requests a second, and `stream_cpu`, seconds of CPU a stream."""

    rival: Rival
    part: harness.Part
    folder: Path
    found: Found
    known: dict[str, float]


class Outcome(NamedTuple):
    asked: int
    right: int
    failed: Counter[str]
    figures: dict[str, float | None]


class Run(NamedTuple):
    """What all of a run shares."""

    size: Size
    upstream: int
    whole: answers.Said
    stream: answers.Said


def unary(runner: Runner, run: Run, level: float, *, bytes_: int = 2048, connections: int = 64) -> Outcome:
    """Closed loop: as many requests as it can do. A slow one is given longer, so that its last few weigh little."""
    script = runner.folder / "wrk.lua"
    lines = rivals.headers(runner.rival, run.upstream).items()
    heads = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in lines)
    body = rivals.body(runner.rival, size=bytes_).decode()
    script.write_text(LUA.format(headers=heads, body=body, wanted=run.whole.content))
    capacity = runner.known.get("capacity", 1e9)
    seconds = min(max(run.size.seconds, round(20 * connections / capacity)), run.size.slow)
    url = f"http://127.0.0.1:{runner.part.port}{runner.rival.path}"
    done, failed = wrk(url, str(script), seconds, connections=connections, timeout_seconds=30)
    right = done - failed.get("status", 0) - failed.get("wrong", 0)
    asked = done + sum(count for name, count in failed.items() if name not in ("status", "wrong"))
    return Outcome(asked, right, Counter(failed), {"rate": right / seconds})


def big(runner: Runner, run: Run, level: float) -> Outcome:
    return unary(runner, run, level, bytes_=200 * 1024, connections=16)


def open_loop(runner: Runner, run: Run, rate: float, *, bytes_: int = 2048, limit: float = 10.0) -> Outcome:
    """At a constant rate. A slow one is given longer, so that there are enough requests for its percentiles."""
    request = rivals.request(runner.rival, run.upstream, rivals.body(runner.rival, size=bytes_))
    seconds = min(max(run.size.seconds, 300 / rate), run.size.slow)
    measured = openloop.run(
        runner.part.port,
        request,
        lambda body: answers.whole(body) == run.whole,
        rate=rate,
        seconds=seconds,
        limit=limit,
    )
    figures = {name: milliseconds(measured.took, share) for name, share in table.SHARES.items()}
    return Outcome(measured.asked, len(measured.took), measured.failed, {**figures, "level": rate})


def tiny(runner: Runner, run: Run, rate: float) -> Outcome:
    """As TensorZero measures itself."""
    return open_loop(runner, run, rate, bytes_=128, limit=1.0)


def stream(runner: Runner, run: Run, level: float) -> Outcome:
    """So many streams at once, all the time. A slow one has fewer, and more of them one after another."""
    each = max(run.size.each, min(math.ceil(150 / level), round(run.size.slow / streams.STREAM_SECONDS)))
    measured = _streams(runner, run, round(level), each)
    figures: dict[str, float | None] = {"level": level, "gap p99": milliseconds(measured.gaps, 0.99)}
    figures |= {f"first {name}": milliseconds(measured.first, table.SHARES[name]) for name in ("p50", "p99")}
    return Outcome(measured.asked, len(measured.first), measured.failed, figures)


def _streams(runner: Runner, run: Run, count: int, each: int) -> streams.Measured:
    request = rivals.request(runner.rival, run.upstream, rivals.body(runner.rival, stream=True))
    return streams.run(
        runner.part.port,
        request,
        lambda body: answers.stream(body) == run.stream,
        streams=count,
        each=each,
        limit=60 + 3 * each,
    )


def milliseconds(seconds: list[float], share: float) -> float | None:
    value = table.percentile(seconds, share)
    return None if value is None else value * 1000


def rate_for(rates: tuple[int, ...], share: float) -> Callable[[Runner], float]:
    """The highest of them that is less than this share of what it can do."""
    return lambda runner: next((rate for rate in rates if rate <= share * runner.known["capacity"]), rates[-1])


def streams_for(runner: Runner) -> float:
    """128, or as many as keep it busy for 0.6 of its core; a power of two, so that the provider's base is shared."""
    most = 0.6 * streams.STREAM_SECONDS / max(runner.known["stream_cpu"], 1e-6)
    if most * 3 >= STREAMS:  # one that is a little too slow still gets them all
        return STREAMS
    return float(2 ** max(int(math.log2(max(most, 1.0))), 0))


class Scenario(NamedTuple):
    """`level`: how much of it a rival is given; what the provider gives directly at that level is its base."""

    run: Callable[[Runner, Run, float], Outcome]
    level: Callable[[Runner], float]
    per: int = 1  # what CPU is counted by, in one answer


SCENARIOS: Final = {
    "unary": Scenario(unary, lambda _: 0),
    "open": Scenario(open_loop, rate_for(RATES, 0.4)),
    "stream": Scenario(stream, streams_for, per=EVENTS),
    "tiny": Scenario(tiny, rate_for(TINY_RATES, 0.7)),
    "big": Scenario(big, lambda _: 0),
}


def measure(runners: list[Runner], run: Run) -> None:
    """All scenarios; the first runner is the provider itself."""
    with harness.on_load_core():
        for runner in runners:
            print(f"{runner.rival.name}: warmed up", flush=True)
            with _awake(runner, run):
                _warm(runner, run)
        for name, scenario in SCENARIOS.items():
            for number in range(run.size.rounds[name]):
                began = time.perf_counter()
                _round(name, scenario, [runners[0], *turned(runners[1:], number)], run)
                print(f"{name}: round {number + 1} took {time.perf_counter() - began:.0f} s", flush=True)


def turned(runners: list[Runner], number: int) -> list[Runner]:
    """Another one is first in each round."""
    number %= max(len(runners), 1)
    return runners[number:] + runners[:number]


def _warm(runner: Runner, run: Run) -> None:
    """What it can do, so that it is asked no more than that; figures are thrown away, failures are not."""
    figures = _measured(runner, run, "unary", SCENARIOS["unary"], 0)
    runner.known["capacity"] = max(figures.get("rate") or 0.0, 1.0)
    runner.known["stream_cpu"] = 0.0
    level = PILOT if runner.known["capacity"] >= RATES[0] else PILOT // 4
    for _ in range(2):  # the first few streams cost more
        pilot = _measured(runner, run, "stream", Scenario(_pilot, lambda _: level), level)
        runner.known["stream_cpu"] = (pilot.get("us") or 0.0) / 1e6


def _pilot(runner: Runner, run: Run, level: float) -> Outcome:
    measured = _streams(runner, run, round(level), 1)
    return Outcome(measured.asked, len(measured.first), measured.failed, {})


def _round(name: str, scenario: Scenario, runners: list[Runner], run: Run) -> None:
    """Once each, in turn, behind the provider itself at each level that one of them is given."""
    direct, *others = [runner for runner in runners if not runner.found.note]
    base = {}
    for level in sorted({scenario.level(runner) for runner in others}):
        base[level] = _measured(direct, run, name, scenario, level)
    direct.found.rounds.setdefault(name, []).append(base[max(base)] if base else {})
    for runner in others:
        level = scenario.level(runner)
        with _awake(runner, run):
            figures = _measured(runner, run, name, scenario, level)
        figures |= table.added(figures, base[level], LATENCIES)
        runner.found.rounds.setdefault(name, []).append(figures)


def _measured(runner: Runner, run: Run, name: str, scenario: Scenario, level: float) -> dict[str, float | None]:
    """The figures of one round; none of one that broke down."""
    gc.collect()
    gc.disable()  # a pause of the load would be taken for the proxy's
    cpu, began = runner.part.cpu_seconds(), time.perf_counter()
    try:
        outcome = scenario.run(runner, run, level)
    except (OSError, subprocess.SubprocessError) as error:
        _note(runner, name, 1, Counter({type(error).__name__: 1}))
        return {}
    finally:
        gc.enable()
    cpu, took = runner.part.cpu_seconds() - cpu, time.perf_counter() - began
    _note(runner, name, outcome.asked, outcome.failed)
    us = cpu / outcome.right / scenario.per * 1e6 if outcome.right else None
    figures = {**outcome.figures, "us": us, "core": cpu / took}
    return {name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()}


def _note(runner: Runner, name: str, asked: int, failed: Counter[str]) -> None:
    """Count what was asked and what failed; and say so if it has died."""
    found = runner.found
    found.asked[name] = found.asked.get(name, 0) + asked
    found.failed[name] = dict(Counter(found.failed.get(name, {})) + failed)
    if runner.part.process.poll() is not None and not found.note:
        found.note = f"ended in scenario {name} with {runner.part.process.returncode}"
        print(f"{found.name}: {found.note}", flush=True)


@contextlib.contextmanager
def _awake(runner: Runner, run: Run) -> Iterator[None]:
    """It goes on; the others are held still."""
    if runner.rival.start is None:
        yield
        return
    runner.part.send(signal.SIGCONT)
    try:
        ask(runner, run.upstream)
        time.sleep(SETTLE_SECONDS)
        yield
    finally:
        runner.part.send(signal.SIGSTOP)


def ask(runner: Runner, upstream: int, *, stream: bool = False) -> bytes:
    """The body of one answer; of a failure what there is to see."""
    url = f"http://127.0.0.1:{runner.part.port}{runner.rival.path}"
    data = rivals.body(runner.rival, stream=stream)
    try:
        asked = urllib.request.Request(url, data, rivals.headers(runner.rival, upstream))
        with urllib.request.urlopen(asked, timeout=10) as answer:
            body: bytes = answer.read()
            return body
    except OSError as error:
        return repr(error).encode()
