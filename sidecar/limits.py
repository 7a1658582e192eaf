"""Rates, tokens and concurrency, per caller, provider and model: synchronous decisions in memory.

A rate is GCRA with a burst of one period's allowance: 200 a minute lets 200 through at once, then one every 300 ms.
Tokens are reserved by a guess when a request is let in, and settled by what was used (rates.py). One for which more
would have to be reserved than the whole allowance is let in when all of that is there: else it could never run.

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

import msgspec

from sidecar import clock, rates
from sidecar.config import Queue
from sidecar.rates import NO_TOKENS, PERIOD_SECONDS, ROUNDING, USUAL_TOKENS, Bucket, Left, TokenLimits
from sidecar.types import Permit, Refused, Wait

RANKS: Final = {"high": 0, "normal": 1, "low": 2}
_UNBOUNDED: Final = 1_000_000_000  # more than a configuration may say, and small enough to be compared fast
_RECENT_SECONDS: Final = 60.0  # without a slot that all were taken of, and what was learned is too old
_LEFT: Final = 0.1  # of the slots, at least, for a class: it must get some to be seen to get more
HANDICAP: Final = 0.5  # of wait_seconds, of the longest
_LONG_TOKENS: Final = 8192  # of this cost, or more, are the longest
_BYTES_A_TOKEN: Final = 64  # of a request: four are a token, and one is read in a sixteenth of the time of writing it

serial = itertools.count()


class Ticket:
    """A place in a queue. `wake` is set by whoever waits, and called once there is an `answer`."""

    __slots__ = ("answer", "counter", "permit", "place", "wake")

    def __init__(self, counter: Counter, place: tuple[int, float, int], permit: Counter | Reservation) -> None:
        self.counter = counter
        self.permit = permit  # what a slot will be given by
        self.place = place  # class, time of arrival with its handicap, serial number: the least is next
        self.answer: Counter | Reservation | Refused | None = None
        self.wake: Callable[[], object] = _nobody

    def __repr__(self) -> str:
        state = "waiting" if self.answer is None else "refused" if isinstance(self.answer, Refused) else "granted"
        return f"<Ticket {self.counter.key} {state}>"


_place = attrgetter("place")


def _nobody() -> None:
    """A ticket that nobody waits on yet."""


def cost(size: int, max_tokens: int | None) -> float:
    """How long a request of so many bytes will take, by a guess, from 0 to 1: what it may write counts most."""
    tokens = USUAL_TOKENS if max_tokens is None else min(max(max_tokens, 0), _LONG_TOKENS)
    return min((tokens + size / _BYTES_A_TOKEN) / _LONG_TOKENS, 1.0)


class Reservation(msgspec.Struct, eq=False):
    """A permit (types.Permit) with tokens reserved: settled once, when it is known what was used, and released once.

    One that is released unsettled leaves what was reserved as if it had been used.
    """

    counter: Counter
    began: float
    buckets: tuple[Bucket, ...] | None  # None: it is settled
    amounts: list[float]  # reserved of each

    def settle(self, input: int, output: int, *, counted: bool = False) -> None:
        """Take what was really used, in the place of what was reserved. Only the first call does.

        `counted`: by the provider, for a whole answer, so that what is usual may go by it.
        """
        if self.buckets is not None:
            self.counter.settle(self, input, output, counted=counted)
            self.buckets = None

    def release(self) -> None:
        """It has finished."""
        self.counter.release()

    def __repr__(self) -> str:
        return f"<Reservation {self.counter.key}, {'open' if self.buckets else 'settled'}>"


class Counter:
    """One limit's owner ("caller:web", "provider:openai", "model:fast"): its bounds, what runs, and who waits.

    It is its own permit (types.Permit): each `enter` that answered it, or ticket that got it, has one `release`. Where
    there are limits of tokens, a Reservation is.
    """

    __slots__ = (
        *("_answers", "_concurrency", "_due", "_full", "_interval", "_limits", "_pace", "_per_minute", "_seen"),
        *("_since", "_taken", "adapted", "key", "most", "running", "tokens", "usual", "waiting"),
    )

    def __init__(self, key: str, limits: Limits) -> None:
        self.key = key
        self._limits = limits
        self._due = 0.0  # GCRA's theoretical arrival time: a request may come as early as one period before it
        self._interval: float | None = None  # seconds between requests, at the rate allowed
        self._per_minute: int | None = None
        self.tokens: tuple[Bucket, ...] | None = None  # where there are limits of tokens
        self.usual = float(USUAL_TOKENS)  # of an answer that nobody has bounded: the mean of the last ones
        self._answers = 0  # that it is the mean of
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

    def enter(self, now: float, input: int = 0, output: int = 0) -> Permit | Refused | None:
        """Leave for one request now, or not; None where it may `wait`. A refusal takes nothing.

        `input`, `output`: the tokens that it is guessed to come to, where there are limits of them.
        """
        if self.tokens is not None:
            return self._reserve(now, input, output)
        interval = self._interval
        if interval is not None:
            due = self._due
            due = (due if due > now else now) + interval  # noqa: FURB136  # a call for each request
            early = due - PERIOD_SECONDS - now
            if early > ROUNDING:
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
        """As if it had not been asked to `enter`, in the moment in which it answered this. Not for limits of tokens."""
        if type(decision) is Refused:
            return
        if self._interval is not None:
            self._due -= self._interval
        if decision is self:
            self.running -= 1

    def _reserve(self, now: float, input: int, output: int) -> Reservation | Refused | None:
        """The same with tokens. Of limits that are short the one that will be for the longest refuses."""
        buckets, interval, due = self.tokens or (), self._interval, self._due
        amounts, early, limit = rates.look(buckets, input, output, now)
        if interval is not None:
            if due < now:
                due = now
            due += interval
            if due - PERIOD_SECONDS - now > early:
                early, limit = due - PERIOD_SECONDS - now, "requests_per_minute"
        if limit:
            return Refused(self.key, limit, early)
        self._due = due
        rates.take(buckets, amounts, now)
        running = self.running + 1
        if running > self._full:
            return None
        self.running = running
        if running == self._full:
            self._fill(now)
        return Reservation(self, now, buckets, amounts)

    def wait(
        self, now: float, rank: int, cost: float, patience: float, input: int = 0, output: int = 0
    ) -> Wait | Refused:
        """A place in the queue for whom `enter` found no slot for, unless it would wait in vain.

        `rank`: of RANKS. Where the queue is full, the last one of a lower class leaves it for this one. `cost`: from 0
        to 1. `patience`: seconds. `input`, `output`: as `enter` was told, at the same `now`.
        """
        permit: Counter | Reservation = self
        if self.tokens is not None:
            permit = Reservation(self, now, self.tokens, rates.look(self.tokens, input, output, now)[0])
        queue, waiting = self._limits.queue, self.waiting
        seconds = min(queue.wait_seconds, patience)
        place = (rank, now + cost * HANDICAP * queue.wait_seconds, next(serial))
        ahead = bisect_left(waiting, place, key=_place)
        if seconds <= 0 or (self._expected(rank, ahead, now) or 0.0) > seconds:
            return self._refusal(rank, ahead, now, permit)
        if len(waiting) >= (self._full if queue.length is None else queue.length):
            if not waiting or waiting[-1].place[0] <= rank:
                return self._refusal(rank, ahead, now, permit)
            last = waiting.pop()
            last.answer = self._refusal(last.place[0], len(waiting) + 1, now, last.permit)
            last.wake()
        ticket = Ticket(self, place, permit)
        waiting.insert(ahead, ticket)
        return Wait(seconds, ticket)

    def leave(self, ticket: Ticket) -> Refused:
        """Give up a place in the queue."""
        ahead = bisect_left(self.waiting, ticket.place, key=_place)
        del self.waiting[ahead]
        ticket.answer = refusal = self._refusal(ticket.place[0], ahead, self._limits.clock(), ticket.permit)
        return refusal

    def allow(self, per_minute: int | None, concurrency: int | None, tokens: TokenLimits = NO_TOKENS) -> None:
        """The bounds from now on; what has been used of them stays used. A higher one lets in who waits."""
        self._per_minute = per_minute
        self._interval = None if per_minute is None else PERIOD_SECONDS / per_minute
        self._concurrency = concurrency
        self.tokens = rates.buckets(tokens, self.tokens or ()) or None
        self._bound()

    def settle(self, permit: Reservation, input: int, output: int, *, counted: bool) -> None:
        """Take what was used in the place of what was reserved."""
        now = self._limits.clock()
        for bucket, reserved in zip(permit.buckets or (), permit.amounts, strict=True):
            bucket.settle(reserved, input * bucket.per_input + output * bucket.per_output, permit.began, now)
        if counted:
            self._answers += 1
            self.usual = rates.usual(self.usual, output, self._answers)

    def left(self, now: float) -> list[Left]:
        """What there is of each rate."""
        requests = (
            [] if self._per_minute is None else [rates.left("requests_per_minute", self._per_minute, self._due, now)]
        )
        return requests + [bucket.left(now) for bucket in self.tokens or ()]

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
            ticket.answer = ticket.permit
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

    def _refusal(self, rank: int, ahead: int, now: float, permit: Counter | Reservation) -> Refused:
        """For who would have, or has, so many before it. What it took of the rates is given back."""
        if self._interval is not None:
            self._due -= self._interval
        if isinstance(permit, Reservation):
            permit.settle(0, 0)
        after = self._expected(rank, ahead, now) or max(self._limits.queue.wait_seconds, 1.0)
        return Refused(self.key, "concurrency", after)

    def __repr__(self) -> str:
        return f"<Counter {self.key}: {self.running} running of {self.most}, {len(self.waiting)} waiting>"


class Limits:
    """All counters of the process, by key ("caller:web"): as many as the configuration names."""

    def __init__(self, queue: Queue | None = None, clock: Callable[[], float] = clock.now) -> None:
        self.queue = queue or Queue()
        self.clock = clock
        self.make: Callable[[str, Limits], Counter] = Counter  # another kind, where they are shared with other sidecars
        self._counters: dict[str, Counter] = {}

    def counter(
        self, key: str, per_minute: int | None, concurrency: int | None, tokens: TokenLimits = NO_TOKENS
    ) -> Counter:
        """The counter of `key`, with its bounds as they are from now on; what runs under it goes on counting."""
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self.make(key, self)
        counter.allow(per_minute, concurrency, tokens)
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
        elif not isinstance(ticket.answer, Refused):
            if isinstance(ticket.answer, Reservation):
                ticket.answer.settle(0, 0)
            ticket.answer.release()

    def stats(self) -> list[dict[str, object]]:
        """For /status: what runs and waits, and what there is of each rate, by key."""
        now = self.clock()
        return [
            {
                "key": each.key,
                "running": each.running,
                "waiting": len(each.waiting),
                "concurrency": each.most,
                "remaining": {left.name: left.remaining for left in each.left(now)},
            }
            for each in self._counters.values()
        ]

    def __repr__(self) -> str:
        running = sum(each.running for each in self._counters.values())
        waiting = sum(len(each.waiting) for each in self._counters.values())
        return f"<Limits {running} running, {waiting} waiting>"
