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


class Rate:
    """GCRA: `due` is the theoretical arrival time; a request may come as early as one period before it."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due = 0.0

    def take(self, per_minute: int, now: float) -> float:
        """0.0 and one unit taken, or the exact seconds until one may be; then nothing is taken."""
        interval = _PERIOD_SECONDS / per_minute
        due = max(self._due, now)
        early = due + interval - _PERIOD_SECONDS - now
        if early > 1e-9:
            return early
        self._due = due + interval
        return 0.0

    def give_back(self, per_minute: int) -> None:
        """Undo one take: the request was refused for another reason."""
        self._due -= _PERIOD_SECONDS / per_minute


class Ticket:
    """A place in a queue. `wake` is set by whoever waits, and called when a slot has become its own (`granted`)."""

    __slots__ = ("counter", "granted", "wake")

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.granted: Held | None = None
        self.wake: Callable[[], object] = _nobody

    def __repr__(self) -> str:
        return f"<Ticket {self.counter.key} {'granted' if self.granted else 'waiting'}>"


def _nobody() -> None:
    """A ticket that nobody waits on yet."""


class Counter:
    """The state of one limit's owner: how many run, and who waits for a slot, first come first."""

    __slots__ = ("key", "most", "rate", "running", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.rate = Rate()
        self.running = 0
        self.most: int | None = None
        self.waiting: OrderedDict[int, Ticket] = OrderedDict()  # by id: a ticket leaves from anywhere in constant time

    def leave(self) -> None:
        """One has finished. Freed slots go to those who wait longest (several, when a reload has raised the bound)."""
        self.running -= 1
        while self.waiting and (self.most is None or self.running < self.most):
            _, ticket = self.waiting.popitem(last=False)
            self.running += 1
            ticket.granted = Held(self)
            ticket.wake()

    def __repr__(self) -> str:
        return f"<Counter {self.key}: {self.running} running of {self.most}, {len(self.waiting)} waiting>"


class Held:
    """A permit: one running exchange of a counter, until released."""

    __slots__ = ("_counter",)

    def __init__(self, counter: Counter) -> None:
        self._counter: Counter | None = counter

    def release(self) -> None:
        """Give the slot back; a second call does nothing."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.leave()

    def __repr__(self) -> str:
        return f"<Held {self._counter.key if self._counter else 'released'}>"


class Limits:
    """All counters of the process, by key ("caller:web", "provider:openai"): as many as the configuration names."""

    def __init__(self, queue: Queue | None = None) -> None:
        self.queue = queue or Queue()
        self._counters: dict[str, Counter] = {}

    def decide(self, key: str, per_minute: int | None, concurrency: int | None, now: float) -> Permit | Wait | Refused:
        """Leave for one request under `key`, now, later, or not. A refusal takes nothing."""
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = Counter(key)
        counter.most = concurrency
        if per_minute is not None and (seconds := counter.rate.take(per_minute, now)):
            return Refused(key, "requests_per_minute", seconds)
        if concurrency is None or counter.running < concurrency:
            counter.running += 1
            return Held(counter)
        length = self.queue.length if self.queue.length is not None else concurrency
        if len(counter.waiting) >= length or self.queue.wait_seconds <= 0:
            if per_minute is not None:
                counter.rate.give_back(per_minute)
            return Refused(key, "concurrency", self._retry())
        ticket = Ticket(counter)
        counter.waiting[id(ticket)] = ticket
        return Wait(self.queue.wait_seconds, ticket)

    def claim(self, ticket: Ticket) -> Permit | Refused:
        """The end of a wait: the slot, if one was granted; else the place in the queue is given up."""
        if ticket.granted is not None:
            return ticket.granted
        ticket.counter.waiting.pop(id(ticket), None)
        return Refused(ticket.counter.key, "concurrency", self._retry())

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

    def _retry(self) -> float:
        """When a slot frees is not known; a client that comes back after the longest wait has a fair chance."""
        return max(self.queue.wait_seconds, 1.0)

    def __repr__(self) -> str:
        running = sum(each.running for each in self._counters.values())
        waiting = sum(len(each.waiting) for each in self._counters.values())
        return f"<Limits {running} running, {waiting} waiting>"
