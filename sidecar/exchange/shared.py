"""Limits that several sidecars share: decided by the store, or while that is down by this one's share of them.

A shared counter's `enter` answers an `Ask`, since the store has to be waited for; attempt.admit does. What the store
says of the rates is written down here each time, so that whoever must go on without it goes on from where all of them
were: with one part of each limit (at least 1), of as many as there were sidecars when last seen, and with as full
buckets. What is let in meanwhile is not told to the store later.

A slot is a lease, renewed while it is held: a sidecar that dies gives its slots back by that. Who waits for one waits
here, in a line of this sidecar's; the first in it asks again when one is given back here, and every now and then.
"""

from __future__ import annotations

import asyncio
import random
from bisect import insort
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.clock import now
from sidecar.config import Config
from sidecar.limits import HANDICAP, Counter, Limits, Reservation, serial
from sidecar.rates import KINDS, NO_TOKENS, PERIOD_SECONDS, TokenLimits
from sidecar.store import BUDGET_SECONDS, DECIDE, LEASE_SECONDS, LOST, Store, keys
from sidecar.types import Permit, Refused

_AGAIN_SECONDS: Final = (0.02, 0.06)  # until the first in line asks again: drawn between them
_LEASE: Final = int(LEASE_SECONDS * 1e6)
_REQUESTS: Final = "requests_per_minute"
_place = attrgetter("place")


class Ask(msgspec.Struct, frozen=True, eq=False):
    """Not decided yet: the store has to be asked. `input`, `output`: tokens, as `enter` was told."""

    counter: Shared
    input: int
    output: int


class Scale(NamedTuple):
    """What a rate counts: microseconds of its leak a token in, and a token out. Of requests neither."""

    name: str
    input: float
    output: float


class Lease(Reservation):
    """A permit that the store gave. `amounts` and `buckets` are of tokens only, in the order of `scales`."""

    scales: tuple[Scale, ...] = ()
    at: int = 0  # when, by the store's clock, in microseconds
    id: bytes = b""  # of the slot; empty where none is needed

    def release(self) -> None:
        """It has finished."""
        assert isinstance(self.counter, Shared)
        self.counter.give_back(self)


class Waiter:
    """A place in line, and what wakes who has it."""

    __slots__ = ("_woken", "place", "refused")

    def __init__(self, place: tuple[int, float, int]) -> None:
        self.place = place  # as limits.Ticket
        self.refused: Refused | None = None  # a higher class needed its place
        self._woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Until it is woken, or for so long."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        timer = loop.call_later(seconds, self.wake)
        try:
            await self._woken
        finally:
            timer.cancel()
            self._woken = None


