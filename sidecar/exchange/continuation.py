"""A stream that breaks off is gone on with at another target, where the model's options say so.

The target gets the text so far as the beginning of the assistant's answer (prefill), and what it says goes on where the
other stopped: in the same message, behind a comment that tells. Never with a tool's call begun: half of its JSON cannot
be gone on with by another.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar import retry
from sidecar.clock import now
from sidecar.errors import ProviderError
from sidecar.exchange.state import Attempt, Exchange
from sidecar.exchange.tries import try_once
from sidecar.relay import Across
from sidecar.types import Envelope, Target
from sidecar.wire import body


async def go_on(exchange: Exchange, attempt: Attempt, error: ProviderError) -> Attempt:
    """The attempt that goes on with this one, which is over. Raises `error` where none can."""
    moment, plan = now(), exchange.plan
    attempt.place.target.breaker.failure(moment, attempt.turn)
    way = attempt.way
    if not plan.model.continuation or type(way) is not Across or not way.resumable or moment >= exchange.expires:
        raise error
    asked = exchange.members
    if (usage := way.meter.usage) is not None:
        exchange.before.append(usage)
    exchange.resumed = way
    for target in plan.targets:
        if target is attempt.target or not target.upstream.prefill or not retry.may_fall_back("cut", plan.fallback_on):
            continue
        exchange.members = _prefilled(asked, way.text, target)
        got = await try_once(exchange, target)
        if type(got) is Attempt:
            exchange.record.continued += 1
            got.data = b": sidecar: the answer goes on from %b\n\n%b" % (
                target.key.encode("ascii", "replace"),
                got.data,
            )
            return got
        got.close()
    raise error


def _prefilled(members: Envelope, text: str, target: Target) -> Envelope:
    """The request with the answer so far as its last message, in the words that both conversational dialects share."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text.rstrip(),
    }  # Anthropic takes no white space at its end
    if target.upstream.prefill == "prefix":
        message["prefix"] = True
    messages = body.view(members["messages"], list[msgspec.Raw], "messages")
    return {**members, "messages": body.raw([*messages, message])}
