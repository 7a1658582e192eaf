"""What each end of a try tells: the breaker, the adaptive limit, the keys, the latency; on a clock of the test's."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from sidecar.app import Sidecar
from sidecar.clock import now
from sidecar.config import Model
from sidecar.dialects.neutral import Fault
from sidecar.errors import (
    BodyInvalid,
    ConnectFailed,
    Draining,
    PoolExhausted,
    SidecarError,
    UpstreamCut,
    UpstreamTimeout,
)
from sidecar.exchange.verdict import COOL_SECONDS, MOST_COOL_SECONDS, blamed, cause_in_answer, tell, tell_end
from sidecar.retry import Cause
from tests.exchange.stage import attempt, config, exchange

COUNT = ("connect", "timeout", "gateway_timeout", "cut", "protocol", "server", "overloaded", "in_answer", "empty")
CROWDED = ("rate_limit", "overloaded", "timeout", "gateway_timeout")


@pytest.mark.parametrize("cause", get_args(Cause))
def test_each_cause_counts_as_it_should(cause: Cause) -> None:
    app = Sidecar(config(adaptive=True))
    of = exchange(app)
    for number in range(5):
        tried = attempt(of)
        tell(of, tried, cause, 10.0 + number / 1000)
        tried.close()
    place = of.spine.place(of.plan.targets[0])
    assert (place.target.breaker.state == "open") == (cause in COUNT)
    assert place.aimd is not None
    assert place.aimd.limit == place.counter.most == (90 if cause in CROWDED else 100)
    assert (place.target.in_flight, place.counter.running) == (0, 0)


TIMEOUT = UpstreamTimeout("provider lab: no answer", phase="first_byte")


@pytest.mark.parametrize(
    ("error", "left", "cause"),
    [
        (TIMEOUT, math.inf, "timeout"),
        (TIMEOUT, 1.0, "timeout"),
        (TIMEOUT, 0.0, "ours"),  # the client gave it no time
        (TIMEOUT, -1.0, "ours"),
        (UpstreamCut("cut"), -1.0, "cut"),
        (ConnectFailed("refused"), math.inf, "connect"),
        (PoolExhausted("all busy"), math.inf, "ours"),
        (Draining("the end"), math.inf, "ours"),
        (BodyInvalid("no"), math.inf, "request"),
        (KeyError("a bug"), math.inf, "ours"),
        (GeneratorExit(), math.inf, "ours"),
    ],
)
def test_whom_an_error_blames(error: BaseException, left: float, cause: Cause) -> None:
    of = exchange(Sidecar(config()))
    of.expires = now() + left
    assert blamed(of, error) == cause


def test_a_refusal_rests_one_key_for_as_long_as_it_says() -> None:
    of = exchange(Sidecar(config(3)))
    for key, asked, rests in (
        (0, 7.0, 7.0),
        (1, None, COOL_SECONDS),
        (2, 0.0, COOL_SECONDS),
        (2, 1e5, MOST_COOL_SECONDS),
    ):
        tried = attempt(of, key=key)
        tried.asked = asked
        tell(of, tried, "rate_limit", 100.0)
        assert tried.place.keys.rests(key, 100.0 + rests - 0.001)
        assert not tried.place.keys.rests(key, 100.0 + rests)
        assert sum(tried.place.keys.rests(each, 100.0) for each in range(3)) == key + 1


def test_the_only_key_rests_only_if_it_is_told_to() -> None:
    of = exchange(Sidecar(config()))
    tried = attempt(of)
    tell(of, tried, "rate_limit", 100.0)
    assert not tried.place.keys.rests(0, 100.0)
    tried.asked = 2.0
    tell(of, tried, "rate_limit", 100.0)
    assert tried.place.keys.rests(0, 101.9)


# -- answers that go on


class Watch:
    """A meter of an answer that has begun."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault, self.usage = fault, None
        self.started, self.ended, self.closed = True, False, False

    def feed(self, block: bytes) -> bytes:
        return block

    def passes(self, block: bytes) -> bool:
        return False

    def start(self) -> None: ...


