"""Embeddings out of the cache, an input each: a provider is asked for what is new of a batch, and for nothing else."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Final

import msgspec

from sidecar import answer
from sidecar.cache import Entry, inputs
from sidecar.cache.cache import MOST_BYTES
from sidecar.clock import wall
from sidecar.exchange import misses
from sidecar.exchange.hits import give
from sidecar.exchange.misses import Way
from sidecar.exchange.state import Exchange
from sidecar.exchange.tape import Box, Tape, missed
from sidecar.types import Headers

_ROOM: Final = 2  # an embedding may be so many times as long as the longest that is known


class Batch(msgspec.Struct, frozen=True, eq=False):
    """What is asked for, and what of it is known."""

    inputs: list[bytes]  # in their order, each as it was written
    keys: dict[bytes, bytes]  # of each, once
    known: dict[bytes, Entry]
    new: list[bytes]  # what is not

    @property
    def saved(self) -> int:
        """Tokens that nobody is asked for again."""
        return sum(self.known[each].input_tokens for each in self.inputs if each in self.known)


async def answered(exchange: Exchange, way: Way, scope: bytes, *, afresh: bool) -> bool:
    """Answer a request for embeddings by what is known of its inputs. False: it is odd, and not cached."""
    asked = inputs.read(exchange.members)
    if asked is None:
        return False
    batch = await _batch(exchange, way, asked, inputs.keyed(scope, exchange.members, asked), afresh=afresh)
    if batch.new:
        exchange.record.saved_input_tokens = batch.saved if batch.known else None
        await misses.ask(exchange, way.cache, lambda alike: _fly(alike, way, batch))
        return True
    exchange.record.cache = "hit"
    way.cache.results["hit"] += 1
    oldest = min(batch.known.values(), key=_made)
    data = inputs.put_together(asked, _vectors(batch.known), oldest.said, inputs.usage(batch.saved))
    whole = msgspec.structs.replace(oldest, body=data, input_tokens=batch.saved)
    if (wait := give(exchange, whole, oldest.age(wall()), paced=False)) is not None:
        await wait
    return True


async def _batch(exchange: Exchange, way: Way, asked: list[bytes], keys: dict[bytes, bytes], *, afresh: bool) -> Batch:
    """What is known; nothing, where what is new would be too much to be held until it can be put together."""
    known = {} if afresh else await _known(exchange, way, keys)
    new = [each for each in keys if each not in known]
    longest = max((len(entry.body) for entry in known.values()), default=0)
    if new and _ROOM * longest * len(new) > MOST_BYTES:
        known, new = {}, [*keys]
    return Batch(asked, keys, known, new)


async def _known(exchange: Exchange, way: Way, keys: Mapping[bytes, bytes]) -> dict[bytes, Entry]:
    found = zip(keys, await misses.look(exchange, way.cache, [*keys.values()]), strict=True)
    moment, seconds = wall(), way.plan.cache_seconds
    return {each: entry for each, entry in found if entry is not None and entry.age(moment) < seconds}


def _fly(exchange: Exchange, way: Way, batch: Batch) -> Coroutine[Any, Any, None]:
    if exchange.asking.explain:
        exchange.trail.append(f"{len(batch.known)} of {len(batch.keys)} inputs in the cache")
    return _as_it_is(exchange, way, batch) if len(batch.new) == len(batch.inputs) else _in_part(exchange, way, batch)


async def _as_it_is(exchange: Exchange, way: Way, batch: Batch) -> None:
    """All of it is new: the answer goes through as it comes."""
    tape = exchange.client = Tape(exchange.client, MOST_BYTES)
    why, made = "cut", None
    try:
        await way.finish(exchange, way.serve(exchange))
        data = tape.data
        if not (why := misses.unkept(exchange, tape, data)):
            made = _entries(exchange, batch, inputs.answer(data, len(batch.new)), tape.answered)
            why = "odd" if made is None else ""
    finally:
        if why:
            way.cache.uncached(why)
    if made is not None:
        await way.cache.store.multi_set(made, way.plan.cache_seconds)


async def _in_part(exchange: Exchange, way: Way, batch: Batch) -> None:
    """Some of it is known: what is new is asked for, and the answer put together."""
    made: list[tuple[bytes, Entry]] = []
    await way.finish(exchange, _put_together(exchange, way, batch, made))
    if made:
        await way.cache.store.multi_set(made, way.plan.cache_seconds)


async def _put_together(exchange: Exchange, way: Way, batch: Batch, made: list[tuple[bytes, Entry]]) -> None:
    box = await _boxed(exchange, way, batch)
    outcome, attempt = exchange.outcome, exchange.attempt
    headers, data = answer.without(box.answered, b"content-length"), box.data
    if box.status == 200:
        found = inputs.answer(data, len(batch.new))
        entries = _entries(exchange, batch, found, box.answered)
        if found is None or entries is None:  # what it means is not known: so all is asked for, and not kept
            way.cache.uncached("odd")
            if attempt is not None and attempt.usage is not None:
                exchange.before.append(attempt.usage)
            _nothing_has_gone(exchange)
            await way.serve(exchange)
            return
        made += entries
        vectors = _vectors(batch.known) | {
            each: entry.body for each, (_, entry) in zip(batch.new, entries, strict=True)
        }
        data = inputs.put_together(batch.inputs, vectors, found.model, bytes(found.usage))
    else:
        way.cache.uncached("failed")
    outcome.bytes_sent = len(data)
    if (wait := exchange.client.answer(box.status, headers, missed(box.lines), data, more=False)) is not None:
        await wait


async def _boxed(exchange: Exchange, way: Way, batch: Batch) -> Box:
    """The answer to what is new, of which nothing has gone to the client yet."""
    client, members = exchange.client, exchange.members
    box = exchange.client = Box(client, MOST_BYTES)
    exchange.members = inputs.only(members, batch.new)
    try:
        await way.serve(exchange)
    except BaseException:
        _nothing_has_gone(exchange)
        way.cache.uncached("failed")
        raise
    finally:
        exchange.client, exchange.members = client, members
    return box


def _nothing_has_gone(exchange: Exchange) -> None:
    outcome = exchange.outcome
    outcome.first_byte_at, outcome.bytes_sent, outcome.complete = None, 0, False


def _entries(
    exchange: Exchange, batch: Batch, found: inputs.Answer | None, headers: Headers
) -> list[tuple[bytes, Entry]] | None:
    """What is kept of an answer to what is new, by its keys, in the order of the inputs."""
    attempt = exchange.attempt
    if found is None or attempt is None:
        return None
    meter, record = attempt.meter, exchange.record
    usage = attempt.usage if meter is None else meter.usage
    tokens = inputs.shares(0 if usage is None else usage.input, batch.new)
    head, made = misses.head_of(attempt, headers), wall()
    return [
        (
            batch.keys[each],
            Entry(
                made=made,
                head=head,
                body=bytes(datum.embedding),
                provider=record.provider,
                model=record.model,
                input_tokens=share,
                said=found.model,
            ),
        )
        for each, datum, share in zip(batch.new, found.data, tokens, strict=True)
    ]


def _vectors(known: Mapping[bytes, Entry]) -> dict[bytes, bytes]:
    return {each: entry.body for each, entry in known.items()}


def _made(entry: Entry) -> float:
    return entry.made
