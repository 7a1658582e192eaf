"""JSON of providers that is nearly JSON: halves of surrogate pairs, left by who cut a text between two UTF-16 units."""

from __future__ import annotations

import re
from typing import Final

# Every escape, so that the `u` of an escaped backslash is not taken for one: a whole pair, a half, anything else.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_REPLACEMENT: Final = rb"\ufffd"


def mended(data: bytes) -> bytes:
    """The same JSON, its halves of pairs turned to U+FFFD: what readers of text make of them, and decoders refuse."""
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    return _ESCAPE.sub(lambda escape: _REPLACEMENT if escape[1] is not None else escape[0], data)
