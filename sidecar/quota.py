"""What a provider says is left of its own limits, so that nothing is sent that it would refuse. Pure.

Each answer of most providers says what is left of requests and tokens, and when all of it will be there again. Their
limits are buckets that fill evenly (as OpenAI, Anthropic and Groq document theirs), so what is there at any moment in
between is known: from what was left, what has been sent since, and the pace at which the rest comes back. A provider
that fills its buckets otherwise refuses now and then, and its `retry-after` is heeded then.

The headers are kept as they came, and read when somebody wants to know: where plenty is left that is never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from sidecar.retry import seconds
from sidecar.wire.shapes import plenty

What = Literal["requests", "tokens", "input", "output"]

_MOST_DIGITS: Final = 15
_MOST_SENT: Final = 256  # remembered of a key with little left
_UNKNOWN_SECONDS: Final = 1.0  # until all is there again, where nothing left is all that is said
_MOST_SECONDS: Final = 3600.0  # what was said longer ago is not believed any more


class Names(NamedTuple):
    """The headers that tell of one limit."""

    what: What
    limit: bytes
    remaining: bytes
    reset: bytes


class Form(NamedTuple):
    """The headers of one API. `sign`: the one that stands in each answer that has any."""

    sign: bytes
    limits: tuple[Names, ...]
    cached_input: bool = False  # what is read from a prompt cache does not count as input


def _form(pattern: bytes, *limits: tuple[What, bytes], cached_input: bool = False) -> Form:
    names = tuple(
        Names(
            what,
            *(pattern.replace(b"WHAT", word).replace(b"PART", part) for part in (b"limit", b"remaining", b"reset")),
        )
        for what, word in limits
    )
    return Form(names[0].remaining, names, cached_input)


# platform.openai.com/docs/guides/rate-limits; Azure, Groq, Together, Fireworks and xAI have the same names.
OPENAI: Final = _form(b"x-ratelimit-PART-WHAT", ("requests", b"requests"), ("tokens", b"tokens"))
# docs.anthropic.com/en/api/rate-limits: cached input is free of the input's limit, as `max_tokens` is of the output's.
ANTHROPIC: Final = _form(
    b"anthropic-ratelimit-WHAT-PART",
    *(("requests", b"requests"), ("input", b"input-tokens"), ("output", b"output-tokens")),
    cached_input=True,
)
CEREBRAS: Final = _form(b"x-ratelimit-PART-WHAT", ("requests", b"requests-day"), ("tokens", b"tokens-minute"))


def form(kind: str, dialect: str) -> Form:
    """The headers that a provider of this built-in row, asked in this dialect, tells its limits by."""
    if kind == "cerebras":
        return CEREBRAS
    return ANTHROPIC if dialect in ("messages", "count_tokens") else OPENAI


class Level(msgspec.Struct):
    """How much of one limit is there: `left` at the time `seen`, `pace` more in a second, up to `limit`."""

    limit: float
    left: float
    pace: float
    seen: float

    def there(self, now: float) -> float:
        """How much is there; from `limit` on all of it is."""
        return self.left + self.pace * max(now - self.seen, 0.0)

    def wait(self, need: float, now: float) -> float:
        """Seconds until so much is there, or all there can be."""
        return max((min(need, self.limit) - self.there(now)) / self.pace, 0.0)


class _Key:
    """One key of a target's provider."""

    __slots__ = ("heard", "levels", "sent")

    def __init__(self) -> None:
        self.heard: tuple[Mapping[bytes, bytes], float, float, float] | None = None  # not read yet
        self.levels: dict[str, Level] = {}  # that are not full
        self.sent: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=_MOST_SENT)  # of late, and when


class Quota:
    """What is left of one target's limits, for each of its provider's keys. Kept over reloads, with its health."""

    __slots__ = ("_digits", "_keys", "form", "short")

    def __init__(self, form: Form) -> None:
        self.form = form
        self.short = False  # of some key little is left, or was
        self._keys: dict[int, _Key] = {}
        self._digits = [(each.remaining, plenty(each.remaining)) for each in form.limits]

    def hear(self, key: int, index: Mapping[bytes, bytes], began: float, now: float, wall: float) -> None:
        """An answer that has the form's sign came to what was sent with that key at the time `began`.

        `index`: its headers; `wall`: seconds since 1970, now.
        """
        for name, digits in self._digits:
            value = index.get(name)
            if value is not None and len(value) < digits:
                self._keys.setdefault(key, _Key()).heard = (index, began, now, wall)
                self.short = True
                return
        if self.short:
            self._keys.pop(key, None)
            self.short = bool(self._keys)

    def wait(self, key: int, need: Mapping[str, float], now: float) -> float:
        """Seconds until that key's limits have so much: of one who needs more than a limit, all of it."""
        return max((level.wait(need.get(what, 0.0), now) for what, level in self._read(key, now).items()), default=0.0)

    def spent(self, key: int, need: Mapping[str, float], now: float) -> bool:
        """Of some limit that it needs nothing is left with that key: that is certain, where `wait` goes by guesses."""
        return any(level.there(now) < 1.0 for what, level in self._read(key, now).items() if need.get(what))

    def take(self, key: int, need: Mapping[str, float], now: float) -> None:
        """So much is sent with that key: it is gone, before the provider says so."""
        if (known := self._keys.get(key)) is not None:
            known.sent.append((now, need))
            for what, level in known.levels.items():
                level.left -= need.get(what, 0.0)

    def stats(self, now: float) -> list[dict[str, object]]:
        """For /status: what is left, by the number of the key."""
        rows = [(key, self._read(key, now)) for key in sorted(self._keys)]
        return [
            {"key": key, **{what: max(int(level.there(now)), 0) for what, level in levels.items()}}
            for key, levels in rows
            if levels
        ]

    def _read(self, key: int, now: float) -> dict[str, Level]:
        """The levels of a key that are not full."""
        known = self._keys.get(key)
        if known is None:
            return {}
        if known.heard is not None:
            index, began, *when = known.heard
            known.levels = _levels(self.form, index, [need for at, need in known.sent if at > began], *when)
            known.heard = None
        known.levels = {what: level for what, level in known.levels.items() if level.there(now) < level.limit}
        if not known.levels:
            del self._keys[key]
            self.short = bool(self._keys)
        return known.levels

    def __repr__(self) -> str:
        return f"<Quota {'short' if self.short else 'ample'}>"


def _levels(
    form: Form, index: Mapping[bytes, bytes], later: list[Mapping[str, float]], now: float, wall: float
) -> dict[str, Level]:
    """What one answer says, less what has been sent `later` than what it answers."""
    levels: dict[str, Level] = {}
    for what, limit, remaining, reset in form.limits:
        left = _number(index.get(remaining))
        if left is None:
            continue
        until = seconds(index.get(reset), wall)
        until = _UNKNOWN_SECONDS if until is None else min(until, _MOST_SECONDS)
        most = max(_number(index.get(limit)) or 0.0, left, 1.0)  # how much there may be is not always said
        if until > 0 and most > left:
            gone = sum(need.get(what, 0.0) for need in later)
            levels[what] = Level(most, left - gone, (most - left) / until, now)
    return levels


def _number(value: bytes | None) -> float | None:
    if value is None or not value.isdigit() or len(value) > _MOST_DIGITS:
        return None
    return float(value)
