"""Rates and concurrency, per caller and per provider: synchronous decisions in memory, each in constant time.

A rate is GCRA with a burst of one period's allowance: 200 a minute lets 200 through at once, then one every 300 ms.
Concurrency over its bound waits in a first-come queue of bounded length. Nothing here waits or knows the time: `now` is
given, and whoever holds a `Ticket` does the waiting.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from sidecar.config import Queue
from sidecar.types import Permit, Refused, Wait

_PERIOD_SECONDS = 60.0
_ROUNDING = 1e-6  # seconds: a clock of many days has no finer steps when intervals are added to it


class Ticket:
    """A place in a queue. `wake` is set by whoever waits, and called when a slot has become its own (`granted`)."""

    __slots__ = ("counter", "granted", "wake")

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.granted: Counter | None = None
        self.wake: Callable[[], object] = _nobody

    def __repr__(self) -> str:
        return f"<Ticket {self.counter.key} {'granted' if self.granted else 'waiting'}>"


def _nobody() -> None:
    """A ticket that nobody waits on yet."""


class Counter:
    """One limit's owner ("caller:web", "provider:openai"): its bounds, how many run, and who waits for a slot.

    It is its own permit (types.Permit): each `enter` that answered it is followed by one `release`.
    """

    __slots__ = ("_due", "_interval", "_limits", "key", "most", "running", "waiting")

    def __init__(self, key: str, limits: Limits) -> None:
        self.key = key
        self._limits = limits
        self._due = 0.0  # GCRA's theoretical arrival time: a request may come as early as one period before it
        self._interval: float | None = None  # seconds between requests, at the rate allowed
        self.most: int | None = None
        self.running = 0
        self.waiting: OrderedDict[int, Ticket] = OrderedDict()  # by id: a ticket leaves from anywhere in constant time

    def enter(self, now: float) -> Permit | Wait | Refused:
        """Leave for one request now, later, or not. A refusal takes nothing."""
        interval = self._interval
        if interval is not None:
            due = self._due
            due = (max(now, due)) + interval
            early = due - _PERIOD_SECONDS - now
            if early > _ROUNDING:
                return Refused(self.key, "requests_per_minute", early)
            self._due = due
        if self.most is None or self.running < self.most:
            self.running += 1
            return self
        queue = self._limits.queue
        length = queue.length if queue.length is not None else self.most
        if len(self.waiting) >= length or queue.wait_seconds <= 0:
            if interval is not None:
                self._due -= interval
            return Refused(self.key, "concurrency", _retry(queue))
        ticket = Ticket(self)
        self.waiting[id(ticket)] = ticket
        return Wait(queue.wait_seconds, ticket)

    def allow(self, per_minute: int | None, concurrency: int | None) -> None:
        """The bounds from now on; what has been used of them stays used. A higher one lets in who waits."""
        self._interval = None if per_minute is None else _PERIOD_SECONDS / per_minute
        self.most = concurrency
        self._grant()

    def release(self) -> None:
        """One has finished."""
        self.running -= 1
        if self.waiting:
            self._grant()

    def _grant(self) -> None:
        """Free slots go to those who wait longest."""
        while self.waiting and (self.most is None or self.running < self.most):
            _, ticket = self.waiting.popitem(last=False)
            self.running += 1
            ticket.granted = self
            ticket.wake()

    def __repr__(self) -> str:
        return f"<Counter {self.key}: {self.running} running of {self.most}, {len(self.waiting)} waiting>"


class Limits:
    """All counters of the process, by key ("caller:web", "provider:openai"): as many as the configuration names."""

    def __init__(self, queue: Queue | None = None) -> None:
        self.queue = queue or Queue()
        self._counters: dict[str, Counter] = {}

    def counter(self, key: str, per_minute: int | None, concurrency: int | None) -> Counter:
        """The counter of `key`, with its bounds as they are from now on; what runs under it goes on counting."""
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = Counter(key, self)
        counter.allow(per_minute, concurrency)
        return counter

    def decide(self, key: str, per_minute: int | None, concurrency: int | None, now: float) -> Permit | Wait | Refused:
        """Leave for one request under `key`, now, later, or not. A refusal takes nothing."""
        return self.counter(key, per_minute, concurrency).enter(now)

    def claim(self, ticket: Ticket) -> Permit | Refused:
        """The end of a wait: the slot, if one was granted; else the place in the queue is given up."""
        if ticket.granted is not None:
            return ticket.granted
        ticket.counter.waiting.pop(id(ticket), None)
        return Refused(ticket.counter.key, "concurrency", _retry(self.queue))

    def abandon(self, ticket: Ticket) -> None:
        """Whoever waited is gone: its place, or the slot it was granted meanwhile, goes to the next."""
        ticket.counter.waiting.pop(id(ticket), None)
        if ticket.granted is not None:
            ticket.granted.release()

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


def _retry(queue: Queue) -> float:
    """When a slot frees is not known; a client that comes back after the longest wait has a fair chance."""
    return max(queue.wait_seconds, 1.0)
