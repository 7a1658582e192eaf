"""Rates and concurrency, per caller and per provider: synchronous decisions in memory.

A rate is GCRA with a burst of one period's allowance: 200 a minute lets 200 through at once, then one every 300 ms.

Concurrency over its bound waits in a queue of bounded length. A higher class goes first, always; a lower one can be
overtaken for as long as it waits, which is `wait_seconds` at most: then it is refused. Inside a class who came first
goes first, but for a handicap of what takes long, of half of `wait_seconds` at most: nobody is overtaken by who came
later than that. Whoever cannot get a slot within its patience, by the rate at which slots have freed of late, is
refused at once, and told the wait it would have had.

The queue is a sorted list: to find a place takes O(log n) comparisons, to take or leave it moves the pointers behind
it (a million take half a millisecond). Room, and a slot that frees for nobody, take constant time.

Nothing here waits, and `now` is given, but to who gives back a slot of all that are taken: it asks the clock. Whoever
holds a `Ticket` does the waiting.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from sidecar import clock
from sidecar.config import Queue
from sidecar.types import Permit, Refused, Wait

RANKS: Final = {"high": 0, "normal": 1, "low": 2}
_UNBOUNDED: Final = 1_000_000_000  # more than a configuration may say, and small enough to be compared fast
_PERIOD_SECONDS: Final = 60.0
_ROUNDING: Final = 1e-6  # seconds: a clock of many days has no finer steps when intervals are added to it
_RECENT_SECONDS: Final = 60.0  # without a slot that all were taken of, and what was learned is too old
_LEFT: Final = 0.1  # of the slots, at least, for a class: it must get some to be seen to get more
_HANDICAP: Final = 0.5  # of wait_seconds, of the longest
_LONG_TOKENS: Final = 8192  # of this cost, or more, are the longest
_USUAL_TOKENS: Final = 1024  # of an answer that nobody has bounded
_BYTES_A_TOKEN: Final = 64  # of a request: four are a token, and one is read in a sixteenth of the time of writing it

_serial = itertools.count()


class Ticket:
    """A place in a queue. `wake` is set by whoever waits, and called once there is an `answer`."""

    __slots__ = ("answer", "counter", "place", "wake")

    def __init__(self, counter: Counter, place: tuple[int, float, int]) -> None:
        self.counter = counter
        self.place = place  # class, time of arrival with its handicap, serial number: the least is next
        self.answer: Counter | Refused | None = None
        self.wake: Callable[[], object] = _nobody

    def __repr__(self) -> str:
        state = "waiting" if self.answer is None else "refused" if isinstance(self.answer, Refused) else "granted"
        return f"<Ticket {self.counter.key} {state}>"


_place = attrgetter("place")


def _nobody() -> None:
    """A ticket that nobody waits on yet."""


def cost(size: int, max_tokens: int | None) -> float:
    """How long a request of so many bytes will take, by a guess, from 0 to 1: what it may write counts most."""
    tokens = _USUAL_TOKENS if max_tokens is None else min(max(max_tokens, 0), _LONG_TOKENS)
    return min((tokens + size / _BYTES_A_TOKEN) / _LONG_TOKENS, 1.0)


class Counter:
    """One limit's owner ("caller:web", "provider:openai"): its bounds, how many run, and who waits for a slot.

    It is its own permit (types.Permit): each `enter` that answered it, or ticket that got it, has one `release`.
    """

    __slots__ = (
        *("_concurrency", "_due", "_full", "_interval", "_limits", "_pace", "_seen", "_since", "_taken"),
        *("adapted", "key", "most", "running", "waiting"),
    )

    def __init__(self, key: str, limits: Limits) -> None:
        self.key = key
        self._limits = limits
        self._due = 0.0  # GCRA's theoretical arrival time: a request may come as early as one period before it
        self._interval: float | None = None  # seconds between requests, at the rate allowed
        self._concurrency: int | None = None  # as configured
        self.adapted: int | None = None  # what its provider was found to take
        self.most: int | None = None  # of both the lower
        self._full = _UNBOUNDED  # the same, to be compared with: while anybody waits, as many run
        self.running = 0
        self.waiting: list[Ticket] = []  # the next one first
        self._pace = 0.0  # seconds from one slot to the next that frees while all are taken: their recent mean
        self._seen = 0  # how many it is the mean of
        self._since = 0.0  # when the last one freed, or all became taken
        self._taken = [0.0] * len(RANKS)  # of slots that had been waited for: the share of the classes above each

    def enter(self, now: float) -> Permit | Refused | None:
        """Leave for one request now, or not; None where it may `wait`. A refusal takes nothing."""
        interval = self._interval
        if interval is not None:
            due = self._due
            due = (max(now, due)) + interval
            early = due - _PERIOD_SECONDS - now
            if early > _ROUNDING:
                return Refused(self.key, "requests_per_minute", early)
            self._due = due
        full, running = self._full, self.running + 1
        if running > full:
            return None
        self.running = running
        if running == full:
            self._fill(now)
        return self

    def forgo(self, decision: Permit | Refused | None) -> None:
        """As if it had not been asked to `enter`, in the moment in which it answered this."""
        if type(decision) is Refused:
            return
        if self._interval is not None:
            self._due -= self._interval
        if decision is self:
            self.running -= 1

    def wait(self, now: float, rank: int, cost: float, patience: float) -> Wait | Refused:
        """A place in the queue for whom `enter` found no slot for, unless it would wait in vain.

        `rank`: of RANKS. Where the queue is full, the last one of a lower class leaves it for this one. `cost`: from 0
        to 1. `patience`: seconds.
        """
        queue, waiting = self._limits.queue, self.waiting
        seconds = min(queue.wait_seconds, patience)
        place = (rank, now + cost * _HANDICAP * queue.wait_seconds, next(_serial))
        ahead = bisect_left(waiting, place, key=_place)
        if seconds <= 0 or (self._expected(rank, ahead, now) or 0.0) > seconds:
            return self._refusal(rank, ahead, now)
        if len(waiting) >= (self._full if queue.length is None else queue.length):
            if not waiting or waiting[-1].place[0] <= rank:
                return self._refusal(rank, ahead, now)
            last = waiting.pop()
            last.answer = self._refusal(last.place[0], len(waiting) + 1, now)
            last.wake()
        ticket = Ticket(self, place)
        waiting.insert(ahead, ticket)
        return Wait(seconds, ticket)

    def leave(self, ticket: Ticket) -> Refused:
        """Give up a place in the queue."""
        ahead = bisect_left(self.waiting, ticket.place, key=_place)
        del self.waiting[ahead]
        ticket.answer = refusal = self._refusal(ticket.place[0], ahead, self._limits.clock())
        return refusal

    def allow(self, per_minute: int | None, concurrency: int | None) -> None:
        """The bounds from now on; what has been used of them stays used. A higher one lets in who waits."""
        self._interval = None if per_minute is None else _PERIOD_SECONDS / per_minute
        self._concurrency = concurrency
        self._bound()

    def adapt(self, most: int | None) -> None:
        """What its provider was found to take: a bound like the configured one, and beside it."""
        self.adapted = most
        self._bound()

    def release(self) -> None:
        """One has finished."""
        running = self.running
        self.running = running - 1
        if running == self._full:
            self._free()

    def _bound(self) -> None:
        was_full = self.running >= self._full
        self.most = min((each for each in (self._concurrency, self.adapted) if each is not None), default=None)
        self._full = _UNBOUNDED if self.most is None else self.most
        if self.running >= self._full and not was_full:
            self._fill(self._limits.clock())
        self._grant()

    def _fill(self, now: float) -> None:
        """All slots are taken: from now on it shows how soon they free."""
        if now - self._since > _RECENT_SECONDS:
            self._seen = 0
            self._taken = [0.0] * len(RANKS)
        self._since = now

    def _free(self) -> None:
        """One slot of all that were taken is free."""
        now = self._limits.clock()
        self._seen += 1
        self._pace += (now - self._since - self._pace) * max(1 / self._seen, self._weight())
        self._since = now
        self._grant()

    def _grant(self) -> None:
        """Free slots go to who is next."""
        while self.waiting and self.running < self._full:
            ticket = self.waiting.pop(0)
            self.running += 1
            weight = self._weight()
            for rank in RANKS.values():
                self._taken[rank] += ((ticket.place[0] < rank) - self._taken[rank]) * weight
            ticket.answer = self
            ticket.wake()

    def _weight(self) -> float:
        """Of the latest in the mean: it spans two rounds of all slots, for those that began together end together."""
        return 1 / (2 * self._full)

    def _expected(self, rank: int, ahead: float, now: float) -> float | None:
        """Seconds until a slot for who has so many before it; None before each slot has freed once.

        One that is longer in coming than usual counts already: where none frees any more, nobody waits for it long.
        What the classes above take, while one waits, is as much as of late.
        """
        if self._seen < self._full:
            return None
        ahead += self.running - self._full  # too many by a bound that was lowered: their slots are nobody's
        pace, late = self._pace, now - self._since - self._pace
        ahead /= max(1 - self._taken[rank], _LEFT)
        if late <= 0:
            return -late + ahead * pace
        return ahead * (pace + late * self._weight())

    def _refusal(self, rank: int, ahead: int, now: float) -> Refused:
        """For who would have, or has, so many before it. What it took of the rate is given back."""
        if self._interval is not None:
            self._due -= self._interval
        after = self._expected(rank, ahead, now) or max(self._limits.queue.wait_seconds, 1.0)
        return Refused(self.key, "concurrency", after)

    def __repr__(self) -> str:
        return f"<Counter {self.key}: {self.running} running of {self.most}, {len(self.waiting)} waiting>"


class Limits:
    """All counters of the process, by key ("caller:web", "provider:openai"): as many as the configuration names."""

    def __init__(self, queue: Queue | None = None, clock: Callable[[], float] = clock.now) -> None:
        self.queue = queue or Queue()
        self.clock = clock
        self._counters: dict[str, Counter] = {}

    def counter(self, key: str, per_minute: int | None, concurrency: int | None) -> Counter:
        """The counter of `key`, with its bounds as they are from now on; what runs under it goes on counting."""
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = Counter(key, self)
        counter.allow(per_minute, concurrency)
        return counter

    def decide(
        self,
        key: str,
        per_minute: int | None,
        concurrency: int | None,
        now: float,
        *,
        rank: int = RANKS["normal"],
        cost: float = 0.0,
        patience: float = math.inf,
    ) -> Permit | Wait | Refused:
        """Leave for one request under `key`, now, later, or not. A refusal takes nothing."""
        counter = self.counter(key, per_minute, concurrency)
        return counter.enter(now) or counter.wait(now, rank, cost, patience)

    def claim(self, ticket: Ticket) -> Permit | Refused:
        """The end of a wait: the slot, if one was granted; else the place in the queue is given up."""
        return ticket.answer or ticket.counter.leave(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Whoever waited is gone: its place, or the slot it was granted meanwhile, goes to the next."""
        if ticket.answer is None:
            ticket.counter.leave(ticket)
        elif isinstance(ticket.answer, Counter):
            ticket.answer.release()

    def stats(self) -> list[dict[str, object]]:
        """For /status: what runs and waits, by key."""
        return [
            {"key": each.key, "running": each.running, "waiting": len(each.waiting), "concurrency": each.most}
            for each in self._counters.values()
        ]

    def __repr__(self) -> str:
        running = sum(each.running for each in self._counters.values())
        waiting = sum(len(each.waiting) for each in self._counters.values())
        return f"<Limits {running} running, {waiting} waiting>"
