"""The guard's verdict."""

from __future__ import annotations

import os

import msgspec
import pytest

from benchmarks import guard, micro

BASELINE = {"unary": 1.0, "stream": 10.0}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"unary": 1.0, "stream": 10.0}, 0),
        ({"unary": 1.099, "stream": 10.99}, 0),
        ({"unary": 1.101, "stream": 10.0}, 1),
        ({"unary": 0.5, "stream": 11.01}, 1),
        ({"unary": 0.5, "stream": 5.0}, 0),
    ],
)
def test_more_than_a_tenth_dearer_fails(found: dict[str, float], code: int) -> None:
    assert guard.judge(found, BASELINE) == code


def test_what_became_much_cheaper_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    guard.judge({"unary": 0.89, "stream": 9.1}, BASELINE)
    better, fine = capsys.readouterr().out.splitlines()
    assert "-11.0%  better: keep it with --update" in better
    assert fine.endswith("-9.0%  ok")


def test_the_baseline_has_every_case() -> None:
    baseline = msgspec.json.decode(guard.BASELINE.read_bytes(), type=dict[str, float])
    assert set(baseline) == set(micro.cases()) == set(guard.WARM) == set(guard.ROUNDS)
    assert baseline["stream"] > baseline["unary"] > 0
    assert baseline["translated"] > baseline["stream"]


def test_counts_are_what_lies_between_two_marks() -> None:
    """Without what a mark costs, which is what lies between the first two; behind the last one nothing counts."""
    totals = (1_000, 1_010, 1_320, 2_330, 999_999)
    told = "".join(f"==7== \n==7== I   refs:      {total:,}\n" for total in totals)
    assert guard.between(told) == [300, 1_000]


def test_a_mark_is_a_child_that_ends_at_once() -> None:
    here = os.getpid()
    guard.mark()
    assert os.getpid() == here
    with pytest.raises(ChildProcessError):  # it is over, and was waited for
        os.waitpid(-1, os.WNOHANG)
