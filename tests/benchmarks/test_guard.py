"""The guard's verdict."""

from __future__ import annotations

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
    assert set(baseline) == set(micro.cases()) == set(guard.WARM) == set(guard.ROUNDS) - {"calibration"}
    assert baseline["stream"] > baseline["unary"] > 0
    assert baseline["translated"] > baseline["stream"]
