"""Rates by amounts, and what a request is likely to amount to, in tokens: arithmetic of limits.py. Pure.

A bucket is GCRA: it takes a minute's allowance at once, and leaks evenly. What is not known beforehand (an answer's
tokens) is reserved by a guess, and settled when it is known: as if the real amount had been taken at first, as far as
that can still be told. What has leaked of a reservation is not given back: a bucket that has been empty since does not
know it any more. So never is more there than one minute's allowance, nor is less than nothing used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

PERIOD_SECONDS: Final = 60.0
ROUNDING: Final = 1e-6  # seconds: a clock of many days has no finer steps when intervals are added to it

# Kinds of token limits, by the name of their option: whether a request's input counts, and whether its output does.
KINDS: Final = (
    ("tokens_per_minute", 1, 1),
    ("input_tokens_per_minute", 1, 0),
    ("output_tokens_per_minute", 0, 1),
)
TokenLimits = tuple[int | None, int | None, int | None]  # a minute, of each of the kinds
NO_TOKENS: Final[TokenLimits] = (None, None, None)
USUAL_TOKENS: Final = 1024  # of an answer that nobody has bounded, until some have been seen
_RECENT: Final = 32  # answers, about, that the usual is the mean of
_MOST_TOKENS: Final = 1 << 40  # no guess is greater: clients may write any number

_BYTES_A_TOKEN: Final = 4  # of JSON with text in it, in the mean of languages and models
_CODED_BYTES_A_TOKEN: Final = 512  # of images and files in base64: a picture of 1 MB has some 2000 tokens
_WINDOW: Final = 4096  # bytes without a space, a quote or a letter beyond ASCII: no text is like that


class Left(NamedTuple):
    """What there is of one limit: for headers and /status."""

    name: str
    limit: int  # a minute
    remaining: int
    reset: float  # seconds until all of it is there again


class Guess(NamedTuple):
    """What a request may come to, in tokens. `output`: of one choice; None: nobody has bounded it."""

    input: int
    output: int | None
    choices: int

    def whole(self, usual: float) -> tuple[int, int]:
        """In and out, where the output that nobody has bounded is the usual."""
        return self.input, output_tokens(self.output, self.choices, usual)


class Bucket:
    """So many tokens a minute. Amounts are in seconds of its leak: a token in is `per_input` of them, all of it 60."""

    __slots__ = ("_input", "_output", "due", "name", "per_input", "per_minute", "per_output", "since")

    def __init__(self, name: str, input: int, output: int, per_minute: int) -> None:
        self.name = name
        self._input = input  # 1: what a request says counts, else 0
        self._output = output
        self.due = 0.0  # GCRA's theoretical arrival time: when all that was taken will have leaked
        self.since = 0.0  # when it was last found empty, and something taken
        self.allow(per_minute)

    def allow(self, per_minute: int) -> None:
        """The bound from now on; what has been used of it stays used."""
        self.per_minute = per_minute
        self.per_input = PERIOD_SECONDS / per_minute * self._input
        self.per_output = PERIOD_SECONDS / per_minute * self._output

    def settle(self, reserved: float, used: float, began: float, now: float) -> None:
        """So much was used of what was reserved at the time `began`: the difference is taken, or given back."""
        if used >= reserved:
            take((self,), (used - reserved,), now)
        elif self.since <= began:
            self.due += used - reserved  # below now it is as empty as at it

    def left(self, now: float) -> Left:
        return left(self.name, self.per_minute, self.due, now)

    def __repr__(self) -> str:
        return f"<Bucket {self.name} {self.per_minute}>"


def buckets(limits: TokenLimits, known: Iterable[Bucket]) -> tuple[Bucket, ...]:
    """A bucket for each limit there is; those that are `known` already go on with what has been used of them."""
    found = {bucket.name: bucket for bucket in known}
    made = []
    for (name, input, output), most in zip(KINDS, limits, strict=True):
        if most is not None:
            bucket = found.get(name) or Bucket(name, input, output, most)
            bucket.allow(most)
            made.append(bucket)
    return tuple(made)


def look(buckets: Iterable[Bucket], input: int, output: int, now: float) -> tuple[list[float], float, str]:
    """What a request takes of each bucket, of none more than there may be; and which is short for the longest.

    Of that the seconds until there is enough, and its name: ROUNDING and "" where none is short. Takes nothing.
    """
    amounts, longest, name = [], ROUNDING, ""
    for bucket in buckets:
        amount = input * bucket.per_input + output * bucket.per_output
        if amount > PERIOD_SECONDS:  # each request with tokens comes here: a call of min() would be a tenth of it all
            amount = PERIOD_SECONDS
        amounts.append(amount)
        early = amount - PERIOD_SECONDS
        if bucket.due > now:
            early += bucket.due - now
        if early > longest:
            longest, name = early, bucket.name
    return amounts, longest, name


def take(buckets: Iterable[Bucket], amounts: Iterable[float], now: float) -> None:
    """It is used, of each; buckets may be overdrawn by it."""
    for bucket, amount in zip(buckets, amounts, strict=True):
        if bucket.due > now:
            bucket.due += amount
        else:
            bucket.since = now
            bucket.due = now + amount


def left(name: str, per_minute: int, due: float, now: float) -> Left:
    """What there is of a limit whose theoretical arrival time is `due`."""
    reset = max(due - now, 0.0)
    remaining = int((PERIOD_SECONDS - reset + ROUNDING) * per_minute / PERIOD_SECONDS)
    return Left(name, per_minute, min(max(remaining, 0), per_minute), reset)


def usual(before: float, output: int, seen: int) -> float:
    """The mean output of recent answers: what one will be that nobody has bounded. `seen`: this one included."""
    return before + (output - before) / min(seen, _RECENT)


def input_tokens(members: Iterable[bytes]) -> int:
    """A guess at what a request's body comes to, by the members of its JSON: a token for four bytes.

    Long runs that can be no text (base64: images, sound, files) count a token for 512 bytes. Nothing is read but for
    spaces and quotes: a megabyte takes about 100 us.
    """
    size = coded = 0
    for data in members:
        size += len(data)
        if len(data) >= 2 * _WINDOW:
            coded += _coded(data)
    return (size - coded) // _BYTES_A_TOKEN + coded // _CODED_BYTES_A_TOKEN


def _coded(data: bytes) -> int:
    """How many bytes stand in whole windows that can be no text."""
    windows = range(0, len(data) - _WINDOW + 1, _WINDOW)
    return _WINDOW * sum(
        data.find(b" ", at, at + _WINDOW) < 0
        and data.find(b'"', at, at + _WINDOW) < 0
        and data[at : at + _WINDOW].isascii()
        for at in windows
    )


def output_tokens(max_tokens: int | None, choices: int, usual: float) -> int:
    """A guess at what an answer comes to: all that the request allows, else what is usual, for each choice."""
    tokens = int(usual) if max_tokens is None else max_tokens
    return min(max(tokens, 0) * max(choices, 1), _MOST_TOKENS)
