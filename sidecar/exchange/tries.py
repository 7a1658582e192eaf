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
from sidecar.errors import InternalError, SidecarError, TargetDown
from sidecar.exchange.attempt import begin
from sidecar.exchange.state import MOST_NAMES, Attempt, Exchange
from sidecar.health import least_latency
from sidecar.retry import Cause
from sidecar.types import Target

_HEDGE_SECONDS: Final = 1.0  # until a target's latency is known


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
        if self.attempt is not None:
            self.attempt.close()


async def obtain(exchange: Exchange, plan: routing.Plan) -> Attempt:
    """The answer to give: the first good one, else the last refusal. Raises SidecarError where there was no answer."""
    exchange.plan = plan
    targets = plan.targets if len(plan.targets) == 1 else _ordered(exchange, plan)
    if not exchange.asking.fallback:
        targets = targets[:1]
    failure: Failure | None = None
    if plan.policy == "hedge" and len(targets) > 1:
        got = await _race(exchange, plan, targets[0], targets[1])
        if type(got) is Attempt:
            return got
        failure, targets = got, targets[2:]  # type: ignore[assignment]
    for target in targets:
        if failure is not None:
            if not _may_go_on(exchange, plan, failure):
                break
            failure.close()
        got = await _persist(exchange, target)
        if type(got) is Attempt:
            return got
        failure = got  # type: ignore[assignment]
    return _give_up(exchange, failure)


def _ordered(exchange: Exchange, plan: routing.Plan) -> Sequence[Target]:
    spine, moment = exchange.spine, now()

    def ready(target: Target) -> bool:
        return spine.place(target).target.breaker.ready(moment)

    def least(candidates: Sequence[Target]) -> int:
        return least_latency([spine.place(each).target for each in candidates], moment, random.random)

    affinity = exchange.client.index.get(plan.affinity) if plan.affinity is not None else None
    return routing.order(plan, ready, least, random.random, affinity)


def _may_go_on(exchange: Exchange, plan: routing.Plan, failure: Failure) -> bool:
    return retry.may_fall_back(failure.cause, plan.fallback_on) and now() < exchange.expires


def _give_up(exchange: Exchange, failure: Failure | None) -> Attempt:
    """What there is to tell. The client need not ask again at once where we have, or where it is of no use."""
    if failure is None:
        raise InternalError("a plan without targets")
    exchange.spent = exchange.record.attempts > 1 or failure.cause == "spend_cap"
    if failure.attempt is not None:
        return failure.attempt
    assert failure.error is not None
    raise failure.error


async def _persist(exchange: Exchange, target: Target) -> Attempt | Failure:
    """One target, and the same again where that may help."""
    duty, budget, settings = exchange.spine.duty, exchange.spine.duty.retries, exchange.spine.config.retry
    got = await try_once(exchange, target)
    for number in range(1, settings.attempts + 1):
        if type(got) is Attempt:
            return got
        assert type(got) is Failure
        wait = _wait(exchange, target, got, number)
        if wait is None:
            return got
        moment = now()
        if not budget.take(duty.active, moment):
            exchange.trail.append("no retry: its budget is spent")
            return got
        try:
            got.close()
            exchange.trail.append(f"wait {wait * 1000:.0f} ms")
            await asyncio.sleep(wait)
            exchange.outcome.waited += now() - moment
            got = await try_once(exchange, target)
        finally:
            budget.give_back()
    return got


def _wait(exchange: Exchange, target: Target, failure: Failure, number: int) -> float | None:
    """Seconds until the same target is asked again; None where it is not."""
    if retry.WAYS[failure.cause] != "retry" or type(failure.error) is TargetDown:
        return None
    settings, asked, moment = exchange.spine.config.retry, failure.asked, now()
    if failure.cause == "rate_limit" and failure.attempt is not None:
        keys = exchange.spine.place(target).keys
        if len(keys) > 1:  # another key is asked at once; with none left, the first that may be
            asked = keys.retry_after(moment)
    wait = retry.delay(
        number, settings.base_seconds, settings.cap_seconds, asked, settings.max_wait_seconds, random.random
    )
    patience = min(exchange.expires, exchange.outcome.started + exchange.asking.patience)
    return wait if wait is not None and moment + wait < patience else None


