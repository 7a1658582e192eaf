"""What may be asked beyond one try a request: retries, hedges, requests at once, and which of several keys. Pure.

No load is multiplied: each class answers one question in constant time, counts what it allowed, and is told `now`.
"""

from __future__ import annotations

from typing import Final

from sidecar.rolling import Rolling

_RETRY_SPAN: Final = 5.0
_HEDGE_SPAN: Final = 60.0

_START: Final = 100.0
_LEAST: Final = 4.0
_MOST: Final = 1000.0
_CUT: Final = 0.9
_CUT_SECONDS: Final = 1.0  # refusals nearer to each other than this are one event
_RAMP_SECONDS: Final = 10.0


class RetryBudget:
    """Retries of the whole process. One may go if two bounds allow it:

    - at once: fewer are under way than `percent` of the active requests, or than `minimum` where that is more;
    - in any 5 s: at most `percent` of the requests that came in them, or `per_second` x 5 where that is more.

    The first bound alone would double the load of a provider that fails fast: a retry that ends at once makes room for
    the next. The second alone would let 5 s of retries go in one burst. So under steady failure a busy process sends
    `percent` more, 1.2 times the load, and a quiet one at most `per_second`. The two are not added up, and with
    `per_second` = 0 no traffic exceeds 1.2 times. 200 requests in 5 s, all refused: at most max(50, 40) retries.
    """

    __slots__ = ("_allowance", "_minimum", "_seen", "_share", "_under_way")

    def __init__(self, percent: float = 20, minimum: int = 3, per_second: float = 10.0) -> None:
        self._share = percent / 100
        self._minimum = minimum
        self._allowance = per_second * _RETRY_SPAN
        self._seen = Rolling(_RETRY_SPAN)  # requests; marked: retries
        self._under_way = 0

    def request(self, now: float) -> None:
        """A request came in. Without this, `per_second` is all there is."""
        seen = self._seen  # Rolling.add, without the call: this is done for each request
        if now >= seen.ends:
            seen.roll(now)
        seen.total += 1
        seen.totals[seen.slot] += 1

    def take(self, active: int, now: float) -> bool:
        """May one retry go, while `active` requests are under way, its own included? If so, it counts as under way."""
        if self._under_way >= max(self._minimum, active * self._share):
            return False
        seen = self._seen
        seen.roll(now)
        if seen.marked + 1 > max(self._allowance, seen.total * self._share):
            return False
        seen.mark(now)
        self._under_way += 1
        return True

    def give_back(self) -> None:
        """A retry that was taken has ended, however it did."""
        assert self._under_way > 0, "a retry ended that had not been taken"
        self._under_way -= 1

    def __repr__(self) -> str:
        return f"<RetryBudget {self._under_way} under way, {self._seen.marked} for {self._seen.total} requests>"


class HedgeBudget:
    """Second requests sent to win time: at most `percent` of the requests of the last minute, or one, if that is more.

    The one is for the quiet process: its single request may stall, too.
    """

    __slots__ = ("_seen", "_share")

    def __init__(self, percent: float = 5) -> None:
        self._share = percent / 100
        self._seen = Rolling(_HEDGE_SPAN)  # requests; marked: hedges

    def request(self, now: float) -> None:
        """A request came in that might be hedged."""
        self._seen.add(now)

    def take(self, now: float) -> bool:
        """May one more go?"""
        seen = self._seen
        seen.roll(now)
        if not self._share or seen.marked + 1 > max(1.0, seen.total * self._share):
            return False
        seen.mark(now)
        return True

    def __repr__(self) -> str:
        return f"<HedgeBudget {self._seen.marked} for {self._seen.total} requests>"


class Aimd:
    """How many requests one provider is sent at once, found by its refusals (429, 529, 503, time-outs).

    Refused: a tenth less, once a second at most, as a burst of refusals tells one thing. Answered while at least half
    of the limit is in use: more. A whole one each would double the limit in every round trip and overshoot without end.
    So after a cut it grows by one in a round trip (a share of one each), and faster with the square of the time since,
    as CUBIC does, until it is a whole one again: where answers take long, a brown-out would otherwise last for hours.
    """

    __slots__ = ("_cut_at", "_limit")

    def __init__(self) -> None:
        self._limit = _START
        self._cut_at = float("-inf")

    @property
    def limit(self) -> int:
        """At most so many at once."""
        return int(self._limit)

    def success(self, in_flight: int, now: float) -> None:
        """One was answered while `in_flight` were under way."""
        if in_flight * 2 < self._limit:
            return  # a limit that was not felt has not been tried
        step = 1.0 + ((now - self._cut_at) / _RAMP_SECONDS) ** 2
        self._limit = min(_MOST, self._limit + min(1.0, step / self._limit))

    def throttled(self, now: float) -> None:
        """One was refused for there being too many, or timed out."""
        if now - self._cut_at >= _CUT_SECONDS:
            self._cut_at = now
            self._limit = max(_LEAST, self._limit * _CUT)

    def __repr__(self) -> str:
        return f"<Aimd {self.limit} at once>"


class Keys:
    """The keys of one provider, by their index, in turn. A refused one cools down; the others go on."""

    __slots__ = ("_next", "until")

    def __init__(self, count: int) -> None:
        self.until = [float("-inf")] * count
        self._next = 0

    def pick(self, now: float) -> int | None:
        """The next that is not cooling; None when all are."""
        untils = self.until
        count = len(untils)
        if count == 1:
            return 0 if now >= untils[0] else None
        for step in range(count):
            index = (self._next + step) % count
            if now >= untils[index]:
                self._next = index + 1
                return index
        return None

    def cool(self, index: int, until: float) -> None:
        """Leave this one alone until then. What it was told before is not shortened."""
        self.until[index] = max(self.until[index], until)

    def rests(self, index: int, now: float) -> bool:
        """Is this one left alone?"""
        return now < self.until[index]

    def retry_after(self, now: float) -> float:
        """Seconds until one may be picked."""
        return max(0.0, min(self.until, default=now) - now)

    def __len__(self) -> int:
        return len(self.until)

    def __repr__(self) -> str:
        return f"<Keys {len(self)}>"
