"""Rates against a model of GCRA, and concurrency: permits once, the queue in order, nothing lost."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.answer import retry_after
from sidecar.config import Queue
from sidecar.limits import Limits
from sidecar.types import Permit, Refused, Wait

KEY = "caller:web"


def permit(decision: Permit | Wait | Refused) -> Permit:
    assert not isinstance(decision, Wait | Refused), decision
    return decision


def wait(decision: Permit | Wait | Refused) -> Wait:
    assert isinstance(decision, Wait), decision
    return decision


def refused(decision: Permit | Wait | Refused) -> Refused:
    assert isinstance(decision, Refused), decision
    return decision


# -- rates


def test_a_periods_allowance_at_once_then_one_every_interval() -> None:
    limits = Limits()
    taken = [limits.decide(KEY, 200, None, 1000.0) for _ in range(201)]
    for each in taken[:200]:
        permit(each).release()
    last = refused(taken[200])
    assert (last.scope, last.limit) == (KEY, "requests_per_minute")
    assert last.retry_after == pytest.approx(0.3, abs=1e-9)
    assert refused(limits.decide(KEY, 200, None, 1000.1)).retry_after == pytest.approx(0.2, abs=1e-9)
    permit(limits.decide(KEY, 200, None, 1000.3))
    assert refused(limits.decide(KEY, 200, None, 1000.3)).retry_after == pytest.approx(0.3, abs=1e-9)


def test_after_a_period_of_rest_all_of_it_is_there_again() -> None:
    limits = Limits()
    for start in (5.0, 65.0, 600.0):
        assert [isinstance(limits.decide(KEY, 3, None, start), Refused) for _ in range(4)] == [False] * 3 + [True]


class Model:
    """GCRA as its definition has it, in exact arithmetic: a bucket that leaks one every interval."""

    def __init__(self, per_minute: int) -> None:
        self.interval = Fraction(60, per_minute)
        self.due = Fraction(0)

    def take(self, now: Fraction) -> Fraction:
        early = max(self.due, now) + self.interval - 60 - now
        if early > 0:
            return early
        self.due = max(self.due, now) + self.interval
        return Fraction(0)


@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 30)), min_size=1, max_size=30),
)
@settings(max_examples=150, deadline=None)
def test_it_decides_as_the_model_does_and_says_exactly_when(per_minute: int, arrivals: list[tuple[int, int]]) -> None:
    limits, model, now = Limits(), Model(per_minute), Fraction(100_000)
    for milliseconds, count in arrivals:
        now += Fraction(milliseconds, 1000)
        for _ in range(count):
            wanted = model.take(now)
            decision = limits.decide(KEY, per_minute, None, float(now))
            if wanted > Fraction(1, 1_000_000):
                assert refused(decision).retry_after == pytest.approx(float(wanted), abs=1e-6)
            elif wanted == 0:
                permit(decision)
            else:  # nearer to its time than a clock can tell: either is right, but both must go on alike
                model.due += model.interval if not isinstance(decision, Refused) else 0


@given(st.integers(1, 10_000), st.floats(0, 1e6))
@settings(max_examples=100, deadline=None)
def test_whoever_waits_as_long_as_told_is_let_in(per_minute: int, now: float) -> None:
    limits = Limits()
    decisions = (limits.decide(KEY, per_minute, None, now) for _ in range(per_minute + 1))
    over = next(each for each in decisions if isinstance(each, Refused))
    milliseconds = int(dict(retry_after(over.retry_after))[b"retry-after-ms"])
    permit(limits.decide(KEY, per_minute, None, now + milliseconds / 1000 + 1e-6))


def test_all_of_the_allowance_is_there_at_any_uptime() -> None:
    limits = Limits()
    for _ in range(1696):
        permit(limits.decide(KEY, 1696, None, 32724.0))


def test_a_request_refused_for_concurrency_takes_nothing_of_the_rate() -> None:
    limits = Limits(Queue(length=0))
    held = permit(limits.decide(KEY, 2, 1, 0.0))
    for _ in range(5):
        assert refused(limits.decide(KEY, 2, 1, 0.0)).limit == "concurrency"
    held.release()
    permit(limits.decide(KEY, 2, 1, 0.0)).release()
    assert refused(limits.decide(KEY, 2, 1, 0.0)).limit == "requests_per_minute"


def test_keys_do_not_share() -> None:
    limits = Limits()
    permit(limits.decide("caller:a", 1, 1, 0.0))
    permit(limits.decide("caller:b", 1, 1, 0.0))
    assert isinstance(limits.decide("caller:a", 1, 1, 0.0), Refused)


# -- concurrency


def running(limits: Limits) -> tuple[object, object]:
    (counter,) = limits.stats()
    return counter["running"], counter["waiting"]


def test_a_permit_that_is_given_back_makes_room_for_one() -> None:
    limits = Limits(Queue(length=0))
    one, two = (permit(limits.decide(KEY, None, 2, 0.0)) for _ in range(2))
    one.release()
    assert running(limits) == (1, 0)
    permit(limits.decide(KEY, None, 2, 0.0))
    assert isinstance(limits.decide(KEY, None, 2, 0.0), Refused)
    two.release()


def test_who_waits_longest_is_next_and_one_too_many_is_refused_with_a_time() -> None:
    limits, woken = Limits(Queue(wait_seconds=3.0)), list[str]()
    held = [permit(limits.decide(KEY, None, 2, 0.0)) for _ in range(2)]
    waits = [wait(limits.decide(KEY, None, 2, 0.0)) for _ in range(2)]
    over = refused(limits.decide(KEY, None, 2, 0.0))  # by default as many wait as may run
    assert (over.scope, over.limit, over.retry_after) == (KEY, "concurrency", 3.0)
    for name, each in zip("ab", waits, strict=True):
        assert each.seconds == 3.0
        each.ticket.wake = lambda name=name: woken.append(name)
    held[0].release()
    assert woken == ["a"]
    held[1].release()
    assert woken == ["a", "b"]
    for each in waits:
        permit(limits.claim(each.ticket)).release()
    assert running(limits) == (0, 0)


def test_a_bound_that_a_reload_raises_lets_in_who_waits() -> None:
    limits = Limits(Queue(length=5))
    held = permit(limits.decide(KEY, None, 1, 0.0))
    waits = [wait(limits.decide(KEY, None, 1, 0.0)) for _ in range(3)]
    woken: list[int] = []
    for number, each in enumerate(waits):
        each.ticket.wake = lambda number=number: woken.append(number)
    limits.counter(KEY, None, 3)
    assert woken == [0, 1]
    assert repr(limits) == "<Limits 3 running, 1 waiting>"
    held.release()
    assert woken == [0, 1, 2]


def test_a_wait_that_is_over_gives_up_its_place() -> None:
    limits = Limits(Queue(length=1))
    held = permit(limits.decide(KEY, None, 1, 0.0))
    late = wait(limits.decide(KEY, None, 1, 0.0))
    assert isinstance(limits.decide(KEY, None, 1, 0.0), Refused)
    assert refused(limits.claim(late.ticket)).limit == "concurrency"
    wait(limits.decide(KEY, None, 1, 0.0))
    assert running(limits) == (1, 1)
    held.release()
    assert running(limits) == (1, 0)


@pytest.mark.parametrize("granted", [False, True])
def test_the_place_or_slot_of_who_has_left_goes_to_the_next(granted: bool) -> None:
    limits = Limits(Queue(length=2))
    held = permit(limits.decide(KEY, None, 1, 0.0))
    gone, stays = (wait(limits.decide(KEY, None, 1, 0.0)) for _ in range(2))
    if granted:
        held.release()
    limits.abandon(gone.ticket)
    if not granted:
        held.release()
    permit(limits.claim(stays.ticket)).release()
    assert running(limits) == (0, 0)


@pytest.mark.parametrize("queue", [Queue(length=0), Queue(wait_seconds=0)])
def test_without_a_queue_nobody_waits(queue: Queue) -> None:
    limits = Limits(queue)
    permit(limits.decide(KEY, None, 1, 0.0))
    assert refused(limits.decide(KEY, None, 1, 0.0)).retry_after >= 1.0


@given(
    st.integers(1, 4), st.integers(0, 4), st.lists(st.sampled_from(["ask", "release", "claim", "abandon"]), max_size=60)
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_bound_holds_and_nothing_is_lost(most: int, length: int, acts: list[str]) -> None:
    limits, held, waiting = Limits(Queue(length=length)), list[Permit](), list[Wait]()
    for act in acts:
        match act:
            case "ask":
                decision = limits.decide(KEY, None, most, 0.0)
                if isinstance(decision, Wait):
                    waiting.append(decision)
                elif not isinstance(decision, Refused):
                    held.append(decision)
            case "release" if held:
                held.pop(0).release()
            case "claim" if waiting:
                claimed = limits.claim(waiting.pop(0).ticket)
                held += [] if isinstance(claimed, Refused) else [claimed]
            case "abandon" if waiting:
                limits.abandon(waiting.pop().ticket)
            case _:
                continue
        count, queued = running(limits) if limits.stats() else (0, 0)
        assert isinstance(count, int)
        assert isinstance(queued, int)
        assert len(held) <= count <= most
        assert queued <= length
        assert count == most or queued == 0  # nobody waits while there is room
    for each in waiting:
        limits.abandon(each.ticket)
    for one in held:
        one.release()
    assert not limits.stats() or running(limits) == (0, 0)
