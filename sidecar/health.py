"""How each target and provider fares: breakers, latencies, what is in flight, and the better of two. Pure.

Nothing here waits, reads a clock or throws dice: `now` (seconds) and `random` are given. What the process has learned
outlives a reload of its configuration.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Literal

import msgspec

from sidecar import config
from sidecar.budget import Aimd, Keys
from sidecar.rolling import Rolling

BreakerSettings = config.Breaker

_SPAN: Final = 30.0
_ENOUGH: Final = 20  # requests, before their share of failures tells anything
_JITTER: Final = 0.5
_PROBE_SECONDS: Final = 10.0  # one that hangs keeps the next out for so long, not until it times out
_CHANCE: Final = 1e-6  # a row of failures that is likelier than this, given how many fail anyway, is no news

_DECAY_SECONDS: Final = 10.0
_REMEMBERED: Final = 200
_REMEMBERED_SECONDS: Final = 600.0
_PERCENTILE: Final = 0.95

_MOST_TARGETS: Final = 4096  # models' names come from clients
_ENOUGH_ROWS: Final = 4  # so that who wants longer rows wants more evidence of any kind
_LOOKED_AT: Final = 32  # of the oldest, for one to drop


class Breaker:
    """Whether a target is asked at all: it is left alone when it keeps failing, then tried with one request at a time.

        closed     --(5 failures in a row, or under half of at least 20 succeed in 30 s)-->  open
        open       --(its time is over, and a request enters: the probe)-->  half-open
        half-open  --(the probe succeeds)-->  closed
        half-open  --(the probe fails)-->  open, for twice as long
        half-open  --(the probe is abandoned, or says nothing for 10 s)-->  the next to enter is a probe, too

    Three things keep it from flapping. Where many fail anyway, a row must be longer than chance would make it. One that
    opens again stays open twice as long, unless the target had recovered in between: it had answered 20 times, or for
    as long as it had been left alone. And what was sent in one period says nothing in the next: whoever ends a request
    gives the `turn` that it read after `enter`. (Without, it is taken to be of the present one, and a request that was
    sent before the breaker opened can be taken for the probe.)
    """

    __slots__ = (
        *("_closed_at", "_in_row", "_opens_for", "_probing", "_random", "_seen"),
        *("cuts", "settings", "turn", "until"),
    )

    def __init__(self, settings: BreakerSettings, random: Callable[[], float]) -> None:
        self.settings = settings
        self.turn = 0  # changes when it opens and when it closes
        self._random = random
        self.until: float | None = None  # None: closed; else when the next request may enter
        self._probing = False
        self._in_row = 0
        self.cuts = 0  # answers that broke off, since one ended well: set to 0 by whoever sees that
        self._seen = Rolling(_SPAN)  # what ended; marked: failures
        self._opens_for = 0.0
        self._closed_at = float("-inf")

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        """An open one whose time is over is open until a request tries."""
        if self.until is None:
            return "closed"
        return "half-open" if self._probing else "open"

    def ready(self, now: float) -> bool:
        """Would a request be let in now? Takes nothing."""
        return self.until is None or now >= self.until

    def enter(self, now: float) -> bool:
        """Let a request in, or not. Whoever is let in tells how it ended: success, failure, throttled or abandon."""
        if self.until is None:
            return True
        if now < self.until:
            return False
        self._probing = True
        self.until = now + _PROBE_SECONDS
        return True

    def success(self, now: float, turn: int | None = None) -> None:
        """It answered."""
        if turn is not None and turn != self.turn:
            return
        if self.until is None:
            self._in_row = 0
            seen = self._seen  # Rolling.add, without the call: this is done for each request
            if now >= seen.ends:
                seen.roll(now)
            seen.total += 1
            seen.totals[seen.slot] += 1
        elif self._probing:
            self._probing = False
            self.until = None
            self._closed_at = now
            self._in_row = self.cuts = 0
            self._seen = Rolling(_SPAN)
            self.turn += 1

    def failure(self, now: float, turn: int | None = None) -> None:
        """It could not be reached, broke off, was silent for too long, or said that it is broken (5xx)."""
        if turn is not None and turn != self.turn:
            return
        if self.until is None:
            self._in_row += 1
            self._seen.add(now)
            self._seen.mark(now)
            if self._fails():
                self._open(now)
        elif self._probing:
            self._open(now)

    def cut(self, now: float, turn: int, others: int) -> None:
        """An answer broke off that `success` had been told of, while so many others were under way at the target.

        A row of them is one where none ended well and fewer go on than broke off: where answers are long, many that
        are well have not ended yet, and their beginnings alone say that the target lives.
        """
        if turn != self.turn or self.until is not None:
            return
        self.cuts += 1
        self._seen.mark(now)
        if self._fails() or self.cuts >= max(self.settings.consecutive_failures, others + 1):
            self._open(now)

    def throttled(self, now: float, turn: int | None = None) -> None:
        """It refused for there being too many (429): that is no failure, but does not make a probe succeed either."""
        if self._probing and turn in (None, self.turn):
            self._open(now)

    def abandon(self, now: float, turn: int | None = None) -> None:
        """It was cancelled by us or by the client, or its end says nothing of health: another may be the probe."""
        if self._probing and turn in (None, self.turn):
            self._probing = False
            self.until = now

    def retry_after(self, now: float) -> float:
        """Seconds until a request may enter. While a probe is under way that is a guess."""
        if self.until is None or now >= self.until:
            return 0.0
        return min(self.until - now, self.settings.open_seconds) if self._probing else self.until - now

    def _fails(self) -> bool:
        """Is it time to open, at this failure?"""
        seen, row = self._seen, self._in_row
        enough = max(_ENOUGH, _ENOUGH_ROWS * self.settings.consecutive_failures)
        succeeded = seen.total - seen.marked
        if seen.total >= enough and succeeded * 2 < seen.total - 1:  # without this one: every other one failing is half
            return True
        if row < self.settings.consecutive_failures:
            return False
        before, failed = seen.total - row, seen.marked - row
        return before < _ENOUGH or failed <= 0 or (failed / before) ** row < _CHANCE

    def _open(self, now: float) -> None:
        settings, seen = self.settings, self._seen
        recovered = seen.total - seen.marked >= _ENOUGH or now - self._closed_at >= self._opens_for
        again = self._probing or not recovered
        self._opens_for = min(self._opens_for * 2 if again else settings.open_seconds, settings.max_open_seconds)
        self.until = now + self._opens_for * (1 - _JITTER * self._random())
        self._probing = False
        self.turn += 1

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._seen.marked} of {self._seen.total} failed, {self._in_row} in a row>"


class Latency:
    """Time to first token of a target: an estimate that takes a worse one at once and forgets it slowly; a rolling p95.

    An attempt that was cancelled has waited, too: left out, stalls would go unseen, and the p95 would fall.
    """

    __slots__ = ("_at", "_estimate", "_recent", "_sorted")

    def __init__(self) -> None:
        self._estimate: float | None = None
        self._at = 0.0
        self._recent: deque[tuple[float, float]] = deque()  # (when, seconds), oldest first: the last 200 of ten minutes
        self._sorted: list[float] = []  # their seconds

    def observe(self, seconds: float, now: float) -> None:
        """A first token came after so many seconds."""
        last = self._estimate
        if last is not None:
            weight = self._weight(now)
            last = max(seconds, last * weight + seconds * (1 - weight))
        self._estimate = seconds if last is None else last
        self._at = max(now, self._at)
        if len(self._recent) == _REMEMBERED:
            self._forget()
        self._recent.append((now, seconds))
        insort(self._sorted, seconds)

    def estimate(self, now: float) -> float | None:
        """Falls towards nothing while nobody asks the target, so that one that was slow is tried again."""
        return None if self._estimate is None else self._estimate * self._weight(now)

    def p95(self, now: float) -> float | None:
        """None while fewer than twenty are remembered: one of them is the p95."""
        while self._recent and self._recent[0][0] < now - _REMEMBERED_SECONDS:
            self._forget()
        count = len(self._sorted)
        return self._sorted[math.ceil(count * _PERCENTILE) - 1] if count >= _ENOUGH else None

    def _weight(self, now: float) -> float:
        return math.exp(min(0.0, self._at - now) / _DECAY_SECONDS)

    def _forget(self) -> None:
        _, seconds = self._recent.popleft()
        del self._sorted[bisect_left(self._sorted, seconds)]

    def __repr__(self) -> str:
        return f"<Latency {len(self._sorted)} remembered>"


class TargetHealth(msgspec.Struct, eq=False):
    """One target (`provider/model`). Whoever sends a request counts it in and out of `in_flight`."""

    breaker: Breaker
    latency: Latency
    keys: Keys  # its provider's, as they do at this target: providers limit each model by itself
    in_flight: int = 0


class Health:
    """All targets and providers of the process, kept over reloads.

    Targets are bounded in number: of the longest unused, one that is closed and idle is forgotten for a new one.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._targets: OrderedDict[str, TargetHealth] = OrderedDict()  # longest unused first
        self._aimds: dict[str, Aimd] = {}  # of the providers whose limit is adaptive, by name

    def target(self, key: str, settings: BreakerSettings, keys: int = 1) -> TargetHealth:
        """The target of this name, with its breaker's settings as they are from now on.

        Another number of keys begins anew; what runs goes on with those it was given.
        """
        found = self._targets.get(key)
        if found is None:
            if len(self._targets) >= _MOST_TARGETS:
                del self._targets[self._spare()]
            found = self._targets[key] = TargetHealth(Breaker(settings, self._random), Latency(), Keys(keys))
            return found
        self._targets.move_to_end(key)
        found.breaker.settings = settings
        if len(found.keys) != keys:
            found.keys = Keys(keys)
        return found

    def aimd(self, name: str, adaptive: bool) -> Aimd | None:
        """The limit that has been found for a provider, where it is adaptive. Else it is forgotten."""
        if not adaptive:
            self._aimds.pop(name, None)
            return None
        return self._aimds.setdefault(name, Aimd())

    def stats(self) -> list[dict[str, object]]:
        """For /status."""
        targets: list[dict[str, object]] = [
            {"target": key, "breaker": each.breaker.state, "in_flight": each.in_flight}
            for key, each in self._targets.items()
        ]
        return targets + [{"provider": name, "adaptive_limit": each.limit} for name, each in self._aimds.items()]

    def _spare(self) -> str:
        """The target to forget: the longest unused whatever its state, where none near it is closed and idle."""
        oldest = islice(self._targets.items(), _LOOKED_AT)
        idle = (key for key, each in oldest if not each.in_flight and each.breaker.state == "closed")
        return next(idle, None) or next(iter(self._targets))

    def __repr__(self) -> str:
        return f"<Health {len(self._targets)} targets, {len(self._aimds)} adaptive limits>"


def least_latency(candidates: Sequence[TargetHealth], now: float, random: Callable[[], float]) -> int:
    """The index of the better of two candidates drawn by chance: always the best would send all to one at once.

    Better is the sooner expected first token, times what is in flight already. One never asked goes first, with one
    request; until that is answered it goes last.
    """
    count = len(candidates)
    if count == 1:
        return 0
    first = int(random() * count)
    second = int(random() * (count - 1))
    second += second >= first
    return first if _expected(candidates[first], now) <= _expected(candidates[second], now) else second


def _expected(target: TargetHealth, now: float) -> tuple[int, float]:
    estimate = target.latency.estimate(now)
    if estimate is None:
        return (2 if target.in_flight else 0, target.in_flight)
    return (1, estimate * (target.in_flight + 1))
