"""One try at one target: admit provider, translate, send, and wait until it is certain what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from sidecar import request, retry
from sidecar.clock import now, wall
from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.drive import ENOUGH
from sidecar.errors import (
    ConcurrencyLimited,
    ProviderLimited,
    QuotaShort,
    RateLimited,
    SidecarError,
    TargetDown,
    UpstreamCut,
    UpstreamProtocol,
    UpstreamRedirect,
    UpstreamTimeout,
)
from sidecar.exchange.shared import Ask
from sidecar.exchange.spending import Paying, guess, guessed, heed, pick, reserve, undo
from sidecar.exchange.state import Attempt, Exchange, Place
from sidecar.exchange.verdict import LEARNING, blamed, cause_in_answer, tell
from sidecar.limits import RANKS, Counter, cost
from sidecar.relay import Across, Opaque, Through, Way, gather
from sidecar.request import Asking
from sidecar.retry import Cause
from sidecar.store import BUDGET_SECONDS
from sidecar.types import Counting, Deadline, Inbound, Outbound, Permit, Refused, Target, Wait
from sidecar.wire.body import LONG_BYTES
from sidecar.wire.coding import Inflate

_EVENTS: Final = b"text/event-stream"
HELD_BYTES: Final = 64 * 1024  # a body is held until it is whole or this long: until then, others may try
TRANSLATED_BYTES: Final = 64 * 1024 * 1024
ERROR_BYTES: Final = 1024 * 1024


async def begin(exchange: Exchange, target: Target) -> Attempt:
    """Ask, and wait for the answer: of a short one all of it, of a stream its first content.

    Raises SidecarError where there is none; then nothing is held any more.
    """
    place = exchange.spine.places.get(target.key) or exchange.spine.place(target)
    moment = now()
    health, key = place.target, 0
    if not place.simple or health.breaker.until is not None or moment < place.keys.until[0]:
        key = _pass(exchange, target, place, moment)
    turn = health.breaker.turn
    decision = place.counter.enter(moment) if not place.metered else reserve(exchange, place.counter, moment)
    if type(decision) is Counter:
        permit: Permit = decision
    else:
        permit, turn, key = await _queue_up(exchange, target, place, turn, key, decision)
    health.in_flight += 1
    attempt = exchange.attempt = Attempt(target, place, permit, turn, key, moment)
    if place.metered:
        attempt.permit = Paying(exchange, [permit], attempt)
    return await conclude(exchange, attempt)


async def conclude(exchange: Exchange, attempt: Attempt) -> Attempt:
    """Of an attempt that may begin, or has been sent: as `begin`."""
    target, place = attempt.target, attempt.place
    cause: Cause | None = "ours"
    try:
        outbound, deadline = _outbound(exchange, attempt)
        if attempt.sent is None:
            attempt.began = now()
        inbound = attempt.inbound = await exchange.spine.pool.send(
            outbound, deadline, target.upstream.pool, attempt.sent
        )
        if place.sign in inbound.index or exchange.limits:
            heed(exchange, attempt, inbound)
        if inbound.status >= 300:
            await _gather_refusal(attempt, inbound)
        elif exchange.view.stream or inbound.index.get(b"content-type", b"")[:17].lower() == _EVENTS:
            await _begin_stream(exchange, attempt, inbound)
        elif (data := inbound.whole()) is not None:
            _take(exchange, attempt, inbound, data)
        else:
            await _gather(exchange, attempt, inbound)
        cause = attempt.cause
    except BaseException as error:
        cause = blamed(exchange, error)
        attempt.left = not isinstance(error, SidecarError)
        attempt.close()
        raise
    finally:
        moment = now()
        exchange.outcome.waited += moment - attempt.began
        if cause is None and place.simple and exchange.plan.policy not in LEARNING:
            place.target.breaker.success(moment, attempt.turn)
        else:
            tell(exchange, attempt, cause, moment)
    return attempt


def _pass(exchange: Exchange, target: Target, place: Place, moment: float) -> int:
    """Past the target's breaker, with one of its provider's keys. Raises TargetDown, ProviderLimited, QuotaShort."""
    breaker = place.target.breaker
    if not breaker.enter(moment):
        raise TargetDown(
            f"{target.key} has failed too often, and is left alone for a moment",
            retry_after=breaker.retry_after(moment),
        )
    key, short = (place.keys.pick(moment), 0.0) if not place.quota.short else pick(exchange, place, moment)
    if key is not None:
        return key
    breaker.abandon(moment, breaker.turn)
    name = target.upstream.name
    if short:
        words = f"provider {name} has not as much left of its limits as this request needs"
        error = QuotaShort(words, retry_after=short)
        error.guessed = guessed(exchange, place, moment)
        raise error
    raise ProviderLimited(f"provider {name} has refused its keys for now", retry_after=place.keys.retry_after(moment))


async def _queue_up(
    exchange: Exchange, target: Target, place: Place, turn: int, key: int, decision: Permit | Refused | None
) -> tuple[Permit, int, int]:
    """The permit, once there is room. By then the target may have failed, or its key been refused: see again."""
    breaker = place.target.breaker
    try:
        permit = await admit(exchange, place.counter, decision)
    except BaseException:
        breaker.abandon(now(), turn)
        raise
    moment = now()
    if turn == breaker.turn and not place.keys.rests(key, moment):
        return permit, turn, key
    breaker.abandon(moment, turn)
    try:
        key = _pass(exchange, target, place, moment)
    except BaseException:
        undo(permit)
        raise
    return permit, breaker.turn, key


def _outbound(exchange: Exchange, attempt: Attempt) -> tuple[Outbound, Deadline]:
    """The request in the target's words, and the limits of its time."""
    target, view = attempt.target, exchange.view
    outbound, attempt.hide_usage, attempt.dropped = request.translate(
        target,
        exchange.endpoint,
        exchange.members,
        exchange.client,
        exchange.asking,
        stream=view.stream,
        key=attempt.key,
        said="" if exchange.resumed is None else exchange.resumed.text,
        long=exchange.record.bytes_in > LONG_BYTES,
    )
    if outbound.auth is not None:
        attempt.secrets = (outbound.auth.secret,)
    return outbound, request.deadline(target.upstream, view, attempt.began, exchange.expires)


