"""The breaker's moves, latencies against a plain reckoning, the choice of two, and what is kept of whom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.budget import Keys
from sidecar.health import Breaker, BreakerSettings, Health, Latency, TargetHealth, least_latency

SETTINGS = BreakerSettings()
NOW = 1000.0


def never_sooner() -> float:
    """No jitter: an opened breaker is open for all of its time."""
    return 0.0


def breaker(settings: BreakerSettings = SETTINGS) -> Breaker:
    return Breaker(settings, never_sooner)


def state(made: Breaker) -> str:
    """As a word: a type checker does not see that it changes."""
    return made.state


def opened(settings: BreakerSettings = SETTINGS) -> Breaker:
    """One that has just opened, at NOW."""
    made = breaker(settings)
    for _ in range(made.settings.consecutive_failures):
        made.failure(NOW)
    assert state(made) == "open"
    return made


def half_open() -> Breaker:
    """One whose probe has just entered, at NOW + 1."""
    made = opened()
    assert made.enter(NOW + 1)
    assert state(made) == "half-open"
    return made


# -- breaker


def test_answers_that_break_off_are_a_row_until_one_ends_well() -> None:
    made = breaker()
    for number in range(9):
        made.success(NOW)
        if number == 3:
            made.cuts = 0
        made.cut(NOW, made.turn, others=0)
        assert state(made) == ("open" if number >= 7 else "closed")


def test_one_that_broke_off_counts_as_a_failure_of_the_request_that_it_was() -> None:
    made = breaker()
    for _ in range(40):
        made.success(NOW)
        made.cut(NOW, made.turn, others=1000)
        made.success(NOW)
    assert state(made) == "closed"  # half of them
    for _ in range(4):
        made.success(NOW)
        made.cut(NOW, made.turn, others=1000)
    assert state(made) == "open"


def test_a_cut_of_another_time_says_nothing() -> None:
    made = half_open()
    for _ in range(9):
        made.cut(NOW + 1, made.turn - 1, others=0)
        made.cut(NOW + 1, made.turn, others=0)
    assert state(made) == "half-open"
    made.success(NOW + 1)
    made.cut(NOW + 1, made.turn - 1, others=0)
    assert (state(made), made.cuts) == ("closed", 0)


def test_a_closed_breaker_lets_all_in() -> None:
    made = breaker()
    assert all(made.enter(NOW) for _ in range(1000))
    assert made.ready(NOW)
    assert made.retry_after(NOW) == 0.0
    assert repr(made) == "<Breaker closed, 0 of 0 failed, 0 in a row>"


def test_five_failures_in_a_row_open_it_for_a_second() -> None:
    made = breaker()
    for _ in range(4):
        made.failure(NOW)
    assert state(made) == "closed"
    made.failure(NOW)
    assert state(made) == "open"
    assert not made.ready(NOW)
    assert not made.enter(NOW + 0.999)
    assert made.retry_after(NOW + 0.25) == 0.75
    assert made.ready(NOW + 1)
    assert made.retry_after(NOW + 1) == 0.0
    assert state(made) == "open"  # until a request tries


def test_a_success_ends_a_row() -> None:
    made = breaker()
    for _ in range(3):
        made.success(NOW)
        for _ in range(4):
            made.failure(NOW)
    assert state(made) == "closed"


def test_as_many_in_a_row_as_the_settings_say() -> None:
    made = breaker(BreakerSettings(consecutive_failures=2))
    made.failure(NOW)
    made.success(NOW)
    made.failure(NOW)
    assert state(made) == "closed"
    made.failure(NOW)
    assert state(made) == "open"


def test_a_busy_target_that_was_well_opens_at_five_too() -> None:
    made = breaker()
    for _ in range(10_000):
        made.success(NOW)
    for _ in range(4):
        made.failure(NOW)
    assert state(made) == "closed"
    made.failure(NOW)
    assert state(made) == "open"


def test_where_a_third_fails_anyway_a_row_of_five_is_chance() -> None:
    made = breaker()
    for _ in range(40):
        made.success(NOW)
        made.success(NOW)
        made.failure(NOW)
    made.success(NOW)
    for _ in range(12):
        made.failure(NOW)
    assert state(made) == "closed"
    made.failure(NOW)  # (40 / 121) ^ 13 is under one in a million
    assert state(made) == "open"


def test_under_half_of_twenty_in_thirty_seconds_opens_it() -> None:
    made = breaker()
    for at in range(9):
        made.success(NOW + at)
        made.failure(NOW + at)
    made.failure(NOW + 9)
    assert state(made) == "closed"  # nine of nineteen
    made.failure(NOW + 9)
    assert state(made) == "open"


def test_failures_of_more_than_thirty_seconds_ago_do_not_count() -> None:
    made = breaker()
    for at in range(9):
        made.success(NOW + at)
        made.failure(NOW + at)
    made.success(NOW + 50)
    made.failure(NOW + 50)
    made.failure(NOW + 50)
    assert state(made) == "closed"


def test_one_probe_at_a_time_and_its_success_closes() -> None:
    made = half_open()
    assert not made.ready(NOW + 1)
    assert not made.enter(NOW + 5)
    assert made.retry_after(NOW + 5) == 1.0
    made.success(NOW + 5)
    assert state(made) == "closed"
    assert made.enter(NOW + 5)
    made.failure(NOW + 5)
    assert state(made) == "closed"  # it begins anew


def test_each_probe_that_fails_doubles_the_time_to_the_longest() -> None:
    made, now, times = opened(), NOW, []
    for _ in range(9):
        times.append(made.retry_after(now))
        now += times[-1]
        assert made.enter(now)
        made.failure(now)
    assert times == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_429_fails_a_probe_but_is_no_failure_else() -> None:
    made = breaker()
    for _ in range(100):
        made.throttled(NOW)
    assert state(made) == "closed"
    made = opened()
    made.throttled(NOW)
    assert made.retry_after(NOW) == 1.0
    made = half_open()
    made.throttled(NOW + 1)
    assert state(made) == "open"
    assert made.retry_after(NOW + 1) == 2.0


def test_an_abandoned_probe_gives_its_place_to_the_next() -> None:
    made = half_open()
    made.abandon(NOW + 2)
    assert state(made) == "open"
    assert made.ready(NOW + 2)
    assert made.enter(NOW + 2)
    assert not made.enter(NOW + 2)


def test_to_abandon_says_nothing_of_health() -> None:
    made = breaker()
    for _ in range(4):
        made.failure(NOW)
    made.abandon(NOW)
    made.failure(NOW)
    assert state(made) == "open"
    made.abandon(NOW)
    assert not made.ready(NOW)


def test_a_probe_that_hangs_keeps_the_next_out_for_ten_seconds() -> None:
    made = half_open()
    turn = made.turn
    assert not made.enter(NOW + 10.9)
    assert made.enter(NOW + 11)
    assert not made.enter(NOW + 11)
    made.success(NOW + 12, turn)  # of the first one: late, but it answered
    assert state(made) == "closed"


def test_what_was_sent_before_it_opened_is_not_taken_for_the_probe() -> None:
    made = breaker()
    before = made.turn
    for _ in range(5):
        made.failure(NOW, before)
    assert made.enter(NOW + 1)
    for end in (made.success, made.failure, made.throttled, made.abandon):
        end(NOW + 1, before)
        assert state(made) == "half-open"
        assert not made.ready(NOW + 1)
    made.success(NOW + 2, made.turn)
    assert state(made) == "closed"
    for _ in range(30):
        made.failure(NOW + 3, before)
    assert state(made) == "closed"


def test_what_ends_while_it_is_open_changes_nothing() -> None:
    made = opened()
    made.failure(NOW)
    made.success(NOW)
    assert state(made) == "open"
    assert made.retry_after(NOW) == 1.0


def test_one_that_opens_again_at_once_is_open_for_twice_as_long() -> None:
    made = half_open()
    made.success(NOW + 1)
    for _ in range(5):
        made.failure(NOW + 1.5)
    assert made.retry_after(NOW + 1.5) == 2.0


@pytest.mark.parametrize(("answers", "at"), [(20, NOW + 1.5), (0, NOW + 2)])
def test_one_that_had_recovered_in_between_begins_anew(answers: int, at: float) -> None:
    made = half_open()
    made.success(NOW + 1)
    for _ in range(answers):
        made.success(NOW + 1.5)
    for _ in range(5):
        made.failure(at)
    assert made.retry_after(at) == 1.0


def test_jitter_shortens_the_time_by_half_at_most() -> None:
    dice = Random(1)
    times = []
    for _ in range(200):
        made = Breaker(SETTINGS, dice.random)
        for _ in range(5):
            made.failure(NOW)
        times.append(made.retry_after(NOW))
    assert 0.5 < min(times) < 0.55
    assert 0.95 < max(times) <= 1.0


def test_the_longest_time_is_never_exceeded() -> None:
    assert opened(BreakerSettings(open_seconds=30.0, max_open_seconds=2.0)).retry_after(NOW) == 2.0


ENDS = st.sampled_from(["success", "failure", "throttled", "abandon"])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.one_of(st.just("enter"), ENDS), st.floats(0, 3), st.integers(0, 30)), max_size=120))
def test_whatever_happens_one_probe_at_a_time_and_no_one_waits_for_ever(steps: list[tuple[str, float, int]]) -> None:
    """Requests enter and end in any order. Moves are legal; a refusal names a time at which the next is let in."""
    legal = {
        ("closed", "open"),
        ("open", "half-open"),
        ("half-open", "open"),
        ("half-open", "closed"),
    }
    made, now = Breaker(SETTINGS, Random(1).random), NOW
    turns: list[int] = []  # of those under way
    probed = -math.inf  # when the last probe entered whose end is not known
    for what, gap, which in steps:
        now += gap
        before = made.state
        if what == "enter":
            ready, wait = made.ready(now), made.retry_after(now)
            assert ready == (wait == 0.0)
            assert wait <= 60.0
            assert made.enter(now) == ready
            if ready:
                turns.append(made.turn)
                if before != "closed":
                    assert now - probed >= 10.0
                    probed = now
        elif turns:
            turn = turns.pop(which % len(turns))
            if turn == made.turn:
                probed = -math.inf
            getattr(made, what)(now, turn)
        assert before == made.state or (before, made.state) in legal


# -- latency


def test_an_estimate_takes_a_worse_one_at_once_and_forgets_it_slowly() -> None:
    latency = Latency()
    assert latency.estimate(NOW) is None
    latency.observe(0.5, NOW)
    assert latency.estimate(NOW) == 0.5
    latency.observe(8.0, NOW)
    assert latency.estimate(NOW) == 8.0
    latency.observe(0.5, NOW + 10)
    assert latency.estimate(NOW + 10) == pytest.approx(8 / math.e + 0.5 * (1 - 1 / math.e))
    for at in range(11, 100):
        latency.observe(0.5, NOW + at)
    assert latency.estimate(NOW + 99) == pytest.approx(0.5, rel=0.01)


def test_an_estimate_falls_while_nobody_asks() -> None:
    latency = Latency()
    latency.observe(8.0, NOW)
    assert latency.estimate(NOW + 10) == pytest.approx(8 / math.e)
    assert latency.estimate(NOW + 1000) == pytest.approx(0, abs=1e-9)
    assert latency.estimate(NOW - 10) == 8.0  # a clock that goes back


def test_a_p95_needs_twenty() -> None:
    latency = Latency()
    for number in range(19):
        latency.observe(number, NOW)
    assert latency.p95(NOW) is None
    latency.observe(19, NOW)
    assert latency.p95(NOW) == 18
    assert repr(latency) == "<Latency 20 remembered>"


def test_a_p95_is_of_the_last_two_hundred() -> None:
    latency = Latency()
    for seconds in [9.0] * 200 + [0.5] * 189:
        latency.observe(seconds, NOW)
    assert latency.p95(NOW) == 9.0  # eleven are left
    latency.observe(0.5, NOW)
    assert latency.p95(NOW) == 0.5
    assert repr(latency) == "<Latency 200 remembered>"


def test_a_p95_is_of_the_last_ten_minutes() -> None:
    latency = Latency()
    for _ in range(50):
        latency.observe(9.0, NOW)
    for _ in range(20):
        latency.observe(0.5, NOW + 300)
    assert latency.p95(NOW + 600) == 9.0
    assert latency.p95(NOW + 601) == 0.5
    assert latency.p95(NOW + 901) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), max_size=120))
def test_a_p95_is_that_of_a_sorted_list(steps: list[tuple[float, float]]) -> None:
    latency, now = Latency(), NOW
    seen: list[tuple[float, float]] = []
    for seconds, gap in steps:
        now += gap
        latency.observe(seconds, now)
        seen.append((now, seconds))
    those = sorted(seconds for at, seconds in seen if at >= now - 600)
    expected = those[math.ceil(len(those) * 0.95) - 1] if len(those) >= 20 else None
    assert latency.p95(now) == expected
    estimate = latency.estimate(now)
    assert estimate is None or min(seconds for _, seconds in seen) <= estimate * (1 + 1e-9)
    assert estimate is None or estimate <= max(seconds for _, seconds in seen) * (1 + 1e-9)


# -- the choice of two


def target(estimate: float | None, in_flight: int = 0) -> TargetHealth:
    made = TargetHealth(breaker(), Latency(), Keys(1), in_flight)
    if estimate is not None:
        made.latency.observe(estimate, NOW)
    return made


def drawn(*draws: float) -> Iterator[float]:
    yield from draws


def chosen(targets: list[TargetHealth], seed: int = 1, count: int = 2000) -> list[float]:
    """The share that each is chosen, with nothing changing."""
    dice = Random(seed)
    picks = [least_latency(targets, NOW, dice.random) for _ in range(count)]
    return [picks.count(index) / count for index in range(len(targets))]


def test_of_two_the_faster_one() -> None:
    assert chosen([target(0.5), target(0.4)]) == [0, 1]
    assert chosen([target(0.4), target(0.5)]) == [1, 0]


def test_what_is_in_flight_counts() -> None:
    assert chosen([target(0.4, in_flight=1), target(0.5)]) == [0, 1]
    assert chosen([target(0.2, in_flight=1), target(0.5)]) == [1, 0]


def test_one_never_asked_goes_first_with_one_request() -> None:
    assert chosen([target(0.1), target(None)]) == [0, 1]
    assert chosen([target(0.1), target(None, in_flight=1)]) == [1, 0]
    assert chosen([target(None, in_flight=1), target(None, in_flight=2)]) == [1, 0]


def test_equals_share_evenly() -> None:
    assert chosen([target(0.5), target(0.5), target(0.5)]) == pytest.approx([1 / 3] * 3, abs=0.04)
    assert chosen([target(None)] * 2) == pytest.approx([1 / 2] * 2, abs=0.04)


def test_the_slowest_of_many_is_never_the_better_of_two() -> None:
    shares = chosen([target(0.1 * number) for number in range(1, 5)])
    assert shares == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0], abs=0.04)


def test_one_alone_needs_no_dice() -> None:
    assert least_latency([target(None)], NOW, drawn().__next__) == 0


@given(st.integers(2, 8), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_two_different_ones_are_drawn(count: int, one: float, other: float) -> None:
    targets = [target(1.0, in_flight=number) for number in range(count)]
    index = least_latency(targets, NOW, drawn(one, other).__next__)
    assert 0 <= index < count - 1  # the fullest one would only be chosen if it was drawn twice


# -- the whole process


def health() -> Health:
    return Health(never_sooner)


def test_a_target_is_kept_with_the_settings_of_the_day() -> None:
    made = health()
    first = made.target("openai/gpt", SETTINGS)
    later = BreakerSettings(consecutive_failures=1)
    assert made.target("openai/gpt", later) is first
    first.breaker.failure(NOW)
    assert first.breaker.state == "open"
    assert made.target("openai/other", later) is not first


def test_targets_are_bounded_the_longest_unused_goes() -> None:
    made = health()
    first = made.target("p/0", SETTINGS)
    second = made.target("p/1", SETTINGS)
    for number in range(2, 4096):
        made.target(f"p/{number}", SETTINGS)
    assert made.target("p/0", SETTINGS) is first  # used: now the youngest
    made.target("p/new", SETTINGS)
    assert repr(made) == "<Health 4096 targets, 0 adaptive limits>"
    assert made.target("p/0", SETTINGS) is first
    assert made.target("p/1", SETTINGS) is not second


def test_one_that_is_open_or_in_use_is_not_the_one_to_go() -> None:
    made = health()
    busy, bad, idle = (made.target(f"p/{name}", SETTINGS) for name in ("busy", "bad", "idle"))
    busy.in_flight = 1
    for _ in range(5):
        bad.breaker.failure(NOW)
    for number in range(4093):
        made.target(f"p/{number}", SETTINGS)
    made.target("p/new", SETTINGS)
    kept = {each["target"] for each in made.stats()}
    assert {"p/busy", "p/bad", "p/new", "p/0"} < kept
    assert "p/idle" not in kept
    assert idle.breaker.ready(NOW)  # who holds it goes on with it


def test_where_all_are_open_the_oldest_goes() -> None:
    made = health()
    for number in range(5000):
        made.target(f"p/{number}", SETTINGS).in_flight = 1
    assert repr(made) == "<Health 4096 targets, 0 adaptive limits>"
    assert made.stats()[0]["target"] == f"p/{5000 - 4096}"


def test_a_providers_limit_is_kept_over_a_reload_and_forgotten_with_the_option() -> None:
    made = health()
    first = made.aimd("openai", adaptive=True)
    assert first is not None
    first.throttled(NOW)
    assert made.aimd("openai", adaptive=True) is first
    assert made.aimd("openai", adaptive=False) is None
    assert made.aimd("openai", adaptive=True) is not first


def test_a_target_keeps_how_its_keys_do_as_long_as_they_are_as_many() -> None:
    made = health()
    first = made.target("openai/gpt", SETTINGS, 2).keys
    first.cool(0, NOW + 5)
    assert made.target("openai/gpt", SETTINGS, 2).keys is first
    assert not made.target("openai/other", SETTINGS, 2).keys.rests(0, NOW)  # limits are of each model
    assert len(made.target("openai/gpt", SETTINGS, 3).keys) == 3
    assert len(first) == 2  # an exchange under way goes on with these


def test_the_state_for_people() -> None:
    made = health()
    made.target("openai/gpt", SETTINGS).in_flight = 2
    made.aimd("openai", adaptive=True)
    made.aimd("lab", adaptive=False)
    assert made.stats() == [
        {"target": "openai/gpt", "breaker": "closed", "in_flight": 2},
        {"provider": "openai", "adaptive_limit": 100},
    ]
    assert repr(made) == "<Health 1 targets, 1 adaptive limits>"
