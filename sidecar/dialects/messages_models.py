"""What Claude models take, by the generation in their names: sampling, thinking, structured outputs, length."""

from __future__ import annotations

import re
from typing import Final

Generation = tuple[int, int]

# claude-opus-4-7, claude-haiku-4-5-20251001, anthropic.claude-sonnet-4-20250514-v1:0 (4.0), anthropic/claude-opus-4.6
_NEW: Final = re.compile(r"claude-(?:opus|sonnet|haiku)-(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")
# claude-3-opus-20240229, claude-3-5-sonnet-latest, claude-3.7-sonnet, claude-2.1
_OLD: Final = re.compile(r"claude-(\d)(?!\d)(?:[-.](\d)(?!\d))?")
_ALWAYS_THINKING: Final = re.compile(r"claude-(?:fable|mythos)")  # of the fifth generation, whatever their numbers
# Tokens of an answer when the request names none: the API demands the member. The first row that fits.
_MAX_TOKENS: Final[tuple[tuple[Generation, int], ...]] = (((4, 0), 32_000), ((3, 5), 8192))
_DEFAULT_MAX_TOKENS: Final = 4096  # every model serves this many


def generation(model: str) -> Generation | None:
    """(4, 5) of a model that says so in its name; None of one that is no Claude, or does not."""
    name = model.lower()
    if _ALWAYS_THINKING.search(name):
        return 5, 0
    match = _NEW.search(name) or _OLD.search(name)
    return (int(match[1]), int(match[2] or 0)) if match is not None else None


def _from(model: str, first: Generation) -> bool:
    found = generation(model)
    return found is not None and found >= first


def takes_sampling(model: str) -> bool:
    """Temperature, top_p, top_k: gone from Opus 4.7 on."""
    return not _from(model, (4, 7))


def one_of_temperature_and_top_p(model: str) -> bool:
    return _from(model, (4, 5))


def adaptive(model: str) -> bool:
    """Decides by itself how long to think, and takes an effort; the older ones are given a budget."""
    return _from(model, (4, 6))


def always_thinks(model: str) -> bool:
    return _ALWAYS_THINKING.search(model.lower()) is not None


def takes_effort_xhigh(model: str) -> bool:
    return _from(model, (4, 7))


def takes_format(model: str) -> bool:
    """Structured outputs: from Opus 4.1 on."""
    return generation(model) is None or _from(model, (4, 1))


def max_tokens(model: str) -> int:
    return next((tokens for first, tokens in _MAX_TOKENS if _from(model, first)), _DEFAULT_MAX_TOKENS)
