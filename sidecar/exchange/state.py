"""What an exchange knows: of its configuration, of itself, and of each try at a target."""

from __future__ import annotations

import math
import random
from typing import Any, Final

import msgspec

from sidecar import config, quota, routing
from sidecar.budget import Aimd, HedgeBudget, Keys, RetryBudget
from sidecar.cache import Cache
from sidecar.clock import now
from sidecar.dialects.neutral import Dialect, Fault, Meter
from sidecar.health import Health, TargetHealth
from sidecar.ledger import Ledger
from sidecar.limits import Counter, Limits
from sidecar.memory import Room
from sidecar.pool import Pool
from sidecar.pool.connection import Connection as Sent
from sidecar.quota import Quota
from sidecar.rates import NO_TOKENS, Guess
from sidecar.relay import Across, Way
from sidecar.request import ANONYMOUS, Asker, Asking
from sidecar.retry import Cause
from sidecar.routing import Plan
from sidecar.secret import Secret
from sidecar.types import (
    Caller,
    Client,
    Counting,
    Endpoint,
    Envelope,
    Inbound,
    Outcome,
    Permit,
    Record,
    Target,
    Usage,
    View,
)

_UNREAD: Final = View(model="")
_UNREAD_HEAD: Final = Asking(None, Asker(ANONYMOUS, Limits().counter("", None, None)), math.inf, True, frozenset())


MOST_NAMES: Final = 4096  # names come from clients, so there is a bound
NO_PLAN: Final = Plan(name="", targets=(), policy="", model=config.Model(targets=()), fallback_on=frozenset())


class Duty:
    """What the process has under way, and has learned of its providers: kept over reloads."""

    __slots__ = ("_budget", "active", "flights", "health", "hedges", "quotas", "retries", "room")

    def __init__(self) -> None:
        self.health = Health(random.random)
        self.retries = RetryBudget()
        self.hedges: dict[tuple[str, float], HedgeBudget] = {}  # by the model asked for, and the percent that it allows
        self.flights: dict[bytes, Any] = {}  # exchanges that others may join (coalesce.Flight), by what was asked
        self.quotas: dict[str, Quota] = {}  # what targets say is left of their limits, by the target's key
        self.active = 0  # exchanges
        self.room = Room()  # for the bodies that they hold
        self._budget: tuple[float, int] | None = None  # what that of retries was made of

    def set_budget(self, percent: float, minimum: int) -> None:
        """Of retries: from now on. What has been taken of another is given back to that one."""
        if self._budget != (percent, minimum):
            self._budget = (percent, minimum)
            self.retries = RetryBudget(percent, minimum)

    def quota(self, target: Target) -> Quota:
        """What a target says is left of its limits."""
        form = quota.form(target.upstream.kind, target.dialect)
        found = self.quotas.get(target.key)
        if found is None or found.form is not form:
            if len(self.quotas) >= MOST_NAMES:
                self.quotas.clear()
            found = self.quotas[target.key] = Quota(form)
        return found

    def stats(self) -> list[dict[str, object]]:
        """For /status: of targets with what they have left, where that is little, and of providers."""
        rows = self.health.stats()
        for row in rows:
            found = self.quotas.get(str(row.get("target")))
            if found is not None and (left := found.stats(now())):
                row["left"] = left
        return rows

    def __repr__(self) -> str:
        return f"<Duty {self.active} active, {self.health!r}>"


def askers_of(tables: dict[str, config.Caller], limits: Limits) -> dict[bytes, Asker]:
    """The callers, by the SHA-256 of their keys, each with its counter."""
    found = {}
    for name, table in tables.items():
        caller = Caller(
            name=name,
            models=table.models,
            requests_per_minute=table.requests_per_minute,
            concurrency=table.concurrency,
            priority=table.priority,
            tags=frozenset(table.tags),
        )
        tokens = config.token_limits(table)
        counter = limits.counter(f"caller:{name}", table.requests_per_minute, table.concurrency, tokens)
        if table.key.digest is not None:
            found[table.key.digest] = Asker(caller, counter)
    return found


def limits_of(models: dict[str, config.Model], limits: Limits) -> dict[str, Counter]:
    """The counters of those names in [models] that have limits."""
    each = {name: (table.requests_per_minute, config.token_limits(table)) for name, table in models.items()}
    return {
        name: limits.counter(f"model:{name}", per_minute, None, tokens)
        for name, (per_minute, tokens) in each.items()
        if per_minute is not None or tokens != NO_TOKENS
    }


class Place(msgspec.Struct, eq=False):
    """A target as policy sees it: what runs there, and how it does."""

    counter: Counter  # of its provider
    aimd: Aimd | None  # of its provider, whose limit is adaptive
    target: TargetHealth
    simple: bool  # its provider has one key, takes as many at once as is configured, and has much left
    keys: Keys  # as the target had them when this was made
    quota: Quota  # what it says is left of its own limits
    sign: bytes  # the header in answers that say so
    metered: bool  # its provider has a limit of tokens

    def see(self) -> None:
        """Is what is left to be looked at?"""
        self.simple = len(self.keys) == 1 and self.aimd is None and not self.quota.short

    def adapt(self) -> None:
        """Its provider's limit is what it was found to be; not any more where a reload has ended that meanwhile."""
        aimd, counter = self.aimd, self.counter
        if aimd is not None and counter.adapted not in (None, aimd.limit):
            counter.adapt(aimd.limit)


