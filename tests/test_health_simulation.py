"""Each policy against a modelled provider, on a clock of its own: chance is seeded, nothing sleeps.

The bounds are those that the policies promise; the models are open, so that a policy has no way to slow the clients.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest

from sidecar.budget import Aimd, HedgeBudget, RetryBudget
from sidecar.health import Breaker, BreakerSettings, Health, Latency, TargetHealth, least_latency


class Simulation:
    """Things that happen at times, in order."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), happen))

    def arrivals(self, per_second: float, until: float, arrive: Callable[[], None]) -> None:
        """Poisson: as clients that know nothing of each other."""

        def one() -> None:
            arrive()
            gap = self.random.expovariate(per_second)
            if self.now + gap < until:
                self.after(gap, one)

        self.after(0.0, one)

    def run(self, until: float = float("inf")) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._due)
            happen()
        if until < float("inf"):
            self.now = until


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


# -- adaptive concurrency


class Throttling:
    """A provider that serves `most` at once and refuses the rest, and clients that want more than it has."""

    def __init__(self, seed: int, most: int, seconds: float) -> None:
        self.simulation = Simulation(seed)
        self.most = most
        self.seconds = seconds
        self.aimd = Aimd()
        self.in_flight = 0
        self.served = 0
        self.refused = 0

    def arrive(self) -> None:
        if self.in_flight >= self.aimd.limit:
            return
        self.in_flight += 1
        if self.served >= self.most:
            self.refused += 1
            self.simulation.after(0.02, self.refuse)
        else:
            self.served += 1
            self.simulation.after(self.simulation.random.gammavariate(4, self.seconds / 4), self.answer)

    def refuse(self) -> None:
        self.in_flight -= 1
        self.aimd.throttled(self.simulation.now)

    def answer(self) -> None:
        self.aimd.success(self.in_flight, self.simulation.now)
        self.in_flight -= 1
        self.served -= 1

    def limits(self, seconds: float) -> list[float]:
        """The limit at each quarter of a second of the time to come."""
        seen: list[float] = []
        for _ in range(int(seconds * 4)):
            self.simulation.run(self.simulation.now + 0.25)
            seen.append(self.aimd.limit)
        return seen


def throttling(seed: int, most: int, seconds: float, lasts: float) -> Throttling:
    model = Throttling(seed, most, seconds)
    model.simulation.arrivals(2.0 * most / seconds, model.simulation.now + lasts, model.arrive)
    return model


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("most", "seconds"), [(20, 1.0), (60, 4.0), (100, 0.5), (300, 3.0), (700, 2.0)])
def test_adaptive_concurrency_settles_within_a_fifth_of_the_true_limit(seed: int, most: int, seconds: float) -> None:
    model = throttling(seed, most, seconds, 300.0)
    model.limits(150.0)
    settled = model.limits(140.0)
    assert 0.8 * most <= sum(settled) / len(settled) <= 1.2 * most
    assert 0.8 * most <= percentile(settled, 0.05)
    assert percentile(settled, 0.95) <= 1.2 * most


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize(("most", "seconds"), [(60, 4.0), (200, 2.0)])
def test_adaptive_concurrency_follows_a_brown_out_and_recovers(seed: int, most: int, seconds: float) -> None:
    model = throttling(seed, most, seconds, 450.0)
    model.limits(150.0)
    model.most = most // 5
    browned = model.limits(60.0)
    assert sum(browned[-80:]) / 80 <= 1.3 * model.most
    model.most = most
    recovering = model.limits(90.0)
    assert next(number for number, limit in enumerate(recovering) if limit >= 0.8 * most) / 4 <= 60.0
    settled = model.limits(120.0)
    assert 0.8 * most <= sum(settled) / len(settled) <= 1.2 * most


def test_adaptive_concurrency_refuses_few_once_settled() -> None:
    model = throttling(5, 100, 2.0, 400.0)
    model.limits(150.0)
    refused, asked = model.refused, model.simulation.now
    model.limits(200.0)
    assert (model.refused - refused) / (model.simulation.now - asked) < 0.05 * (100 / 2.0)  # of what is served a second


# -- breaker


