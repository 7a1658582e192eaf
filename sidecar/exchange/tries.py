"""Which target is asked, when again, and when it is enough: order, retries with a budget, fall-backs, hedges.

Until the first content goes to the client any failure may be mended by another try, and none multiplies load: the same
target is asked again only out of a budget, another only where the model's `fallback_on` names the cause.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import msgspec

from sidecar import retry, routing
from sidecar.answer import provider_code
from sidecar.budget import HedgeBudget
from sidecar.clock import now
from sidecar.errors import InternalError, PoolExhausted, ProviderLimited, QuotaShort, SidecarError, TargetDown
from sidecar.exchange.attempt import begin, conclude
from sidecar.exchange.state import MOST_NAMES, Attempt, Exchange, Place
from sidecar.exchange.verdict import DUE
from sidecar.health import least_latency
from sidecar.retry import Cause
from sidecar.types import Target

_HEDGE_SECONDS: Final = 1.0  # until a target's latency is known
_EARLY: Final = 0.002  # seconds that a loop's timer may be early: too early for a key that rests
_UNASKED: Final = (TargetDown, ProviderLimited, QuotaShort, PoolExhausted)  # of ours: the provider knows of nothing


class Failure(msgspec.Struct):
    """A try that brought nothing good: a provider's refusal, which may still be passed on, or an error of ours."""

    cause: Cause
    error: SidecarError | None = None
    attempt: Attempt | None = None

    @property
    def asked(self) -> float | None:
        """Seconds to wait, by the word of who refused."""
        return self.attempt.asked if self.attempt is not None else self.error.retry_after if self.error else None

    def close(self) -> None:
        """Give back what it holds. May be called twice."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.close()


async def obtain(exchange: Exchange, plan: routing.Plan, sent: Attempt | None = None) -> Attempt:
    """The answer to give: the first good one, else the last refusal. Raises SidecarError where there was no answer.

    `sent`: the first try, at the only target, where it has been sent already; if its answer has begun, it is this one.
    """
    exchange.plan = plan
    if sent is not None and sent.way is not None:
        return sent
    if len(plan.targets) != 1:
        return await _obtain_any(exchange, plan)
    target = plan.targets[0]
    got = await try_once(exchange, target, sent)
    if isinstance(got, Failure):
        got = await _persist(exchange, plan, target, got, last=True)
    return got if isinstance(got, Attempt) else _give_up(exchange, got)


async def _obtain_any(exchange: Exchange, plan: routing.Plan) -> Attempt:
    """Of several targets, in the order that the plan's policy gives."""
    targets = _ordered(exchange, plan)
    if not exchange.asking.fallback:
        targets = targets[:1]
    failure: Failure | None = None
    if plan.policy == "hedge" and len(targets) > 1:
        got = await _race(exchange, plan, targets[0], targets[1])
        if isinstance(got, Attempt):
            return got
        failure, targets = got, targets[2:]
    for number, target in enumerate(targets, 1):
        if failure is not None:
            if not _may_go_on(exchange, plan, failure):
                break
            if not _ready(exchange, target):  # what the last one said tells more than this
                exchange.trail.append(f"{target.key} left alone")
                continue
            failure.close()
            exchange.attempt = None  # what the last one knew is not of the next
        got = await try_once(exchange, target)
        if isinstance(got, Failure):
            others = any(_ready(exchange, other) for other in targets[number:])
            got = await _persist(exchange, plan, target, got, last=not others)
        if isinstance(got, Attempt):
            return got
        failure = got
    return _give_up(exchange, failure)


def _ordered(exchange: Exchange, plan: routing.Plan) -> Sequence[Target]:
    moment = now()

    def ready(target: Target) -> bool:
        return _place(exchange, target).target.breaker.ready(moment)

    def least(candidates: Sequence[Target]) -> int:
        return least_latency([_place(exchange, each).target for each in candidates], moment, random.random)

    affinity = exchange.client.index.get(plan.affinity) if plan.affinity is not None else None
    return routing.order(plan, ready, least, random.random, affinity)


def _ready(exchange: Exchange, target: Target) -> bool:
    return _place(exchange, target).target.breaker.ready(now())


def _place(exchange: Exchange, target: Target) -> Place:
    return exchange.spine.places.get(target.key) or exchange.spine.place(target)


def _may_go_on(exchange: Exchange, plan: routing.Plan, failure: Failure) -> bool:
    return (
        retry.may_fall_back(failure.cause, plan.fallback_on)
        and now() + DUE < exchange.expires
        and not exchange.client.gone  # one that left is stayed with to count what was begun, not to begin more
    )