def _take(exchange: Exchange, attempt: Attempt, inbound: Inbound, data: bytes) -> None:
    """A body that is all here, in the client's words: what cannot be said in them was no answer."""
    attempt.data, attempt.whole = data, True
    coding = inbound.index.get(b"content-encoding")
    plain = attempt.plain = data if coding is None else unpacked(coding, data)
    attempt.usage, attempt.fault = DIALECTS[attempt.target.dialect].measure(plain)
    ours, theirs = exchange.endpoint.dialect, attempt.target.dialect
    if theirs != ours:
        if exchange.view.stream and attempt.fault is None:
            name = attempt.target.upstream.name
            raise UpstreamProtocol(f"provider {name} answered a request for a stream with one body")
        attempt.data = CONVERSATIONS[ours].write_reply(CONVERSATIONS[theirs].read_reply(plain))
    elif attempt.fault is not None:
        attempt.cause = cause_in_answer(attempt.fault)
    elif not plain:
        attempt.cause = "empty"
    elif attempt.usage is None and _is_cut(plain):
        name = attempt.target.upstream.name
        raise UpstreamCut(f"provider {name} answered with a part of a JSON object, though of the length that it said")


def _is_cut(plain: bytes) -> bool:
    """A JSON object without its end, however well it is framed."""
    return plain.lstrip()[:1] == b"{" and not plain.rstrip().endswith(b"}")


