"""What an app does about memory: whoever is to give way is told, and what is free is given back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.clock import now
from sidecar.memory.cgroups import PROC, bound
from sidecar.memory.room import Room, spare
from sidecar.memory.watch import SHED, SHRINK, SPARE, Watch

AGAIN_SECONDS: Final = 2.0  # while a level lasts: between two times that whoever is to give way is told


class Pressure:
    """One for a process. `workers`: processes like this one in the container. `guest`: in somebody else's process."""

    def __init__(self, workers: int, *, guest: bool, proc: Path = PROC) -> None:
        found = bound(proc)
        self.bytes = found.bytes  # that shares are taken of
        self.workers = workers
        self.room = Room(spare(found.bytes, workers) // 2 or None)
        self.watch = Watch(found, self._act, workers=workers, worst=SHRINK if guest else SHED, proc=proc)
        self._calls: list[Callable[[int], object]] = []
        self._level = 0  # that was told
        self._told = 0.0  # when

    @property
    def shedding(self) -> bool:
        """New requests are to be refused."""
        return self.watch.level >= SHED

    def on_level(self, call: Callable[[int], object]) -> None:
        """Call with the level, when it changes and every two seconds above 0. It must not wait."""
        self._calls.append(call)

    def share(self, percent: float, most: int) -> int:
        """Bytes that this process may fill for a purpose that all workers may take so much for; at most so many."""
        return min(most, int(self.bytes * percent / 100) // self.workers) if self.bytes else most

    def give_way(self, has: int, most: int) -> int:
        """Bytes that something which can be had again may keep at this level, where it has some now."""
        level = self.watch.level
        return most if not level else 0 if level >= SPARE else min(has // 2, most)

    def _act(self, level: int) -> None:
        """What is let go is seen only once it is given back, so that nobody is to give way twice for one thing."""
        moment = now()
        if level == self._level and moment - self._told < AGAIN_SECONDS:
            return
        self._level, self._told = level, moment
        for call in self._calls:
            call(level)
        if level:
            trim()

    def stats(self) -> dict[str, int | None]:
        """For /status. Without a limit there is none, nor what is used of it."""
        memory, room = self.watch.memory, self.room
        return {
            "limit_bytes": None if memory is None else memory.limit,
            "used_bytes": None if memory is None else memory.used,
            "level": self.watch.level,
            "bodies_bytes": room.held,
            "bodies_most_bytes": room.most,
            "bodies_refused": room.refused,
        }

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4, behind the ledger's."""
        out: list[str] = []
        for name, value in self.stats().items():
            if value is not None:
                kind, about = _ABOUT[name]
                full = f"sidecar_memory_{name}{'_total' if kind == 'counter' else ''}"
                out += [f"# HELP {full} {about}", f"# TYPE {full} {kind}", f"{full} {value}"]
        return "\n".join([*out, ""]).encode()

    def __repr__(self) -> str:
        return f"<Pressure {self.watch!r}, {self.room!r}>"


_ABOUT: Final = {
    "limit_bytes": ("gauge", "The container's limit that is nearest."),
    "used_bytes": ("gauge", "What is used of it, without what the kernel can take back."),
    "level": ("gauge", "0: normal, 1: the cache gives way, 2: connections do, 3: new requests are refused."),
    "bodies_bytes": ("gauge", "Bodies that are held, in bytes."),
    "bodies_most_bytes": ("gauge", "Bytes that may be, each body counted twice."),
    "bodies_refused": ("counter", "Bodies that there was no room for."),
}


def trim() -> bool:
    """Give back what glibc keeps for later, which may be half of all: in up to 20 ms, or in 0.2 where it keeps none."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False