def _give_up(exchange: Exchange, failure: Failure | None) -> Attempt:
    """What there is to tell. The client need not ask again at once where we have, or where it is of no use."""
    if failure is None:
        raise InternalError("a plan without targets")
    if exchange.record.attempts > 1 or failure.cause == "spend_cap":
        exchange.spent = True
    if failure.attempt is not None:
        return failure.attempt
    assert failure.error is not None
    raise failure.error


async def _persist(
    exchange: Exchange, plan: routing.Plan, target: Target, got: Failure, *, last: bool
) -> Attempt | Failure:
    """The same target again, where that may help after such a failure. `last`: there is no other to ask."""
    tried = await _retry(exchange, plan, target, got, last=last)
    return await _insist(exchange, target, tried) if last and isinstance(tried, Failure) else tried


async def _retry(
    exchange: Exchange, plan: routing.Plan, target: Target, got: Failure, *, last: bool
) -> Attempt | Failure:
    """Out of the budget, and after a wait."""
    duty, budget, settings = exchange.spine.duty, exchange.spine.duty.retries, exchange.spine.config.retry
    number, keys = 1, len(_place(exchange, target).keys)
    while number <= settings.attempts:
        wait = _wait(exchange, target, got, number, last=last or not _may_go_on(exchange, plan, got))
        if wait is None:
            return got
        moment = now()
        if not budget.take(duty.active, moment):
            exchange.trail.append("no retry: its budget is spent")
            exchange.spent = True  # the client's own tries would multiply the load as well
            return got
        try:
            got.close()
            exchange.attempt = None
            if wait:
                exchange.trail.append(f"wait {wait * 1000:.0f} ms")
                await asyncio.sleep(wait + _EARLY)
                exchange.outcome.waited += now() - moment
            again = await try_once(exchange, target)
        finally:
            budget.give_back()
        if isinstance(again, Attempt):
            return again
        got, keys = again, keys - 1
        if wait or keys <= 0:  # each other key may be asked besides
            number += 1
    return got


async def _insist(exchange: Exchange, target: Target, got: Failure) -> Attempt | Failure:
    """Nobody else may be asked, nor waited for: what a guess alone speaks against is the provider's to refuse."""
    if type(got.error) is not QuotaShort or not got.error.guessed or exchange.client.gone:
        return got
    exchange.insists = True
    return await try_once(exchange, target)


def _wait(exchange: Exchange, target: Target, failure: Failure, number: int, *, last: bool) -> float | None:
    """Seconds until the same target is asked again; None where it is not."""
    attempt = failure.attempt
    if retry.WAYS[failure.cause] != "retry" or exchange.client.gone:
        return None
    inbound = attempt.inbound if attempt is not None else None
    if inbound is not None and inbound.index.get(b"x-should-retry") == b"false":
        return None  # it has tried itself
    settings, asked, moment = exchange.spine.config.retry, failure.asked, now()
    place = _place(exchange, target)
    keys, rest = place.keys, place.keys.retry_after(moment)
    if type(failure.error) in _UNASKED:
        if type(failure.error) is QuotaShort:
            rest = failure.error.retry_after or 0.0
        if not rest:  # what sheds load does so at once: only for a key, and what it has left, anybody waits
            return None
        asked = rest
    elif failure.cause == "rate_limit" and len(keys) > 1:
        if not rest:
            return 0.0  # another key, at once
        asked = rest
    if asked and not last:
        return None  # another target need not be waited for
    wait = retry.delay(
        number, settings.base_seconds, settings.cap_seconds, asked, settings.max_wait_seconds, random.random
    )
    patience = min(exchange.expires, exchange.outcome.started + exchange.asking.patience)
    if wait is None or moment + wait + DUE >= patience or not place.target.breaker.ready(moment + wait):
        return None
    return wait


def aim(exchange: Exchange, target: Target) -> None:
    """The record is of this target, as long as no other is asked."""
    record = exchange.record
    record.provider, record.model = target.upstream.name, target.model
    exchange.target = target
    record.attempts += 1


async def try_once(exchange: Exchange, target: Target, sent: Attempt | None = None) -> Attempt | Failure:
    """One try at one target, told of in the trail. A failure that holds an attempt is to be closed."""
    began = now()
    aim(exchange, target)
    try:
        attempt = await (begin(exchange, target) if sent is None else conclude(exchange, sent))
    except SidecarError as error:
        return _failed(exchange, target, error, began)
    if attempt.cause is not None:
        return _refused(exchange, attempt, attempt.cause, began)
    if exchange.asking.explain:
        exchange.trail.append(f"{target.key} answered after {(now() - began) * 1000:.0f} ms")
    return attempt


