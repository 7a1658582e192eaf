"""A stream that breaks off is gone on with at another target, where the model's options say so.

The target gets the text so far as the beginning of the assistant's answer (prefill), and what it says goes on where the
other stopped: in the same message, behind a comment that tells. Never with a tool's call begun: half of its JSON cannot
be gone on with by another.
"""

from __future__ import annotations

from sidecar import retry
from sidecar.clock import now
from sidecar.errors import ProviderError
from sidecar.exchange.state import Attempt, Exchange
from sidecar.exchange.tries import settle, try_once
from sidecar.relay import Across
from sidecar.types import Target


async def go_on(exchange: Exchange, attempt: Attempt, error: ProviderError) -> Attempt:
    """The attempt that goes on with this one, which is over. Raises `error` where none can."""
    way = attempt.way
    if type(way) is not Across or not way.resumable or not _may(exchange, error):
        raise error
    usage = way.meter.usage
    if usage is not None:
        exchange.before.append(usage)
    exchange.resumed = way
    for target in _others(exchange, attempt.target):
        got = await try_once(exchange, target)
        if isinstance(got, Attempt) and got.way is way:
            exchange.record.continued += 1
            comment = b": sidecar: the answer goes on from %b\n\n" % target.key.encode("ascii", "replace")
            got.data = comment + got.data
            return got
        got.close()
        if not _may(exchange, error):
            break
    if usage is not None:
        exchange.before.pop()
    settle(exchange, attempt.target, attempt)
    raise error


def _may(exchange: Exchange, error: ProviderError) -> bool:
    """Is there leave to ask another target, and time, and somebody to be answered?"""
    may = exchange.asking.fallback and retry.may_fall_back(retry.cause_of(error), exchange.plan.fallback_on)
    return may and now() < exchange.expires and not exchange.client.gone


def _others(exchange: Exchange, broken: Target) -> list[Target]:
    """Those behind it in the plan, round to it, that take a prefill. As many in all as there are others."""
    targets = exchange.plan.targets
    if exchange.record.continued >= len(targets) - 1:
        return []
    at = targets.index(broken)
    return [target for target in (*targets[at + 1 :], *targets[:at]) if target.upstream.prefill]
