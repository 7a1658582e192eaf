"""Who is asked how much, and what is noted when one breaks down."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import answers, harness, rivals, rounds
from benchmarks.rounds import Outcome, Run, Runner, Scenario
from benchmarks.table import Found

RUN = Run(rounds.QUICK, 1, answers.Said("hi", "stop", 2), answers.Said("hi", "stop", 2))


class Still:
    """A process that does nothing: each look at it finds two more seconds of CPU."""

    def __init__(self, ended: int | None = None) -> None:
        self.port = 1
        self.process = SimpleNamespace(poll=lambda: ended, returncode=ended)
        self.signals: list[int] = []
        self._cpu = 0.0

    def cpu_seconds(self) -> float:
        self._cpu += 2.0
        return self._cpu

    def send(self, number: int) -> None:
        self.signals.append(number)


def runner(name: str, *, ended: int | None = None, **known: float) -> Runner:
    rival = rivals.DIRECT if name == "direct" else rivals.RIVALS[0]
    found = Found(name=name, version="", about="")
    return Runner(rival, cast("harness.Part", Still(ended)), Path(), found, known)


@pytest.mark.parametrize(
    ("capacity", "rate", "tiny"), [(9000.0, 1000, 2500), (2500.0, 1000, 1000), (60.0, 20, 20), (1.0, 5, 5)]
)
def test_a_rate_is_one_that_it_can_bear(capacity: float, rate: int, tiny: int) -> None:
    asked = runner("sidecar", capacity=capacity)
    assert rounds.SCENARIOS["open"].level(asked) == rate
    assert rounds.SCENARIOS["tiny"].level(asked) == tiny


@pytest.mark.parametrize(
    ("cpu", "streams"), [(0.0, 128), (0.0015, 128), (0.0037, 128), (0.005, 32), (0.015, 8), (0.085, 2), (1.0, 1)]
)
def test_a_slow_one_gets_fewer_streams(cpu: float, streams: int) -> None:
    assert rounds.streams_for(runner("sidecar", stream_cpu=cpu)) == streams


def test_a_round_is_beside_the_provider_at_the_same_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(asked: Runner, run: Run, level: float) -> Outcome:
        late = 5.0 if asked.found.name == "sidecar" else 1.0
        return Outcome(10, 8, Counter(wrong=2), {"p50": late + level, "level": level})

    monkeypatch.setattr(rounds, "ask", lambda *_: b"")
    direct, ours, slow = runner("direct"), runner("sidecar", level=10.0), runner("other", level=2.0)
    scenario = Scenario(run, lambda each: each.known["level"], per=2)
    rounds._round("open", scenario, [direct, ours, slow], RUN)
    assert direct.found.asked == {"open": 20}  # once at each level
    assert direct.found.rounds["open"][0]["p50"] == 11.0
    figures = ours.found.rounds["open"][0]
    assert (figures["added p50"], figures["added p90"], figures["us"]) == (4.0, None, 125_000.0)  # of the right ones
    assert slow.found.rounds["open"][0]["added p50"] == 0.0
    assert ours.found.failed == {"open": {"wrong": 2}}
    assert cast("Any", ours.part).signals == [signal.SIGCONT, signal.SIGSTOP]
    assert cast("Any", direct.part).signals == []


def test_another_one_is_first_in_each_round() -> None:
    three = [runner(name) for name in ("a", "b", "c")]
    names = ["".join(each.found.name for each in rounds.turned(three, number)) for number in range(4)]
    assert names == ["abc", "bca", "cab", "abc"]
    assert rounds.turned([], 3) == []


def test_what_breaks_down_is_noted_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(asked: Runner, run: Run, level: float) -> Outcome:
        if asked.found.name == "direct":
            return Outcome(1, 1, Counter(), {"p50": 1.0})
        raise ConnectionRefusedError

    monkeypatch.setattr(rounds, "ask", lambda *_: b"")
    direct, dead = runner("direct"), runner("dead", ended=-9)
    for _ in range(2):
        rounds._round("open", Scenario(run, lambda _: 1.0), [direct, dead], RUN)
    assert dead.found.note == "ended in scenario open with -9"
    assert dead.found.failed == {"open": {"ConnectionRefusedError": 1}}  # once: it is asked no more
    assert dead.found.median("open", "p50") is None
