"""One try at one target: admit provider, translate, send, and wait until it is certain what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from sidecar import request, retry
from sidecar.clock import now, wall
from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Fault
from sidecar.drive import ENOUGH
from sidecar.errors import (
    ConcurrencyLimited,
    ErrorInAnswer,
    ProviderLimited,
    RateLimited,
    SidecarError,
    TargetDown,
    UpstreamCut,
    UpstreamProtocol,
    UpstreamRedirect,
    UpstreamTimeout,
)
from sidecar.exchange.state import Attempt, Exchange, Place
from sidecar.limits import RANKS, Counter, cost
from sidecar.relay import Across, Opaque, Through, Way, gather
from sidecar.request import Asking
from sidecar.retry import Cause
from sidecar.types import Counting, Inbound, Permit, Refused, Target, Wait
from sidecar.wire.coding import Inflate

_EVENTS: Final = b"text/event-stream"
HELD_BYTES: Final = 64 * 1024  # a body is held until it is whole or this long: until then, others may try
TRANSLATED_BYTES: Final = 64 * 1024 * 1024
ERROR_BYTES: Final = 1024 * 1024
COOL_SECONDS: Final = 1.0  # of a key that was refused without a word on when to come back
MOST_COOL_SECONDS: Final = 600.0
# What counts against a target, and what tells that its provider has too much to do.
_FAILURES: Final = frozenset[Cause](
    ("connect", "timeout", "gateway_timeout", "cut", "protocol", "server", "overloaded", "in_answer", "empty")
)
_CROWDED: Final = frozenset[Cause](("rate_limit", "overloaded", "timeout", "gateway_timeout"))
_LEARNING: Final = frozenset(("least-latency", "hedge"))  # policies that go by the time to the first content


async def begin(exchange: Exchange, target: Target) -> Attempt:
    """Ask, and wait for the answer: of a short one all of it, of a stream its first content.

    Raises SidecarError where there is none; then nothing is held any more.
    """
    place = exchange.spine.place(target)
    attempt = exchange.attempt = await _admitted(exchange, target, place)
    try:
        inbound = await _ask(exchange, attempt)
        if inbound.status >= 300:
            await _gather_refusal(attempt, inbound)
        elif exchange.view.stream or inbound.index.get(b"content-type", b"")[:17].lower() == _EVENTS:
            await _begin_stream(exchange, attempt, inbound)
        elif (data := inbound.whole()) is not None:
            _take(attempt, inbound, data)
        else:
            await _gather(exchange, attempt, inbound)
    except BaseException as error:
        tell(exchange, attempt, retry.cause_of(error) if isinstance(error, SidecarError) else "ours")
        attempt.close()
        raise
    finally:
        exchange.outcome.waited += now() - attempt.began
    tell(exchange, attempt, attempt.cause)
    return attempt


async def _admitted(exchange: Exchange, target: Target, place: Place) -> Attempt:
    """Past the target's breaker, its provider's limits, and with one of its keys."""
    moment = now()
    breaker, counter = place.target.breaker, place.counter
    if not breaker.enter(moment):
        raise TargetDown(
            f"{target.key} has failed too often, and is left alone for a moment",
            retry_after=breaker.retry_after(moment),
        )
    turn = breaker.turn
    try:
        key = place.keys.pick(moment)
        if key is None:
            raise ProviderLimited(
                f"provider {target.upstream.name} has refused its keys for now",
                retry_after=place.keys.retry_after(moment),
            )
        decision = counter.enter(moment)
        permit = decision if type(decision) is Counter else await admit(exchange, counter, decision)
    except BaseException:
        breaker.abandon(moment, turn)
        raise
    place.target.in_flight += 1
    return Attempt(target, place, permit, turn, key, moment)


async def _ask(exchange: Exchange, attempt: Attempt) -> Inbound:
    """Translate and send; the provider's answer, once its head has come."""
    target, view = attempt.target, exchange.view
    upstream = target.upstream
    outbound, attempt.hide_usage, attempt.dropped = request.translate(
        target,
        exchange.endpoint,
        exchange.members,
        exchange.client,
        exchange.asking,
        stream=view.stream,
        key=attempt.key,
    )
    if outbound.auth is not None:
        attempt.secrets = (outbound.auth.secret,)
    deadline = request.deadline(upstream, view, attempt.began, exchange.expires)
    attempt.began = now()
    inbound = attempt.inbound = await exchange.spine.pool.send(outbound, deadline, upstream.pool)
    return inbound


