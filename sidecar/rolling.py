"""Two counts over the last seconds, in constant time and space: what budgets and breakers go by. Pure."""

from __future__ import annotations

from typing import Final

_SLOTS: Final = 11  # ten make the span, and the newest is not full yet
_NONE: Final = (0,) * _SLOTS


class Rolling:
    """How many there were, and how many were marked, in the last `span` seconds, or up to a tenth of it more."""

    __slots__ = ("_marks", "_number", "_width", "ends", "marked", "slot", "total", "totals")

    def __init__(self, span: float) -> None:
        self._width = span / (_SLOTS - 1)
        self.totals = [0] * _SLOTS
        self._marks = [0] * _SLOTS
        self._number = 0  # of the newest slot, since the clock's zero
        self.slot = 0  # where it stands
        self.ends = float("-inf")
        self.total = 0
        self.marked = 0

    def add(self, now: float) -> None:
        """One more."""
        if now >= self.ends:
            self.roll(now)
        self.total += 1
        self.totals[self.slot] += 1

    def mark(self, now: float) -> None:
        """One is marked: this one, or one that came before."""
        if now >= self.ends:
            self.roll(now)
        self.marked += 1
        self._marks[self.slot] += 1

    def roll(self, now: float) -> None:
        """Forget what is too old: before the counts are read. A clock that goes back changes nothing."""
        if now < self.ends:
            return
        number = int(now // self._width)
        if number - self._number >= _SLOTS:  # nothing is young enough, as with a target that is seldom asked
            self.totals[:] = self._marks[:] = _NONE
            self.total = self.marked = 0
            self._number = number
        for each in range(max(self._number + 1, number - _SLOTS + 1), number + 1):
            slot = each % _SLOTS
            self.total -= self.totals[slot]
            self.marked -= self._marks[slot]
            self.totals[slot] = self._marks[slot] = 0
        self._number = max(number, self._number)
        self.slot = self._number % _SLOTS
        self.ends = (self._number + 1) * self._width

    def __repr__(self) -> str:
        return f"<Rolling {self.marked} of {self.total}>"
