"""The spine: what every request goes through, in order. Read this first.

Each step takes what the one before gave (types.py has the structs), and stands where it stands for the reason given
beside it. Permits and the provider's answer are held until the last byte has gone. Another target is tried only while
nothing has been sent to the client. Errors become answers in one place, `_respond`, in the dialect that was called.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import traceback
from collections.abc import Awaitable, Mapping
from typing import Final

import msgspec

from sidecar import answer, config, request, routing
from sidecar.clock import now
from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Dialect, Meter
from sidecar.errors import (
    ClientGone,
    ConcurrencyLimited,
    Draining,
    InternalError,
    ModelForbidden,
    ProviderError,
    ProviderLimited,
    RateLimited,
    SidecarError,
    Unsupported,
    UpstreamCut,
    UpstreamProtocol,
    UpstreamRedirect,
)
from sidecar.ledger import Ledger
from sidecar.limits import Counter, Held, Limits
from sidecar.pool import Pool
from sidecar.relay import Across, Begin, Opaque, Through, Way, gather, relay
from sidecar.request import Asker, Asking
from sidecar.secret import Secret
from sidecar.types import (
    Caller,
    Client,
    Endpoint,
    Envelope,
    Headers,
    Inbound,
    Outcome,
    Permit,
    Record,
    Refused,
    Target,
    View,
    Wait,
)
from sidecar.wire import body, headers as rules
from sidecar.wire.coding import Inflate

STEPS: Final = (
    "accept",  # any ASGI server's; app.py has found the row of the endpoint table
    "identify",  # before a byte of the body is read: strangers cost nothing
    "read",  # whole, within its bound: an attempt may have to be repeated
    "decode",  # the envelope only: what policy checks is what is forwarded
    "route",  # a name becomes an ordered plan; an unknown one costs no limit
    "admit caller",  # the caller's own limits, before anything is spent on its behalf
    "admit provider",  # each attempt's: a full provider sends the request on to the next
    "translate",  # into the target's words, or the envelope rebuilt when it speaks the client's
    "send",  # through the one pool
    "relay",  # to the client, until the last byte
    "account",  # whatever happened
    "respond",  # an error, in the client's dialect
)

RETRYABLE: Final = frozenset((401, 403, 404, 408, 409, 424, 425, 429, 498, 500, 502, 503, 504, 529))
_UNARY_COMMIT_BYTES: Final = 64 * 1024  # an answer is held until it is whole or this long: until then, others may try
_TRANSLATED_BYTES: Final = 64 * 1024 * 1024
_ERROR_BYTES: Final = 1024 * 1024
_MOST_PLANS: Final = 4096  # names come from clients, so there is a bound
_serial = itertools.count(int.from_bytes(os.urandom(6), "big"))


def request_id() -> str:
    """An id for one exchange: unlike any other process's, and short."""
    return f"req_{next(_serial):016x}"


_UNREAD: Final = View(model="")  # until the body has been read


