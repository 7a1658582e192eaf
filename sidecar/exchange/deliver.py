"""The answer's way to the client, once it is certain whose it is: whole, as a stream, or a provider's own error."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Final

from sidecar import answer
from sidecar.clock import now
from sidecar.dialects import DIALECTS
from sidecar.dialects.neutral import Meter
from sidecar.drive import Lazy
from sidecar.errors import ErrorInAnswer, ProviderError, SidecarError, UpstreamCut, UpstreamProtocol, UpstreamTimeout
from sidecar.exchange.spending import told
from sidecar.exchange.state import Attempt, Exchange
from sidecar.relay import Across, Opaque, Through, Way
from sidecar.types import Client, Headers, Inbound, Outcome, Sink, Through as Chunks
from sidecar.wire import headers as rules

_ROUTE_BYTES: Final = 4096
_DECODED: Final = (b"content-encoding",)


def deliver(exchange: Exchange, attempt: Attempt) -> Awaitable[None] | None:
    """Send on what the attempt brought, until the last byte. From here on there is no other target.

    What it answers is to be waited for: nothing, where all has gone.
    """
    inbound = attempt.inbound
    assert inbound is not None
    exchange.target = attempt.target
    if exchange.streaming and attempt.way is None:
        raise _too_late(attempt, inbound)
    if inbound.status >= 300:
        return _refusal(exchange, attempt, inbound)
    if attempt.cause is not None:  # an error in the answer, which may repeat the key
        for secret in attempt.secrets:
            attempt.data, attempt.plain = secret.redact(attempt.data), secret.redact(attempt.plain)
    if attempt.way is not None:
        return _stream(exchange, attempt, inbound, attempt.way)
    if attempt.meter is not None:
        return _long(exchange, attempt, inbound, attempt.meter)
    return _whole(exchange, attempt, inbound)


def _whole(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> Awaitable[None] | None:
    """An answer that is one body, and all here: so a cut one was an error, and is not half an answer."""
    ours, theirs = exchange.endpoint.dialect, attempt.target.dialect
    data = attempt.data
    sent = rules.downward(inbound.headers, inbound.index)
    coding = inbound.index.get(b"content-encoding")
    if coding is not None and (theirs != ours or coding.lower() not in exchange.asking.accepts):
        data, sent = data if theirs != ours else attempt.plain, answer.without(sent, *_DECODED)
    if theirs != ours:
        sent = [*answer.without(sent, b"content-type"), answer.JSON]
    return send(exchange, inbound.status, sent, data, inbound.index)


async def _long(exchange: Exchange, attempt: Attempt, inbound: Inbound, meter: Meter) -> None:
    """One body, longer than is held. Cut, it has no proper end."""
    client, outcome = exchange.client, exchange.outcome
    coding = inbound.index.get(b"content-encoding")
    sent = rules.downward(inbound.headers, inbound.index)
    if (length := inbound.index.get(b"content-length")) is not None:
        sent.append((b"content-length", length))

    def sink(data: bytes) -> Awaitable[None] | None:
        if coding is None:
            meter.feed(data)
        outcome.bytes_sent += len(data)
        return client.write(data, more=True)

    lines = lines_of(exchange, inbound.status, inbound.index)
    wait = client.answer(inbound.status, sent, lines, b"", more=True)
    if wait is not None:
        await wait
    if (wait := sink(attempt.data)) is not None:
        await wait
    await pump(inbound, sink, meter)
    wait = client.write(b"", more=False)
    if wait is not None:
        await wait
    outcome.complete = True


async def _stream(exchange: Exchange, attempt: Attempt, inbound: Inbound, way: Way) -> None:
    client, outcome = exchange.client, exchange.outcome
    sent = rules.downward(inbound.headers, inbound.index)
    if type(way) is Across:
        sent = [*answer.without(sent, *_DECODED, b"content-type"), answer.EVENTS]
    elif type(way) is not Opaque and b"content-encoding" in inbound.index:
        sent = answer.without(sent, *_DECODED)

    def sink(data: bytes) -> Awaitable[None] | None:
        out = way.feed(data)
        if not out:
            return None
        outcome.bytes_sent += len(out)
        return client.write(out, more=True)

    outcome.bytes_sent += len(attempt.data)
    outcome.complete = attempt.whole
    if exchange.streaming:  # comments have gone before, or the beginning of this answer
        outcome.first_byte_at = outcome.first_byte_at or now()
        wait = client.write(attempt.data, more=not attempt.whole)
    else:
        exchange.streaming = type(way) is not Opaque
        lines = lines_of(exchange, inbound.status, inbound.index)
        wait = client.answer(inbound.status, sent, lines, attempt.data, more=not attempt.whole)
    if wait is not None:
        await wait
    if attempt.whole:
        return
    await pump(
        inbound, _until_broken(sink, way) if type(way) is Across else sink, way.meter, chunks(client, way, outcome)
    )
    out = way.finish()
    outcome.bytes_sent += len(out)
    outcome.complete = True
    wait = client.write(out, more=False)
    if wait is not None:
        await wait


def chunks(client: Client, way: Way, outcome: Outcome) -> Chunks | None:
    """Chunks of whole events that hold nothing of note go to the client as they are framed, unread and uncopied."""
    pipe = client.pipe()
    if pipe is None or type(way) is not Through or way.coded:
        return None
    rest, passes = way.rest, way.meter.passes

    def through(data: bytes, size: int) -> bool:
        pass_on = pipe.pass_on
        if pass_on is None or pipe.unflushed or rest or not passes(data):
            return False
        outcome.bytes_sent += size
        pass_on(data)
        return True

    return through


def _until_broken(sink: Sink, way: Across) -> Sink:
    """The same, which raises the error that a stream tells of in the middle, once what came before has gone."""
    if way.broken is not None:
        raise way.broken

    async def end(wait: Awaitable[None] | None, error: ProviderError) -> None:
        if wait is not None:
            await wait
        raise error

    def until(data: bytes) -> Awaitable[None] | None:
        wait = sink(data)
        return wait if way.broken is None else Lazy(partial(end, wait, way.broken))

    return until


def _too_late(attempt: Attempt, inbound: Inbound) -> SidecarError:
    """What is no stream, where the client has been told that one comes: an error in it."""
    name = attempt.target.upstream.name
    if inbound.status < 300:
        return UpstreamProtocol(f"provider {name} answered a request for a stream with one body")
    fault = DIALECTS[attempt.target.dialect].read_error(inbound.status, attempt.plain)
    return ErrorInAnswer(fault.message, status=inbound.status, their_code=fault.code)


async def pump(inbound: Inbound, sink: Sink, meter: Meter, chunks: Chunks | None = None) -> None:
    """Give all that comes to `chunks` or `sink`. Raises UpstreamCut and its like: to tell of it is the spine's."""
    try:
        while (wait := await inbound.pump(sink, chunks)) is not None:
            await wait
    except (UpstreamCut, UpstreamTimeout):
        if not meter.closed:  # behind its last word an answer is whole, whatever becomes of the connection
            raise


