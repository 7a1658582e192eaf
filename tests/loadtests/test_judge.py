"""Figures and verdicts, from what clients, providers and the sidecar are made to have told."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from loadtests import judge
from loadtests.drive import Drive, Sample
from loadtests.scenario import Row, Scenario

SCENARIO = Scenario(about="", users=1, seconds=10, who={}, attempts=1)
STATUS = {
    "providers": [{"busy": 0, "dialing": 0, "waiting": 0, "idle": 3}],
    "limits": [{"running": 0, "waiting": 0}],
}


def row(**more: Any) -> Row:
    return Row(**{"kind": "unary", "direct": False, "key": "k", "began": 100.0, "ms": 20.0, **more})


def tried(**more: Any) -> dict[str, Any]:
    """A line of a provider's log."""
    times = {"answered_at": None, "finished_at": None, "cancelled_at": None}
    return {"key": "k", "began": 100.0, "fault": "", **times, **more}


def driven(*rows: Row, upstream: list[dict[str, Any]] | None = None, **more: Any) -> Drive:
    sample = Sample(at=100.0, rss_mb=40.0, descriptors=9, cpu_seconds=1.0, health_ms=1.0)
    samples = [sample, msgspec.structs.replace(sample, rss_mb=43.0, cpu_seconds=1.5)]
    return Drive(
        **{
            "started": 100.0,
            "rows": list(rows),
            "upstream": upstream or [],
            "status": STATUS,
            "samples": samples,
            **more,
        }
    )


def figures(*rows: Row, **more: Any) -> dict[str, float]:
    return judge.figures(SCENARIO, driven(*rows, **more))


def test_failures_are_counted_by_class_and_late_ones_again() -> None:
    found = figures(row(), row(outcome="cut"), row(outcome="lost", began=109.0), row(outcome="429", direct=True))
    assert (found["requests"], found["lost"], found["429_percent"]) == (3, 1, 0)
    assert found["cut_percent"] == pytest.approx(33.33, abs=0.01)
    assert found["failed_percent"] == pytest.approx(66.67, abs=0.01)
    assert found["late_failed_percent"] == 100


def test_whoever_left_did_not_fail() -> None:
    found = figures(row(left=100.1, outcome="dropped"))
    assert (found["failed_percent"], found["dropped_percent"]) == (0, 0)


def test_percentiles_are_compared_with_those_of_the_provider_itself() -> None:
    found = figures(row(ms=30.0), row(ms=40.0), row(ms=20.0, direct=True), row(ms=900.0, outcome="timeout"))
    assert (found["unary_p95_ms"], found["unary_p95_ratio"], found["unary_p95_added_ms"]) == (40, 2, 20)
    assert "ttft_p95_ratio" not in found  # nobody streamed


def test_gaps_are_those_of_whole_streams() -> None:
    stream: dict[str, Any] = {"kind": "stream", "first_ms": 30.0, "ms": 90.0}
    ours = row(gaps=[20.0, 22.0], **stream)
    found = figures(ours, row(gaps=[11.0], direct=True, **stream), row(gaps=[999.0], outcome="told", **stream))
    assert (found["itl_p95_ms"], found["itl_p95_ratio"], found["ttft_p50_ms"]) == (22, 2, 30)


WELL: dict[str, Any] = {"answered_at": 100.1, "finished_at": 100.2}


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        (WELL, 1),  # answered, and sent again
        ({"answered_at": 100.1, "cancelled_at": 100.2}, 1),  # it was being answered
        ({"cancelled_at": 101.0}, 0),  # given up before its first byte
        ({**WELL, "fault": "503"}, 0),
        ({"fault": "reset", "finished_at": 100.1}, 0),
    ],
)
def test_a_duplicate_is_a_try_after_one_that_was_answered(first: dict[str, Any], wanted: int) -> None:
    found = figures(row(), upstream=[tried(began=102.0, **WELL), tried(**first)])
    assert (found["duplicates"], found["tries_most"], found["amplification"]) == (wanted, 2, 2)


def test_what_the_sidecar_adds_does_not_depend_on_how_long_its_provider_thought() -> None:
    slow, quick = (row(key=key, kind="stream", gaps=[1.0], first_ms=ms) for key, ms in (("a", 525.0), ("b", 126.0)))
    direct = row(key="c", kind="stream", gaps=[1.0], first_ms=222.0, direct=True)
    thought = {"a": 0.5, "b": 0.1, "c": 0.2}
    upstream = [tried(key=key, answered_at=100.0 + took) for key, took in thought.items()]
    found = figures(slow, quick, direct, upstream=upstream)
    assert found["own_p50_ms"] == pytest.approx(26 - 22)
    assert found["own_p95_ms"] == pytest.approx(26 - 22)


def test_more_tries_than_are_allowed_are_told() -> None:
    bad: dict[str, Any] = {"fault": "503", **WELL}
    two = [tried(began=float(at), **bad) for at in (1, 2)]
    assert figures(row(), upstream=two)["tries_over"] == 0
    assert figures(row(), upstream=[*two, tried(began=3.0, **bad)])["tries_over"] == 1