BOOM = Fault(status=500, message="boom")


@pytest.mark.parametrize(
    ("fault", "error", "opens"),
    [
        (None, None, False),
        (None, UpstreamCut("cut"), True),
        (None, TIMEOUT, True),
        (BOOM, None, True),
        (Fault(status=400, message="prompt is too long"), None, False),
    ],
    ids=["good", "cut", "silent", "an error", "the request's fault"],
)
def test_an_answer_that_goes_on_is_judged_at_its_end(
    fault: Fault | None, error: SidecarError | None, opens: bool
) -> None:
    of = exchange(Sidecar(config()))
    for _ in range(5):
        tried = attempt(of, began=now())
        tried.meter = Watch()
        tell(of, tried, None, now())
        tried.meter = Watch(fault)
        tell_end(of, tried, error)
        tried.close()
    assert (of.spine.place(of.plan.targets[0]).target.breaker.state == "open") == opens


def test_cuts_are_no_row_where_more_go_on_than_broke_off() -> None:
    """Long answers: none has ended yet, and each that has begun tells that the target lives."""
    of = exchange(Sidecar(config()))
    under_way = []
    for number in range(60):
        tried = attempt(of, began=now())
        tried.meter = Watch()
        tell(of, tried, None, now())
        if number % 10 == 9:
            tell_end(of, tried, UpstreamCut("cut"))
            tried.close()
        else:
            under_way.append(tried)
    breaker = of.spine.place(of.plan.targets[0]).target.breaker
    assert (breaker.until, breaker.cuts) == (None, 6)
    tell_end(of, under_way[0])
    assert breaker.cuts == 0


def test_a_probe_has_shown_enough_with_its_first_content() -> None:
    of = exchange(Sidecar(config()))
    for _ in range(5):
        tell(of, attempt(of), "server", 10.0)
    breaker = of.spine.place(of.plan.targets[0]).target.breaker
    assert breaker.enter(12.0)
    probe = attempt(of)
    probe.meter = Watch()
    tell(of, probe, None, 12.5)
    assert breaker.state == "closed"
    tell_end(of, probe, UpstreamCut("cut"))  # of the period before: it says nothing now
    assert breaker.cuts == 0


def test_what_has_been_told_is_not_told_again() -> None:
    of = exchange(Sidecar(config()))
    for _ in range(4):
        tried = attempt(of)
        tried.cause, tried.meter = "in_answer", Watch(BOOM)
        tell(of, tried, tried.cause, now())
        tell_end(of, tried)
    assert of.spine.place(of.plan.targets[0]).target.breaker.state == "closed"


# -- latency


def test_a_failure_never_makes_a_target_look_fast() -> None:
    app = Sidecar(config(models={"fast": Model(targets=("lab/a", "lab/b"), policy="least-latency")}))
    of = exchange(app, "fast")
    latency = of.spine.place(of.plan.targets[0]).target.latency
    for _ in range(20):
        tell(of, attempt(of, began=10.0), None, 10.5)
    causes: tuple[Cause, ...] = ("connect", "server", "ours")
    for cause in causes * 100:
        tell(of, attempt(of, began=10.499), cause, 10.5)
    assert latency.estimate(10.5) == pytest.approx(0.5)
    assert latency.p95(10.5) == pytest.approx(0.5)
    tell(of, attempt(of, began=8.5), "timeout", 10.5)  # it has waited so long at least
    assert latency.estimate(10.5) == pytest.approx(2.0)


def test_where_no_policy_asks_no_latency_is_kept() -> None:
    of = exchange(Sidecar(config()))
    tell(of, attempt(of), None, 1.0)
    assert of.spine.place(of.plan.targets[0]).target.latency.estimate(1.0) is None


def test_an_error_in_an_answer_has_the_cause_that_its_words_mean() -> None:
    assert cause_in_answer(BOOM) == "in_answer"
    assert cause_in_answer(Fault(status=429, message="m", code="rate_limit_exceeded")) == "rate_limit"
    assert cause_in_answer(Fault(status=400, message="m", code="context_length_exceeded")) == "context_window"
