"""The spine: what every request goes through, in order. Read this first.

Each step takes what the one before gave (types.py has the structs), and stands where it stands for the reason given beside
it. Permits and the provider's answer are held until the last byte has gone. Another target is tried only while nothing has
been sent to the client. Errors become answers in one place, `_respond`, in the words of the dialect that was called.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import traceback
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from sidecar import answer, config, request, routing
from sidecar.clock import now
from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Dialect, Meter
from sidecar.errors import (
    BodyTooLarge,
    ClientGone,
    ConcurrencyLimited,
    Draining,
    InternalError,
    MediaTypeUnsupported,
    ModelForbidden,
    ProviderError,
    ProviderLimited,
    RateLimited,
    SidecarError,
    Unsupported,
    UpstreamProtocol,
    UpstreamRedirect,
)
from sidecar.ledger import Ledger
from sidecar.limits import Limits
from sidecar.pool import Pool
from sidecar.relay import Across, Opaque, Through, Way, gather, relay
from sidecar.types import (
    Caller,
    Endpoint,
    Envelope,
    Headers,
    Inbound,
    Message,
    Outcome,
    Permit,
    Receive,
    Record,
    Refused,
    Scope,
    Send,
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

_UNREAD: Final = View(model="")  # until the body has been read
RETRYABLE: Final = frozenset((401, 403, 404, 408, 409, 424, 425, 429, 498, 500, 502, 503, 504, 529))
_UNARY_COMMIT_BYTES: Final = 64 * 1024  # an answer is held until it is whole or this long: until then, others may try
_TRANSLATED_BYTES: Final = 64 * 1024 * 1024
_ERROR_BYTES: Final = 1024 * 1024
_serial = itertools.count(int.from_bytes(os.urandom(6), "big"))


def request_id() -> str:
    """An id for one exchange: unlike any other process's, and short."""
    return f"req_{next(_serial):016x}"


