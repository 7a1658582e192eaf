"""What is not in the cache: asked for by a flight (coalesce.py), and kept when that has landed well."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import msgspec

from sidecar.cache import Cache, Entry, fit
from sidecar.cache.entry import paced
from sidecar.clock import now, wall
from sidecar.exchange import coalesce
from sidecar.exchange.state import Attempt, Exchange
from sidecar.exchange.tape import Tape
from sidecar.routing import Plan
from sidecar.store import LOOK_SECONDS
from sidecar.types import Headers, Outcome, Record
from sidecar.wire.heads import head_lines

_OFF: Final = b"x-sidecar-cache: off\r\n"
_HIT: Final = b"x-sidecar-cache: hit\r\n"

Serve = Callable[[Exchange], Coroutine[Any, Any, None]]  # obtain an answer, and deliver it
Finish = Callable[[Exchange, Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]  # and account for it


class Way(msgspec.Struct, frozen=True, eq=False):
    """How what is not in the cache is had, and where it is kept."""

    cache: Cache
    plan: Plan
    serve: Serve
    finish: Finish
    stale_seconds: float
    paced: bool

    @property
    def keep_seconds(self) -> float:
        return self.plan.cache_seconds + self.stale_seconds


async def ask(exchange: Exchange, cache: Cache, fly: coalesce.Fly) -> None:
    """Have it answered by a flight: by one that is under way, unless it is to be asked afresh."""
    exchange.record.cache = "miss"
    try:
        if exchange.asking.share:
            await coalesce.join(exchange, fly)
        else:
            await coalesce.begin(exchange, os.urandom(16), fly).follow(exchange, joined=False)
    finally:
        cache.results[exchange.record.cache] += 1


def renew(exchange: Exchange, way: Way, key: bytes) -> None:
    """Ask anew for what is stale, once at a time, for nobody: the next one gets it."""
    mark = b"renew" + key
    if mark in exchange.spine.duty.flights:
        return
    asked = exchange.record
    record = Record(
        request_id=f"{asked.request_id}-renew",
        endpoint=asked.endpoint,
        caller=asked.caller,
        asked_model=asked.asked_model,
        stream=asked.stream,
        bytes_in=asked.bytes_in,
        cache="renew",
    )
    alone = msgspec.structs.replace(exchange, record=record, outcome=Outcome(now()), expires=math.inf, held=0)
    coalesce.begin(alone, mark, lambda alike: fill(alike, way, key), alone=True)


async def look(exchange: Exchange, cache: Cache, keys: Sequence[bytes]) -> Sequence[Entry | None]:
    """What is kept by several keys: nothing of a shared store for who has waited for that long enough."""
    if cache.find is not None:
        return await cache.lookup(keys)
    if exchange.store_seconds > LOOK_SECONDS:
        return [None] * len(keys)
    began = now()
    found = await cache.lookup(keys)
    exchange.store_seconds += now() - began
    return found


async def fill(exchange: Exchange, way: Way, key: bytes) -> None:
    """Do the exchange, and keep its answer if it has come to a good end."""
    if exchange.asking.explain:
        exchange.trail.append("not in the cache")
    tape = exchange.client = Tape(exchange.client, way.cache.most_bytes)
    data, why = b"", "cut"
    try:
        await way.finish(exchange, way.serve(exchange))
        data = tape.data
        why = unkept(exchange, tape, data)
    finally:
        if why:
            way.cache.uncached(why)
    if not why and exchange.attempt is not None:
        entry = _entry(exchange, exchange.attempt, tape, data, timed=way.paced)
        await way.cache.store.set(key, entry, way.keep_seconds)


def unkept(exchange: Exchange, tape: Tape, data: bytes) -> str:
    """Why an answer is not kept: a reason of fit.REASONS; nothing where it may be."""
    attempt = exchange.attempt
    if tape.status != 200:
        return "failed"
    if attempt is None or not tape.ended or not exchange.outcome.complete:
        return "cut"
    meter = attempt.meter
    fault = attempt.fault if meter is None else meter.fault
    if fault is not None or attempt.cause is not None or (attempt.way is not None and attempt.way.failed):
        return "failed"
    if exchange.record.continued:
        return "continued"
    if not tape.whole:
        return "too_large"
    return fit.unkept(tape.answered, data, stream=exchange.streaming)


def _entry(exchange: Exchange, attempt: Attempt, tape: Tape, data: bytes, *, timed: bool) -> Entry:
    record, stream = exchange.record, exchange.streaming
    return Entry(
        made=wall(),
        head=head_of(attempt, tape.answered),
        body=data,
        stream=stream,
        pace=paced([*zip(tape.times, map(len, tape.pieces), strict=True)]) if timed and stream else b"",
        provider=record.provider,
        model=record.model,
        input_tokens=record.input_tokens or 0,
        output_tokens=record.output_tokens or 0,
    )


def head_of(attempt: Attempt, headers: Headers) -> bytes:
    """The head lines of an answer for as long as it is kept."""
    return head_lines(fit.lasting(headers)) + attempt.target.stamp.replace(_OFF, _HIT) + attempt.dropped
