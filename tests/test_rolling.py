"""Counts over a span against a list of all there was."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sidecar.rolling import Rolling

gaps = st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 3), st.floats(0, 50))


@given(st.floats(0, 1e6), st.lists(st.tuples(gaps, st.booleans()), max_size=60))
def test_it_counts_all_of_the_span_and_little_more(start: float, steps: list[tuple[float, bool]]) -> None:
    rolling, now = Rolling(5.0), start
    seen: list[tuple[float, bool]] = []
    for gap, marked in steps:
        now += gap
        rolling.add(now)
        if marked:
            rolling.mark(now)
        seen.append((now, marked))
        within = [mark for at, mark in seen if at > now - 5.0 + 1e-6]
        about = [mark for at, mark in seen if at >= now - 5.5 - 1e-6]
        assert len(within) <= rolling.total <= len(about)
        assert sum(within) <= rolling.marked <= sum(about)
    rolling.roll(now + 5.6)
    assert repr(rolling) == "<Rolling 0 of 0>"


def test_a_slot_is_forgotten_when_its_time_has_passed() -> None:
    rolling = Rolling(10.0)
    rolling.add(100.9)
    rolling.add(101.0)
    rolling.mark(105.0)
    rolling.roll(110.99)
    assert repr(rolling) == "<Rolling 1 of 2>"
    rolling.roll(111.0)
    assert repr(rolling) == "<Rolling 1 of 1>"
    rolling.roll(112.0)
    assert repr(rolling) == "<Rolling 1 of 0>"
    rolling.roll(1e9)
    assert repr(rolling) == "<Rolling 0 of 0>"


def test_a_clock_that_goes_back_changes_nothing() -> None:
    rolling = Rolling(10.0)
    rolling.add(1000.0)
    rolling.add(3.0)
    rolling.mark(3.0)
    assert repr(rolling) == "<Rolling 1 of 2>"


@pytest.mark.parametrize("start", [-25.0, 0.0])
def test_it_works_where_the_clock_begins(start: float) -> None:
    rolling = Rolling(10.0)
    rolling.add(start)
    rolling.add(start + 5)
    rolling.roll(start + 9)
    assert rolling.total == 2