class Spine(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration gives the exchanges that begin under it. A reload makes another; running ones keep theirs."""

    config: config.Config
    routes: routing.Routes
    callers: dict[bytes, Caller]  # by the SHA-256 of the key
    pool: Pool
    limits: Limits
    ledger: Ledger


class Exchange:
    """One request and its answer, under way."""

    __slots__ = (
        "dialect",
        "endpoint",
        "headers",
        "hide_usage",
        "members",
        "meter",
        "outcome",
        "receive",
        "record",
        "send",
        "spine",
        "view",
        "way",
    )

    def __init__(self, spine: Spine, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        self.spine = spine
        self.endpoint = endpoint
        self.dialect: Dialect = DIALECTS[endpoint.dialect]
        self.headers: Headers = scope["headers"]
        self.receive = receive
        self.send = send
        self.record = Record(request_id=request_id(), endpoint=endpoint.path, started=now())
        self.outcome = Outcome()
        self.meter: Meter | None = None
        self.way: Way | None = None  # of a stream, once there is one
        self.members: Envelope = {}
        self.view = _UNREAD
        self.hide_usage = False  # the provider is asked for a usage event that the client did not ask for


class Leaving:
    """The client's going, as the exchange sees it: called at once, it cancels the task that serves."""

    __slots__ = ("gone", "over", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.gone = False
        self.over = False

    def __call__(self) -> None:
        if not self.over and not self.gone:
            self.gone = True
            self.task.cancel()


async def run(spine: Spine, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request. Never raises for anything a peer does."""
    task = asyncio.current_task()
    assert task is not None
    leaving = Leaving(task)
    exchange = Exchange(spine, endpoint, scope, receive, send)
    when_gone = (scope.get("extensions") or {}).get("sidecar.gone")
    if when_gone is not None:  # our own server tells, and costs no task
        when_gone(leaving)
        await _serve(exchange, leaving, None)
    else:
        async with anyio.create_task_group() as tasks:
            await _serve(exchange, leaving, lambda: tasks.start_soon(_watch, receive, leaving))
            tasks.cancel_scope.cancel()


async def _watch(receive: Receive, leaving: Leaving) -> None:
    """The one outstanding `receive()` of an exchange under somebody else's server."""
    message = await receive()
    if message["type"] == "http.disconnect":
        leaving()


async def _serve(exchange: Exchange, leaving: Leaving, watch: Callable[[], object] | None) -> None:
    """The steps, with what may end them: an error to be told, a client that left, a server that stops."""
    record = exchange.record
    try:
        try:
            await _steps(exchange, watch)
        except SidecarError as error:
            await _respond(exchange, error)
        except Exception:  # noqa: BLE001  # the border to ASGI: a bug of ours is told once, and is no peer's problem
            exchange.spine.ledger.note({"event": "bug", "id": record.request_id, "trace": traceback.format_exc()})
            await _respond(exchange, InternalError("an internal error; the log has its trace under this request id"))
    except asyncio.CancelledError:
        if not leaving.gone:  # the server's deadline for draining, or the host's own reasons
            await _respond(exchange, Draining("the sidecar is shutting down; ask again", retry_after=1.0))
            raise
        leaving.task.uncancel()
        record.status, record.error = ClientGone.status, ClientGone.code
    except OSError:  # what other servers' send() may raise once the client has gone (ASGI 2.4)
        record.status, record.error = ClientGone.status, ClientGone.code
    finally:
        leaving.over = True
        _account(exchange)


async def _steps(exchange: Exchange, watch: Callable[[], object] | None) -> None:
    """Identify, read, decode, route, admit the caller; then the attempts."""
    spine, record = exchange.spine, exchange.record
    caller = request.identify(spine.callers, exchange.headers)
    record.caller = caller.name
    data = await _read(exchange.receive, exchange.headers, spine.config.server.max_body_bytes)
    record.bytes_in = len(data)
    if watch is not None:
        watch()
    members = exchange.members = body.envelope(data)
    if exchange.endpoint.model is not None:
        members["model"] = body.raw(exchange.endpoint.model)
    view = exchange.view = exchange.dialect.read_view(members)
    record.asked_model, record.stream = view.model, view.stream
    if caller.models and not routing.allowed(caller, view.model):
        raise ModelForbidden(f"this key may not use the model {view.model!r}", param="model")
    try:
        plan = routing.plan(spine.routes, view.model, exchange.endpoint.dialect)
    except Unsupported:
        if (data := exchange.dialect.local(members)) is None:
            raise
        await _send_whole(exchange, 200, [answer.JSON], data)
        return
    if rules.get(exchange.headers, b"x-sidecar-fallback") == b"off":
        plan = plan[:1]
    permit = await _admit(exchange, "caller:" + caller.name, caller.requests_per_minute, caller.concurrency)
    try:
        await _attempts(exchange, plan)
    finally:
        permit.release()


async def _attempts(exchange: Exchange, plan: tuple[Target, ...]) -> None:
    """Each target in turn, until one answers or a byte has gone to the client."""
    last = len(plan)
    expires = request.expiry(exchange.headers, exchange.record.started)
    for number, target in enumerate(plan, 1):
        exchange.record.attempts = number
        exchange.record.provider, exchange.record.model = target.upstream.name, target.model
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
    upstream = target.upstream
    permit = await _admit(exchange, "provider:" + upstream.name, upstream.requests_per_minute, upstream.concurrency)
    try:
        outbound, exchange.hide_usage = request.translate(
            target, exchange.endpoint.dialect, exchange.members, exchange.headers, stream=exchange.view.stream
        )
        began = now()
        deadline = request.deadline(upstream, exchange.view, began, expires)
        try:
            inbound = await exchange.spine.pool.send(outbound, deadline, upstream.pool)
        finally:
            exchange.outcome.waited += now() - began
        try:
            await _relay(exchange, target, inbound, final=final)
        finally:
            inbound.close()
    finally:
        permit.release()


# -- read -------------------------------------------------------------------------------------------------------------


async def _read(receive: Receive, headers: Headers, most: int) -> bytes:
    """The whole body, at most `most` bytes. Raises BodyTooLarge (unread, where the length is declared) and ClientGone."""
    declared = rules.get(headers, b"content-length")
    if declared is not None and int(declared) > most:
        raise BodyTooLarge(f"the body has {int(declared)} bytes; at most {most} are taken")
    if rules.get(headers, b"content-encoding") not in (None, b"identity"):
        raise MediaTypeUnsupported("a body with a content coding is not taken; send it as it is")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone("the client left before its request had ended")
        data: bytes = message.get("body", b"")
        size += len(data)
        if size > most:
            raise BodyTooLarge(f"the body has more than the {most} bytes that are taken")
        if not message.get("more_body"):
            return b"".join([*pieces, data]) if pieces else data
        pieces.append(data)


# -- admit ------------------------------------------------------------------------------------------------------------


async def _admit(exchange: Exchange, key: str, per_minute: int | None, concurrency: int | None) -> Permit:
    """Leave to go on, at once or after a bounded wait in the queue. Raises the refusal of whose limit it is."""
    limits = exchange.spine.limits
    decision = limits.decide(key, per_minute, concurrency, now())
    if isinstance(decision, Wait):
        decision = await _queue(limits, decision)
    if isinstance(decision, Refused):
        raise _refusal(decision, key)
    return decision


async def _queue(limits: Limits, wait: Wait) -> Permit | Refused:
    """Wait for a slot; the place in the queue is given up whatever ends the wait."""
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


def _refusal(refused: Refused, key: str) -> SidecarError:
    scope, _, name = key.partition(":")
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
    kind = rules.get(inbound.headers, b"content-type") or b""
    if kind.startswith(b"text/event-stream"):
        await _relay_stream(exchange, target, inbound)
    else:
        await _relay_whole(exchange, target, inbound)


async def _relay_stream(exchange: Exchange, target: Target, inbound: Inbound) -> None:
    ours, theirs = exchange.endpoint.dialect, target.dialect
    coding = rules.get(inbound.headers, b"content-encoding")
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
        sent = answer.without(rules.downward(inbound.headers), b"content-encoding", b"content-type")
        sent.append(answer.EVENTS)
    else:
        hide = exchange.hide_usage
        meter = exchange.dialect.meter(stream=True, hide_usage=hide)
        sent = rules.downward(inbound.headers)
        if coding is not None and not hide and _accepts(exchange, coding):
            way = Opaque(meter, coding)
        else:
            way = Through(meter, coding)
            if coding is not None:
                sent = answer.without(sent, b"content-encoding")
    exchange.way, exchange.meter = way, meter
    await relay(inbound, way, exchange.send, lambda: _start(exchange, inbound.status, sent), exchange.outcome)


async def _relay_whole(exchange: Exchange, target: Target, inbound: Inbound) -> None:
    """An answer that is one body. Held until whole (or large), so that a cut one is an error and not half an answer."""
    ours, theirs = exchange.endpoint.dialect, target.dialect
    translated = theirs != ours
    meter = exchange.meter = DIALECTS[theirs].meter(stream=False, hide_usage=False)
    data, whole = await gather(inbound, _TRANSLATED_BYTES if translated else _UNARY_COMMIT_BYTES, exchange.outcome)
    sent = rules.downward(inbound.headers)
    coding = rules.get(inbound.headers, b"content-encoding")
    if whole:
        plain = data if coding is None else Inflate(coding).feed(data)
        meter.feed(plain)
        if coding is not None and (translated or not _accepts(exchange, coding)):
            data, sent = plain, answer.without(sent, b"content-encoding")
        if translated:
            if exchange.view.stream:
                raise UpstreamProtocol(f"provider {target.upstream.name} answered a request for a stream with one body")
            data = CONVERSATIONS[ours].write_reply(CONVERSATIONS[theirs].read_reply(data))
            sent = [*answer.without(sent, b"content-type"), answer.JSON]
        await _send_whole(exchange, inbound.status, sent, data)
        return
    if translated:
        raise UpstreamProtocol(f"provider {target.upstream.name} answered with more than {_TRANSLATED_BYTES} bytes")
    if (length := rules.get(inbound.headers, b"content-length")) is not None:
        sent.append((b"content-length", length))
    await exchange.send(_start(exchange, inbound.status, sent))
    while data:
        if coding is None:
            meter.feed(data)
        exchange.outcome.bytes_sent += len(data)
        await exchange.send({"type": "http.response.body", "body": data, "more_body": True})
        data = await inbound.read()
    await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
    exchange.outcome.complete = True


async def _relay_error(exchange: Exchange, target: Target, inbound: Inbound, *, final: bool) -> None:
    """The provider's own error: on to the next target where that may help, else to the client with its status kept."""
    status, upstream = inbound.status, target.upstream
    data, whole = await gather(inbound, _ERROR_BYTES, exchange.outcome)
    if not whole:
        raise UpstreamProtocol(f"provider {upstream.name} answered with an error of more than {_ERROR_BYTES} bytes")
    if not final and status in RETRYABLE:
        raise ProviderError(f"provider {upstream.name} answered with status {status}")
    sent = rules.downward(inbound.headers)
    coding = rules.get(inbound.headers, b"content-encoding")
    if coding is not None:
        data, sent = Inflate(coding).feed(data), answer.without(sent, b"content-encoding")
    if (auth := upstream.auth) is not None:  # some providers repeat the key they refuse
        data = auth.secret.redact(data)
        sent = [(name, auth.secret.redact(value)) for name, value in sent]
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
    headers.append((b"content-length", b"%d" % len(data)))
    await exchange.send(_start(exchange, status, headers))
    exchange.outcome.bytes_sent += len(data)
    await exchange.send({"type": "http.response.body", "body": data, "more_body": False})
    exchange.outcome.complete = True


def _accepts(exchange: Exchange, coding: bytes) -> bool:
    return coding in (rules.get(exchange.headers, b"accept-encoding") or b"")


def _start(exchange: Exchange, status: int, headers: Headers) -> Message:
    """The head, made when the first byte is about to go: from here on there is no other target."""
    record, outcome = exchange.record, exchange.outcome
    if outcome.first_byte_at is None:
        outcome.first_byte_at = now()
    record.status = status
    record.overhead_us = round((outcome.first_byte_at - record.started - outcome.waited) * 1e6)
    return {"type": "http.response.start", "status": status, "headers": answer.head(record, headers)}


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
    exchange.spine.ledger.record(record)


async def _respond(exchange: Exchange, error: SidecarError) -> None:
    """Tell the client, in the dialect it called. After the first byte: an error event where there are events, else a cut."""
    record = exchange.record
    record.error = error.code
    if exchange.outcome.first_byte_at is None:
        record.status = error.status
        headers, data = answer.refusal(error, exchange.dialect, record)
        await exchange.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": data, "more_body": False})
    elif exchange.way is not None and not exchange.outcome.complete:
        data = b"" if exchange.way.failed else exchange.dialect.write_stream_error(answer.fault(error, record))
        await exchange.send({"type": "http.response.body", "body": data, "more_body": False})
    # else: leaving the answer unfinished makes the server cut the connection, which no client takes for the end
