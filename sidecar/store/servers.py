"""Which server a key is asked of: the only one, the master that sentinels name, or the cluster's that has its slot."""

from __future__ import annotations

import asyncio
import binascii
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from sidecar.config import Place
from sidecar.store.resp import Broken, ReplyError, command
from sidecar.store.wire import ANSWER_SECONDS, CONNECT_SECONDS, Dial, Lane, ask, dialer, greeting

SLOTS: Final = 16384
_REFRESH_SECONDS: Final = 1.0  # at the least between two looks at who has which slots

Told = Callable[[str | None], object]


class Servers(Protocol):
    """One of the classes below."""

    def lane(self, key: bytes) -> Lane | None:
        """Where a key is asked for; None: that is not known."""
        ...

    def moved(self) -> None:
        """Somebody else has the key: it is time to ask who."""
        ...

    @property
    def up(self) -> bool: ...

    def close(self) -> None: ...


class Single:
    """One server, behind its own address or behind that of its sentinels."""

    def __init__(self, dial: Dial, first: Callable[[], list[bytes]], told: Told, answer_seconds: float) -> None:
        self._lane = Lane(dial, first, told, answer_seconds)

    def lane(self, key: bytes) -> Lane | None:
        return self._lane

    def moved(self) -> None:
        self._lane.lost("it is one of a cluster: say redis+cluster://")

    @property
    def up(self) -> bool:
        return self._lane.up

    def close(self) -> None:
        self._lane.close()


class Cluster:
    """Several servers with so many slots each. Who has which is asked of any of them, again when one says otherwise."""

    def __init__(
        self,
        place: Place,
        context: ssl.SSLContext | None,
        first: Callable[[], list[bytes]],
        told: Told,
        answer_seconds: float,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._loop = asyncio.get_running_loop()
        self._seeds = place.addresses
        self._place = place
        self._context = context
        self._first = first
        self._told = told
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._slots: list[Lane | None] = [None] * SLOTS
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # until the next may be made
        self._again = False
        self.moved()

    def lane(self, key: bytes) -> Lane | None:
        return self._slots[slot(key)]

    def moved(self) -> None:
        self._again = True
        if self._task is None and self._timer is None:
            self._again = False
            self._task = self._loop.create_task(self._look())

    @property
    def up(self) -> bool:
        return bool(self._lanes) and all(lane.up for lane in self._lanes.values())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for lane in self._lanes.values():
            lane.close()

    async def _look(self) -> None:
        """Ask the servers one after another, those that are known first, until one says who has which slots."""
        why = "nobody says who has which slots"
        try:
            for address in dict.fromkeys((*self._lanes, *self._seeds)):
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        rows = await ask(dialer(*address, context=self._context), self._question())
                    self._take(rows, address)
                    why = ""
                    break
                except (TimeoutError, OSError, Broken, ReplyError) as error:
                    why = f"nobody says who has which slots: {str(error) or 'no answer in time'}"
        finally:
            self._task = None
        if why:
            self._again = True
            self._told(why)
        self._timer = self._loop.call_later(_REFRESH_SECONDS, self._rested)

    def _question(self) -> list[bytes]:
        return [*greeting(self._place.user, self._place.password, 0)[:-1], command("CLUSTER", "SLOTS")]

    def _rested(self) -> None:
        self._timer = None
        if self._again:
            self.moved()

    def _take(self, rows: Any, asked: tuple[str, int]) -> None:
        """A row: first slot, last slot, the master's host and port, then replicas. No host: that which was asked."""
        slots: list[Lane | None] = [None] * SLOTS
        lanes: dict[tuple[str, int], Lane] = {}
        for first, last, (host, port, *_), *_ in rows:
            address = (host.decode() if host else asked[0], port)
            lane = lanes.get(address) or self._lanes.get(address)
            if lane is None:
                lane = Lane(dialer(*address, context=self._context), self._first, self._told, self._answer_seconds)
            lanes[address] = lane
            slots[first : last + 1] = [lane] * (last + 1 - first)
        before, self._lanes, self._slots = self._lanes, lanes, slots
        for address, lane in before.items():
            if address not in lanes:
                lane.close()


def slot(key: bytes) -> int:
    """Of a cluster's 16384: by what stands between the first braces, if anything does."""
    start = key.find(b"{")
    if start >= 0 and (end := key.find(b"}", start)) > start + 1:
        key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def connect(
    place: Place, tls_ca: str | None, scripts: list[bytes], told: Told, answer_seconds: float = ANSWER_SECONDS
) -> Servers:
    """The servers of a place. `scripts`: the commands that make them known there. `told`: as a lane's."""
    context = ssl.create_default_context(cafile=tls_ca) if place.tls else None

    def first() -> list[bytes]:
        *login, ping = greeting(place.user, place.password, place.db)
        return [*login, *scripts, ping]

    if place.form == "cluster":
        return Cluster(place, context, first, told, answer_seconds)
    if place.form == "sentinel":
        return Single(_through_sentinels(place, context), first, told, answer_seconds)
    host, port = place.addresses[0] if place.addresses else ("", 0)
    return Single(dialer(host, port, path=place.path, context=context), first, told, answer_seconds)


def _through_sentinels(place: Place, context: ssl.SSLContext | None) -> Dial:
    """Connect to whom the first sentinel that answers names. They are asked each time: it may be another by now."""
    question = [command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service)]

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> object:
        why = "no sentinel knows the service"
        for host, port in place.addresses:
            try:
                async with asyncio.timeout(CONNECT_SECONDS / (len(place.addresses) + 1)):
                    found = await ask(dialer(host, port, context=context), question)
            except (TimeoutError, OSError, Broken, ReplyError) as error:
                why = str(error) or "no sentinel answered in time"
                continue
            if found is not None:
                return await dialer(found[0].decode(), int(found[1]), context=context)(protocol)
        raise ConnectionError(why)

    return dial
