"""Tokens on the spine: guessed before a request is let in, and settled by what was used when its last byte has gone.

The caller and the model that it asks for pay once, whatever was tried: for the answer that was given. A provider pays
for each try that it answered. What was used is the provider's own count. An answer that broke off, or whose client has
left, comes to what of the count had come by then (Anthropic's has the input at its beginning), and for the rest to a
guess by its bytes. A refusal, an answer out of the cache, and one that another exchange pays for come to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sidecar import allowance
from sidecar.clock import now, wall
from sidecar.exchange.state import Attempt, Exchange, Place
from sidecar.limits import Reservation
from sidecar.quota import Form
from sidecar.rates import USUAL_TOKENS, Guess, input_tokens, output_tokens
from sidecar.types import Counting, Inbound, Permit, Refused, Usage

_SILENT: Final = frozenset(("embeddings", "count_tokens", "rerank", "moderations"))  # dialects whose answers cost none
_FREE: Final = "count_tokens"  # the question is free
_EVENT_BYTES_A_TOKEN: Final = 128  # of a stream: an event of one token or two
_BODY_BYTES_A_TOKEN: Final = 4
_CACHES: Final = b'"cache_control"'


class Used(NamedTuple):
    """What an exchange or a try came to. `counted`: by the provider, for a whole answer."""

    input: int = 0
    output: int = 0
    counted: bool = False


def guess(exchange: Exchange) -> Guess:
    """What this request may come to. Made once: the first look takes about 100 us for a megabyte."""
    if exchange.guess is None:
        dialect, members = exchange.endpoint.dialect, exchange.members
        exchange.guess = Guess(
            0 if dialect == _FREE else input_tokens(map(bytes, members.values())),
            0 if dialect in _SILENT else exchange.view.max_tokens,
            exchange.dialect.choices(members),
        )
    return exchange.guess


class Paying:
    """The permits of an exchange that is counted by tokens, or by its model: one permit (types.Permit) for them all."""

    __slots__ = ("_attempt", "_exchange", "permits")

    def __init__(self, exchange: Exchange, permits: list[Permit], attempt: Attempt | None = None) -> None:
        self.permits = permits
        self._exchange = exchange
        self._attempt = attempt  # None: for what the exchange as a whole came to

    def release(self) -> None:
        """Settle what was reserved, and give back the slots."""
        exchange, attempt = self._exchange, self._attempt
        spent = used(exchange) if attempt is None else used_by(exchange, attempt)
        for permit in self.permits:
            if isinstance(permit, Reservation) and (attempt is not None or exchange.counted):
                permit.settle(spent.input, spent.output, counted=spent.counted)
            permit.release()

    def __repr__(self) -> str:
        return f"<Paying {len(self.permits)} permits>"


def reserve(exchange: Exchange, counter: Counting, moment: float) -> Permit | Refused | None:
    """Leave to go on under one limit, with as many tokens as there are guessed to be; None where it may wait."""
    if counter.tokens is None:
        return counter.enter(moment)
    return counter.enter(moment, *guess(exchange).whole(counter.usual))


def undo(permit: Permit) -> None:
    """Give back a permit under which nothing was sent."""
    if isinstance(permit, Reservation):
        permit.settle(0, 0)
    permit.release()


def used(exchange: Exchange) -> Used:
    """What an exchange came to: the answer that was given, and those before it that it goes on with."""
    attempt = exchange.attempt
    spent = Used() if attempt is None else used_by(exchange, attempt)
    for usage in exchange.before:
        spent = Used(spent.input + usage.input, spent.output + usage.output)
    return spent


def used_by(exchange: Exchange, attempt: Attempt) -> Used:
    """What a try came to."""
    if attempt.inbound is None:  # no head has come: if it was left waiting, it has been read there, one must think
        return Used(guess(exchange).input if attempt.left else 0)
    meter, usage, fault = attempt.meter, attempt.usage, attempt.fault
    whole = meter is None
    if meter is not None:
        usage, fault, whole = meter.usage, meter.fault, meter.ended or meter.closed
    if usage is not None and whole:
        return Used(usage.input, usage.output, counted=fault is None)
    if attempt.inbound.status >= 300 or (fault is not None and meter is None):
        return Used()
    return _partly(exchange, attempt, usage or Usage())


def _partly(exchange: Exchange, attempt: Attempt, usage: Usage) -> Used:
    """What has been counted, and a guess for the rest."""
    guessed, wrote = guess(exchange), 0
    if exchange.endpoint.dialect not in _SILENT:
        if attempt.way is not None:
            size = exchange.outcome.bytes_sent if exchange.attempt is attempt else len(attempt.data)
            wrote = max(size, len(attempt.data)) // _EVENT_BYTES_A_TOKEN
        else:
            size = len(attempt.plain) or exchange.outcome.bytes_sent
            wrote = size // _BODY_BYTES_A_TOKEN
        if guessed.output is not None:
            wrote = min(wrote, output_tokens(guessed.output, guessed.choices, 0.0))
    return Used(usage.input or guessed.input, max(usage.output, wrote))


def need(exchange: Exchange, form: Form) -> Mapping[str, float]:
    """What a request takes of a provider's own limits, by the names of `form`.

    Where output is not counted before it is written, anything left of it will do; and a prompt that marks what is to be
    cached may be free, nearly all of it.
    """
    guessed = guess(exchange)
    if form.cached_input:
        cached = any(_CACHES in bytes(each) for each in exchange.members.values())
        return {"requests": 1.0, "input": 1.0 if cached else float(guessed.input), "output": 1.0}
    return {"requests": 1.0, "tokens": float(sum(guessed.whole(USUAL_TOKENS)))}


def pick(exchange: Exchange, place: Place, moment: float) -> tuple[int | None, float]:
    """A key with as much left as the request needs. Else the seconds until one has, as far as that is known.

    Of an exchange that `insists` any key will do that has something left.
    """
    keys, quota, wait = place.keys, place.quota, 0.0
    wants = need(exchange, quota.form)
    for _ in range(len(keys)):
        key = keys.pick(moment)
        if key is None:
            break
        short = quota.wait(key, wants, moment)
        if not short or (exchange.insists and not quota.spent(key, wants, moment)):
            quota.take(key, wants, moment)
            place.see()
            return key, 0.0
        wait = min(wait or short, short)
    return None, wait


def guessed(exchange: Exchange, place: Place, moment: float) -> bool:
    """Is there a key with something left, of which it is a guess that this will not do?"""
    wants = need(exchange, place.quota.form)
    return any(
        not (place.keys.rests(key, moment) or place.quota.spent(key, wants, moment)) for key in range(len(place.keys))
    )


def heed(exchange: Exchange, attempt: Attempt, inbound: Inbound) -> None:
    """What a provider says is left of its limits is kept; a client that has limits of its own is told of those only."""
    place = attempt.place
    if place.sign in inbound.index:
        place.quota.hear(attempt.key, inbound.index, attempt.began, now(), wall())
        place.see()
    if exchange.limits:
        inbound.headers = allowance.without_theirs(inbound.headers)


def told(exchange: Exchange) -> bytes:
    """Header lines of what the caller has left, in the words of the API that it called."""
    moment = now()
    left = [each for counter in exchange.limits for each in counter.left(moment)]
    return allowance.lines(left, exchange.endpoint.dialect, wall())
