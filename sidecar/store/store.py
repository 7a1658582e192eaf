"""The store that several sidecars share: their limits' decisions, the slots they hold, how many they are, and bytes.

No request waits for it longer than BUDGET_SECONDS, and nobody at all while it is down: whoever asks is told so at
once, and does without. It comes back by itself. What of it is lost meanwhile (it was emptied, or another took over) is
made good by the next beat of each sidecar's heart, which renews the slots that are held.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from sidecar.clock import now
from sidecar.config import Store as Settings
from sidecar.store.resp import ReplyError, command
from sidecar.store.scripts import BEAT, DECIDE, RENEW, SETTLE, SIDECARS, Keys, Script
from sidecar.store.servers import Servers, connect
from sidecar.store.wire import GRACE_SECONDS, LOST, Done, Lane

LEASE_SECONDS: Final = 5.0  # that a slot is held after its sidecar's last heartbeat
BEAT_SECONDS: Final = 1.0
READY_SECONDS: Final = 1.0  # that a start is put off until the store has been found
BUDGET_SECONDS: Final = 0.045  # that one request waits for it, for all that it asks
_BYTES_SECONDS: Final = 0.02  # for bytes: whoever cannot have them does without
LOOK_SECONDS: Final = BUDGET_SECONDS - _BYTES_SECONDS - GRACE_SECONDS  # who has waited longer asks for none
_MOST_IDS: Final = 500  # renewed by one command
_ELSEWHERE: Final = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
_LOADS: Final = [command("SCRIPT", "LOAD", each.text) for each in (DECIDE, SETTLE, RENEW, BEAT)]
RESULTS: Final = ("answered", "refused", "lost", "down")


class Store:
    """`open` it on a loop; `sidecars` are those that were alive when last seen, `processes` where none were.

    `tell` gets a line for the log when it comes or goes. Bytes go by connections of their own, so that no decision
    waits behind a long value.
    """

    def __init__(self, settings: Settings, processes: int, tell: Callable[[dict[str, Any]], object]) -> None:
        self.place = settings.url
        self.sidecars = processes
        self._settings = settings
        self._tell = tell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._decisions: Servers | None = None
        self._values: Servers | None = None  # once one was asked for
        self._beating: asyncio.TimerHandle | None = None
        self._held: dict[bytes, dict[bytes, None]] = {}  # ids of leases, by their key
        self._name = b""
        self._serial = itertools.count()
        self._why = ""  # it was last lost
        self._known = False  # whether it is there
        self._last: tuple[str | None, ...] = ()  # what was told: why it is down, None where it is up
        self._waits: list[asyncio.Future[None]] = []
        self._calls: Counter[str] = Counter()
        self._waited = 0.0  # seconds, for all answers
        self._longest = 0.0
        self.local = 0  # decisions that were made without it

    def open(self) -> None:
        """Connect, on the running loop. Once more on another loop, as a process of tests does it."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        for servers in (self._decisions, self._values):
            if servers is not None and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(servers.close)
        self._loop = loop
        self._name = os.urandom(8).hex().encode()
        self._held.clear()
        self._known = False
        self._values = None
        self._decisions = connect(self.place, self._settings.tls_ca, _LOADS, self._told)
        self._beat()

    async def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it is known whether the store is there, at most so long: before requests come."""
        waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits.append(waits)
        timer = asyncio.get_running_loop().call_later(seconds, _end, waits)
        if not self._known:
            await waits
        timer.cancel()
        self._waits.remove(waits)

    async def aclose(self) -> None:
        """Say that this one is no more, and close."""
        if self._loop is not asyncio.get_running_loop():
            return
        self._loop = None
        if self._beating is not None:
            self._beating.cancel()
        self._send(SIDECARS, command("ZREM", SIDECARS, self._name))
        for servers in (self._decisions, self._values):
            if servers is not None:
                servers.close()
        self._decisions = self._values = None

    @property
    def up(self) -> bool:
        return self._decisions is not None and self._decisions.up

    # -- decisions

    def ask(self, script: Script, keys: Sequence[bytes], parts: Sequence[str | bytes | int], done: Done) -> bool:
        """Run a script; `done` gets what it answers, or LOST. False: the store is down, and there will be nothing."""
        return self._call(self._decisions, keys[0], script.known(len(keys), *keys, *parts), done)

    def settle(self, keys: Keys, parts: Sequence[str | bytes | int]) -> None:
        """Run SETTLE, and do not wait."""
        self.ask(SETTLE, (keys.rates,), parts, _unheard)

    def lease(self) -> bytes:
        """An id for a slot: no other's."""
        return b"%b:%x" % (self._name, next(self._serial))

    def hold(self, keys: Keys, lease: bytes) -> None:
        """A slot is ours, so that it is renewed from now on."""
        self._held.setdefault(keys.leases, {})[lease] = None

    def free(self, keys: Keys, lease: bytes) -> None:
        """A slot is given back. Where that cannot be said, it is not renewed, and ends by itself."""
        self._held.get(keys.leases, {}).pop(lease, None)
        self._send(keys.leases, command("ZREM", keys.leases, lease))

    # -- bytes (cache.remote.Bytes): what is kept for others may be lost at any time

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is kept under several keys; None of what is not, or cannot be had in time."""
        got = await self._values_of([(key, command("GET", key)) for key in keys])
        return [each if type(each) is bytes else None for each in got]

    async def set_many(self, pairs: Sequence[tuple[bytes, bytes]], seconds: float) -> bool:
        """Keep bytes for so long (0: until they are deleted, or Redis needs the room). Whether all of them are."""
        lasts = ("PX", max(1, int(seconds * 1000))) if seconds > 0 else ()
        got = await self._values_of([(key, command("SET", key, value, *lasts)) for key, value in pairs])
        return all(each == b"OK" for each in got)

    async def delete(self, key: bytes) -> int:
        """How many there were."""
        (got,) = await self._values_of([(key, command("DEL", key))])
        return got if type(got) is int else 0

    async def _values_of(self, asked: Sequence[tuple[bytes, bytes]]) -> list[Any]:
        """The replies to commands, each with the key that it goes by; LOST instead of some."""
        if self._values is None:
            self._values = connect(self.place, self._settings.tls_ca, [], _unheard, _BYTES_SECONDS)
        missing = len(asked)
        found: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        got: list[Any] = [LOST] * missing

        def came(place: int, reply: Any) -> None:
            nonlocal missing
            got[place] = reply
            missing -= 1
            if not missing and not found.done():
                found.set_result(None)

        for place, (key, packed) in enumerate(asked):
            done = partial(came, place)
            if not self._call(self._values, key, packed, done):
                done(LOST)
        if asked:
            await found
        return got

    # -- inside

    def _call(self, servers: Servers | None, key: bytes, packed: bytes, done: Done) -> bool:
        lane = None if servers is None else servers.lane(key)
        if servers is None or lane is None:
            self._calls["down"] += 1
            return False
        began = now()

        def answered(reply: Any) -> None:
            done(self._judged(reply, now() - began, servers, lane))

        if lane.call(packed, answered):
            return True
        self._calls["down"] += 1
        return False

    def _judged(self, reply: Any, seconds: float, servers: Servers, lane: Lane) -> Any:
        """A reply, counted. One that is an error is LOST, and what it says of who answers is heeded."""
        if reply is LOST:
            self._calls["lost"] += 1
            return LOST
        self._waited += seconds
        self._longest = max(self._longest, seconds)
        if type(reply) is not ReplyError:
            self._calls["answered"] += 1
            return reply
        self._calls["refused"] += 1
        loop = asyncio.get_running_loop()
        if reply.kind == "NOSCRIPT":
            for load in _LOADS:
                lane.call(load, _unheard)
        elif reply.kind in _ELSEWHERE:
            loop.call_soon(servers.moved)
        else:
            loop.call_soon(lane.lost, f"it refuses: {reply.kind}")
        return LOST

    def _send(self, key: bytes, packed: bytes) -> None:
        lane = self._decisions.lane(key) if self._decisions is not None else None
        if lane is not None:
            lane.call(packed, _unheard)

    def _beat(self) -> None:
        assert self._loop is not None
        self._beating = self._loop.call_later(BEAT_SECONDS * random.uniform(0.8, 1.0), self._beat)  # noqa: S311
        lasts = int(LEASE_SECONDS * 1e6)
        self.ask(BEAT, (SIDECARS,), (self._name, lasts), self._counted)
        for key, ids in self._held.items():
            for some in _some(tuple(ids)):
                self.ask(RENEW, (key,), (lasts, *some), _unheard)

    def _counted(self, sidecars: Any) -> None:
        if type(sidecars) is int:
            self.sidecars = max(1, sidecars)

    def _told(self, why: str | None) -> None:
        self._known = True
        for each in self._waits:
            _end(each)
        self._why = why or self._why
        if self._last == (why,):  # of several servers, or said again by one
            return
        self._last = (why,)
        self._say()

    def _say(self) -> None:
        for why in self._last:
            self._tell({"event": "store", "up": why is None, **({"why": why} if why else {})})

    def log_opened(self) -> None:
        """Tell of it again where it is down: what was told before there was a log is lost."""
        if self._last != (None,):
            self._say()

    # -- what it has to say

    def stats(self) -> dict[str, object]:
        """For /status."""
        return {
            "url": self.place.source,
            "up": self.up,
            "sidecars": self.sidecars,
            "calls": {name: self._calls[name] for name in RESULTS},
            "longest_wait_seconds": round(self._longest, 6),
            "local_decisions": self.local,
            "last_lost": self._why,
        }

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4, behind the ledger's."""
        return "\n".join([*self._families(), ""]).encode()

    def _families(self) -> Iterator[str]:
        yield "# HELP sidecar_store_up Whether the shared store answers."
        yield "# TYPE sidecar_store_up gauge"
        yield f"sidecar_store_up {int(self.up)}"
        yield "# HELP sidecar_store_sidecars Sidecars that share it, when last seen."
        yield "# TYPE sidecar_store_sidecars gauge"
        yield f"sidecar_store_sidecars {self.sidecars}"
        yield "# HELP sidecar_store_calls_total Questions to the store, by what came of them."
        yield "# TYPE sidecar_store_calls_total counter"
        for name in RESULTS:
            yield f'sidecar_store_calls_total{{result="{name}"}} {self._calls[name]}'
        yield "# HELP sidecar_store_wait_seconds_total Seconds waited for its answers."
        yield "# TYPE sidecar_store_wait_seconds_total counter"
        yield f"sidecar_store_wait_seconds_total {round(self._waited, 6)}"
        yield "# HELP sidecar_store_local_decisions_total Decisions by a local share of a limit, for want of the store."
        yield "# TYPE sidecar_store_local_decisions_total counter"
        yield f"sidecar_store_local_decisions_total {self.local}"

    def __repr__(self) -> str:
        held = sum(map(len, self._held.values()))
        return f"<Store {self.place.source} {'up' if self.up else 'down'}, {held} leases held>"


def _unheard(reply: Any) -> None:
    """Of what nobody waits for."""


def _end(waits: asyncio.Future[None]) -> None:
    if not waits.done():
        waits.set_result(None)


def _some(ids: tuple[bytes, ...]) -> Iterator[tuple[bytes, ...]]:
    for start in range(0, len(ids), _MOST_IDS):
        yield ids[start : start + _MOST_IDS]
