"""The queue under more than a provider takes, on a clock of its own: chance is seeded, nothing sleeps."""

from __future__ import annotations

import pytest

from sidecar.config import Queue
from sidecar.limits import RANKS, Counter, Limits, Ticket
from sidecar.types import Refused, Wait
from tests.test_health_simulation import Simulation, percentile

SLOTS = 16
CLASSES = ("high", "normal", "normal", "normal", "low")


class Overload:
    """A provider with so many slots, each taken for a second in the mean; twice as many want them as it has."""

    def __init__(self, seed: int, classes: tuple[str, ...] = CLASSES) -> None:
        self.simulation = Simulation(seed)
        self.limits = Limits(Queue(length=1000, wait_seconds=2.0), lambda: self.simulation.now)
        self.counter = self.limits.counter("provider:slow", None, SLOTS)
        self.classes = classes
        self.seconds = 1.0
        self.work = 0.0
        self.waits: dict[str, list[float]] = {name: [] for name in RANKS}  # of the served
        self.shed: dict[str, int] = dict.fromkeys(RANKS, 0)  # at once
        self.late: dict[str, int] = dict.fromkeys(RANKS, 0)  # waited in vain

    def arrive(self) -> None:
        simulation, counter = self.simulation, self.counter
        name, began = simulation.random.choice(self.classes), simulation.now
        decision = counter.enter(began) or counter.wait(
            began, RANKS[name], simulation.random.random(), simulation.random.uniform(0.5, 2)
        )
        if isinstance(decision, Refused):
            assert decision.retry_after > 0
            self.shed[name] += 1
        elif isinstance(decision, Wait):
            ticket = decision.ticket
            ticket.wake = lambda: self.run(name, began)
            simulation.after(decision.seconds, lambda: self.give_up(name, ticket))
        else:
            self.run(name, began)

    def give_up(self, name: str, ticket: Ticket) -> None:
        if ticket.answer is None:
            self.limits.claim(ticket)
            self.late[name] += 1

    def run(self, name: str, began: float) -> None:
        assert 0 < self.counter.running <= SLOTS
        self.waits[name].append(self.simulation.now - began)
        seconds = self.simulation.random.expovariate(1 / self.seconds)
        self.work += seconds
        self.simulation.after(seconds, self.counter.release)

    def total(self, counts: dict[str, int]) -> int:
        return sum(counts.values())


@pytest.mark.parametrize("seed", range(3))
def test_under_twice_the_load_the_high_hardly_wait_and_few_wait_in_vain(seed: int) -> None:
    model = Overload(seed)
    model.simulation.arrivals(2 * SLOTS, 1000.0 + 120.0, model.arrive)
    model.simulation.run()
    served = sum(map(len, model.waits.values()))
    arrived = served + model.total(model.shed) + model.total(model.late)
    assert arrived == pytest.approx(2 * SLOTS * 120, rel=0.1)
    assert model.work > 0.95 * SLOTS * 120  # refusing leaves no slot unused
    assert percentile(model.waits["high"], 0.5) < 0.1
    assert percentile(model.waits["high"], 0.99) < 1.0 < percentile(model.waits["normal"], 0.9)
    assert model.shed["high"] + model.late["high"] < 0.01 * len(model.waits["high"])
    assert max(max(each) for each in model.waits.values()) <= 2.0
    assert model.total(model.shed) > 0.3 * arrived
    assert model.total(model.late) < 0.12 * arrived  # of the lower ones, whom others have overtaken
    assert repr(model.counter) == f"<Counter provider:slow: 0 running of {SLOTS}, 0 waiting>"


def test_without_classes_most_who_wait_are_served() -> None:
    model = Overload(7, classes=("normal",))
    model.simulation.arrivals(2 * SLOTS, 1000.0 + 120.0, model.arrive)
    model.simulation.run()
    assert model.work > 0.95 * SLOTS * 120
    assert model.total(model.late) < 0.2 * len(model.waits["normal"])  # without refusals as many as are served


def test_slots_that_are_taken_and_freed_together_mislead_nobody() -> None:
    limits = Limits(Queue(length=SLOTS, wait_seconds=3.0), lambda: simulation.now)
    simulation = Simulation(1)
    counter, refused = limits.counter("provider:even", None, SLOTS), list[float]()

    def run() -> None:
        simulation.after(1.0, counter.release)

    def burst() -> None:
        for _ in range(2 * SLOTS):
            decision = counter.enter(simulation.now) or counter.wait(simulation.now, 1, 0.0, 3.0)
            if isinstance(decision, Counter):
                run()
            elif isinstance(decision, Wait):
                decision.ticket.wake = run
            else:
                refused.append(simulation.now)

    for number in range(30):
        simulation.after(2.5 * number, burst)
    simulation.run()
    assert not refused


def test_a_provider_that_hangs_and_comes_back_is_used_in_full_again() -> None:
    model = Overload(3)
    model.simulation.arrivals(2 * SLOTS, 1000.0 + 180.0, model.arrive)
    model.simulation.run(1030.0)
    model.seconds = 60.0
    model.simulation.run(1045.0)
    shed, late = model.total(model.shed), model.total(model.late)
    model.simulation.run(1060.0)
    assert model.total(model.late) - late < 0.15 * (model.total(model.shed) - shed)  # it is seen that none frees
    model.seconds = 1.0
    model.simulation.run(1150.0)
    count = sum(map(len, model.waits.values()))
    model.simulation.run(1180.0)
    assert sum(map(len, model.waits.values())) - count > 0.85 * SLOTS * 30
