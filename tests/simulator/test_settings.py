from __future__ import annotations

import random

import pytest

from sidecar.simulator.faults import FAULTS
from sidecar.simulator.settings import Asked, asked_by, check_fault, latency_seconds

NAMES = frozenset(FAULTS)


def test_latencies_have_the_percentiles_that_were_asked_for() -> None:
    chance = random.Random(3)
    found = sorted(latency_seconds((200, 400, 900), chance) * 1000 for _ in range(20_000))
    assert found[10_000] == pytest.approx(200, rel=0.03)
    assert found[18_000] == pytest.approx(400, rel=0.03)
    assert found[19_800] == pytest.approx(900, rel=0.05)
    assert found[0] >= 100
    assert found[-1] <= 1350.001


def test_latencies_are_the_same_for_a_seed() -> None:
    one, two = random.Random(1), random.Random(1)
    assert [latency_seconds((1, 2, 3), one) for _ in range(9)] == [latency_seconds((1, 2, 3), two) for _ in range(9)]


def test_one_number_is_constant_and_none_is_none() -> None:
    chance = random.Random(1)
    state = chance.getstate()
    assert latency_seconds((250, 250, 250), chance) == 0.25
    assert latency_seconds((0, 0, 0), chance) == 0.0
    assert chance.getstate() == state  # and draws nothing


def test_percentiles_may_begin_at_nothing() -> None:
    chance = random.Random(2)
    found = [latency_seconds((0, 0, 50), chance) for _ in range(1000)]
    assert min(found) == pytest.approx(1e-6)
    assert max(found) > 0.01


def test_what_a_request_asks_for() -> None:
    headers = {
        "x-sim-fault": "cut_after:3",
        "x-sim-times": "2",
        "x-sim-key": "k",
        "x-sim-latency-ms": "1.5",
        "x-sim-rate": "50",
        "x-sim-tokens": "7",
        "x-sim-flavour": "xai",
        "accept": "*/*",
    }
    assert asked_by(headers, NAMES) == Asked(
        fault="cut_after:3", times=2, key="k", latency_seconds=0.0015, rate=50.0, tokens=7, flavour="xai"
    )
    assert asked_by({"accept": "*/*"}, NAMES) == Asked()


@pytest.mark.parametrize(
    "text", ["", "cut", "cut_after:", "cut_after:-1", "cut_after:1.5", "cut_after:1234567890", "429:²"]
)
def test_a_fault_is_a_name_and_maybe_a_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"no such fault|not a number"):
        check_fault(text, NAMES)
