"""A secret that cannot be printed, formatted, pickled, compared with == or encoded."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """Holds a key. `reveal()` is called where it is sent, to a provider or to the store, and nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def digest(self) -> bytes:
        """SHA-256 of the secret: what callers are indexed by, so that look-up time tells nothing about any key."""
        return hashlib.sha256(self._text.encode()).digest()

    def matches(self, presented: str) -> bool:
        """Constant-time comparison."""
        return hmac.compare_digest(self._text.encode(), presented.encode())

    def redact(self, data: bytes) -> bytes:
        """`data` with every occurrence of the secret as stars: for what somebody else wrote, who may repeat it."""
        text = self._text.encode()
        return data.replace(text, b"**********") if text else data

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret('**********')"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("a Secret is compared with matches(), never with ==")

    __hash__ = None  # type: ignore[assignment]  # unhashable: never a dict's key, never in a set

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")
