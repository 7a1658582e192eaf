"""Who may use which connection: a bulkhead per origin, every change of state in a plain function that never awaits."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from sidecar.drive import Round
from sidecar.errors import Draining, PoolExhausted, UpstreamCut
from sidecar.pool.answer import Answer
from sidecar.pool.connection import HEAD, LOST, Connection, Stale
from sidecar.pool.dial import Dialer
from sidecar.types import Deadline, Origin, Outbound, PoolLimits

_SWEEP_SLACK: Final = 0.01  # so that those of the same moment go together
_AGE_JITTER: Final = 0.1  # so that connections dialed together do not retire together


class Waiter:
    """A request for which there was no room. Granted a connection, or (None) the right to dial one."""

    __slots__ = ("future", "granted")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.granted: list[Connection | None] = []


class Bulkhead:
    """The connections of one origin. A connection's state is the collection it is in."""

    def __init__(self, pool: Pool, origin: Origin, limits: PoolLimits) -> None:
        self._pool = pool
        self.origin = origin
        self.limits = limits
        # Free to use, the longest idle at the bottom: the freshest is used first, so that the others may lapse.
        self.idle: dict[Connection, None] = {}
        # How many are being dialed. They count against the bound, for they are about to be busy.
        self.dialing = 0
        # In an exchange. Nobody else may touch them.
        self.busy: set[Connection] = set()
        # Requests for which there was no room, first come first served. Empty whenever there is room.
        self.waiting: OrderedDict[int, Waiter] = OrderedDict()
        self.dials = self.reuses = self.stale = 0
        self._sweep: asyncio.TimerHandle | None = None

    # -- decisions, none of which waits

    def take(self, now: float) -> Connection | None:
        """An idle connection, made busy; None where none is fit for use."""
        while self.idle:
            connection, _ = self.idle.popitem()
            if now < connection.retire_at and now - connection.idle_since < self.limits.keepalive_seconds:
                self.busy.add(connection)
                self.reuses += 1
                return connection
            connection.shut()
        return None

    def reserve(self) -> bool:
        """Leave to dial, if there is room."""
        if self.dialing + len(self.busy) >= self.limits.max_connections:
            return False
        if self.idle and self.dialing + len(self.busy) + len(self.idle) >= self.limits.max_connections:
            next(iter(self.idle)).shut()  # a fresh one was asked for: the longest idle makes room
        self.dialing += 1
        self.dials += 1
        return True

    def dialed(self, connection: Connection) -> None:
        if connection.phase is LOST:  # closed in the moment it was made
            self.undialed()
            return
        self.dialing -= 1
        self.busy.add(connection)

    def undialed(self) -> None:
        """A dial failed or was given up: its room goes to the first who waits."""
        self.dialing -= 1
        self._grant_room()

    def freed(self, connection: Connection) -> None:
        """An exchange has ended well: the connection goes to the first who waits, or is idle."""
        if connection.phase is LOST:  # while it changed hands
            return
        if connection.retire_at <= connection.idle_since or self._pool.closed:
            connection.shut()
        elif self.waiting and (waiter := self._first()):
            self.reuses += 1
            waiter.granted.append(connection)  # stays busy: it only changes hands
            waiter.future.set_result(None)
        else:
            self.busy.discard(connection)
            self.idle[connection] = None
            if self._sweep is None:
                self._watch()

    def lost(self, connection: Connection) -> None:
        """A connection is no more, whatever it was doing."""
        self.idle.pop(connection, None)
        if connection in self.busy:
            self.busy.discard(connection)
            self._grant_room()

    def _grant_room(self) -> None:
        if self.dialing + len(self.busy) < self.limits.max_connections and (waiter := self._first()):
            self.reserve()
            waiter.granted.append(None)
            waiter.future.set_result(None)

    def _first(self) -> Waiter | None:
        while self.waiting:
            _, waiter = self.waiting.popitem(last=False)
            if not waiter.future.done():
                return waiter
        return None

    # -- shrinking

    def _watch(self) -> None:
        """Come back when the longest idle will have been so for the keep-alive time."""
        loop = self._pool.loop
        due = next(iter(self.idle)).idle_since + self.limits.keepalive_seconds
        self._sweep = loop.call_later(max(due - loop.time(), 0.0) + _SWEEP_SLACK, self._shrink)

    def _shrink(self) -> None:
        """Close what nobody needed for the keep-alive time; what is left is what demand keeps warm."""
        self._sweep = None
        now = self._pool.loop.time()
        for connection in list(self.idle):  # oldest first
            if now - connection.idle_since < self.limits.keepalive_seconds:
                break
            del self.idle[connection]
            connection.shut()
        if self.idle:
            self._watch()

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while waiter := self._first():  # before there is room again, which would be theirs
            waiter.future.set_exception(Draining("the sidecar is shutting down"))
        for connection in [*self.idle, *self.busy]:
            connection.abort()

    def stats(self) -> dict[str, object]:
        return {
            "provider": self.origin.name,
            "origin": f"unix:{self.origin.unix}" if self.origin.unix else f"{self.origin.host}:{self.origin.port}",
            "idle": len(self.idle),
            "dialing": self.dialing,
            "busy": len(self.busy),
            "waiting": len(self.waiting),
            "max_connections": self.limits.max_connections,
            "dials": self.dials,
            "reuses": self.reuses,
            "stale_retries": self.stale,
        }

    def __repr__(self) -> str:
        return (
            f"{self.origin.name}: {len(self.idle)} idle, {self.dialing} dialing,"
            f" {len(self.busy)} busy, {len(self.waiting)} waiting"
        )


