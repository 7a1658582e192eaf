"""Tokens reserved and settled beside requests and slots, against a model of buckets: all or nothing, nothing lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.config import Queue
from sidecar.limits import RANKS, Counter, Limits, Reservation, Ticket
from sidecar.rates import KINDS, Left
from sidecar.types import Refused, Wait
from tests.test_limits import Clock
from tests.test_rates import Leaky

KEY = "caller:web"


def made(
    *tokens: int | None, per_minute: int | None = None, concurrency: int | None = None, queue: Queue | None = None
) -> tuple[Counter, Clock]:
    clock = Clock()
    return Limits(queue, clock).counter(KEY, per_minute, concurrency, tokens), clock  # type: ignore[arg-type]  # three


def reserved(decision: object) -> Reservation:
    assert isinstance(decision, Reservation), decision
    return decision


def refused(decision: object) -> Refused:
    assert isinstance(decision, Refused), decision
    return decision


def remaining(counter: Counter, now: float) -> dict[str, int]:
    return {each.name: each.remaining for each in counter.left(now)}


def test_without_limits_of_tokens_a_counter_is_its_own_permit_as_ever() -> None:
    counter, clock = made(None, None, None, per_minute=5)
    assert counter.tokens is None
    assert counter.enter(clock.now, 10**9, 10**9) is counter
    assert counter.left(clock.now) == [Left("requests_per_minute", 5, 4, 12.0)]


def test_an_estimate_is_reserved_and_settled_by_what_was_used() -> None:
    counter, clock = made(1000, 800, 500, per_minute=60)
    permit = reserved(counter.enter(clock.now, 300, 200))
    assert remaining(counter, clock.now) == {
        "requests_per_minute": 59,
        "tokens_per_minute": 500,
        "input_tokens_per_minute": 500,
        "output_tokens_per_minute": 300,
    }
    assert repr(permit) == "<Reservation caller:web, open>"
    permit.settle(350, 20)
    permit.settle(0, 0)  # only the first counts
    permit.release()
    assert repr(permit) == "<Reservation caller:web, settled>"
    assert remaining(counter, clock.now) == {
        "requests_per_minute": 59,
        "tokens_per_minute": 630,
        "input_tokens_per_minute": 450,
        "output_tokens_per_minute": 480,
    }
    assert counter.running == 0


def test_one_that_is_never_settled_has_used_what_was_reserved() -> None:
    counter, clock = made(1000, None, None)
    reserved(counter.enter(clock.now, 300, 200)).release()
    assert remaining(counter, clock.now) == {"tokens_per_minute": 500}


def test_a_refusal_takes_nothing_and_names_the_limit_that_is_short_for_the_longest() -> None:
    counter, clock = made(1200, 600, 60, per_minute=60, concurrency=5)
    reserved(counter.enter(clock.now, 400, 40))
    before = remaining(counter, clock.now)
    assert refused(counter.enter(clock.now, 220, 0)) == Refused(KEY, "input_tokens_per_minute", 2.0)
    assert refused(counter.enter(clock.now, 220, 30)) == Refused(KEY, "output_tokens_per_minute", 10.0)
    assert refused(counter.enter(clock.now, 500, 700)).limit == "output_tokens_per_minute"
    assert refused(counter.enter(clock.now, 201, 0)).retry_after == pytest.approx(0.1)
    assert remaining(counter, clock.now) == before
    assert counter.running == 1
    reserved(counter.enter(clock.now, 200, 20))


def test_a_rate_of_requests_that_is_short_for_longer_is_the_one_named() -> None:
    counter, clock = made(60, None, None, per_minute=1)
    reserved(counter.enter(clock.now, 10, 0))
    assert refused(counter.enter(clock.now, 55, 0)) == Refused(KEY, "requests_per_minute", 60.0)


def test_more_than_the_whole_allowance_is_let_in_when_all_of_it_is_there_and_paid_for_afterwards() -> None:
    counter, clock = made(600, None, None)
    permit = reserved(counter.enter(clock.now, 5000, 32_000))
    assert remaining(counter, clock.now) == {"tokens_per_minute": 0}
    assert refused(counter.enter(clock.now, 5000, 0)).retry_after == pytest.approx(60.0)
    permit.settle(900, 0)
    clock.now += 60.0
    assert refused(counter.enter(clock.now, 5000, 0)).retry_after == pytest.approx(30.0)
    clock.now += 30.0
    reserved(counter.enter(clock.now, 5000, 0))


def test_what_is_usual_goes_by_whole_answers_that_were_counted() -> None:
    counter, clock = made(10**6, None, None)
    for counted, output in ((True, 100), (False, 99_999), (True, 300)):
        reserved(counter.enter(clock.now, 1, 1)).settle(1, output, counted=counted)
    assert counter.usual == pytest.approx(200.0)


def test_who_waits_for_a_slot_has_its_tokens_reserved_and_gets_them_back_where_it_waits_in_vain() -> None:
    queue = Queue(length=2, wait_seconds=3.0)
    clock = Clock()
    limits = Limits(queue, clock)
    counter = limits.counter(KEY, 100, 1, (1000, None, None))
    first = reserved(counter.enter(clock.now, 100, 0))
    tickets = list[Ticket]()
    for rank in ("normal", "low"):
        assert counter.enter(clock.now, 200, 0) is None
        place = counter.wait(clock.now, RANKS[rank], 0.0, 9.0, 200, 0)
        assert isinstance(place, Wait)
        tickets.append(place.ticket)
    assert remaining(counter, clock.now) == {"requests_per_minute": 97, "tokens_per_minute": 500}
    assert counter.enter(clock.now, 300, 0) is None
    assert isinstance(counter.wait(clock.now, RANKS["low"], 0.0, 9.0, 300, 0), Refused)  # the queue is full
    assert remaining(counter, clock.now) == {"requests_per_minute": 97, "tokens_per_minute": 500}
    assert counter.enter(clock.now, 300, 0) is None
    pushing = counter.wait(clock.now, RANKS["high"], 0.0, 9.0, 300, 0)
    assert isinstance(pushing, Wait)
    assert isinstance(tickets[1].answer, Refused)
    assert remaining(counter, clock.now) == {"requests_per_minute": 97, "tokens_per_minute": 400}
    limits.abandon(tickets[1])
    assert isinstance(limits.claim(tickets[0]), Refused)
    assert remaining(counter, clock.now) == {"requests_per_minute": 98, "tokens_per_minute": 600}
    first.settle(50, 0)
    first.release()
    granted = reserved(limits.claim(pushing.ticket))
    granted.settle(10, 10)
    granted.release()
    assert remaining(counter, clock.now) == {"requests_per_minute": 98, "tokens_per_minute": 930}
    assert repr(counter) == f"<Counter {KEY}: 0 running of 1, 0 waiting>"


def test_who_has_left_when_its_turn_comes_has_used_nothing() -> None:
    clock = Clock()
    limits = Limits(Queue(), clock)
    counter = limits.counter(KEY, None, 1, (1000, None, None))
    first = reserved(counter.enter(clock.now, 100, 0))
    assert counter.enter(clock.now, 200, 0) is None
    place = counter.wait(clock.now, 1, 0.0, 9.0, 200, 0)
    assert isinstance(place, Wait)
    first.release()
    limits.abandon(place.ticket)
    assert remaining(counter, clock.now) == {"tokens_per_minute": 900}
    assert counter.running == 0


def test_a_reload_keeps_what_is_used_and_settles_what_is_under_way() -> None:
    clock = Clock()
    limits = Limits(clock=clock)
    counter = limits.counter(KEY, None, None, (1000, None, 500))
    permit = reserved(counter.enter(clock.now, 100, 100))
    assert limits.counter(KEY, None, None, (2000, 100, None)) is counter
    assert remaining(counter, clock.now) == {"tokens_per_minute": 1600, "input_tokens_per_minute": 100}
    permit.settle(100, 300)
    assert remaining(counter, clock.now) == {"tokens_per_minute": 1600, "input_tokens_per_minute": 100}
    limits.counter(KEY, None, None)
    assert counter.tokens is None
    assert counter.enter(clock.now) is counter
    (row,) = limits.stats()
    assert row["remaining"] == {}


# -- all of it, against a model: intervals and times are powers of two, so that floats are exact


PER_MINUTE = (60 * 16, 60 * 8, 60 * 4)


@dataclass
class Held:
    permit: Reservation
    amounts: list[int]
    began: list[int]  # how often each bucket had been empty


@dataclass
class Both:
    """A counter, and leaky buckets beside it."""

    kinds: tuple[bool, ...]
    concurrency: int
    counter: Counter = field(init=False)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        most = tuple(each if used else None for each, used in zip(PER_MINUTE, self.kinds, strict=True))
        self.counter = Limits(Queue(length=0), self.clock).counter(KEY, 60, self.concurrency, most)  # type: ignore[arg-type]
        start = Fraction(self.clock.now)
        self.requests = Leaky(60, start)
        self.buckets = [
            (Leaky(each, start), kind) for each, used, kind in zip(PER_MINUTE, self.kinds, KINDS, strict=True) if used
        ]
        self.held: list[Held] = []

    def pass_time(self, amount: int) -> None:
        self.clock.now += amount / 1024
        for each in (self.requests, *(bucket for bucket, _ in self.buckets)):
            each.at(Fraction(self.clock.now))

    def amounts(self, input_: int, output: int) -> list[int]:
        return [input_ * kind[1] + output * kind[2] for _, kind in self.buckets]

    def enter(self, input_: int, output: int) -> None:
        amounts = self.amounts(input_, output)
        waits = {"requests_per_minute": self.requests.wait(1)}
        waits |= {kind[0]: bucket.wait(each) for (bucket, kind), each in zip(self.buckets, amounts, strict=True)}
        decision = self.counter.enter(self.clock.now, input_, output)
        longest = max(waits.values())
        if longest > 0:
            no = refused(decision)
            assert no.retry_after == float(longest)
            assert waits[no.limit] == longest
            return
        if len(self.held) >= self.concurrency:
            assert decision is None
            assert isinstance(self.counter.wait(self.clock.now, 1, 0.0, 9.0, input_, output), Refused)
            return
        self.requests.take(1)
        amounts = [min(each, bucket.most) for (bucket, _), each in zip(self.buckets, amounts, strict=True)]
        began = [bucket.take(each) for (bucket, _), each in zip(self.buckets, amounts, strict=True)]
        self.held.append(Held(reserved(decision), amounts, began))

    def end(self, which: int, input_: int, output: int) -> None:
        if not self.held:
            return
        held = self.held.pop(which % len(self.held))
        used = self.amounts(input_, output)
        for (bucket, _), before, after, began in zip(self.buckets, held.amounts, used, held.began, strict=True):
            bucket.settle(before, after, began)
        held.permit.settle(input_, output)
        held.permit.settle(input_ + 1, output)
        held.permit.release()

    def compare(self) -> None:
        left = self.counter.left(self.clock.now)
        assert [each.reset for each in left] == [
            float(each.level / each.rate) for each in (self.requests, *(bucket for bucket, _ in self.buckets))
        ]
        assert all(0 <= each.remaining <= each.limit for each in left)
        assert self.counter.running == len(self.held)


ACTS = st.tuples(
    st.sampled_from(["enter", "enter", "end"]),
    st.sampled_from([0, 0, 1, 500, 1024, 9000, 70_000]),
    st.integers(0, 1000),
    st.integers(0, 400),
)


@given(
    st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any), st.integers(1, 6), st.lists(ACTS, max_size=60)
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_it_decides_as_the_model_and_a_refusal_takes_nothing(
    kinds: tuple[bool, ...], concurrency: int, acts: list[tuple[str, int, int, int]]
) -> None:
    both = Both(kinds, concurrency)
    for act, passed, input_, output in acts:
        both.pass_time(passed)
        if act == "enter":
            both.enter(input_, output)
        else:
            both.end(passed + output, input_, output)
        both.compare()
