"""What an attempt says of its target, its provider and its key: to the breaker, the limits, and whoever comes next."""

from __future__ import annotations

from typing import Final

from sidecar import retry
from sidecar.clock import now
from sidecar.dialects.neutral import Fault
from sidecar.errors import ErrorInAnswer, PoolExhausted, SidecarError, UpstreamTimeout
from sidecar.exchange.state import Attempt, Exchange
from sidecar.retry import Cause

DUE: Final = 0.005  # seconds before a deadline at which it is as good as past: timers may be early
COOL_SECONDS: Final = 1.0  # of a key that was refused without a word on when to come back
MOST_COOL_SECONDS: Final = 600.0
# What counts against a target, and what tells that its provider has too much to do.
_FAILURES: Final = frozenset[Cause](
    ("connect", "timeout", "gateway_timeout", "cut", "protocol", "server", "overloaded", "in_answer", "empty")
)
_CROWDED: Final = frozenset[Cause](("rate_limit", "overloaded", "timeout", "gateway_timeout"))
LEARNING: Final = frozenset(("least-latency", "hedge"))  # policies that go by the time to the first content


def blamed(exchange: Exchange, error: BaseException) -> Cause:
    """Why there was no answer. The target is not to blame for a client that gave it no time, nor for our own bounds."""
    if not isinstance(error, SidecarError) or isinstance(error, PoolExhausted):
        return "ours"
    if isinstance(error, UpstreamTimeout) and now() + DUE >= exchange.expires:
        return "ours"
    return retry.cause_of(error)


def tell(exchange: Exchange, attempt: Attempt, cause: Cause | None, moment: float) -> None:
    """What came of an attempt, to those who decide on the next."""
    place = attempt.place
    breaker, aimd = place.target.breaker, place.aimd
    if cause is not None:
        _count(attempt, cause, moment)
    else:
        breaker.success(moment, attempt.turn)
        if aimd is not None:
            aimd.success(place.counter.running, moment)
            place.adapt()
    if exchange.plan.policy in LEARNING:
        seconds, latency = moment - attempt.began, place.target.latency
        if cause is None or seconds > (latency.estimate(moment) or 0.0):  # what failed at once was not fast
            latency.observe(seconds, moment)


def tell_end(exchange: Exchange, attempt: Attempt, error: SidecarError | None = None) -> None:
    """How an answer has ended whose first content was good, and was told of as a success."""
    if attempt.cause is not None or attempt.meter is None:
        return  # all has been told
    fault, moment = attempt.meter.fault, now()
    cause = blamed(exchange, error) if error is not None else cause_in_answer(fault) if fault is not None else None
    target = attempt.place.target
    if cause is None:
        target.breaker.cuts = 0
    elif cause in _FAILURES:
        target.breaker.cut(moment, attempt.turn, target.in_flight - 1)
        _crowded(attempt, cause, moment)
    else:
        _count(attempt, cause, moment)


def _count(attempt: Attempt, cause: Cause, moment: float) -> None:
    """What did not go well, by whose fault it was."""
    breaker, turn = attempt.place.target.breaker, attempt.turn
    if cause in _FAILURES:
        breaker.failure(moment, turn)
    elif cause == "rate_limit":
        breaker.throttled(moment, turn)
        _cool(attempt, moment)
    else:
        breaker.abandon(moment, turn)
    _crowded(attempt, cause, moment)


def _crowded(attempt: Attempt, cause: Cause, moment: float) -> None:
    """A provider that has too much to do is sent less."""
    aimd = attempt.place.aimd
    if aimd is not None and cause in _CROWDED:
        aimd.throttled(moment)
        attempt.place.adapt()


def _cool(attempt: Attempt, moment: float) -> None:
    """A refusal is one key's: it is left alone for as long as the provider says. The only one, only if it says so."""
    if attempt.target.upstream.forward_caller_key:
        return  # it was its caller's own, and says nothing of those of others
    keys = attempt.place.keys
    asked = attempt.asked
    if not asked and len(keys) > 1:
        asked = COOL_SECONDS
    if asked:
        keys.cool(attempt.key, moment + min(asked, MOST_COOL_SECONDS))


def cause_in_answer(fault: Fault) -> Cause:
    """Of an error inside an answer whose status is 200."""
    return retry.cause_of(ErrorInAnswer(fault.message, status=fault.status, their_code=fault.code))
