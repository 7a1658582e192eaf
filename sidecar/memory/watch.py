"""How near a container is to its limit, looked at now and then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sidecar.memory.cgroups import PROC, SHORT, Bound, Files, Memory, opened, read

MARKS: Final = (0.80, 0.90, 0.95)  # of the limit: shrink, spare, shed
SHRINK, SPARE, SHED = 1, 2, 3
EASE: Final = 0.05  # below its mark a level ends
LOOK_SECONDS: Final = 0.5
SOON_SECONDS: Final = 0.1  # where memory is short
OURS: Final = 0.125  # of the limit, that all workers together must have for the higher levels to be of use
_PAGE_BYTES: Final = resource.getpagesize()


def level(before: int, share: float) -> int:
    """The level of a share of the limit, after that level."""
    reached = sum(share >= mark for mark in MARKS)
    return max(reached, min(before, sum(share >= mark - EASE for mark in MARKS)))


class Watch:
    """Looks at the container now and then, and calls `act` with the level: when it changes, and at each look above 0.

    It serves one loop at a time, from `start` to `stop`. `workers`: processes like this one in the container.
    """

    def __init__(
        self, bound: Bound, act: Callable[[int], object], *, workers: int = 1, worst: int = SHED, proc: Path = PROC
    ) -> None:
        self._bound = bound
        self._act = act
        self._workers = workers
        self._worst = worst
        self._statm = proc / "self/statm"
        self._files: list[Files] = []
        self._own: int | None = None  # the file of this process
        self._timer: asyncio.TimerHandle | None = None
        self.memory: Memory | None = None  # at the last look; None where nothing is watched
        self.level = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch on this loop from now on; nothing where nothing bounds us."""
        self.stop()
        if self._bound.groups:
            self._files = [Files(group) for group in self._bound.groups]
            self._own = opened(self._statm)
            self._look(loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for files in self._files:
            files.close()
        self._files = []
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.memory = memory = max(self._all(), key=lambda each: each.share, default=None)
        before, share = self.level, 0.0 if memory is None else memory.share
        self.level = level(before, share)
        if memory is not None and self.level > SHRINK and not self._ours(memory):
            self.level = SHRINK
        self.level = min(self.level, self._worst)
        self._timer = loop.call_later(SOON_SECONDS if share > SHORT else LOOK_SECONDS, self._look, loop)
        if self.level or before:
            self._act(self.level)

    def _all(self) -> Iterator[Memory]:
        for files in self._files:
            with contextlib.suppress(OSError, ValueError):  # the group is not there any more
                if (memory := files.look(self._bound.machine)) is not None:
                    yield memory

    def _ours(self, memory: Memory) -> bool:
        """Is enough of it this process's and its likes' for them to make a difference?"""
        if self._own is None:
            return True
        resident = int(read(self._own).split()[1]) * _PAGE_BYTES
        return resident * self._workers >= memory.limit * OURS

    def __repr__(self) -> str:
        return f"<Watch level {self.level}, {self.memory}>"