def _refusal(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> Awaitable[None] | None:
    """The provider's own error, its status kept; in another dialect its message, in that one's words."""
    status, upstream, data, record = inbound.status, attempt.target.upstream, attempt.data, exchange.record
    sent = rules.downward(inbound.headers, inbound.index)
    coding = inbound.index.get(b"content-encoding")
    if coding is not None:
        data, sent = attempt.plain, answer.without(sent, *_DECODED)
    for secret in (*attempt.secrets, *upstream.secrets):  # some providers repeat the key they refuse
        data = secret.redact(data)
        sent = [(name, secret.redact(value)) for name, value in sent]
    if attempt.target.dialect != exchange.endpoint.dialect:
        fault = DIALECTS[attempt.target.dialect].read_error(status, data)
        data = exchange.dialect.write_error(fault)
        sent = [*answer.without(sent, b"content-type"), answer.JSON]
    record.error = answer.provider_code(status)
    sent.append((b"x-sidecar-error", record.error.encode()))
    if exchange.spent:
        sent = [*answer.without(sent, b"x-should-retry"), answer.SPENT]
    return send(exchange, status, sent, data, inbound.index)


def send(
    exchange: Exchange, status: int, headers: Headers, data: bytes, index: Mapping[bytes, bytes]
) -> Awaitable[None] | None:
    """All of an answer at once."""
    outcome = exchange.outcome
    outcome.bytes_sent += len(data)
    lines = lines_of(exchange, status, index)
    outcome.complete = True
    return exchange.client.answer(status, headers, lines, data, more=False)


def lines_of(exchange: Exchange, status: int, index: Mapping[bytes, bytes]) -> bytes:
    """Our part of the head, made when the first byte is about to go."""
    record, outcome = exchange.record, exchange.outcome
    began = outcome.first_byte_at = now()
    record.status = status
    record.overhead_us = int((began - outcome.started - outcome.waited) * 1e6)
    lines = answer.lines(record, exchange.target, index)
    if exchange.limits:
        lines += told(exchange)
    if exchange.asking.explain:
        lines += explained(exchange)
    attempt = exchange.attempt
    return lines + attempt.dropped if attempt is not None and attempt.dropped else lines


def explained(exchange: Exchange) -> bytes:
    """`x-sidecar-route`, for who asked for it: the tries so far, in order, and what the plan has besides."""
    if not exchange.asking.explain or not exchange.plan.targets:
        return b""
    tried = "; ".join(exchange.trail) or "nothing tried"
    names = ", ".join(target.key for target in exchange.plan.targets)
    words = f"{exchange.plan.policy} over {names}: {tried}"
    return b"x-sidecar-route: %b\r\n" % words.encode("ascii", "replace")[:_ROUTE_BYTES]
