"""Time in one place: the two clocks, and an alarm that is cheap to move.

Policies take `now` as an argument and never ask; whoever waits asks here. Tests replace `now` and `wall`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

now = time.monotonic  # noqa: TID251  # here they are; seconds; for durations and deadlines. uvloop's and asyncio's loop.time() run on the same clock
wall = time.time  # noqa: TID251  # seconds since the epoch; for dates shown to people and compared with other machines


class Alarm:
    """One deadline of one owner. Moving it later costs an assignment; only moving it earlier touches the loop's timers.

    Most deadlines of a proxy are pushed on by every byte and never fire, so a timer for each would be the main cost.
    """

    __slots__ = ("_handle", "_loop", "_ring", "_rings_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self.at: float | None = None  # None: not to ring; set to None, too, where a call is too much

    def set(self, at: float) -> None:
        """Ring at the loop time `at` (seconds, as `loop.time()`), instead of whenever it would have rung."""
        self.at = at
        if self._handle is not None:
            if self._rings_at <= at:
                return
            self._handle.cancel()
        self._rings_at = at
        self._handle = self._loop.call_at(at, self._fire)

    def clear(self) -> None:
        """Do not ring. The timer itself is left to lapse: most owners set a new deadline at once."""
        self.at = None

    def close(self) -> None:
        """Do not ring, ever; frees the timer and the reference to the owner."""
        self.at = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        if self.at is None:
            return
        if self._loop.time() + 0.001 >= self.at:  # timers of uvloop have a resolution of one millisecond
            self.at = None
            self._ring()
        else:
            self.set(self.at)
