"""The benchmark of scale: what is configured and asked at a point of an axis, and the verdicts."""

from __future__ import annotations

import pytest

from benchmarks import bench_gc, bench_scale
from benchmarks.bench_scale import AXES, FLAT


@pytest.mark.parametrize("axis", AXES)
def test_only_what_the_axis_is_of_differs(axis: str) -> None:
    near, far = (bench_scale.load(axis, at) for at in (AXES[axis][0], AXES[axis][-1]))
    sizes = [
        {
            "connections": each.clients,
            "providers": len(each.config.providers) - 1,  # Anthropic is there for translated streams
            "callers": len(each.config.callers),
            "models": max(len(each.config.models), 1),
        }
        for each in (near, far)
    ]
    assert sizes[0] == dict.fromkeys(AXES, 1)
    assert sizes[1] == {**sizes[0], axis: AXES[axis][-1]}


@pytest.mark.parametrize(("axis", "at", "asked"), [("providers", 50, 50), ("callers", 1, 100), ("models", 1000, 1000)])
def test_each_is_asked_in_turn(axis: str, at: int, asked: int) -> None:
    found = bench_scale.load(axis, at).asked
    assert len(found) == len(set(found)) == asked


def test_a_far_end_that_is_dearer_fails() -> None:
    assert all(bench_scale.flat("models", {1: 100.0, 9: 500.0, 50: 100 * FLAT}).values())
    assert not any(bench_scale.flat("models", {1: 100.0, 9: 100.0, 50: 100 * FLAT + 0.1}).values())


@pytest.mark.parametrize(
    ("ours", "theirs", "holds"), [(1.1, 1.0, True), (1.2, 1.0, False), (1.4, 1.5, True), (1.6, 1.5, False)]
)
def test_many_connections_may_cost_us_as_much_more_as_envoy(ours: float, theirs: float, holds: bool) -> None:
    medians = {("sidecar", 64): 50.0, ("sidecar", 5000): 50 * ours, ("envoy", 64): 80.0, ("envoy", 5000): 80 * theirs}
    assert list(bench_scale.no_worse(medians, 5000).values()) == [holds]


def test_without_envoy_nothing_holds() -> None:
    assert not any(bench_scale.no_worse({("sidecar", 64): 50.0, ("sidecar", 5000): 50.0}, 5000).values())


def told(opening: float, serving: list[float]) -> list[bench_gc.Told]:
    return [bench_gc.Told(each * 100.0, 200.0, [opening, 1.0], serving) for each in (0.5, 1, 1.5)]


@pytest.mark.parametrize(
    ("pause", "serving", "holds"), [(24.0, [], [True, True]), (26.0, [], [True, False]), (24.0, [1.0], [False, True])]
)
def test_the_collector_must_not_be_in_the_way(pause: float, serving: list[float], holds: list[bool]) -> None:
    rows = [bench_gc.row("ours", told(pause, serving)), bench_gc.row("default", told(100.0, [1.0]))]
    assert list(bench_gc.checks(rows).values()) == holds
    assert rows[0]["CPU us/request"] == 100
    assert rows[0]["longest ms"] == pause / 1e3
    assert rows[0]["pauses while opening"] == 2