class Failing:
    """Requests at a steady rate through a breaker, each answered at once: a success or not as `fails` tells."""

    def __init__(self, seed: int, fails: Callable[[float, Random], bool], per_second: float = 50.0) -> None:
        self.random = Random(seed)
        self.breaker = Breaker(BreakerSettings(), self.random.random)
        self.fails = fails
        self.gap = 1 / per_second
        self.count = 0
        self.entered: list[float] = []  # when
        self.opened: list[float] = []  # when

    def state(self) -> str:
        return self.breaker.state

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / self.gap)):
            self.count += 1
            now = self.count * self.gap
            breaker = self.breaker
            if not breaker.enter(now):
                continue
            self.entered.append(now)
            if self.fails(now, self.random):
                breaker.failure(now, breaker.turn)
                if breaker.state == "open":
                    self.opened.append(now)
            else:
                breaker.success(now, breaker.turn)


@pytest.mark.parametrize("seed", range(4))
def test_a_breaker_spares_a_dead_provider_and_finds_it_when_it_is_back(seed: int) -> None:
    model = Failing(seed, lambda now, random: 10 <= now < 310)
    model.run(10 + 300)
    assert model.state() == "open"
    tries = [at for at in model.entered if at >= 10]
    assert len(tries) <= 5 + 14  # a row of five, then probes after 1, 2, 4 ... 60 s, or half of that
    assert max(later - earlier for earlier, later in itertools.pairwise(tries)) <= 60.1
    model.run(90)
    assert model.state() == "closed"
    back = next(at for at in model.entered if at >= 310)
    assert back <= 310 + 60.1
    assert len([at for at in model.entered if at >= back]) == pytest.approx((400 - back) * 50, abs=2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_second", [5.0, 20.0, 200.0])
def test_a_breaker_stays_closed_while_thirty_in_a_hundred_fail(seed: int, per_second: float) -> None:
    model = Failing(seed, lambda _, random: random.random() < 0.3, per_second)
    model.run(20_000 / per_second)
    assert len(model.entered) == 20_000
    assert not model.opened


@pytest.mark.parametrize("seed", range(4))
def test_of_thirty_requests_half_fail_by_chance_now_and_then(seed: int) -> None:
    """One a second: thirty are all there is to judge by. What is lost to that is little."""
    model = Failing(seed, lambda _, random: random.random() < 0.3, 1.0)
    model.run(20_000)
    assert len(model.entered) >= 0.995 * 20_000
    assert len(model.opened) <= 20_000 / 600  # once in ten minutes


@pytest.mark.parametrize("first", [0, 1])
def test_a_breaker_stays_closed_while_every_other_request_fails(first: int) -> None:
    turns = itertools.count(first)
    model = Failing(0, lambda now, random: next(turns) % 2 == 0)
    model.run(600)
    assert len(model.entered) == 600 * 50
    assert not model.opened


@pytest.mark.parametrize("seed", range(4))
def test_a_breaker_is_neither_flapping_nor_starving_where_most_fail(seed: int) -> None:
    """A success now and then does not make it trust the target for long; nor is the target ever given up."""
    model = Failing(seed, lambda _, random: random.random() < 0.7, 100.0)
    model.run(1800)
    assert len(model.opened) <= 1800 / 30  # mostly open for the longest time, which is half a minute with jitter
    assert max(later - earlier for earlier, later in itertools.pairwise(model.entered)) <= 60.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("phase", [10, 45, 120])
def test_a_breaker_lets_the_good_phases_of_an_alternating_provider_through(seed: int, phase: int) -> None:
    model = Failing(seed, lambda now, random: int(now // phase) % 2 == 1)
    model.run(phase * 40)
    assert len(model.opened) <= 20 * 9  # in each bad phase a row of five, and the probes
    good = [at for at in model.entered if int(at // phase) % 2 == 0]
    bad = [at for at in model.entered if int(at // phase) % 2 == 1]
    assert len(bad) <= 20 * (5 + 9)
    assert len(good) >= 0.4 * (20 * phase * 50)
    assert max(later - earlier for earlier, later in itertools.pairwise(model.entered)) <= 60.1


@pytest.mark.parametrize("seed", range(4))
def test_late_time_outs_of_the_bad_time_neither_hold_a_breaker_open_nor_open_it_again(seed: int) -> None:
    """A thousand requests hang when the target dies; it is back after 5 s, their time-outs come for 100 s more."""
    simulation = Simulation(seed)
    start = simulation.now
    breaker = Breaker(BreakerSettings(), simulation.random.random)
    served: list[float] = []

    def arrive() -> None:
        now = simulation.now
        if not breaker.enter(now):
            return
        turn = breaker.turn
        if start + 10 <= now < start + 15:
            hangs = 2.0 if now < start + 10.1 else 2.0 + simulation.random.random() * 100
            simulation.after(hangs, lambda: breaker.failure(simulation.now, turn))
        else:
            served.append(now)
            simulation.after(0.1, lambda: breaker.success(simulation.now, turn))

    simulation.arrivals(200.0, start + 120, arrive)
    simulation.run()
    assert breaker.state == "closed"
    assert len([at for at in served if at >= start + 20]) == pytest.approx(100 * 200, rel=0.05)


# -- retries


class Retrying:
    """Requests of which a share fails, each with up to three more tries if the budget has them."""

    def __init__(self, seed: int, budget: RetryBudget, fails: float, seconds: float) -> None:
        self.simulation = Simulation(seed)
        self.budget = budget
        self.fails = fails
        self.seconds = seconds  # that a try takes
        self.active = 0
        self.requests = 0
        self.tries = 0
        self.most_at_once = 0
        self.wanted = 0
        self._retries = 0

    def arrive(self) -> None:
        self.requests += 1
        self.active += 1
        self.budget.request(self.simulation.now)
        self.attempt(0)

    def attempt(self, number: int) -> None:
        self.tries += 1
        self.simulation.after(self.seconds, lambda: self.end(number))

    def end(self, number: int) -> None:
        if number:
            self.budget.give_back()
            self._retries -= 1
        if self.simulation.random.random() < self.fails and number < 3:
            self.wanted += 1
            if self.budget.take(self.active, self.simulation.now):
                self._retries += 1
                self.most_at_once = max(self.most_at_once, self._retries)
                wait = self.simulation.random.random() * 0.25 * 2**number
                self.simulation.after(wait, lambda: self.attempt(number + 1))
                return
        self.active -= 1


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("seconds", [0.002, 0.3, 5.0])
@pytest.mark.parametrize("per_second", [2.0, 40.0, 300.0])
def test_the_retry_budget_holds_amplification_when_all_fails(seed: int, seconds: float, per_second: float) -> None:
    model = Retrying(seed, RetryBudget(per_second=0.0), 1.0, seconds)
    model.simulation.arrivals(per_second, model.simulation.now + 15_000 / per_second, model.arrive)
    model.simulation.run()
    assert model.requests > 14_000
    assert model.tries <= 1.2 * model.requests
    assert model.tries > 1.01 * model.requests  # but there are retries


@pytest.mark.parametrize("seconds", [0.001, 0.05, 1.0])
def test_two_hundred_requests_in_five_seconds_all_refused(seconds: float) -> None:
    model = Retrying(1, RetryBudget(), 1.0, seconds)
    for number in range(200):
        model.simulation.after(number * 0.025, model.arrive)
    model.simulation.run(model.simulation.now + 5.0)
    assert model.requests == 200
    assert 20 <= model.tries - 200 <= 50
    assert model.most_at_once <= max(3, 0.2 * 200)


@pytest.mark.parametrize("seed", [1, 2])
def test_where_few_fail_nearly_all_of_them_are_retried(seed: int) -> None:
    model = Retrying(seed, RetryBudget(), 0.05, 0.5)
    model.simulation.arrivals(100.0, model.simulation.now + 300.0, model.arrive)
    model.simulation.run()
    assert model.tries - model.requests >= 0.95 * model.wanted


# -- hedging


class Hedging:
    """Requests whose first token mostly comes soon; some stall. The first of two answers wins."""

    def __init__(self, seed: int, stalls: Callable[[float], float], *, hedges: bool) -> None:
        self.simulation = Simulation(seed)
        self.start = self.simulation.now
        self.stalls = stalls  # the share of them, by the time since the start
        self.hedges = hedges
        self.latency = Latency()
        self.budget = HedgeBudget()
        self.times: list[float] = []
        self.extra = 0

    def drawn(self) -> float:
        random = self.simulation.random
        seconds = random.lognormvariate(-0.9, 0.35)  # a median of 0.4 s
        return seconds + (
            random.uniform(5, 15) if random.random() < self.stalls(self.simulation.now - self.start) else 0
        )

    def arrive(self) -> None:
        begun, first = self.simulation.now, self.drawn()
        self.budget.request(begun)
        delay = self.latency.p95(begun) if self.hedges else None
        if delay is None or delay >= first:
            self.simulation.after(first, lambda: self.first_token(begun, first))
            return

        def hedge() -> None:
            if not self.budget.take(self.simulation.now):
                self.simulation.after(first - delay, lambda: self.first_token(begun, first))
                return
            self.extra += 1
            second = self.drawn()
            if delay + second < first:  # the loser is cancelled, and has waited as long as the winner took
                self.simulation.after(second, lambda: self.first_token(begun, second, delay + second))
            else:
                self.simulation.after(first - delay, lambda: self.first_token(begun, first))

        self.simulation.after(delay, hedge)

    def first_token(self, begun: float, *observed: float) -> None:
        self.times.append(self.simulation.now - begun)
        for seconds in observed:
            self.latency.observe(seconds, self.simulation.now)


def hedging(seed: int, stalls: Callable[[float], float], *, hedges: bool, per_second: float = 40.0) -> Hedging:
    model = Hedging(seed, stalls, hedges=hedges)
    model.simulation.arrivals(per_second, model.start + 20_000 / per_second, model.arrive)
    model.simulation.run()
    return model


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("share", "per_second"), [(0.015, 40.0), (0.03, 40.0), (0.03, 2.0)])
def test_hedging_cuts_the_p99_by_two_fifths_for_a_twentieth_more_requests(
    seed: int, share: float, per_second: float
) -> None:
    plain = hedging(seed, lambda _: share, hedges=False, per_second=per_second)
    hedged = hedging(seed, lambda _: share, hedges=True, per_second=per_second)
    assert percentile(hedged.times, 0.99) <= 0.6 * percentile(plain.times, 0.99)
    assert percentile(hedged.times, 0.5) == pytest.approx(percentile(plain.times, 0.5), rel=0.05)
    assert 0.01 * len(hedged.times) <= hedged.extra <= 0.05 * len(hedged.times)


def test_hedging_does_not_multiply_the_load_of_a_provider_in_trouble() -> None:
    model = hedging(1, lambda since: 0.9 if 100 <= since < 250 else 0.01, hedges=True)
    assert model.extra <= 0.05 * len(model.times)


# -- least latency


class Balancing:
    """Three targets behind the choice of two; one of them is slow for a while."""

    def __init__(self, seed: int, slow: Callable[[float], float]) -> None:
        self.simulation = Simulation(seed)
        self.start = self.simulation.now
        self.slow = slow  # how many times slower the first is, by the time since the start
        health = Health(self.simulation.random.random)
        self.targets: list[TargetHealth] = [health.target(f"p/{name}", BreakerSettings()) for name in "abc"]
        self.chosen: list[tuple[float, int]] = []  # (when, which)

    def arrive(self) -> None:
        now = self.simulation.now
        index = least_latency(self.targets, now, self.simulation.random.random)
        self.chosen.append((now - self.start, index))
        target = self.targets[index]
        target.in_flight += 1
        seconds = self.simulation.random.lognormvariate(-0.9, 0.35) * (self.slow(now - self.start) if not index else 1)

        def first_token() -> None:
            target.in_flight -= 1
            target.latency.observe(seconds, self.simulation.now)

        self.simulation.after(seconds, first_token)

    def share(self, begin: float, end: float) -> float:
        """Of the requests of a time, those that the first target got."""
        those = [index for at, index in self.chosen if begin <= at < end]
        return those.count(0) / len(those)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("per_second", [5.0, 50.0])
def test_least_latency_routes_away_from_a_brown_out_and_comes_back(seed: int, per_second: float) -> None:
    model = Balancing(seed, lambda since: 12.0 if 120 <= since < 240 else 1.0)
    model.simulation.arrivals(per_second, model.start + 420, model.arrive)
    model.simulation.run()
    assert 0.2 <= model.share(0, 120) <= 0.47
    assert model.share(130, 240) <= 0.12
    assert model.share(130, 240) > 0  # it is tried now and then
    assert 0.2 <= model.share(300, 420) <= 0.47