class Spine(msgspec.Struct, frozen=True, kw_only=True):
    """What one configuration gives the exchanges that begin under it. A reload makes another; others keep theirs."""

    config: config.Config
    routes: routing.Routes
    callers: dict[bytes, Asker]  # by the SHA-256 of the key
    anonymous: Asker  # who asks where there are no callers
    providers: dict[str, Counter]  # what runs at each, by the provider's name
    models: dict[str, Counter]  # of the names in [models] that have limits
    plans: dict[tuple[str, str, str], Plan]  # remembered, by caller, model asked for and dialect
    places: dict[str, Place]  # remembered, by the target's key
    pool: Pool
    limits: Limits
    ledger: Ledger
    duty: Duty
    max_body_bytes: int
    cache: Cache | None = None  # where any model's answers are cached
    stays: bool = False  # an answer is read to its end although its client has left

    def __repr__(self) -> str:
        return f"<Spine {len(self.providers)} providers, {len(self.callers)} callers>"

    def place(self, target: Target) -> Place:
        """Where a target's numbers are kept: of one that is not among `places` yet, or not any more."""
        health, upstream = self.duty.health, target.upstream
        table = self.config.providers[upstream.name]
        if len(self.places) >= MOST_NAMES:
            self.places.clear()
        keys = max(1, len(upstream.auths))
        aimd = health.aimd(upstream.name, table.limits.adaptive)
        found = health.target(target.key, table.breaker, keys)
        counter, left = self.providers[upstream.name], self.duty.quota(target)
        sign = b"" if upstream.forward_caller_key else left.form.sign  # what one caller's key has left is no other's
        metered = counter.tokens is not None
        place = self.places[target.key] = Place(counter, aimd, found, False, found.keys, left, sign, metered)
        place.see()
        counter.adapt(None if aimd is None else aimd.limit)
        return place


class Attempt(msgspec.Struct, eq=False):
    """One try at one target, from its permit to its last byte."""

    target: Target
    place: Place
    permit: Permit
    turn: int = 0  # of the breaker, when it was asked
    key: int = 0  # which of the provider's it was asked with
    began: float = 0.0
    hide_usage: bool = False  # the provider is asked for a usage event that the client did not ask for
    inbound: Inbound | None = None
    dropped: bytes = b""  # header line: what was asked for and the target is not told
    secrets: tuple[Secret, ...] = ()  # that the provider was sent
    cause: Cause | None = None  # why it is no answer to give, while another may be had
    asked: float | None = None  # seconds that the provider asks to be left alone
    data: bytes = b""  # of the answer, held until it is certain that this is the one
    whole: bool = False  # that is all of it
    plain: bytes = b""  # the same without its content coding, where it is whole
    usage: Usage | None = None  # of a body that is whole
    fault: Fault | None = None  # the error that it is instead of an answer
    meter: Meter | None = None  # of what goes on as it comes
    way: Way | None = None  # of a stream
    left: bool = False  # by its client, or for another try, before it answered
    sent: Sent | None = None  # where it has been sent already, and has not been heard of

    def close(self) -> None:
        """Give back what it holds. Once."""
        if self.inbound is not None:
            self.inbound.close()
        elif self.sent is not None:
            self.sent.abort()
        self.place.target.in_flight -= 1
        self.permit.release()


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer, under way."""

    spine: Spine
    endpoint: Endpoint
    dialect: Dialect
    client: Client
    record: Record
    outcome: Outcome
    asking: Asking = _UNREAD_HEAD  # what the head says, once it is read
    members: Envelope = {}
    view: View = _UNREAD  # until the body has been read
    expires: float = math.inf  # when the client will not wait any longer
    target: Target | None = None  # whose answer it is
    attempt: Attempt | None = None  # the last, or whose answer is given
    plan: Plan = NO_PLAN
    trail: list[str] = []  # of the tries, in words
    streaming: bool = False  # the client has the head of an event stream, so that any more is events
    counted: bool = True  # the record is of this exchange, and of no other
    resumed: Across | None = None  # the way of a stream that broke off, and is to go on
    before: list[Usage] = []  # of what broke off
    limits: tuple[Counting, ...] = ()  # that it is under, where some are of tokens: the client is told what is left
    guess: Guess | None = None  # of its tokens
    store_seconds: float = 0.0  # waited for the store, in all
    spent: bool = False  # asking again is of no use now: the client is told so
    insists: bool = False  # it asks although a guess says that the provider would refuse
    held: int = 0  # bytes of the body that are counted (memory.Room)
