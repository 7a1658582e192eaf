"""Retries, hedges, adaptive concurrency and keys: each bound where it lies, and properties of any order of events."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sidecar.budget import Aimd, HedgeBudget, Keys, RetryBudget

# -- retries


def requests(budget: RetryBudget | HedgeBudget, count: int, now: float) -> None:
    for _ in range(count):
        budget.request(now)


def test_at_least_three_retries_may_be_under_way_at_once() -> None:
    budget = RetryBudget()
    assert [budget.take(1, 100.0) for _ in range(4)] == [True, True, True, False]
    budget.give_back()
    assert [budget.take(1, 100.0) for _ in range(2)] == [True, False]


def test_at_most_a_fifth_of_the_active_requests_are_retries() -> None:
    budget = RetryBudget()
    requests(budget, 1000, 100.0)
    assert [budget.take(40, 100.0) for _ in range(9)] == [True] * 8 + [False]
    assert budget.take(41, 100.0)  # nine under way are more than a fifth of forty-one, eight are not
    assert not budget.take(41, 100.0)
    assert repr(budget) == "<RetryBudget 9 under way, 9 for 1000 requests>"


def rate(budget: RetryBudget, now: float) -> int:
    """How many retries may go one after another."""
    for taken in range(10_000):
        if not budget.take(1, now):
            return taken
        budget.give_back()
    raise AssertionError("no bound")


@pytest.mark.parametrize(
    ("per_second", "count", "retries"),
    [(10, 0, 50), (10, 200, 50), (10, 250, 50), (10, 255, 51), (10, 1000, 200), (0, 0, 0), (0, 4, 0), (0, 5, 1)],
)
def test_in_five_seconds_a_fifth_of_the_requests_or_ten_a_second(per_second: float, count: int, retries: int) -> None:
    budget = RetryBudget(per_second=per_second)
    requests(budget, count, 100.0)
    assert rate(budget, 100.0) == retries
    assert rate(budget, 105.0) == 0
    assert rate(budget, 105.5) == 5 * per_second


def test_no_percent_and_no_rate_is_no_retry() -> None:
    budget = RetryBudget(percent=0, per_second=0)
    requests(budget, 1000, 100.0)
    assert not budget.take(1000, 100.0)


def test_a_retry_that_was_not_taken_does_not_end() -> None:
    with pytest.raises(AssertionError, match="had not been taken"):
        RetryBudget().give_back()


@given(
    st.integers(0, 100),
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from(["request", "take", "end"]), st.floats(0, 1.5)), max_size=150),
)
def test_amplification_is_bounded_whatever_the_order(
    percent: int, minimum: int, events: list[tuple[str, float]]
) -> None:
    budget = RetryBudget(percent, minimum, per_second=0.0)
    now, count, taken, under_way = 50.0, 0, 0, 0
    for what, gap in events:
        now += gap
        if what == "request":
            budget.request(now)
            count += 1
        elif what == "take" and budget.take(count, now):
            taken += 1
            under_way += 1
        elif what == "end" and under_way:
            budget.give_back()
            under_way -= 1
        assert taken <= count * percent / 100
        assert under_way <= max(minimum, count * percent / 100 + 1)


# -- hedges


def test_one_of_the_quiet_process_then_a_twentieth() -> None:
    budget = HedgeBudget()
    budget.request(100.0)
    assert [budget.take(100.0) for _ in range(2)] == [True, False]
    requests(budget, 38, 101.0)
    assert not budget.take(101.0)
    budget.request(101.0)
    assert [budget.take(101.0) for _ in range(2)] == [True, False]
    assert repr(budget) == "<HedgeBudget 2 for 40 requests>"


def test_a_minute_later_the_quiet_process_has_one_again() -> None:
    budget = HedgeBudget()
    assert budget.take(100.0)
    assert not budget.take(160.0)
    assert budget.take(166.0)


def test_no_percent_is_no_hedge() -> None:
    budget = HedgeBudget(0)
    requests(budget, 1000, 100.0)
    assert not budget.take(100.0)


@given(st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=150))
def test_hedges_are_a_share_of_the_requests_of_any_minute(percent: int, events: list[tuple[bool, float]]) -> None:
    budget, now = HedgeBudget(percent), 50.0
    came: list[float] = []
    taken: list[float] = []
    for request, gap in events:
        now += gap
        if request:
            budget.request(now)
            came.append(now)
        elif budget.take(now):
            taken.append(now)
        minute = len([at for at in taken if at > now - 60])
        assert minute <= max(1, len([at for at in came if at >= now - 66]) * percent / 100)


# -- adaptive concurrency


def test_a_limit_begins_at_a_hundred_and_grows_by_one_an_answer() -> None:
    aimd = Aimd()
    assert aimd.limit == 100
    aimd.success(50, 10.0)
    assert aimd.limit == 101
    assert repr(aimd) == "<Aimd 101 at once>"


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    aimd = Aimd()
    for _ in range(100):
        aimd.success(49, 10.0)
    assert aimd.limit == 100


def test_a_burst_of_refusals_is_one() -> None:
    aimd = Aimd()
    for at in (10.0, 10.0, 10.5, 10.999):
        aimd.throttled(at)
    assert aimd.limit == 90
    aimd.throttled(11.0)
    assert aimd.limit == 81


def test_after_a_cut_it_grows_by_one_a_round_trip_then_faster() -> None:
    aimd = Aimd()
    aimd.throttled(10.0)
    for _ in range(91):
        aimd.success(90, 10.0)
    assert aimd.limit == 91
    before = aimd.limit
    for _ in range(91):
        aimd.success(90, 30.0)
    assert 4 <= aimd.limit - before <= 5  # 1 + (20 s / 10 s)^2
    before = aimd.limit
    for _ in range(10):
        aimd.success(90, 1000.0)
    assert aimd.limit == before + 10


def test_a_limit_stays_between_four_and_a_thousand() -> None:
    aimd = Aimd()
    for at in range(100):
        aimd.throttled(at)
    assert aimd.limit == 4
    for _ in range(3000):
        aimd.success(1000, 1e6)
    assert aimd.limit == 1000


# -- keys


def test_keys_take_turns() -> None:
    keys = Keys(3)
    assert [keys.pick(0.0) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_cooling_key_is_passed_over_until_its_time() -> None:
    keys = Keys(3)
    keys.cool(1, 15.0)
    assert [keys.pick(10.0) for _ in range(4)] == [0, 2, 0, 2]
    assert keys.retry_after(10.0) == 0.0
    assert [keys.pick(15.0) for _ in range(3)] == [0, 1, 2]


def test_when_all_keys_cool_the_first_to_be_ready_tells() -> None:
    keys = Keys(2)
    keys.cool(0, 20.0)
    keys.cool(1, 14.0)
    assert keys.pick(10.0) is None
    assert keys.retry_after(10.0) == 4.0
    assert keys.pick(14.0) == 1


def test_what_a_key_was_told_is_not_shortened() -> None:
    keys = Keys(1)
    keys.cool(0, 20.0)
    keys.cool(0, 12.0)
    assert keys.pick(19.9) is None
    assert keys.retry_after(15.0) == 5.0
    assert keys.pick(20.0) == 0
    assert repr(keys) == "<Keys 1>"


def test_a_provider_without_keys_has_none_to_pick() -> None:
    assert Keys(0).pick(0.0) is None
    assert Keys(0).retry_after(0.0) == 0.0


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10), st.floats(0, 4)), max_size=40))
def test_a_key_is_picked_exactly_when_one_is_ready(count: int, events: list[tuple[int, float, float]]) -> None:
    keys, now = Keys(count), 100.0
    until = [0.0] * count
    for index, seconds, gap in events:
        now += gap
        picked = keys.pick(now)
        assert (picked is None) == (min(until) > now) == (keys.retry_after(now) > 0)
        assert picked is None or until[picked] <= now
        keys.cool(index % count, now + seconds)
        until[index % count] = max(until[index % count], now + seconds)