async def try_once(exchange: Exchange, target: Target) -> Attempt | Failure:
    """One try at one target, told of in the trail. A failure that holds an attempt is to be closed."""
    record, began = exchange.record, now()
    record.provider, record.model = target.upstream.name, target.model
    exchange.target = target
    record.attempts += 1
    try:
        attempt = await begin(exchange, target)
    except TargetDown as error:
        record.attempts -= 1  # it was not asked
        exchange.trail.append(f"{target.key} left alone")
        return Failure("server", error)
    except SidecarError as error:
        exchange.trail.append(f"{target.key} {error.code} after {(now() - began) * 1000:.0f} ms")
        return Failure(retry.cause_of(error), error)
    if attempt.cause is None:
        if exchange.asking.explain:
            exchange.trail.append(f"{target.key} answered after {(now() - began) * 1000:.0f} ms")
        return attempt
    assert attempt.inbound is not None
    status = attempt.inbound.status
    words = f"{status} {provider_code(status)}" if status >= 400 else "an error in the answer"
    exchange.trail.append(f"{target.key} {words} ({attempt.cause}) after {(now() - began) * 1000:.0f} ms")
    return Failure(attempt.cause, None, attempt)


# -- hedging ----------------------------------------------------------------------------------------------------------


async def _race(exchange: Exchange, plan: routing.Plan, first: Target, second: Target) -> Attempt | Failure:
    """Ask the first; after a time also the second, where the budget allows. The first good answer wins.

    The other is cancelled at once. A try that fails before that time is followed by the second target at once.
    """
    loop, moment = asyncio.get_running_loop(), now()
    waited = exchange.outcome.waited
    budget = _budget(exchange, plan)
    budget.request(moment)
    after = plan.model.hedge_after_seconds
    if after is None:
        after = exchange.spine.place(first).target.latency.p95(moment) or _HEDGE_SECONDS
    running = {loop.create_task(try_once(exchange, first))}
    rest = [second]
    failure: Failure | None = None
    try:
        while running:
            done, running = await asyncio.wait(
                running, timeout=after if rest else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                got = task.result()
                if type(got) is Attempt:
                    return _won(exchange, got)
                if failure is not None:
                    failure.close()
                failure = got  # type: ignore[assignment]
            if rest and _asks_next(exchange, plan, budget, failure, hedge=not done):
                running.add(loop.create_task(try_once(exchange, rest[0])))
            rest = []
    finally:
        exchange.outcome.waited = waited + now() - moment
        for task in running:
            task.add_done_callback(_lost)
            task.cancel()
    assert failure is not None
    return failure


def _asks_next(
    exchange: Exchange, plan: routing.Plan, budget: HedgeBudget, failure: Failure | None, *, hedge: bool
) -> bool:
    """Is the second target asked now? As a hedge only out of the budget; as a fall-back where the cause allows it."""
    if hedge:
        return budget.take(now())
    return failure is not None and _may_go_on(exchange, plan, failure)


def _won(exchange: Exchange, attempt: Attempt) -> Attempt:
    """The record is of the winner, whoever was asked last."""
    target = exchange.target = attempt.target
    exchange.record.provider, exchange.record.model = target.upstream.name, target.model
    exchange.attempt = attempt
    return attempt


def _lost(task: asyncio.Task[Attempt | Failure]) -> None:
    """A try that came too late; one that had ended in the very moment gives back what it holds."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _budget(exchange: Exchange, plan: routing.Plan) -> HedgeBudget:
    hedges = exchange.spine.duty.hedges
    budget = hedges.get(plan.name)
    if budget is None:
        if len(hedges) >= MOST_NAMES:
            hedges.clear()
        budget = hedges[plan.name] = HedgeBudget(plan.model.hedge_budget_percent)
    return budget
