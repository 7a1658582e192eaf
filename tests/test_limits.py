"""Rates against a model of GCRA, concurrency and its queue against a list: permits once, in order, nothing lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.answer import retry_after
from sidecar.config import Queue
from sidecar.limits import RANKS, Counter, Limits, Ticket, cost
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


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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


def test_a_request_that_waited_in_vain_takes_nothing_of_the_rate() -> None:
    limits = Limits(Queue(length=3), Clock())
    permit(limits.decide(KEY, 5, 1, 1000.0))
    waits = [wait(limits.decide(KEY, 5, 1, 1000.0, rank=RANKS["low"])) for _ in range(3)]
    wait(limits.decide(KEY, 5, 1, 1000.0))  # pushes out the last of them
    assert isinstance(waits[2].ticket.answer, Refused)
    refused(limits.claim(waits[0].ticket))
    limits.abandon(waits[1].ticket)
    limits.queue = Queue(length=9)
    for _ in range(3):
        wait(limits.decide(KEY, 5, 1, 1000.0))
    assert refused(limits.decide(KEY, 5, 1, 1000.0)).limit == "requests_per_minute"


def test_what_a_provider_takes_is_a_bound_beside_the_configured_one() -> None:
    limits = Limits(Queue(length=9), Clock())
    counter = limits.counter(KEY, None, 4)
    counter.adapt(2)
    held = [permit(limits.decide(KEY, None, 4, 1000.0)) for _ in range(2)]  # a reload changes nothing of it
    waits = [wait(counter.wait(1000.0, 1, 0.0, 9.0)) for _ in range(3)]
    assert repr(counter) == f"<Counter {KEY}: 2 running of 2, 3 waiting>"
    counter.adapt(3)
    assert repr(counter) == f"<Counter {KEY}: 3 running of 3, 2 waiting>"
    counter.adapt(1)
    for each in (*held, permit(waits[0].ticket.answer)):
        assert len(counter.waiting) == 2
        each.release()
    assert repr(counter) == f"<Counter {KEY}: 1 running of 1, 1 waiting>"
    counter.adapt(9)
    assert repr(counter) == f"<Counter {KEY}: 2 running of 4, 0 waiting>"
    counter.adapt(None)
    assert counter.most == 4


# -- the queue's order


def served(limits: Limits, waits: dict[str, Wait], held: Permit) -> list[str]:
    """The names in the order in which their tickets get the one slot."""
    order = list[str]()
    for name, each in waits.items():
        each.ticket.wake = lambda name=name: order.append(name)
    while held is not None:
        count = len(order)
        held.release()
        held = permit(limits.claim(waits[order[-1]].ticket)) if len(order) > count else None  # type: ignore[assignment]
    return order


def test_a_higher_class_goes_first_whenever_it_came() -> None:
    limits = Limits(Queue(length=9), Clock())
    held = permit(limits.decide(KEY, None, 1, 1000.0))
    names = ["low 1", "normal 1", "high 1", "low 2", "high 2", "normal 2"]
    waits = {name: wait(limits.decide(KEY, None, 1, 1000.0, rank=RANKS[name.split()[0]])) for name in names}
    assert served(limits, waits, held) == ["high 1", "high 2", "normal 1", "normal 2", "low 1", "low 2"]


def test_in_a_class_short_ones_go_first_but_pass_nobody_who_came_half_a_wait_before() -> None:
    limits = Limits(Queue(length=9, wait_seconds=4.0), Clock())
    held = permit(limits.decide(KEY, None, 1, 1000.0))
    asks = {"long": (0.0, 1.0), "middle": (0.1, 0.5), "short": (1.9, 0.0), "later": (2.1, 0.0), "last": (2.1, 0.1)}
    waits = {
        name: wait(limits.decide(KEY, None, 1, 1000.0 + after, cost=share)) for name, (after, share) in asks.items()
    }
    assert served(limits, waits, held) == ["middle", "short", "long", "later", "last"]


def test_what_a_request_costs_is_a_guess_within_bounds() -> None:
    assert cost(0, 0) == 0
    assert cost(0, None) == cost(0, 1024) == 0.125
    assert cost(64 * 1024, 0) == 0.125
    assert cost(0, -5) == 0
    assert cost(10**9, None) == cost(0, 10**400) == 1.0


# -- a full queue


def test_one_of_a_higher_class_pushes_the_last_of_the_lowest_out_of_a_full_queue() -> None:
    limits, woken = Limits(Queue(length=3), Clock()), list[str]()
    permit(limits.decide(KEY, None, 1, 1000.0))
    waits = {
        name: wait(limits.decide(KEY, None, 1, 1000.0, rank=RANKS[name.split()[0]]))
        for name in ("low 1", "low 2", "normal")
    }
    for name, each in waits.items():
        each.ticket.wake = lambda name=name: woken.append(name)
    assert refused(limits.decide(KEY, None, 1, 1000.0, rank=RANKS["low"])).limit == "concurrency"
    for rank, out in (("normal", "low 2"), ("high", "low 1"), ("high", "normal")):
        if out == "normal":  # of two of a class the later one
            refused(limits.decide(KEY, None, 1, 1000.0))
            continue
        wait(limits.decide(KEY, None, 1, 1000.0, rank=RANKS[rank]))
        assert woken.pop() == out
        assert refused(limits.claim(waits[out].ticket)).retry_after == 3.0
        limits.abandon(waits[out].ticket)  # has nothing to give back
        assert running(limits) == (1, 3)
    assert not woken


def test_who_would_wait_in_vain_pushes_nobody_out() -> None:
    clock = Clock()
    limits = Limits(Queue(length=1), clock)
    paced(limits, clock, 1, 1.0)
    wait(limits.decide(KEY, None, 1, clock.now, rank=RANKS["low"]))
    assert refused(limits.decide(KEY, None, 1, clock.now, rank=RANKS["high"], patience=0.9)).retry_after == 1.0
    assert running(limits) == (1, 1)


# -- shedding


def paced(limits: Limits, clock: Clock, most: int, seconds: float, count: int = 20) -> list[Permit]:
    """All slots taken, of which one frees every so many seconds."""
    held = [permit(limits.decide(KEY, None, most, clock.now)) for _ in range(most)]
    for _ in range(max(count, 2 * most)):
        clock.now += seconds
        held.pop(0).release()
        held.append(permit(limits.decide(KEY, None, most, clock.now)))
    return held


def test_who_could_not_be_served_in_time_is_told_so_at_once_and_the_time_it_would_take() -> None:
    clock = Clock()
    limits = Limits(Queue(length=100, wait_seconds=2.0), clock)
    paced(limits, clock, 4, 0.25)
    for ahead in range(8):
        if ahead:  # none is so patient as to wait for that
            brief = refused(limits.decide(KEY, None, 4, clock.now, patience=ahead * 0.25))
            assert brief.retry_after == pytest.approx((ahead + 1) * 0.25, abs=1e-9)
        wait(limits.decide(KEY, None, 4, clock.now, patience=(ahead + 1) * 0.25 + 1e-6))
    over = refused(limits.decide(KEY, None, 4, clock.now))  # the queue's own bound is a deadline, too
    assert over.retry_after == pytest.approx(2.25, abs=1e-9)
    wait(limits.decide(KEY, None, 4, clock.now, rank=RANKS["high"], patience=0.25 + 1e-6))  # before all of them
    assert running(limits) == (4, 9)


def test_what_has_passed_of_the_time_to_the_next_slot_is_not_waited_for_again() -> None:
    clock = Clock()
    limits = Limits(Queue(wait_seconds=3.0), clock)
    paced(limits, clock, 1, 5.0)
    assert refused(limits.decide(KEY, None, 1, clock.now)).retry_after == pytest.approx(5.0)
    clock.now += 4.5
    assert refused(limits.decide(KEY, None, 1, clock.now, patience=0.4)).retry_after == pytest.approx(0.5)
    wait(limits.decide(KEY, None, 1, clock.now, patience=0.6))


def test_nothing_is_known_before_each_slot_has_freed_once() -> None:
    clock = Clock()
    limits = Limits(Queue(length=9), clock)
    held = [permit(limits.decide(KEY, None, 3, clock.now)) for _ in range(3)]
    for known in (False, False, True):
        clock.now += 9.0
        held.pop(0).release()
        held.append(permit(limits.decide(KEY, None, 3, clock.now)))
        decision = limits.decide(KEY, None, 3, clock.now)
        assert isinstance(decision, Refused) == known
        if isinstance(decision, Wait):
            limits.abandon(decision.ticket)


def test_where_slots_free_no_more_fewer_and_fewer_wait() -> None:
    clock = Clock()
    limits = Limits(Queue(length=100, wait_seconds=3.05), clock)
    paced(limits, clock, 10, 0.1)
    lengths = list[int]()
    for _ in range(4):
        waits = list[Wait]()
        while isinstance(decision := limits.decide(KEY, None, 10, clock.now), Wait):
            waits.append(decision)
        lengths.append(len(waits))
        for each in waits:
            limits.abandon(each.ticket)
        clock.now += 10.0
    assert lengths[0] == 30
    assert lengths == sorted(set(lengths), reverse=True)
    assert lengths[-1] <= 3


def test_a_bad_time_that_is_over_is_forgotten() -> None:
    clock = Clock()
    limits = Limits(Queue(wait_seconds=3.0), clock)
    held = paced(limits, clock, 2, 30.0)
    refused(limits.decide(KEY, None, 2, clock.now))
    for each in held:
        each.release()
    clock.now += 61.0
    permit(limits.decide(KEY, None, 2, clock.now))
    permit(limits.decide(KEY, None, 2, clock.now))
    wait(limits.decide(KEY, None, 2, clock.now))


def test_refusing_everybody_ends_by_itself() -> None:
    clock = Clock()
    limits = Limits(Queue(wait_seconds=3.0), clock)
    held = paced(limits, clock, 4, 30.0)
    count = 0
    while not isinstance(limits.decide(KEY, None, 4, clock.now), Wait):
        count += 1
        assert count < 50, "in three seconds"
        clock.now += 0.05
        held.pop(0).release()  # for nobody: all were told not to wait
        held.append(permit(limits.decide(KEY, None, 4, clock.now)))
    assert count > 5


@pytest.mark.parametrize("patience", [0.0, -1.0])
def test_who_has_no_time_left_does_not_wait(patience: float) -> None:
    limits = Limits(clock=Clock())
    permit(limits.decide(KEY, None, 1, 1000.0))
    refused(limits.decide(KEY, None, 1, 1000.0, patience=patience))


# -- all of it, against a model


@dataclass
class Line:
    """The queue as it is meant: everybody who waits, looked through for each decision."""

    most: int
    length: int
    running: int = 0
    waiting: list[tuple[int, float, int]] = field(default_factory=list)
    state: dict[int, str] = field(default_factory=dict)

    def ask(self, number: int, rank: int, due: float) -> None:
        self.state[number] = "refused"
        if self.running < self.most:
            self.state[number] = "granted"
            self.running += 1
            return
        if len(self.waiting) >= self.length:
            worst = max(self.waiting, default=(-1, 0.0, 0))
            if worst[0] <= rank:
                return
            self.leave(worst[2])
        self.state[number] = "waiting"
        self.waiting.append((rank, due, number))

    def leave(self, number: int) -> None:
        self.state[number] = "refused"
        self.waiting = [each for each in self.waiting if each[2] != number]

    def release(self) -> None:
        self.running -= 1
        self.grant()

    def grant(self) -> None:
        while self.waiting and self.running < self.most:
            _, _, number = best = min(self.waiting)
            self.waiting.remove(best)
            self.state[number] = "granted"
            self.running += 1


class Both:
    """The queue and its model, side by side."""

    def __init__(self, most: int, length: int) -> None:
        self.clock = Clock()
        self.limits = Limits(Queue(length=length, wait_seconds=3600.0), self.clock)
        self.counter = self.limits.counter(KEY, None, most)
        self.line = Line(most, length)
        self.tickets: dict[int, Ticket] = {}
        self.held: list[int] = []
        self.woken: list[int] = []

    def ask(self, number: int, rank: int, share: float) -> None:
        self.line.ask(number, rank, self.clock.now + share * 1800.0)
        decision = self.counter.enter(self.clock.now) or self.counter.wait(self.clock.now, rank, share, 3600.0)
        kind = {Counter: "granted", Wait: "waiting", Refused: "refused"}[type(decision)]
        assert kind == self.line.state[number]
        if isinstance(decision, Wait):
            self.tickets[number] = decision.ticket
            decision.ticket.wake = lambda: self.woken.append(number)
        elif kind == "granted":
            self.held.append(number)

    def release(self, _: int, which: int, __: float) -> None:
        if self.held:
            self.held.pop(which % len(self.held))
            self.line.release()
            self.counter.release()

    def claim(self, _: int, which: int, __: float) -> None:
        if self.tickets:
            number = sorted(self.tickets)[which % len(self.tickets)]
            if self.line.state[number] == "waiting":
                self.line.leave(number)
            claimed = self.limits.claim(self.tickets.pop(number))
            assert isinstance(claimed, Refused) == (self.line.state[number] == "refused")
            self.held += [number] if claimed is self.counter else []

    def abandon(self, _: int, which: int, __: float) -> None:
        if self.tickets:
            number = sorted(self.tickets)[which % len(self.tickets)]
            if self.line.state[number] == "granted":
                self.line.release()
            self.line.leave(number)
            self.limits.abandon(self.tickets.pop(number))

    def bound(self, _: int, which: int, share: float) -> None:
        self.line.most = which + 1
        self.line.grant()
        first, second = (self.counter.adapt, lambda most: self.counter.allow(None, most))
        for each in (first, second) if share else (second, first):  # both are needed to raise it
            each(which + 1)

    def time(self, _: int, __: int, seconds: float) -> None:
        self.clock.now += seconds

    def compare(self) -> None:
        counter, line = self.counter, self.line
        assert (counter.running, len(counter.waiting), counter.most) == (line.running, len(line.waiting), line.most)
        assert line.running >= line.most or not line.waiting  # nobody waits while there is room
        answered = {number for number, ticket in self.tickets.items() if ticket.answer is not None}
        assert answered == {number for number in self.tickets if line.state[number] != "waiting"}
        assert answered <= set(self.woken)


ASKS = st.tuples(st.just("ask"), st.integers(0, 2), st.sampled_from([0.0, 0.001, 0.5, 1.0]))
OTHERS = st.tuples(
    st.sampled_from(["release", "claim", "abandon", "bound", "time"]), st.integers(0, 5), st.sampled_from([0.0, 0.9])
)


@given(st.integers(1, 4), st.integers(0, 5), st.lists(ASKS | OTHERS, max_size=80))
@settings(max_examples=400, deadline=None)
def test_whatever_happens_it_decides_as_the_model_and_nothing_is_lost(
    most: int, length: int, acts: list[tuple[str, int, float]]
) -> None:
    both = Both(most, length)
    for number, (act, which, amount) in enumerate(acts):
        getattr(both, act)(number, which, amount)
        both.compare()
    assert len(both.woken) == len(set(both.woken))  # each once
    for ticket in both.tickets.values():
        both.limits.abandon(ticket)
    for _ in both.held:
        both.counter.release()
    assert repr(both.limits) == "<Limits 0 running, 0 waiting>"
