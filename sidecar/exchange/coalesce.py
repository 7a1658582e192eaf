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

from sidecar.clock import now
from sidecar.drive import Lazy, Signal
from sidecar.errors import UpstreamCut
from sidecar.exchange.state import Exchange
from sidecar.types import Client, Headers
from sidecar.wire import body, headers as rules

HIGH_WATER: Final = 1024 * 1024  # bytes that the flight may be ahead of the fastest who follows
MOST_BYTES: Final = 16 * 1024 * 1024  # of an answer: a longer one is not joined any more
# Headers that differ from one try of a client to the next and change nothing of the answer.
_VOLATILE: Final = (b"x-stainless-", b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"idempotency-key")
_MADE: Final = b"x-sidecar-cache: off\r\n"
_JOINED: Final = b"x-sidecar-cache: coalesced\r\n"


class Flight:
    """A client (types.Client) that keeps what it is answered, for those who follow."""

    def __init__(self, like: Client) -> None:
        self.headers, self.index, self.query = like.headers, like.index, like.query
        self.notes: dict[str, Any] = {}
        self.gone = False  # nobody follows any more
        self.stay = False
        self.task: asyncio.Task[None] | None = None
        self.status = 0
        self.complete = False
        self._head: tuple[Headers, bytes] = ([], b"")
        self._pieces: list[bytes] = []
        self.size = 0
        self._followers: dict[Signal, int] = {}  # and how many bytes each has taken
        self._room = Signal(asyncio.get_running_loop())

    # -- the side of the exchange that asks

    def body(self, most: int) -> bytes | None:
        return b""

    async def read(self, most: int) -> bytes:
        return b""

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        self.status = status
        self._head = (headers, lines)
        return self.write(data, more=more)

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        self._pieces.append(data)
        self.size += len(data)
        self.complete = not more
        self.wake()
        return Lazy(self._followed) if self._ahead() else None

    def wake(self, _: object = None) -> None:
        """Something has come, or nothing will."""
        for follower in list(self._followers):
            follower.wake()

    def _ahead(self) -> bool:
        return bool(self._followers) and self.size - max(self._followers.values()) > HIGH_WATER

    async def _followed(self) -> None:
        while self._ahead():
            await self._room

    # -- the side of those who follow

    async def follow(self, exchange: Exchange, *, joined: bool) -> None:
        """Give a client all of the answer, as it comes. Raises UpstreamCut where it has no proper end."""
        client, outcome = exchange.client, exchange.outcome
        signal = Signal(asyncio.get_running_loop())
        self._followers[signal] = at = taken = 0
        try:
            while not outcome.complete:
                if at == len(self._pieces):
                    if self.task is not None and self.task.done():
                        raise UpstreamCut("the answer that this one was joined to has broken off")
                    await signal
                    continue
                data = b"".join(self._pieces[at:])
                at, taken = len(self._pieces), taken + len(data)
                outcome.bytes_sent += len(data)
                outcome.complete = self.complete
                if outcome.first_byte_at is None:
                    outcome.first_byte_at = now()
                    headers, lines = self._head
                    lines = lines.replace(_MADE, _JOINED) if joined else lines
                    wait = client.answer(self.status, headers, lines, data, more=not self.complete)
                else:
                    wait = client.write(data, more=not self.complete)
                if wait is not None:
                    await wait
                self._followers[signal] = taken
                self._room.wake()
        finally:
            del self._followers[signal]
            self._room.wake()
            if not self._followers and self.task is not None and not self.task.done():
                self.gone = True
                self.task.cancel()

    def __repr__(self) -> str:
        return f"<Flight {self.status}, {self.size} bytes, {len(self._followers)} follow>"


async def join(exchange: Exchange, fly: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
    """Follow the flight that asks the same, or begin one. `fly`: does the work of the exchange it is given."""
    flights, record = exchange.spine.duty.flights, exchange.record
    key = _key(exchange)
    flight: Flight | None = flights.get(key)
    if flight is not None and flight.size <= MOST_BYTES:
        exchange.outcome.waited = 0.0
        await flight.follow(exchange, joined=True)
        record.status, record.provider, record.model = flight.status, *_of(flight)
        return
    flight = Flight(exchange.client)
    alike = msgspec.structs.replace(exchange, client=flight)
    exchange.counted = False  # the flight's own record is of the same request
    flights[key] = flight
    task = flight.task = asyncio.get_running_loop().create_task(fly(alike))
    task.add_done_callback(lambda _: _landed(flights, key, flight))
    flight.notes["record"] = alike.record
    await flight.follow(exchange, joined=False)


def _landed(flights: dict[bytes, Any], key: bytes, flight: Flight) -> None:
    if flights.get(key) is flight:
        del flights[key]
    flight.wake()


def _of(flight: Flight) -> tuple[str, str]:
    record = flight.notes["record"]
    return record.provider, record.model


def _key(exchange: Exchange) -> bytes:
    """The digest of all that the answer depends on: who asks, in which dialect, for what, and how it may be packed."""
    client, asking = exchange.client, exchange.asking
    told = sorted(pair for pair in rules.upward(client.headers) if not pair[0].startswith(_VOLATILE))
    parts = (
        asking.asker.caller.name,
        exchange.endpoint.path,
        client.query,
        told,
        sorted(asking.accepts),
        asking.fallback,
        asking.explain,
    )
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(body.rebuild(exchange.members))
    return digest.digest()
