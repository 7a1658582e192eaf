"""The verdict of a load test: what is measured, held to thresholds."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from loadtests import run

FOUND = {"failures": 0.0, "requests": 500.0, "unary_p95": 20.0}
THRESHOLDS = {"failures": 0.0, "requests": 500.0, "unary_p95": 20.0}


def test_what_just_holds_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.verdict(FOUND, THRESHOLDS) == 0
    assert "all thresholds hold" in capsys.readouterr().out


@pytest.mark.parametrize("worse", [{"failures": 1.0}, {"requests": 499.0}, {"unary_p95": float("inf")}])
def test_a_breach_is_told_and_ends_with_one(worse: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.verdict(FOUND | worse, THRESHOLDS) == 1
    told = capsys.readouterr().out
    assert f"| {next(iter(worse))} | " in told
    assert told.count("BREACH") == 1


def test_a_threshold_for_nothing_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.verdict(FOUND, {**THRESHOLDS, "ttft_p96": 1.0}) == 1
    assert "ttft_p96" in capsys.readouterr().out


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 10.0), (0.95, 30.0), (1.0, 900.0)])
def test_percentiles_of_locusts_histograms(share: float, wanted: float) -> None:
    rows: dict[str, dict[str, Any]] = {"unary": {"response_times": {"30": 46, "10": 50, "900": 4}}}
    assert run.percentile(rows, "unary", share) == wanted
    assert run.percentile(rows, "stream", share) == float("inf")


def test_every_scenario_has_its_thresholds() -> None:
    files = sorted((run.HERE / "scenarios").glob("*.toml"))
    for file in files:
        assert msgspec.toml.decode(file.read_bytes(), type=run.Scenario).seconds > 0
    assert [file.stem for file in files] == sorted(tomllib.loads((run.HERE / "thresholds.toml").read_text()))