class Spine(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration gives the exchanges that begin under it. A reload makes another; others keep theirs."""

    config: config.Config
    routes: routing.Routes
    callers: dict[bytes, Asker]  # by the SHA-256 of the key
    anonymous: Asker  # who asks where there are no callers
    providers: dict[str, Counter]  # what runs at each, by the provider's name
    plans: dict[tuple[str, str, str], tuple[Target, ...]]  # remembered, by caller, model asked for and dialect
    pool: Pool
    limits: Limits
    ledger: Ledger


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer, under way."""

    spine: Spine
    endpoint: Endpoint
    dialect: Dialect
    client: Client
    record: Record
    outcome: Outcome
    meter: Meter | None = None
    way: Way | None = None  # of a stream, once there is one
    members: Envelope = {}
    view: View = _UNREAD
    target: Target | None = None  # of the attempt under way
    asking: Asking | None = None
    secrets: tuple[Secret, ...] = ()  # that the provider was sent
    hide_usage: bool = False  # the provider is asked for a usage event that the client did not ask for


async def run(spine: Spine, endpoint: Endpoint, client: Client) -> None:
    """Serve one request. Never raises for anything a peer does; cancelled when its client goes, or the server stops."""
    record = Record(request_id=request_id(), endpoint=endpoint.path, started=now())
    exchange = Exchange(spine, endpoint, DIALECTS[endpoint.dialect], client, record, Outcome())
    try:
        try:
            await _steps(exchange)
        except SidecarError as error:
            await _respond(exchange, error)
        except Exception:  # noqa: BLE001  # the border: a bug of ours is told once, and is no peer's problem
            spine.ledger.note({"event": "bug", "id": record.request_id, "trace": traceback.format_exc()})
            await _respond(exchange, InternalError("an internal error; the log has its trace under this request id"))
    except asyncio.CancelledError:
        if not client.gone:  # the server's deadline for draining, or the host's own reasons
            await _respond(exchange, Draining("the sidecar is shutting down; ask again", retry_after=1.0))
            raise
        record.status, record.error = ClientGone.status, ClientGone.code
    except OSError:  # what other servers' send() may raise once the client has gone (ASGI 2.4)
        record.status, record.error = ClientGone.status, ClientGone.code
    finally:
        _account(exchange)


async def _steps(exchange: Exchange) -> None:
    """Identify, read, decode, route, admit the caller; then the attempts."""
    spine, record, client = exchange.spine, exchange.record, exchange.client
    asking: Asking | None = client.notes.get("asking")
    if asking is None or asking.spine is not spine:
        asking = request.read_head(spine, spine.callers, spine.anonymous, client)
    exchange.asking = asking
    caller, counter = asking.asker
    record.caller = caller.name
    most = spine.config.server.max_body_bytes
    data = client.body(most)
    if data is None:
        data = await client.read(most)
    record.bytes_in = len(data)
    members = exchange.members = body.envelope(data)
    if exchange.endpoint.model is not None:
        members["model"] = body.raw(exchange.endpoint.model)
    view = exchange.view = exchange.dialect.read_view(members)
    record.asked_model, record.stream = view.model, view.stream
    plan = spine.plans.get((caller.name, view.model, exchange.endpoint.dialect)) or _plan(exchange, caller)
    if plan is None:
        return await _send_whole(exchange, 200, [answer.JSON], exchange.dialect.local(members) or b"")
    if not asking.fallback:
        plan = plan[:1]
    expires = record.started + asking.timeout
    decision = counter.enter(now())
    permit = decision if type(decision) is Held else await _admit(exchange, decision)
    try:
        if len(plan) == 1:
            record.attempts = 1
            await _attempt(exchange, plan[0], expires, final=True)
        else:
            await _attempts(exchange, plan, expires)
    finally:
        permit.release()
    return None


def _plan(exchange: Exchange, caller: Caller) -> tuple[Target, ...] | None:
    """The targets of what is asked, if this caller may ask for it; None where the sidecar itself has an answer."""
    spine, model, dialect = exchange.spine, exchange.view.model, exchange.endpoint.dialect
    if caller.models and not routing.allowed(caller, model):
        raise ModelForbidden(f"this key may not use the model {model!r}", param="model")
    try:
        plan = routing.plan(spine.routes, model, dialect)
    except Unsupported:
        if exchange.dialect.local(exchange.members) is None:
            raise
        return None
    if len(spine.plans) >= _MOST_PLANS:
        spine.plans.clear()
    spine.plans[(caller.name, model, dialect)] = plan
    return plan


async def _attempts(exchange: Exchange, plan: tuple[Target, ...], expires: float) -> None:
    """Each target in turn, until one answers or a byte has gone to the client."""
    last = len(plan)
    for number, target in enumerate(plan, 1):
        exchange.record.attempts = number
        try:
            await _attempt(exchange, target, expires, final=number == last)
        except SidecarError as error:
            spent = number == last or now() >= expires
            if spent or not error.retryable or exchange.outcome.first_byte_at is not None:
                raise
        else:
            return


async def _attempt(exchange: Exchange, target: Target, expires: float, *, final: bool) -> None:
    """Admit provider, translate, send, relay: one try at one target."""
    upstream, record, outcome, spine = target.upstream, exchange.record, exchange.outcome, exchange.spine
    exchange.target = target
    record.provider, record.model = upstream.name, target.model
    decision = spine.providers[upstream.name].enter(now())
    permit = decision if type(decision) is Held else await _admit(exchange, decision)
    try:
        assert exchange.asking is not None
        outbound, exchange.hide_usage = request.translate(
            target,
            exchange.endpoint,
            exchange.members,
            exchange.client,
            exchange.asking,
            stream=exchange.view.stream,
        )
        exchange.secrets = () if outbound.auth is None else (outbound.auth.secret,)
        began = now()
        deadline = request.deadline(upstream, exchange.view, began, expires)
        try:
            inbound = await spine.pool.send(outbound, deadline, upstream.pool)
        finally:
            outcome.waited += now() - began
        try:
            await _relay(exchange, target, inbound, final=final)
        finally:
            inbound.close()
    finally:
        permit.release()


# -- admit ------------------------------------------------------------------------------------------------------------


async def _admit(exchange: Exchange, decision: Permit | Wait | Refused) -> Permit:
    """Leave to go on after a bounded wait in the queue. Raises the refusal of whose limit it is."""
    if isinstance(decision, Wait):
        decision = await _queue(exchange, decision)
    if isinstance(decision, Refused):
        raise _refusal(decision)
    return decision


async def _queue(exchange: Exchange, wait: Wait) -> Permit | Refused:
    """Wait for a slot, never beyond the client's own deadline; the place in the queue is given up whatever ends it."""
    limits = exchange.spine.limits
    patience = exchange.asking.timeout if exchange.asking is not None else math.inf
    seconds = max(0.0, min(wait.seconds, exchange.record.started + patience - now()))
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    wait.ticket.wake = wake
    timer = loop.call_later(seconds, wake)
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


# -- relay ------------------------------------------------------------------------------------------------------------


async def _relay(exchange: Exchange, target: Target, inbound: Inbound, *, final: bool) -> None:
    status = inbound.status
    if status >= 400:
        await _relay_error(exchange, target, inbound, final=final)
        return
    if status >= 300:
        raise UpstreamRedirect(
            f"provider {target.upstream.name} answered with a redirect ({status}), which is not followed"
        )
    exchange.record.status = status
    kind = (inbound.index.get(b"content-type") or b"").lower()
    if kind.startswith(b"text/event-stream") or (exchange.view.stream and await _looks_like_events(exchange, inbound)):
        await _relay_stream(exchange, target, inbound)
    else:
        await _relay_whole(exchange, target, inbound)


async def _looks_like_events(exchange: Exchange, inbound: Inbound) -> bool:
    """A stream was asked for, and what comes is not declared as one: some providers forget to."""
    data, whole = await gather(inbound, 0, exchange.outcome)
    if data:
        inbound.unread(data)
    return not whole and data.lstrip().startswith((b"data:", b"event:", b":"))


async def _relay_stream(exchange: Exchange, target: Target, inbound: Inbound) -> None:
    ours, theirs = exchange.endpoint.dialect, target.dialect
    coding = inbound.index.get(b"content-encoding")
    way: Way
    if theirs != ours:
        meter = DIALECTS[theirs].meter(stream=True, hide_usage=False)
        way = Across(
            meter,
            CONVERSATIONS[theirs],
            CONVERSATIONS[ours],
            include_usage=exchange.view.include_usage,
            coding=coding,
        )
        sent = answer.without(rules.downward(inbound.headers, inbound.index), b"content-encoding", b"content-type")
        sent.append(answer.EVENTS)
    else:
        hide = exchange.hide_usage
        meter = exchange.dialect.meter(stream=True, hide_usage=hide)
        sent = rules.downward(inbound.headers, inbound.index)
        if coding is not None and not hide and _accepts(exchange, coding):
            way = Opaque(meter, coding)
        else:
            way = Through(meter, coding)
            if coding is not None:
                sent = answer.without(sent, b"content-encoding")
    exchange.way, exchange.meter = way, meter
    await relay(inbound, way, exchange.client, _beginner(exchange, inbound, sent), exchange.outcome)


async def _relay_whole(exchange: Exchange, target: Target, inbound: Inbound) -> None:
    """An answer that is one body. Held until whole (or large), so that a cut one is an error and not half an answer."""
    ours, theirs = exchange.endpoint.dialect, target.dialect
    translated = theirs != ours
    meter = exchange.meter = DIALECTS[theirs].meter(stream=False, hide_usage=False)
    whole = True
    if (data := inbound.whole()) is None:
        data, whole = await gather(inbound, _TRANSLATED_BYTES if translated else _UNARY_COMMIT_BYTES, exchange.outcome)
    sent = rules.downward(inbound.headers, inbound.index)
    coding = inbound.index.get(b"content-encoding")
    if whole:
        plain = data if coding is None else _plain(coding, data)
        meter.feed(plain)
        if coding is not None and (translated or not _accepts(exchange, coding)):
            data, sent = plain, answer.without(sent, b"content-encoding")
        if translated:
            if exchange.view.stream:
                raise UpstreamProtocol(f"provider {target.upstream.name} answered a request for a stream with one body")
            data = CONVERSATIONS[ours].write_reply(CONVERSATIONS[theirs].read_reply(data))
            sent = [*answer.without(sent, b"content-type"), answer.JSON]
        exchange.outcome.bytes_sent += len(data)
        lines = _lines(exchange, inbound.status, inbound.index)
        await exchange.client.answer(inbound.status, sent, lines, data, more=False)
        exchange.outcome.complete = True
        return
    if translated:
        raise UpstreamProtocol(f"provider {target.upstream.name} answered with more than {_TRANSLATED_BYTES} bytes")
    if (length := inbound.index.get(b"content-length")) is not None:
        sent.append((b"content-length", length))
    client, outcome = exchange.client, exchange.outcome
    await client.answer(inbound.status, sent, _lines(exchange, inbound.status, inbound.index), b"", more=True)
    while data:
        if coding is None:
            meter.feed(data)
        outcome.bytes_sent += len(data)
        await client.write(data, more=True)
        data = await inbound.read()
    await client.write(b"", more=False)
    outcome.complete = True


async def _relay_error(exchange: Exchange, target: Target, inbound: Inbound, *, final: bool) -> None:
    """The provider's own error: on to the next target where that may help, else to the client with its status kept."""
    status, upstream = inbound.status, target.upstream
    data, whole = await gather(inbound, _ERROR_BYTES, exchange.outcome)
    if not whole:
        raise UpstreamProtocol(f"provider {upstream.name} answered with an error of more than {_ERROR_BYTES} bytes")
    if not final and status in RETRYABLE:
        raise ProviderError(f"provider {upstream.name} answered with status {status}")
    sent = rules.downward(inbound.headers, inbound.index)
    coding = inbound.index.get(b"content-encoding")
    if coding is not None:
        data, sent = _plain(coding, data), answer.without(sent, b"content-encoding")
    for secret in (*exchange.secrets, *upstream.secrets):  # some providers repeat the key they refuse
        data = secret.redact(data)
        sent = [(name, secret.redact(value)) for name, value in sent]
    if target.dialect != exchange.endpoint.dialect:
        fault = DIALECTS[target.dialect].read_error(status, data)
        data = exchange.dialect.write_error(fault)
        sent = [*answer.without(sent, b"content-type"), answer.JSON]
    exchange.record.error = answer.provider_code(status)
    sent.append((b"x-sidecar-error", exchange.record.error.encode()))
    if exchange.record.attempts > 1:
        sent = [*answer.without(sent, b"x-should-retry"), answer.SPENT]
    await _send_whole(exchange, status, sent, data)


async def _send_whole(exchange: Exchange, status: int, headers: Headers, data: bytes) -> None:
    outcome = exchange.outcome
    outcome.bytes_sent += len(data)
    lines = _lines(exchange, status, dict(headers))
    await exchange.client.answer(status, headers, lines, data, more=False)
    outcome.complete = True


def _plain(coding: bytes, data: bytes) -> bytes:
    inflate = Inflate(coding)
    data = inflate.feed(data)
    inflate.finish()
    return data


def _accepts(exchange: Exchange, coding: bytes) -> bool:
    return exchange.asking is not None and coding.lower() in exchange.asking.accepts


def _lines(exchange: Exchange, status: int, index: Mapping[bytes, bytes]) -> bytes:
    """Our part of the head, made when the first byte is about to go: from here on there is no other target."""
    record, outcome = exchange.record, exchange.outcome
    began = outcome.first_byte_at
    if began is None:
        began = outcome.first_byte_at = now()
    record.status = status
    record.overhead_us = int((began - record.started - outcome.waited) * 1e6)
    return answer.lines(record, exchange.target, index)


def _beginner(exchange: Exchange, inbound: Inbound, headers: Headers) -> Begin:
    """What relay calls with the first bytes of a stream."""

    def begin(data: bytes, more: bool) -> Awaitable[None]:
        lines = _lines(exchange, inbound.status, inbound.index)
        return exchange.client.answer(inbound.status, headers, lines, data, more=more)

    return begin


# -- account and respond ----------------------------------------------------------------------------------------------


def _account(exchange: Exchange) -> None:
    """One record, whatever happened: what the metrics and the log know of it."""
    record, outcome, meter = exchange.record, exchange.outcome, exchange.meter
    record.seconds = now() - record.started
    if outcome.first_byte_at is not None:
        record.first_byte_seconds = outcome.first_byte_at - record.started
    record.bytes_out = outcome.bytes_sent
    if meter is not None:
        record.usage = meter.usage
        if meter.fault is not None and not record.error:
            record.error = "provider_error_in_answer"
    if exchange.way is not None and exchange.way.failed and not record.error:
        record.error = UpstreamCut.code
    exchange.spine.ledger.record(record)


async def _respond(exchange: Exchange, error: SidecarError) -> None:
    """Tell the client, in the dialect it called. After the first byte: an event where there are events, else a cut."""
    record = exchange.record
    record.error = error.code
    client, outcome = exchange.client, exchange.outcome
    if outcome.first_byte_at is None:
        record.status = error.status
        headers, data = answer.refusal(error, exchange.dialect, record)
        await client.answer(error.status, headers, b"", data, more=False)
    elif exchange.way is not None and type(exchange.way) is not Opaque and not outcome.complete:
        data = b"" if exchange.way.failed else exchange.dialect.write_stream_error(answer.fault(error, record))
        await client.write(data, more=False)
    # else: leaving the answer unfinished makes the server cut the connection, which no client takes for the end