@pytest.mark.parametrize(
    ("line", "late", "untold"),
    [
        ({"cancelled_at": 100.55}, 50, 0),
        ({"finished_at": 100.4}, 0, 0),  # it was all sent when the client left
        ({"finished_at": 100.6}, 100, 0),  # it was all but sent
        ({"finished_at": 103.0}, math.inf, 1),  # it went on for nobody
        ({}, math.inf, 1),
    ],
)
def test_providers_are_let_go_when_clients_leave(line: dict[str, Any], late: float, untold: int) -> None:
    found = figures(row(left=100.5), upstream=[tried(**line)])
    assert found["cancel_p99_ms"] == pytest.approx(late)
    assert (found["left"], found["left_untold"]) == (1, untold)


def test_what_the_sidecar_keeps_is_told() -> None:
    status = {
        "providers": [{"busy": 1, "dialing": 1, "waiting": 0, "idle": 0}],
        "limits": [{"running": 2, "waiting": 0}],
    }
    log = [{"event": "bug"}, {"event": "reload", "ok": False}, {"id": "an exchange"}]
    more = {"descriptors_grown": 3, "exits": [0, -9], "provider_cpu_seconds": 0.25}
    found = figures(row(), upstream=[tried(**WELL)], status=status, log=log, **more)
    assert (found["under_way_at_end"], found["descriptors_grown"], found["bad_exits"]) == (4, 3, 1)
    assert (found["bugs"], found["reloads_failed"]) == (1, 1)
    assert (found["rss_mb"], found["rss_grown_mb"]) == (43, 3)
    assert (found["cpu_ms"], found["cpu_ratio"]) == (500, 2)


CACHING = msgspec.structs.replace(SCENARIO, config="[cache]\nmax_bytes = 16777216\n")


def test_a_cache_is_held_to_what_there_was_besides_and_all_that_it_may_hold() -> None:
    samples = [
        Sample(at=100.0 + at, rss_mb=rss, descriptors=9, cpu_seconds=1.0, health_ms=1.0, cache_mb=cache)
        for at, rss, cache in (
            (0.5, 40.0, 0.0),
            (1.5, 48.0, 6.0),
            (1.9, 46.0, 5.0),
            (2.0, 90.0, 1.0),
            (9.0, 57.0, 15.5),
        )
    ]
    rows = [row(ms=9.0, cache="miss"), row(ms=2.0, cache="hit"), row(ms=3.0, cache="coalesced", key="l")]
    drive = driven(*rows, row(cache="hit", direct=True), row(outcome="cut", cache="hit"), samples=samples)
    found = judge.figures(CACHING, drive)
    assert found["missed_percent"] == pytest.approx(33.33, abs=0.01)
    assert (found["hit_p50_ms"], found["hit_p95_ms"], found["asked_percent"]) == (3, 3, 0)
    assert (found["cache_mb"], found["cache_full_percent"]) == (15.5, 96.875)
    assert found["cache_bound_percent"] == pytest.approx(100 * 90 / (41 + 16))
    drive.upstream = [tried(**WELL), tried(key="of a direct one", **WELL)]
    assert judge.figures(CACHING, drive)["asked_percent"] == pytest.approx(33.33, abs=0.01)


def test_without_a_cache_or_a_store_nothing_is_told_of_them() -> None:
    assert not [name for name in figures(row(cache="off")) if "cache" in name or "store" in name or "hit" in name]


def test_what_became_of_the_store_is_told() -> None:
    store = {"up": False, "calls": {"answered": 7}, "local_decisions": 3, "longest_wait_seconds": 0.025}
    found = figures(row(), status={**STATUS, "store": store})
    assert [found[f"store_{name}"] for name in ("up_at_end", "answered", "local", "longest_ms")] == [0, 7, 3, 25]


def test_a_verdict_has_each_threshold_first_then_the_rest() -> None:
    found = {"lost": 0.0, "requests": 10.0, "cut": 2.0, "told": 7.0}
    lines = judge.verdict(found, {"lost": 0, "requests": {"least": 10}, "cut": 1})
    assert [(line.name, line.holds, line.limit) for line in lines] == [
        ("lost", True, "<= 0"),
        ("requests", True, ">= 10"),
        ("cut", False, "<= 1"),
        ("told", True, ""),
    ]


@pytest.mark.parametrize("limit", [5, {"least": 5}])
def test_a_threshold_for_what_was_not_measured_is_a_breach(limit: Any) -> None:
    assert not judge.verdict({}, {"ttft_p96_ratio": limit})[0].holds


def test_a_smaller_run_needs_fewer_requests_and_a_larger_one_no_more() -> None:
    limits = {"requests": {"least": 100}, "per_second": {"least": 10}}
    found = {"requests": 30.0, "per_second": 7.0}
    less = judge.verdict(found, limits, users=0.5, seconds=0.5)
    assert [(line.limit, line.holds) for line in less] == [(">= 25", True), (">= 5", True)]
    assert [line.limit for line in judge.verdict(found, limits, users=3, seconds=9)] == [">= 100", ">= 10"]


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 3), (0.95, 4), (1.0, 4), (0.0, 1)])
def test_percentiles(share: float, wanted: float) -> None:
    assert judge.percentile([3.0, 1.0, 4.0, 2.0], share) == wanted
    assert judge.percentile([], share) == math.inf
