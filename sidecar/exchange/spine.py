"""The spine: what every request goes through, in order. Read this first.

Each step takes what the one before gave (types.py has the structs), and stands where it stands for the reason given
beside it. Permits and the provider's answer are held until the last byte has gone. Another target is tried only while
nothing has been sent to the client. Errors become answers in one place, `_respond`, in the dialect that was called.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import traceback
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from sidecar import answer, request, routing
from sidecar.clock import now
from sidecar.dialects import DIALECTS
from sidecar.errors import (
    ClientGone,
    ConcurrencyLimited,
    Draining,
    ErrorInAnswer,
    InternalError,
    ModelForbidden,
    ProviderError,
    RateLimited,
    SidecarError,
    Unsupported,
    UpstreamCut,
)
from sidecar.exchange import cached, coalesce
from sidecar.exchange.attempt import admit
from sidecar.exchange.continuation import go_on
from sidecar.exchange.deliver import deliver, explained, send
from sidecar.exchange.heartbeat import Heartbeat
from sidecar.exchange.spending import Paying, reserve, told, undo
from sidecar.exchange.state import MOST_NAMES, Attempt, Exchange, Spine
from sidecar.exchange.tries import obtain
from sidecar.exchange.verdict import tell_end
from sidecar.limits import Counter
from sidecar.memory import COUNTED_BYTES
from sidecar.request import Asking
from sidecar.routing import Plan
from sidecar.types import (
    Caller,
    Client,
    Counting,
    Endpoint,
    Outcome,
    Permit,
    Record,
)
from sidecar.wire import body

STEPS: Final = (
    "accept",  # any ASGI server's; app.py has found the row of the endpoint table
    "identify",  # before a byte of the body is read: strangers cost nothing
    "read",  # whole, within its bound: an attempt may have to be repeated
    "decode",  # the envelope only: what policy checks is what is forwarded
    "route",  # a name becomes a plan; an unknown one costs no limit
    "admit caller",  # the caller's own limits, before anything is spent on its behalf
    "cache",  # after the caller's limits, which a hit spends too; before a provider's, which it does not
    "admit provider",  # each attempt's: a full provider sends the request on to the next
    "translate",  # into the target's words, or the envelope rebuilt when it speaks the client's
    "send",  # through the one pool
    "hold",  # until the first content: whatever fails before that, another try may mend
    "relay",  # to the client, until the last byte
    "account",  # whatever happened
    "respond",  # an error, in the client's dialect
)

_serial = itertools.count(int.from_bytes(os.urandom(6), "big"))


def request_id() -> str:
    """An id for one exchange: unlike any other process's, and short."""
    return f"req_{next(_serial):016x}"


def run(spine: Spine, endpoint: Endpoint, client: Client, data: bytes | None = None) -> Coroutine[Any, Any, None]:
    """Serve one request. Never raises for anything a peer does; cancelled when its client goes, or the server stops.

    `data`: its body, where that has been taken from the client already.
    """
    began = now()
    record = Record(request_id=f"req_{next(_serial):016x}", endpoint=endpoint.path)
    exchange = Exchange(spine, endpoint, DIALECTS[endpoint.dialect], client, record, Outcome(began))
    spine.duty.retries.request(began)
    return _finish(exchange, _steps(exchange, data))


def proceed(
    exchange: Exchange, plan: Plan, sent: Attempt, permit: Permit, error: Exception | None
) -> Coroutine[Any, Any, None]:
    """Go on with an exchange from a first try that has been sent, or that came to nothing by a bug (lane.py)."""
    return _finish(exchange, _proceed(exchange, plan, sent, permit, error))


async def _proceed(exchange: Exchange, plan: Plan, sent: Attempt, permit: Permit, error: Exception | None) -> None:
    try:
        if error is not None:
            sent.close()
            raise error
        await _answer(exchange, plan, sent)
    finally:
        permit.release()


