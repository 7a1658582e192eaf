"""Identical requests of one caller that are under way at once: the provider is asked one time, all get the answer.

A flight is the exchange that asks; it is nobody's own. Its first asker and whoever joins follow it alike: a late one
gets what has come so far, then what comes. None holds up another, and the flight ends when the last one has left.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec

from sidecar import request
from sidecar.clock import now
from sidecar.drive import Lazy, Signal
from sidecar.errors import UpstreamCut
from sidecar.exchange.state import Exchange
from sidecar.types import Headers, Hold, Outcome, freely
from sidecar.wire import body, headers as rules

HIGH_WATER: Final = 1024 * 1024  # bytes that the flight may be ahead of the fastest who follows
MOST_BYTES: Final = (
    16 * 1024 * 1024
)  # that are kept of an answer: a longer one is not joined, and leaves the slow behind
_PIECE: Final = 256 * 1024  # bytes that a follower is given at once
# Headers that differ from one try of a client to the next and change nothing of the answer.
_VOLATILE: Final = (b"x-stainless-", b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"idempotency-key")
_MADE: Final = (b"x-sidecar-cache: off\r\n", b"x-sidecar-cache: miss\r\n")
_JOINED: Final = b"x-sidecar-cache: coalesced\r\n"

Fly = Callable[[Exchange], Coroutine[Any, Any, None]]


class Follower(msgspec.Struct, eq=False):
    """Who follows, and how far it has come."""

    signal: Signal
    at: int = 0  # pieces
    taken: int = 0  # bytes


class Flight:
    """The client (types.Client) of the exchange that asks. It keeps what it is answered, for those who follow.

    `alone`: it is an exchange of its own, which is counted whoever follows: nobody may.
    """

    def __init__(self, first: Exchange, fly: Fly, *, alone: bool = False) -> None:
        like, loop = first.client, asyncio.get_running_loop()
        self._like = like
        self.headers, self.index, self.query = like.headers, like.index, like.query
        self.notes: dict[str, Any] = {}
        self.gone = False  # nobody follows any more
        self.stay = False
        self.complete = False
        self.size = 0
        self._status = 0
        self._head: tuple[Headers, bytes] = ([], b"")
        self._pieces: list[bytes] = []
        self._dropped = 0  # pieces before these, that are not kept any more
        self._followers: set[Follower] = set()
        self._room = Signal(loop)
        self._untold = not alone  # what was used is in nobody's record
        self._exchange = msgspec.structs.replace(
            first,
            client=self,
            record=msgspec.structs.replace(first.record),
            outcome=Outcome(first.outcome.started),
            trail=[],
            before=[],
            counted=alone,  # else those who follow are
        )
        first.held = 0  # it is the flight that holds the body now
        self.task = loop.create_task(fly(self._exchange))

    @property
    def open(self) -> bool:
        """May others join?"""
        return not (self.gone or self.complete or self.task.done()) and self.size <= MOST_BYTES

    # -- the side of the exchange that asks

    def body(self, most: int) -> bytes | None:
        return b""

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        return b""

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        self._status = status
        self._head = (headers, lines)
        return self.write(data, more=more)

    def pipe(self) -> None:
        return None

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        if self.gone:
            return None
        self._pieces.append(data)
        self.size += len(data)
        self.complete = not more
        if self.size > MOST_BYTES:
            self._drop()
        self.wake()
        return Lazy(self._followed) if self._ahead() else None

    def land(self) -> None:
        """Nothing more will come. Its exchange lets go of it: in a circle, all of the answer would stay in memory."""
        self._exchange.client = self._like
        self.wake()

    def wake(self, _: object = None) -> None:
        """Something has come, or nothing will."""
        for follower in tuple(self._followers):
            follower.signal.wake()

    def _drop(self) -> None:
        """Keep only what somebody is still to be given, who is not too far behind."""
        end = self._dropped + len(self._pieces)
        near = [each.at for each in self._followers if self.size - each.taken <= MOST_BYTES]
        count = min(near, default=end) - self._dropped
        if count > 0:
            del self._pieces[:count]
            self._dropped += count

    def _ahead(self) -> bool:
        fastest = max((each.taken for each in self._followers), default=self.size)
        return self.size - fastest > HIGH_WATER

    async def _followed(self) -> None:
        while self._ahead():
            await self._room

    # -- the side of those who follow

    async def follow(self, exchange: Exchange, *, joined: bool) -> None:
        """Give a client all of the answer, as it comes. Raises UpstreamCut where it has no proper end."""
        follower = Follower(Signal(asyncio.get_running_loop()))
        self._followers.add(follower)
        try:
            while not exchange.outcome.complete:
                if follower.at == self._dropped + len(self._pieces):
                    if self.task.done():
                        raise UpstreamCut("the answer that this one was joined to has broken off")
                    await follower.signal
                elif (wait := self._give(exchange, follower, joined=joined)) is not None:
                    await wait
        finally:
            self._followers.discard(follower)
            self._room.wake()
            self._tell(exchange, first=not joined)

    def _give(self, exchange: Exchange, follower: Follower, *, joined: bool) -> Awaitable[None] | None:
        """The next piece of what it has not been given. What it answers is to be waited for."""
        start = end = follower.at - self._dropped
        if start < 0:
            raise UpstreamCut("the answer was taken too slowly to be kept for it")
        size = 0
        while end < len(self._pieces) and size < _PIECE:
            size += len(self._pieces[end])
            end += 1
        data = b"".join(self._pieces[start:end])
        follower.at += end - start
        follower.taken += size
        self._room.wake()
        client, outcome = exchange.client, exchange.outcome
        more = not self.complete or end < len(self._pieces)
        outcome.bytes_sent += size
        outcome.complete = not more
        if outcome.first_byte_at is not None:
            return client.write(data, more=more)
        outcome.first_byte_at = now()
        exchange.record.status = self._status
        exchange.streaming = self._exchange.streaming
        headers, lines = self._head
        if joined:
            for made in _MADE:
                lines = lines.replace(made, _JOINED)
            ours, theirs = exchange.record.request_id, self._exchange.record.request_id
            lines = lines.replace(theirs.encode(), ours.encode())
        return client.answer(self._status, headers, lines, data, more=more)

    def _tell(self, exchange: Exchange, *, first: bool) -> None:
        """The record of one that follows no more. What was used is in one only: of the first to see the end."""
        record, asked = exchange.record, self._exchange
        record.provider, record.model = asked.record.provider, asked.record.model
        record.error, record.continued = asked.record.error, asked.record.continued
        if first:
            record.attempts, record.overhead_us = asked.record.attempts, asked.record.overhead_us
        over = self.complete or self.task.done()
        last = not self._followers and not over
        if last:
            self._leave(exchange)
        if self._untold and (over or last) and exchange.counted:
            self._untold = False
            exchange.attempt, exchange.before = asked.attempt, asked.before

    def _leave(self, exchange: Exchange) -> None:
        """Nobody follows: the provider is left; or read to its end for what it counts, which the flight then tells."""
        self.gone = True
        self._pieces.clear()
        if self.stay:
            exchange.counted, self._exchange.counted = False, True
        else:
            self.task.cancel()

    def __repr__(self) -> str:
        return f"<Flight {self._status}, {self.size} bytes, {len(self._followers)} follow>"


async def join(exchange: Exchange, fly: Fly) -> None:
    """Follow the flight that asks the same, or begin one. `fly`: does the work of the exchange it is given."""
    flights = exchange.spine.duty.flights
    key = _key(exchange)
    flight: Flight | None = flights.get(key)
    if flight is not None and flight.open:
        exchange.record.cache = "coalesced"
        await flight.follow(exchange, joined=True)
        return
    await begin(exchange, key, fly).follow(exchange, joined=False)


def begin(exchange: Exchange, key: bytes, fly: Fly, *, alone: bool = False) -> Flight:
    """A flight, kept by its key until it has landed. Only of one that is `alone` need nobody follow."""
    flights = exchange.spine.duty.flights
    made = flights[key] = Flight(exchange, fly, alone=alone)

    def landed(_: object) -> None:
        if flights.get(key) is made:
            del flights[key]
        made.land()

    made.task.add_done_callback(landed)
    return made


def _key(exchange: Exchange) -> bytes:
    """The digest of all that the answer depends on: who asks, in which dialect, for what, and how it may be packed."""
    client, asking = exchange.client, exchange.asking
    told = sorted(pair for pair in rules.upward(client.headers) if not pair[0].startswith(_VOLATILE))
    key = request.presented(client.headers)  # which may be the provider's own
    parts = (
        id(exchange.spine),  # a flight keeps the one that it began under
        asking.asker.caller.name,
        key[1].digest() if key is not None else b"",
        exchange.endpoint.path,
        client.query,
        told,
        sorted(asking.accepts),
        asking.fallback,
        asking.explain,
        asking.timeout,
        asking.priority,
    )
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(body.rebuild(exchange.members))
    return digest.digest()
