"""What a caller has left of its limits, as header lines in the form of the API that it called. Pure.

OpenAI's: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, a reset as Go writes a duration
(platform.openai.com/docs/guides/rate-limits). Anthropic's: `anthropic-ratelimit-{requests,tokens,input-tokens,
output-tokens}-{limit,remaining,reset}`, a reset as RFC 3339 has it (docs.anthropic.com/en/api/rate-limits). In both
`tokens` is the limit that is nearest to its end, and a reset is when all of it will be there again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from sidecar.rates import Left
from sidecar.types import Headers

_ANTHROPIC: Final = frozenset(("messages", "count_tokens"))
_PREFIXES: Final = (b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit")  # the third is the IETF draft's
_OWN: Final = {
    "requests_per_minute": "requests",
    "input_tokens_per_minute": "input-tokens",
    "output_tokens_per_minute": "output-tokens",
}


def lines(left: Iterable[Left], dialect: str, wall: float) -> bytes:
    """Header lines for what is left of each limit. `wall`: seconds since 1970, now."""
    told = _told(left)
    if dialect in _ANTHROPIC:
        return b"".join([_anthropic(name, each, wall) for name, each in told.items()])
    return b"".join([_openai(name, told[name]) for name in ("requests", "tokens") if name in told])


def without_theirs(headers: Headers) -> Headers:
    """A provider's headers less those that tell of its own limits: a client is told of one set."""
    return [pair for pair in headers if not pair[0].startswith(_PREFIXES)]


def _told(left: Iterable[Left]) -> dict[str, Left]:
    """What is told by each name: of several limits the one with the least left."""
    told: dict[str, Left] = {}
    for each in left:
        own = _OWN.get(each.name)
        for name in (own, "tokens" if own != "requests" else None):
            if name is not None and (name not in told or each.remaining < told[name].remaining):
                told[name] = each
    return told


def _openai(name: str, left: Left) -> bytes:
    return (
        f"x-ratelimit-limit-{name}: {left.limit}\r\n"
        f"x-ratelimit-remaining-{name}: {left.remaining}\r\n"
        f"x-ratelimit-reset-{name}: {duration(left.reset)}\r\n"
    ).encode()


def _anthropic(name: str, left: Left, wall: float) -> bytes:
    reset = datetime.fromtimestamp(math.ceil(wall + left.reset), UTC)
    return (
        f"anthropic-ratelimit-{name}-limit: {left.limit}\r\n"
        f"anthropic-ratelimit-{name}-remaining: {left.remaining}\r\n"
        f"anthropic-ratelimit-{name}-reset: {reset:%Y-%m-%dT%H:%M:%SZ}\r\n"
    ).encode()


def duration(seconds: float) -> str:
    """Seconds as Go writes them (`time.Duration.String`): 0s, 120ms, 1.5s, 6m0s, 1h0m0s. Rounded up to milliseconds."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    whole, rest = divmod(milliseconds, 1000)
    minutes, last = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{last}.{rest:03d}".rstrip("0") if rest else f"{last}"
    if hours:
        return f"{hours}h{minutes}m{text}s"
    return f"{minutes}m{text}s" if minutes else f"{text}s"