async def _finish(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Do the work of an exchange; whatever comes of it is told to its client, and accounted for."""
    spine, client, record = exchange.spine, exchange.client, exchange.record
    spine.duty.active += 1
    try:
        try:
            await work
        except SidecarError as error:
            await _respond(exchange, error)
        except Exception:  # noqa: BLE001  # the border: a bug of ours is told once, and is no peer's problem
            spine.ledger.note({"event": "bug", "id": record.request_id, "trace": traceback.format_exc()})
            await _respond(exchange, InternalError("an internal error; the log has its trace under this request id"))
    except asyncio.CancelledError:
        if not client.gone:  # the server's deadline for draining, or the host's own reasons
            await _respond(exchange, Draining("the sidecar is shutting down; ask again", retry_after=1.0))
            raise
    except OSError:  # what other servers' send() may raise once the client has gone (ASGI 2.4)
        record.status, record.error = ClientGone.status, ClientGone.code
    finally:
        spine.duty.active -= 1
        if exchange.held:
            spine.duty.room.give(exchange.held)
        if client.gone:
            record.status, record.error = ClientGone.status, ClientGone.code
        _account(exchange)


async def _steps(exchange: Exchange, data: bytes | None) -> None:
    """Identify, read, decode, route, admit the caller; then the tries, and the answer."""
    spine, record, client = exchange.spine, exchange.record, exchange.client
    asking: Asking | None = client.notes.get("asking")
    if asking is None or asking.spine is not spine:
        asking = request.read_head(spine, spine.callers, spine.anonymous, client, exchange.endpoint)
    exchange.asking = asking
    exchange.expires = exchange.outcome.started + asking.timeout
    caller, counter = asking.asker
    record.caller = caller.name
    most = spine.max_body_bytes
    if data is None and (data := client.body(most)) is None:
        data = await client.read(most, partial(hold, exchange))
    record.bytes_in = len(data)
    if record.bytes_in > COUNTED_BYTES:
        hold(exchange, record.bytes_in)
    members = exchange.members = body.envelope(data)
    if exchange.endpoint.model is not None:
        members["model"] = body.raw(exchange.endpoint.model)
    view = exchange.view = exchange.dialect.read_view(members)
    record.asked_model, record.stream = view.model, view.stream
    plan = spine.plans.get((caller.name, view.model, exchange.endpoint.dialect)) or _plan(exchange, caller)
    if plan is None:
        return await _answer_alone(exchange)
    if caller.models and "models" in members:  # OpenRouter's own fall-backs
        raise ModelForbidden("this key may use some models only, so 'models' may not name others", param="models")
    if plan.limited:
        permit: Permit = await _admit_all(exchange, plan, counter)
    else:
        decision = counter.enter(now())
        permit = decision if type(decision) is Counter else await admit(exchange, counter, decision)
    try:
        if plan.plain:
            await _answer(exchange, plan)
        else:
            await _answer_as_told(exchange, plan)
    finally:
        permit.release()
    return None


async def _admit_all(exchange: Exchange, plan: Plan, caller: Counting) -> Permit:
    """Past the limits of the caller and of the model that it asks for: tokens are reserved, and settled at the end."""
    model = exchange.spine.models.get(plan.table)
    exchange.limits = tuple(each for each in (caller, model) if each is not None)
    permits: list[Permit] = []
    try:
        for counter in exchange.limits:
            decision = reserve(exchange, counter, now())
            permits.append(await admit(exchange, counter, decision))  # kept, where the next one refuses
    except BaseException:
        for permit in permits:
            undo(permit)
        raise
    return Paying(exchange, permits)


async def _answer_as_told(exchange: Exchange, plan: Plan) -> None:
    """As the model's options say: out of the cache, with others who ask the same, with comments meanwhile."""
    model, cache = plan.model, exchange.spine.cache
    serve = _answer_slowly if model.keepalive_comment_seconds is not None and exchange.view.stream else _answer
    if cache is not None and plan.cache_seconds:
        done = await cached.answered(exchange, cache, plan, lambda alike: serve(alike, plan), _finish)
        if done:
            return
    if model.coalesce and exchange.asking.share:
        await coalesce.join(exchange, lambda alike: _finish(alike, serve(alike, plan)))
    else:
        await serve(exchange, plan)


async def _answer(exchange: Exchange, plan: Plan, sent: Attempt | None = None) -> None:
    """Obtain an answer, and deliver it: the provider's permit and connection are held until its last byte."""
    if exchange.spine.stays:
        exchange.client.stay = True
    attempt: Attempt | None = await obtain(exchange, plan, sent)
    while attempt is not None:
        broken: ProviderError | None = None
        try:
            if (wait := deliver(exchange, attempt)) is not None:
                await wait
            if attempt.meter is not None:
                tell_end(exchange, attempt)
        except ProviderError as error:
            tell_end(exchange, attempt, error)
            broken = error
        finally:
            attempt.close()
        attempt = None if broken is None else await go_on(exchange, attempt, broken)


async def _answer_slowly(exchange: Exchange, plan: Plan) -> None:
    """The same, with comments for the client while there is nothing else."""
    seconds = plan.model.keepalive_comment_seconds
    assert seconds is not None
    heartbeat = exchange.client = Heartbeat(exchange, seconds)
    try:
        await _answer(exchange, plan)
    finally:
        heartbeat.stop()


async def _answer_alone(exchange: Exchange) -> None:
    """What the dialect answers by itself, where no provider can be asked."""
    wait = send(exchange, 200, [answer.JSON], exchange.dialect.local(exchange.members) or b"", {})
    if wait is not None:
        await wait


def hold(exchange: Exchange, size: int) -> None:
    """So much of its body is there, or is to come. Raises Overloaded, or BodyTooLarge where there is never room."""
    if size > exchange.held and size > COUNTED_BYTES:
        exchange.spine.duty.room.take(size - exchange.held, size)
        exchange.held = size


def _plan(exchange: Exchange, caller: Caller) -> Plan | None:
    """The targets of what is asked, if this caller may ask for it; None where the sidecar itself has an answer."""
    spine, model, dialect = exchange.spine, exchange.view.model, exchange.endpoint.dialect
    if caller.models and not routing.allowed(caller, model):
        raise ModelForbidden(f"this key may not use the model {model!r}", param="model")
    try:
        plan = routing.find(spine.routes, model, dialect, caller.tags)
    except Unsupported:
        if exchange.dialect.local(exchange.members) is None:
            raise
        return None
    if exchange.asking.asker.counter.tokens is not None or plan.table in spine.models:
        plan = msgspec.structs.replace(plan, limited=True, plain=False)
    if len(spine.plans) >= MOST_NAMES:
        spine.plans.clear()
    spine.plans[(caller.name, model, dialect)] = plan
    return plan


# -- account and respond ----------------------------------------------------------------------------------------------


def _account(exchange: Exchange) -> None:
    """One record, whatever happened: what the metrics and the log know of it."""
    record, outcome, attempt = exchange.record, exchange.outcome, exchange.attempt
    end = record.time = now()
    record.seconds = end - outcome.started
    if outcome.first_byte_at is not None:
        record.first_byte_seconds = outcome.first_byte_at - outcome.started
    record.bytes_out = outcome.bytes_sent
    if attempt is not None:
        meter = attempt.meter
        usage = attempt.usage if meter is None else meter.usage
        for each in exchange.before:
            usage = each if usage is None else usage.plus(each)
        if usage is not None:
            record.input_tokens, record.output_tokens = usage.input, usage.output
            record.cached_tokens, record.reasoning_tokens = usage.cached, usage.reasoning
        fault = attempt.fault if meter is None else meter.fault
        if fault is not None and not record.error:
            record.error = ErrorInAnswer.code
        if attempt.way is not None and attempt.way.failed and not record.error:
            record.error = UpstreamCut.code
    if exchange.counted:
        exchange.spine.ledger.record(record)


async def _respond(exchange: Exchange, error: SidecarError) -> None:
    """Tell the client, in the dialect it called. After the first byte: an event where there are events, else a cut."""
    record, client, outcome = exchange.record, exchange.client, exchange.outcome
    record.error = error.code
    way = exchange.attempt.way if exchange.attempt is not None else None
    wait = None
    for secret in exchange.attempt.secrets if exchange.attempt is not None else ():
        error.message = secret.redact(error.message.encode()).decode()  # an error in an answer may repeat the key
    if outcome.first_byte_at is None and not exchange.streaming:
        record.status = error.status
        headers, data = answer.refusal(error, exchange.dialect, record, spent=exchange.spent)
        if isinstance(error, RateLimited | ConcurrencyLimited) and not exchange.limits:
            exchange.limits = (exchange.asking.asker.counter,)
        wait = client.answer(error.status, headers, told(exchange) + explained(exchange), data, more=False)
    elif exchange.streaming and not outcome.complete:
        data = (
            b"" if way is not None and way.failed else exchange.dialect.write_stream_error(answer.fault(error, record))
        )
        wait = client.write(data, more=False)
    # else: leaving the answer unfinished makes the server cut the connection, which no client takes for the end
    if wait is not None:
        await wait
