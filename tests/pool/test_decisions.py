"""The decisions alone, on a fake clock: the size follows demand, and no order of events loses a place."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from sidecar.pool import Pool
from sidecar.pool.connection import Connection, Phase
from sidecar.pool.pool import Bulkhead, Waiter
from sidecar.types import PoolLimits
from tests.pool.asks import origin


class _Loop:
    """As much of a loop as a bulkhead asks for, with the time in a test's hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Any) -> _Loop:
        self.calls.append((self.now + seconds, call))
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due, self.calls = [c for c in self.calls if c[0] <= self.now], [c for c in self.calls if c[0] > self.now]
        for _, ring in due:
            ring()


class _Pool:
    def __init__(self) -> None:
        self.loop = _Loop()
        self.closed = False


class _Transport:
    """A transport that only remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True

    abort = close


def _fixture(most: int, keepalive: float = 30.0) -> tuple[Bulkhead, _Loop]:
    pool = _Pool()
    limits = PoolLimits(max_connections=most, keepalive_seconds=keepalive)
    return Bulkhead(cast("Pool", pool), origin(1), limits), pool.loop


def _connection(bulkhead: Bulkhead, loop: _Loop) -> Connection:
    connection = Connection(cast("asyncio.AbstractEventLoop", loop), bulkhead, "provider lab", loop.now + 600)
    connection.connection_made(cast("asyncio.BaseTransport", _Transport()))
    return connection


def test_the_size_follows_demand_on_a_fake_clock() -> None:
    bulkhead, loop = _fixture(100)
    sizes = []
    for need in (1, 10, 50, 10, 1, 1, 1):
        now: list[Connection] = []
        for _ in range(need):
            decision: Connection | bool = bulkhead.take(loop.now) or bulkhead.reserve()
            if decision is True:
                decision = _connection(bulkhead, loop)
                bulkhead.dialed(decision)
            assert isinstance(decision, Connection)
            now.append(decision)
        for connection in now:
            connection.idle_since = loop.now
            bulkhead.freed(connection)
        sizes.append(len(bulkhead.idle))
        loop.pass_time(20)
    assert sizes == [1, 10, 50, 50, 10, 1, 1]


class Walk:
    """A random walk through the decisions, which keeps books of its own of what is under way."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.most = self.chance.randint(1, 4)
        self.bulkhead, self.loop = _fixture(self.most, keepalive=5.0)
        self.futures = asyncio.new_event_loop()  # never runs: futures only
        self.busy: list[Connection] = []
        self.dials = 0
        self.queue: list[Waiter] = []

    def step(self) -> None:
        self.chance.choice((self.ask, self.dial_ends, self.exchange_ends, self.leave, self.idle_ends, self.wake))()
        if self.chance.random() < 0.1:
            self.loop.pass_time(self.chance.random() * 6)

    def happens(self, share: float) -> bool:
        return self.chance.random() < share

    def ask(self) -> None:
        bulkhead = self.bulkhead
        idle = bulkhead.take(self.loop.now) if self.happens(0.8) else None
        decision = idle or bulkhead.reserve()
        if isinstance(decision, Connection):
            self.busy.append(decision)
        elif decision:
            self.dials += 1
        else:
            waiter = Waiter(self.futures.create_future())
            bulkhead.waiting[id(waiter)] = waiter
            self.queue.append(waiter)

    def wake(self) -> None:
        """Those who were granted something wake up; or leave in that moment, as `Pool._queue` has it."""
        for waiter in [waiter for waiter in self.queue if waiter.granted]:
            self.queue.remove(waiter)
            granted = waiter.granted[0]
            if self.happens(0.3):
                self.bulkhead.undialed() if granted is None else self.bulkhead.freed(granted)
            elif granted is None:
                self.dials += 1
            elif granted.phase is not Phase.LOST:
                self.busy.append(granted)

    def dial_ends(self) -> None:
        if not self.dials:
            return
        self.dials -= 1
        if self.happens(0.3):
            self.bulkhead.undialed()
            return
        connection = _connection(self.bulkhead, self.loop)
        if self.happens(0.2):
            connection.connection_lost(None)
        else:
            self.busy.append(connection)
        self.bulkhead.dialed(connection)

    def exchange_ends(self) -> None:
        if self.busy:
            connection = self.busy.pop(self.chance.randrange(len(self.busy)))
            connection.idle_since = self.loop.now
            self.bulkhead.freed(connection) if self.happens(0.6) else connection.abort()

    def leave(self) -> None:
        waiting = [waiter for waiter in self.queue if not waiter.granted]
        if waiting:
            waiter = self.chance.choice(waiting)
            waiter.future.cancel()
            self.queue.remove(waiter)
            if self.happens(0.5):  # its task wakes up and takes it off; or has not yet
                self.bulkhead.waiting.pop(id(waiter), None)

    def idle_ends(self) -> None:
        if self.bulkhead.idle:
            self.chance.choice(list(self.bulkhead.idle)).connection_lost(None)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_no_place_is_lost_and_no_bound_is_passed(seed: int) -> None:
    walk = Walk(seed)
    bulkhead, most = walk.bulkhead, walk.most
    for _ in range(600):
        walk.step()
        active = bulkhead.dialing + len(bulkhead.busy)
        assert active + len(bulkhead.idle) <= most
        assert active == most or not [waiter for waiter in bulkhead.waiting.values() if not waiter.future.done()]
    for _ in range(1000):
        if not (walk.queue or walk.dials or walk.busy):
            break
        walk.wake()
        walk.dial_ends()
        walk.exchange_ends()
    assert (bulkhead.dialing, len(bulkhead.busy)) == (0, 0)
    walk.futures.close()