def _failed(exchange: Exchange, target: Target, error: SidecarError, began: float) -> Failure:
    if type(error) in _UNASKED:
        exchange.record.attempts -= 1
    if isinstance(error, TargetDown):
        exchange.trail.append(f"{target.key} left alone")
        return Failure("server", error)
    exchange.trail.append(f"{target.key} {error.code} after {(now() - began) * 1000:.0f} ms")
    return Failure(retry.cause_of(error), error)


def _refused(exchange: Exchange, attempt: Attempt, cause: Cause, began: float) -> Failure:
    assert attempt.inbound is not None
    status = attempt.inbound.status
    words = f"{status} {provider_code(status)}" if status >= 400 else "an error in the answer"
    exchange.trail.append(f"{attempt.target.key} {words} ({cause}) after {(now() - began) * 1000:.0f} ms")
    return Failure(cause, None, attempt)


# -- hedging ----------------------------------------------------------------------------------------------------------


async def _race(exchange: Exchange, plan: routing.Plan, first: Target, second: Target) -> Attempt | Failure:
    """Ask the first; after a time also the second, where the budget allows. The first good answer wins.

    The other is cancelled at once. A first try that fails is followed by the second target at once, where its cause
    allows that; where it does not, the second's answer will not do either, though it was asked.
    """
    loop, moment, waited = asyncio.get_running_loop(), now(), exchange.outcome.waited
    _budget(exchange, plan).request(moment)
    targets, tries = (first, second), [loop.create_task(try_once(exchange, first))]
    kept: asyncio.Task[Attempt | Failure] | None = None  # whose outcome is given: what others hold is given back
    try:
        if not await _comes(tries[0], _hedge_after(exchange, plan, first)) and _may_hedge(exchange, plan):
            exchange.trail.append(f"hedged after {(now() - moment) * 1000:.0f} ms")
            tries.append(loop.create_task(try_once(exchange, second)))
        pending, last = set(tries), tries[0]
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for last in sorted(done, key=tries.index):
                got = last.result()
                if isinstance(got, Attempt) or (last is tries[0] and not _may_go_on(exchange, plan, got)):
                    kept = last
                    return _given(exchange, targets[tries.index(last)], got)
            if len(tries) == 1:
                tries.append(loop.create_task(try_once(exchange, second)))
                pending.add(tries[1])
        kept = last
        return _given(exchange, targets[tries.index(last)], last.result())
    finally:
        exchange.outcome.waited = waited + now() - moment
        for task in tries:
            if task is not kept:
                _lose(task)


async def _comes(task: asyncio.Task[Attempt | Failure], seconds: float) -> bool:
    """Is it done, in that time?"""
    await asyncio.wait((task,), timeout=seconds)
    return task.done()


def _hedge_after(exchange: Exchange, plan: routing.Plan, first: Target) -> float:
    """Seconds until the second target is asked: as configured, else by the slowest in twenty of the first."""
    if (after := plan.model.hedge_after_seconds) is not None:
        return after
    return _place(exchange, first).target.latency.p95(now()) or _HEDGE_SECONDS


def _may_hedge(exchange: Exchange, plan: routing.Plan) -> bool:
    return not exchange.client.gone and now() < exchange.expires and _budget(exchange, plan).take(now())


def _given(exchange: Exchange, target: Target, got: Attempt | Failure) -> Attempt | Failure:
    """The record is of whose answer is given, whoever was asked last."""
    settle(exchange, target, got if isinstance(got, Attempt) else got.attempt)
    return got


def settle(exchange: Exchange, target: Target, attempt: Attempt | None) -> None:
    """It is this target whose answer the client gets, and this attempt that brought it."""
    exchange.target, exchange.attempt = target, attempt
    exchange.record.provider, exchange.record.model = target.upstream.name, target.model


def _lose(task: asyncio.Task[Attempt | Failure]) -> None:
    """End a try that comes too late; one that is over gives back what it holds."""
    if task.cancel():
        task.add_done_callback(_give_back)
    else:
        _give_back(task)


def _give_back(task: asyncio.Task[Attempt | Failure]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _budget(exchange: Exchange, plan: routing.Plan) -> HedgeBudget:
    hedges, percent = exchange.spine.duty.hedges, plan.model.hedge_budget_percent
    budget = hedges.get((plan.name, percent))
    if budget is None:
        if len(hedges) >= MOST_NAMES:
            hedges.clear()
        budget = hedges[plan.name, percent] = HedgeBudget(percent)
    return budget