def tell(exchange: Exchange, attempt: Attempt, cause: Cause | None) -> None:
    """What an attempt's end says of its target, to those who decide on the next."""
    moment = now()
    place, turn = attempt.place, attempt.turn
    breaker, aimd = place.target.breaker, place.provider.aimd
    if cause is None:
        breaker.success(moment, turn)
        if aimd is not None:
            aimd.success(place.counter.running, moment)
            place.adapt()
    elif cause in _FAILURES:
        breaker.failure(moment, turn)
    elif cause == "rate_limit":
        breaker.throttled(moment, turn)
        _cool(attempt, moment)
    else:
        breaker.abandon(moment, turn)
    if aimd is not None and cause in _CROWDED:
        aimd.throttled(moment)
        place.adapt()
    if exchange.plan.policy in _LEARNING and (cause is None or cause in _FAILURES or cause == "ours"):
        place.target.latency.observe(moment - attempt.began, moment)


def _cool(attempt: Attempt, moment: float) -> None:
    """A refusal is one key's: it is left alone for as long as the provider says. The only one, only if it says so."""
    keys = attempt.place.keys
    asked = attempt.asked
    if asked is None and len(keys) > 1:
        asked = COOL_SECONDS
    if asked is not None:
        keys.cool(attempt.key, moment + min(asked, MOST_COOL_SECONDS))


def _take(attempt: Attempt, inbound: Inbound, data: bytes) -> None:
    """A body that is all here."""
    attempt.data, attempt.whole = data, True
    coding = inbound.index.get(b"content-encoding")
    plain = attempt.plain = data if coding is None else unpacked(coding, data)
    attempt.usage, attempt.fault = DIALECTS[attempt.target.dialect].measure(plain)
    if attempt.fault is not None:
        attempt.cause = _cause_in_answer(attempt.fault)