class Pool:
    """One per process (or per event loop: it stays on the loop of its first request). `proxies`: see `dial.Dialer`."""

    def __init__(self, proxies: Mapping[str, str] | None = None) -> None:
        self._dialer = Dialer(proxies or {})
        self._bulkheads: dict[Origin, Bulkhead] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._round: Round | None = None  # in which requests are sent
        self._dials: set[asyncio.Task[Connection]] = set()  # under way
        self.closed = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def ready(self, origin: Origin, limits: PoolLimits) -> Connection | None:
        """An idle connection, taken out of the pool for one request; None where none is. Not used: `put_back`."""
        bulkhead, loop = self._bulkheads.get(origin), self._loop
        if bulkhead is None or loop is None or not bulkhead.idle:
            return None
        bulkhead.limits = limits
        return bulkhead.take(loop.time())

    def put_back(self, connection: Connection, origin: Origin) -> None:
        """What `ready` gave is not used."""
        self._bulkheads[origin].freed(connection)

    async def send(
        self, outbound: Outbound, deadline: Deadline, limits: PoolLimits, sent: Connection | None = None
    ) -> Answer:
        """Send a request, answer its answer once the head has come. `sent`: where that has been done already.

        Raises ConnectFailed and TlsFailed (not a byte was sent), PoolExhausted, UpstreamTimeout, UpstreamCut,
        UpstreamProtocol. A reused connection that turns out closed is replaced by a fresh one, once, uncounted.
        """
        if self.closed:
            raise Draining("the sidecar is shutting down")
        bulkhead = self._bulkheads.get(outbound.origin)
        if bulkhead is None:
            bulkhead = self._bulkheads[outbound.origin] = Bulkhead(self, outbound.origin, limits)
        bulkhead.limits = limits
        connection = sent
        if connection is None:
            loop = self._loop or self.loop
            connection = bulkhead.take(loop.time()) or await self._acquire(bulkhead, deadline, bulkhead.reserve())
        again = False
        while True:
            try:
                if sent is None:
                    connection.begin(outbound, deadline)
                if connection.phase is HEAD:
                    await connection.signal
                head = connection.head()
                return Answer(head.status, head.headers, head.index, connection)
            except Stale:
                if again:  # a waiter may have been handed a reused one after all
                    words = f"provider {outbound.origin.name} closed the connection before an answer"
                    raise UpstreamCut(words) from None
                bulkhead.stale += 1
                again, sent = True, None
            except BaseException:
                connection.abort()
                raise
            connection = await self._acquire(bulkhead, deadline, bulkhead.reserve())

    async def _acquire(self, bulkhead: Bulkhead, deadline: Deadline, room: bool) -> Connection:
        """A connection that has to be dialed, or (without room) waited for."""
        if not room:
            granted = await self._queue(bulkhead, deadline)
            if granted is not None:
                return granted
        task = self.loop.create_task(self._dial(bulkhead, deadline))  # for its scopes of time; a Drive has no task
        self._dials.add(task)
        task.add_done_callback(lambda dialed: self._dialed(bulkhead, dialed))
        try:
            return await task
        except asyncio.CancelledError:
            if not task.cancel() and not task.cancelled() and task.exception() is None:  # dialed in this very moment
                bulkhead.freed(task.result())
            raise

    async def _dial(self, bulkhead: Bulkhead, deadline: Deadline) -> Connection:
        connection = await self._dialer.dial(bulkhead.origin, deadline, lambda: self._new(bulkhead))
        bulkhead.dialed(connection)
        if self.closed:
            connection.abort()
            raise Draining("the sidecar is shutting down")
        return connection

    def _dialed(self, bulkhead: Bulkhead, dialed: asyncio.Task[Connection]) -> None:
        """The end of a dial, however it came: one that brought no connection gives its room back."""
        self._dials.discard(dialed)
        if dialed.cancelled() or (dialed.exception() is not None and not isinstance(dialed.exception(), Draining)):
            bulkhead.undialed()

    async def _queue(self, bulkhead: Bulkhead, deadline: Deadline) -> Connection | None:
        """Wait for room: a connection, or None for the right to dial."""
        if len(bulkhead.waiting) >= bulkhead.limits.max_connections:  # shed early: the last would wait in vain
            raise _exhausted(bulkhead.origin.name)
        waiter = Waiter(self.loop.create_future())
        key = id(waiter)
        bulkhead.waiting[key] = waiter
        seconds = min(bulkhead.limits.wait_seconds, max(deadline.at - self.loop.time(), 0.0))
        timer = self.loop.call_later(seconds, _time_out, waiter.future, bulkhead.origin.name)
        try:
            await waiter.future
        except BaseException:
            bulkhead.waiting.pop(key, None)
            for granted in waiter.granted:  # granted and left in the same moment: pass it on
                if granted is None:
                    bulkhead.undialed()
                else:
                    bulkhead.freed(granted)
            raise
        finally:
            timer.cancel()
        return waiter.granted[0]

    def _new(self, bulkhead: Bulkhead) -> Connection:
        loop = self.loop
        age = bulkhead.limits.max_age_seconds * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311  # not a secret
        if self._round is None:
            self._round = Round(loop)
        return Connection(loop, bulkhead, f"provider {bulkhead.origin.name}", loop.time() + age, self._round)

    def stats(self) -> list[dict[str, object]]:
        """For /status: the numbers of each origin."""
        return [bulkhead.stats() for bulkhead in self._bulkheads.values()]

    async def aclose(self) -> None:
        """Close every connection, at once."""
        self.closed = True
        for bulkhead in self._bulkheads.values():
            bulkhead.close()
        await asyncio.sleep(0)  # transports tell of their closing in the loop's next round

    def __repr__(self) -> str:
        return f"<Pool {'; '.join(map(repr, self._bulkheads.values())) or 'empty'}>"


def _time_out(future: asyncio.Future[None], name: str) -> None:
    if not future.done():
        future.set_exception(_exhausted(name))


def _exhausted(name: str) -> PoolExhausted:
    return PoolExhausted(f"all connections to provider {name} are busy", retry_after=1.0)