class Shared(Counter):
    """One limit's owner, counted in the store. Without limits it is a counter like any other."""

    __slots__ = ("_bounds", "_keys", "_scales", "_share", "_store", "line")

    def __init__(self, key: str, limits: Limits, store: Store) -> None:
        super().__init__(key, limits)
        self._store = store
        self._keys = keys(key)
        self._bounds: tuple[int | None, int | None, TokenLimits] = (None, None, NO_TOKENS)
        self._scales: tuple[Scale, ...] = ()  # of tokens
        self._share = 1  # of how many parts of its limits one is ours: 1 while the store decides
        self.line: list[Waiter] = []  # the next one first

    def allow(self, per_minute: int | None, concurrency: int | None, tokens: TokenLimits = NO_TOKENS) -> None:
        self._bounds = (per_minute, concurrency, tokens)
        self._scales = tuple(
            Scale(name, input * PERIOD_SECONDS / most * 1e6, output * PERIOD_SECONDS / most * 1e6)
            for (name, input, output), most in zip(KINDS, tokens, strict=True)
            if most is not None
        )
        self._share = 1
        super().allow(per_minute, concurrency, tokens)

    def enter(self, now: float, input: int = 0, output: int = 0) -> Permit | Refused | Ask | None:  # type: ignore[override]  # what only `admit` sees
        per_minute, concurrency, tokens = self._bounds
        if per_minute is None and concurrency is None and tokens == NO_TOKENS:
            return super().enter(now, input, output)
        return Ask(self, input, output)

    def forgo(self, decision: Permit | Refused | None) -> None:
        if not isinstance(decision, Ask):  # of which nothing has been taken
            super().forgo(decision)

    # -- with the store

    async def ask(self, input: int, output: int, patience: float = BUDGET_SECONDS) -> Permit | Refused | None:
        """What the store says; None: all slots are taken. Where it says nothing in time, what our share says.

        `patience`: seconds. Nobody waits much longer than for wire.ANSWER_SECONDS anyway.
        """
        if self.adapted is not None and self.running >= self.adapted:
            return None
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[object] = loop.create_future()
        lease = self._lease(input, output)

        def done(reply: Any) -> None:
            decision = reply if reply is LOST else self._read(reply, lease, names)
            if decided.done():
                self._undo(decision)
            else:
                decided.set_result(decision)

        names, parts = self._question(lease)
        if patience <= 0 or not self._store.ask(DECIDE, self._keys, parts, done):
            return self.locally(input, output)
        timer = loop.call_later(patience, _give_up, decided) if patience < BUDGET_SECONDS else None
        try:
            decision = await decided
        except BaseException:
            if decided.done() and not decided.cancelled():
                self._undo(decided.result())
            decided.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self.locally(input, output) if decision is LOST else decision  # type: ignore[return-value]  # LOST is one object

    def _lease(self, input: int, output: int) -> Lease:
        """What is asked for; of no rate more than there may be."""
        amounts = [min((input * each.input + output * each.output) / 1e6, PERIOD_SECONDS) for each in self._scales]
        name = b"" if self._bounds[1] is None else self._store.lease()
        return Lease(self, 0.0, self.tokens or (), amounts, self._scales, 0, name)

    def _question(self, lease: Lease) -> tuple[list[str], list[str | bytes | int]]:
        """The names of the rates that are asked for, and what DECIDE is given."""
        per_minute, concurrency, _ = self._bounds
        names = [each.name for each in lease.scales]
        amounts = lease.amounts
        if per_minute is not None:
            names, amounts = [_REQUESTS, *names], [PERIOD_SECONDS / per_minute, *amounts]
        parts: list[str | bytes | int] = [lease.id, concurrency or 0, _LEASE]
        for name, amount in zip(names, amounts, strict=True):
            parts += [name, repr(amount * 1e6)]
        return names, parts

    def _read(self, reply: list[int], lease: Lease, names: list[str]) -> Permit | Refused | None:
        """A decision in the store's words. A slot is held from here on."""
        moment, status = now(), reply[0]
        self._see(names, reply[3:] if status == 0 else reply[2:], moment)
        if status == 2:
            return None
        if status == 0:
            return Refused(self.key, names[reply[1]], reply[2] / 1e6)
        lease.began, lease.at = moment, reply[1]
        self.running += 1
        if lease.id:
            self._store.hold(self._keys, lease.id)
        return lease

    def _see(self, names: list[str], resets: list[int], moment: float) -> None:
        """How full each rate is, of all sidecars together."""
        if self._share != 1:
            self._take(1)
        dues = {name: moment + reset / 1e6 for name, reset in zip(names, resets, strict=True)}
        self._due = dues.get(_REQUESTS, self._due)
        for bucket in self.tokens or ():
            bucket.due = dues.get(bucket.name, bucket.due)

    def _undo(self, decision: object) -> None:
        """Whoever asked is gone."""
        if isinstance(decision, Lease):
            decision.settle(0, 0)
            decision.release()

    def give_back(self, lease: Lease) -> None:
        """What the store gave."""
        if lease.id:
            self._store.free(self._keys, lease.id)
        self.release()

    def settle(self, permit: Reservation, input: int, output: int, *, counted: bool) -> None:
        super().settle(permit, input, output, counted=counted)
        if not isinstance(permit, Lease) or not permit.amounts:
            return
        parts: list[str | bytes | int] = [permit.at]
        for scale, reserved in zip(permit.scales, permit.amounts, strict=True):
            parts += [scale.name, repr(reserved * 1e6), repr(input * scale.input + output * scale.output)]
        self._store.settle(self._keys, parts)

    # -- without it

    def locally(self, input: int, output: int) -> Permit | Refused | None:
        """Of our share. None: as many run as may."""
        store = self._store
        store.local += 1
        if self._share != store.sidecars:
            self._take(store.sidecars)
        if self.running >= self._full:
            return None
        return super().enter(now(), input, output)

    def _take(self, parts: int) -> None:
        """Go by one of so many parts of the limits, from as full buckets."""
        per_minute, concurrency, tokens = self._bounds
        both = tuple(_part(each, parts) for each in tokens)
        super().allow(_part(per_minute, parts), _part(concurrency, parts), (both[0], both[1], both[2]))
        self._share = parts

    def release(self) -> None:
        super().release()
        if self.line:
            self.line[0].wake()

    # -- waiting

    async def queue(self, ask: Ask, rank: int, cost: float, patience: float) -> Permit | Refused:
        """Wait for a slot, as limits.Counter.wait has it: by class, then by arrival, the short before the long."""
        queue = self._limits.queue
        moment = now()
        ends = moment + min(queue.wait_seconds, patience)
        refusal = Refused(self.key, "concurrency", max(queue.wait_seconds, 1.0))
        waiter = Waiter((rank, moment + cost * HANDICAP * queue.wait_seconds, next(serial)))
        most = self._full if queue.length is None else queue.length
        if ends <= moment or (len(self.line) >= most and not self._make_room(rank, refusal)):
            return refusal
        insort(self.line, waiter, key=_place)
        try:
            while True:
                first = self.line[0] is waiter
                left = ends - now()
                await waiter.sleep(min(left, random.uniform(*_AGAIN_SECONDS)) if first else left)  # noqa: S311
                if waiter.refused is not None:
                    return waiter.refused
                if self.line[0] is waiter and (decision := await self.ask(ask.input, ask.output)) is not None:
                    return decision
                if now() >= ends:
                    return refusal
        finally:
            if waiter in self.line:
                self.line.remove(waiter)
            if self.line:
                self.line[0].wake()

    def _make_room(self, rank: int, refusal: Refused) -> bool:
        """The last of a lower class leaves a full line."""
        if not self.line or self.line[-1].place[0] <= rank:
            return False
        last = self.line.pop()
        last.refused = refusal
        last.wake()
        return True

    def __repr__(self) -> str:
        return f"<Shared {self.key}: {self.running} running of {self.most}, {len(self.line)} in line>"


def share(config: Config, limits: Limits, tell: Callable[[dict[str, Any]], object]) -> Store | None:
    """The store that limits are counted in from now on; None: in memory. `tell`: as the store's."""
    if config.store.url.form == "memory":
        return None
    store = Store(config.store, config.server.workers, tell)
    limits.make = lambda key, owner: Shared(key, owner, store)
    return store


def _give_up(decided: asyncio.Future[object]) -> None:
    if not decided.done():
        decided.set_result(LOST)


def _part(most: int | None, parts: int) -> int | None:
    return None if most is None else max(1, most // parts)