async def _gather(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> None:
    """A body that is not to be translated is held only so far: then it goes on as it comes."""
    translated = attempt.target.dialect != exchange.endpoint.dialect or exchange.view.stream
    data, whole = await gather(inbound, TRANSLATED_BYTES if translated else HELD_BYTES)
    if whole:
        _take(exchange, attempt, inbound, data)
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
    if retry.WAYS[attempt.cause] == "retry":
        asked = retry.after(inbound.index, wall())
        attempt.asked = retry.after_body(plain) if asked is None else asked


async def _begin_stream(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> None:
    kind = (inbound.index.get(b"content-type") or b"").lower()
    if not kind.startswith(b"text/event-stream") and not await _looks_like_events(inbound):
        await _gather(exchange, attempt, inbound)
        return
    way = attempt.way = _way(exchange, attempt, inbound)
    meter = attempt.meter = way.meter
    data = inbound.here()
    attempt.data = way.feed(data) if data else b""
    if not meter.started and meter.fault is None:
        await _hold(exchange, attempt, inbound, way)
    if meter.fault is not None and not meter.started:
        attempt.cause = cause_in_answer(meter.fault)
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


async def _looks_like_events(inbound: Inbound) -> bool:
    """A stream was asked for, and what comes is not declared as one: some providers forget to."""
    data, whole = await gather(inbound, 0)
    if data:
        inbound.unread(data)
    return not whole and data.lstrip().startswith((b"data:", b"event:", b":"))


def _way(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> Across | Opaque | Through:
    ours, theirs = exchange.endpoint.dialect, attempt.target.dialect
    coding = inbound.index.get(b"content-encoding")
    continues = (
        exchange.plan.model.continuation
        and theirs in CONVERSATIONS
        and ours in CONVERSATIONS
        and exchange.dialect.choices(exchange.members) == 1
    )
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
            before=exchange.before if continues else None,
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
    if isinstance(decision, Ask):
        decision = await _ask(exchange, decision)
    elif decision is None:
        moment = now()
        tokens = guess(exchange).whole(counter.usual) if counter.tokens is not None else ()
        wait = counter.wait(moment, _rank(exchange.asking), _cost(exchange), _patience(exchange, moment), *tokens)
        decision = wait if isinstance(wait, Refused) else await _queue(exchange, wait)
    if isinstance(decision, Refused):
        raise _refusal(decision)
    return decision


async def _ask(exchange: Exchange, ask: Ask) -> Permit | Refused:
    """What the store says, or what stands in for it where this request has waited for it long enough in all."""
    counter, client = ask.counter, exchange.client
    if not counter.line:
        began = now()
        decision = await counter.ask(ask.input, ask.output, BUDGET_SECONDS - exchange.store_seconds)
        exchange.store_seconds += now() - began
        if decision is not None:
            return decision
    client.stay = False  # nothing has been asked for it that should be heard out
    decision = await counter.queue(ask, _rank(exchange.asking), _cost(exchange), _patience(exchange, now()))
    client.stay = exchange.spine.stays
    return decision


def _cost(exchange: Exchange) -> float:
    return cost(exchange.record.bytes_in, exchange.view.max_tokens)


def _patience(exchange: Exchange, moment: float) -> float:
    """Seconds that the client will wait yet, by its own word."""
    return min(exchange.expires, exchange.outcome.started + exchange.asking.patience) - moment


def _rank(asking: Asking) -> int:
    """A request may ask for less than its caller has; for anything where nobody has been given a key."""
    caller = asking.asker.caller
    own, asked = RANKS[caller.priority], RANKS[asking.priority or caller.priority]
    return asked if caller is request.ANONYMOUS else max(own, asked)


async def _queue(exchange: Exchange, wait: Wait) -> Permit | Refused:
    """Wait for a slot, as long as was told; the place in the queue is given up whatever ends it."""
    limits, client = exchange.spine.limits, exchange.client
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    wait.ticket.wake = wake
    client.stay = False  # nothing has been asked for it that should be heard out
    timer = loop.call_later(wait.seconds, wake)
    try:
        await woken
    except BaseException:
        limits.abandon(wait.ticket)
        raise
    finally:
        timer.cancel()
    client.stay = exchange.spine.stays
    return limits.claim(wait.ticket)


def _refusal(refused: Refused) -> SidecarError:
    scope, _, name = refused.scope.partition(":")
    words = f"{refused.limit.replace('_', ' ')} reached"
    if scope == "provider":
        return ProviderLimited(f"the limit set for provider {name}: {words}", retry_after=refused.retry_after)
    kind = ConcurrencyLimited if refused.limit == "concurrency" else RateLimited
    whose = "this key's limit" if scope == "caller" else f"the limit set for model {name}"
    return kind(f"{whose}: {words}", retry_after=refused.retry_after)