async def _gather(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> None:
    """A body that is not to be translated is held only so far: then it goes on as it comes."""
    translated = attempt.target.dialect != exchange.endpoint.dialect or exchange.view.stream
    data, whole = await gather(inbound, TRANSLATED_BYTES if translated else HELD_BYTES)
    if whole:
        _take(attempt, inbound, data)
    elif translated:
        name = attempt.target.upstream.name
        raise UpstreamProtocol(f"provider {name} answered with more than {TRANSLATED_BYTES} bytes")
    else:
        attempt.data = data
        attempt.meter = exchange.dialect.meter(stream=False, hide_usage=False)


def unpacked(coding: bytes, data: bytes) -> bytes:
    """A whole body without its content coding. Raises UpstreamProtocol."""
    inflate = Inflate(coding)
    data = inflate.feed(data)
    inflate.finish()
    return data


async def _gather_refusal(attempt: Attempt, inbound: Inbound) -> None:
    """A provider's own error, all of it: another target may do better, else it is passed on with its status kept."""
    name = attempt.target.upstream.name
    if inbound.status < 400:
        raise UpstreamRedirect(f"provider {name} answered with a redirect ({inbound.status}), which is not followed")
    attempt.data, attempt.whole = await gather(inbound, ERROR_BYTES)
    if not attempt.whole:
        raise UpstreamProtocol(f"provider {name} answered with an error of more than {ERROR_BYTES} bytes")
    coding = inbound.index.get(b"content-encoding")
    plain = attempt.plain = attempt.data if coding is None else unpacked(coding, attempt.data)
    attempt.cause = retry.cause(inbound.status, plain)
    if attempt.cause in ("rate_limit", "overloaded"):
        asked = retry.after(inbound.index, wall())
        attempt.asked = retry.after_body(plain) if asked is None else asked


async def _begin_stream(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> None:
    kind = (inbound.index.get(b"content-type") or b"").lower()
    if not kind.startswith(b"text/event-stream") and not await _looks_like_events(inbound):
        await _gather(exchange, attempt, inbound)
        return
    way = attempt.way = _way(exchange, attempt, inbound)
    meter = attempt.meter = way.meter
    attempt.data = way.feed(await inbound.read())
    if not meter.started and meter.fault is None:
        await _hold(exchange, attempt, inbound, way)
    if meter.fault is not None and not meter.started:
        attempt.cause = _cause_in_answer(meter.fault)
    elif attempt.whole and not meter.started:
        attempt.cause = "empty"


async def _hold(exchange: Exchange, attempt: Attempt, inbound: Inbound, way: Way) -> None:
    """Hold a stream until its first content, or for so many bytes or so long: until then another target may do better.

    What is no content: the role, a ping, the beginning of a message. An error or an end without content is none either.
    """
    model, meter, held = exchange.plan.model, way.meter, [attempt.data]
    size = len(attempt.data)

    def sink(data: bytes) -> Awaitable[None] | None:
        nonlocal size
        out = way.feed(data)
        held.append(out)
        size += len(out)
        return ENOUGH if meter.started or meter.fault is not None or size > model.commit_bytes else None

    timer = asyncio.get_running_loop().call_later(model.commit_seconds, inbound.interrupt)
    try:
        if size <= model.commit_bytes and await inbound.pump(sink) is None:
            attempt.whole = True
            held.append(way.finish())
    except (UpstreamCut, UpstreamTimeout):
        if not meter.closed:
            raise
        attempt.whole = True
        held.append(way.finish())
    finally:
        timer.cancel()
    attempt.data = b"".join(held)
    if not attempt.whole and meter.fault is None:
        meter.start()


def _cause_in_answer(fault: Fault) -> Cause:
    """Of an error inside an answer whose status is 200."""
    return retry.cause_of(ErrorInAnswer(fault.message, status=fault.status, their_code=fault.code))


async def _looks_like_events(inbound: Inbound) -> bool:
    """A stream was asked for, and what comes is not declared as one: some providers forget to."""
    data, whole = await gather(inbound, 0)
    if data:
        inbound.unread(data)
    return not whole and data.lstrip().startswith((b"data:", b"event:", b":"))


def _way(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> Across | Opaque | Through:
    ours, theirs = exchange.endpoint.dialect, attempt.target.dialect
    coding = inbound.index.get(b"content-encoding")
    continues = exchange.plan.model.continuation and theirs in CONVERSATIONS and ours in CONVERSATIONS
    if theirs != ours or continues:
        meter = DIALECTS[theirs].meter(stream=True, hide_usage=False)
        if exchange.resumed is not None:
            exchange.resumed.resume(meter, CONVERSATIONS[theirs], coding, attempt.secrets)
            return exchange.resumed
        return Across(
            meter,
            CONVERSATIONS[theirs],
            CONVERSATIONS[ours],
            include_usage=exchange.view.include_usage,
            coding=coding,
            secrets=attempt.secrets,
            keep=continues,
        )
    choices = exchange.dialect.choices(exchange.members)
    meter = exchange.dialect.meter(stream=True, hide_usage=attempt.hide_usage, choices=choices)
    plain = attempt.hide_usage or exchange.plan.model.keepalive_comment_seconds is not None
    if coding is not None and not plain and coding.lower() in exchange.asking.accepts:
        return Opaque(meter, coding)
    return Through(meter, coding)


# -- limits -----------------------------------------------------------------------------------------------------------


async def admit(exchange: Exchange, counter: Counting, decision: Permit | Refused | None) -> Permit:
    """Leave to go on, if need be after a bounded wait in the queue. Raises the refusal of whose limit it is."""
    if decision is None:
        moment, asking = now(), exchange.asking
        patience = min(exchange.expires, exchange.outcome.started + asking.patience) - moment
        wait = counter.wait(moment, _rank(asking), cost(exchange.record.bytes_in, exchange.view.max_tokens), patience)
        decision = wait if isinstance(wait, Refused) else await _queue(exchange, wait)
    if isinstance(decision, Refused):
        raise _refusal(decision)
    return decision


def _rank(asking: Asking) -> int:
    """A request may ask for less than its caller has; for anything where nobody has been given a key."""
    caller = asking.asker.caller
    own, asked = RANKS[caller.priority], RANKS[asking.priority or caller.priority]
    return asked if caller is request.ANONYMOUS else max(own, asked)


async def _queue(exchange: Exchange, wait: Wait) -> Permit | Refused:
    """Wait for a slot, as long as was told; the place in the queue is given up whatever ends it."""
    limits = exchange.spine.limits
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    wait.ticket.wake = wake
    timer = loop.call_later(wait.seconds, wake)
    try:
        await woken
    except BaseException:
        limits.abandon(wait.ticket)
        raise
    finally:
        timer.cancel()
    return limits.claim(wait.ticket)


def _refusal(refused: Refused) -> SidecarError:
    scope, _, name = refused.scope.partition(":")
    words = f"{refused.limit.replace('_', ' ')} reached"
    if scope == "provider":
        return ProviderLimited(f"the limit set for provider {name}: {words}", retry_after=refused.retry_after)
    kind = RateLimited if refused.limit == "requests_per_minute" else ConcurrencyLimited
    return kind(f"this key's limit: {words}", retry_after=refused.retry_after)
