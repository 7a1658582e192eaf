"""An answer out of the cache, to its client: whole, or as a stream; at once, or with the pauses that it came with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, Final, NamedTuple, Protocol

from sidecar.cache import Entry
from sidecar.clock import now
from sidecar.exchange.state import Exchange, Spine
from sidecar.request import Asking
from sidecar.types import Client, Endpoint, Record, View

PIECE: Final = 256 * 1024  # bytes that a client is given at once


class Direct(Client, Protocol):
    """A request on a connection of our own server."""

    @property
    def plain(self) -> bool:
        """Its client is there, takes what it is sent, and may be answered without a decision."""
        ...

    def finish_with(self, lines: bytes, data: bytes) -> None:
        """All of an answer whose status is 200, and the end. `lines`: of its headers."""
        ...

    def begin_with(self, headers: bytes, lines: bytes, data: bytes) -> None:
        """The head of a chunked answer whose status is 200, and the first of its bytes. `headers`: the provider's."""
        ...

    def end(self) -> None:
        """The end of an answer that was begun so."""
        ...

    def follow(self, work: Coroutine[Any, Any, None]) -> Any:
        """Go on with a coroutine. Answers the Drive that runs it."""
        ...


class Over:
    """What was done for a request that is answered already: nobody need wait for it, or end it."""

    def cancel(self) -> None:
        """There is nothing to end."""


OVER: Final = Over()


class Hit(NamedTuple):
    """What is in the cache, and how old that is, in seconds. `size`: of the request's body, in bytes."""

    entry: Entry
    age: float
    size: int


def give_at_once(
    asking: Asking, spine: Spine, endpoint: Endpoint, client: Direct, view: View, hit: Hit, own_id: str
) -> Over | None:
    """Admit the caller, answer and account, without a coroutine. None: its limits want a decision; nothing was done."""
    entry, counter, started = hit.entry, asking.asker.counter, now()
    if counter.tokens is not None:
        return None
    if (decision := counter.enter(started)) is not counter:
        counter.forgo(decision)
        return None
    body, name = entry.body, own_id.encode()
    first = now()
    overhead = int((first - started) * 1e6)
    lines = _lines(entry.head, hit.age, overhead, name)
    if entry.stream:
        client.answer(200, [], lines, body, more=True)
        client.write(b"", more=False)
    else:
        client.finish_with(lines, body)
    counter.release()
    end = now()
    record = Record(end, "exchange", own_id, endpoint.path, asking.asker.caller.name, view.model)
    record.provider, record.model, record.status, record.stream = entry.provider, entry.model, 200, view.stream
    record.seconds, record.first_byte_seconds, record.overhead_us = end - started, first - started, overhead
    record.bytes_in, record.bytes_out, record.cache = hit.size, len(body), "hit"
    record.saved_input_tokens, record.saved_output_tokens = entry.input_tokens, entry.output_tokens
    spine.ledger.record(record)
    return OVER


def give(exchange: Exchange, entry: Entry, age: float, *, paced: bool) -> Awaitable[None] | None:
    """Give an answer again. What it answers is to be waited for."""
    record, outcome = exchange.record, exchange.outcome
    record.provider, record.model, record.status = entry.provider, entry.model, 200
    record.saved_input_tokens, record.saved_output_tokens = entry.input_tokens, entry.output_tokens
    lines, body = told(exchange, entry.head, age), entry.body
    if not entry.stream:
        outcome.bytes_sent = len(body)
        outcome.complete = True
        return exchange.client.answer(200, [], lines, body, more=False)
    exchange.streaming = True
    if paced and entry.pace:
        return _send(exchange, entry.pieces(), lines)
    if len(body) > PIECE:  # piece by piece, as fast as its client takes it
        return _send(exchange, ((0.0, body[at : at + PIECE]) for at in range(0, len(body), PIECE)), lines)
    outcome.bytes_sent = len(body)
    wait = exchange.client.answer(200, [], lines, body, more=True)
    return _ended(exchange) if wait is None else _end(exchange, wait)


def told(exchange: Exchange, head: bytes, age: float) -> bytes:
    """The head of a cached answer, made when it is about to go."""
    record, outcome = exchange.record, exchange.outcome
    began = outcome.first_byte_at = now()
    record.overhead_us = int((began - outcome.started) * 1e6)
    lines = _lines(head, age, record.overhead_us, record.request_id.encode())
    if exchange.asking.explain:
        lines += b"x-sidecar-route: answered from the cache, %d s old\r\n" % age
    return lines


def _lines(head: bytes, age: float, overhead: int, name: bytes) -> bytes:
    return (
        b"%bage: %d\r\nx-sidecar-attempts: 0\r\nx-sidecar-overhead-us: %d\r\nx-request-id: %b\r\nrequest-id: %b\r\n"
        % (head, age, overhead, name, name)
    )


def _ended(exchange: Exchange) -> Awaitable[None] | None:
    exchange.outcome.complete = True
    return exchange.client.write(b"", more=False)


async def _end(exchange: Exchange, wait: Awaitable[None]) -> None:
    await wait
    if (last := _ended(exchange)) is not None:
        await last


async def _send(exchange: Exchange, pieces: Iterator[tuple[float, bytes]], lines: bytes) -> None:
    """Each piece at its time, in seconds since the first."""
    client, outcome = exchange.client, exchange.outcome
    began, first = now(), True
    for at, piece in pieces:
        if (pause := began + at - now()) > 0:
            await asyncio.sleep(pause)
        outcome.bytes_sent += len(piece)
        wait = client.answer(200, [], lines, piece, more=True) if first else client.write(piece, more=True)
        first = False
        if wait is not None:
            await wait
    if (wait := _ended(exchange)) is not None:
        await wait
