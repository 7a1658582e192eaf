"""What the names of an answer's headers tell, before their values are looked at.

A provider sends the same names in the same order again and again. What follows from them alone (where the length
stands, which ones go on to the client, and in what form) is found once for each such order, and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

import msgspec

from sidecar.wire import headers as rules

_MOST: Final = 1024  # orders that are kept: they are a provider's to choose, so there is a bound
_FEW: Final = 100  # as many as any answer may have
_ABSENT: Final = -1
_MANY_REQUESTS: Final = 4  # digits
_MANY_TOKENS: Final = 7


class Shape(msgspec.Struct, frozen=True, eq=False):
    """See the module. Positions are of the header among all; -1 where there is none."""

    names: tuple[bytes, ...]  # in lower case
    usual: bool  # neither of the following, few of them, and a length
    simple: bool  # so, and a content-type but no content-encoding
    streams: bool  # chunked, with a content-type, and with neither a Connection header nor a content-encoding
    odd: bool  # its framing is not for a short cut: a length twice, or an offer of another protocol
    framed: bool  # a Connection or Transfer-Encoding header has to be read
    length: int
    kind: int  # of content-type
    coding: int  # of content-encoding
    request_id: int  # of x-request-id, else of request-id
    both_ids: bool
    same_id: bool  # it is called x-request-id
    left: tuple[tuple[int, int], ...]  # what is left of each limit, and the digits that it has where that is plenty
    downward: bytes  # lines for the client, with a place for each value
    pick: Callable[[tuple[bytes, ...]], Any]  # the values that go there

    def lines(self, values: tuple[bytes, ...]) -> bytes:
        """The header lines that go on to the client, where there is no Connection header to name more of them."""
        lines: bytes = self.downward % self.pick(values)
        return lines


class Shapes(dict[tuple[bytes, ...], Shape]):
    """By the names as they came."""

    def __missing__(self, names: tuple[bytes, ...]) -> Shape:
        if len(self) >= _MOST:
            self.clear()
        shape = self[names] = _shape(tuple(name.lower() for name in names))
        return shape


SHAPES: Final = Shapes()


def plenty(name: bytes) -> int:
    """The digits that a header of what is left of a limit has at least, where nobody need look; 0: it is none."""
    if b"ratelimit" not in name or b"remaining" not in name:
        return 0
    return _MANY_TOKENS if b"token" in name else _MANY_REQUESTS


def _nothing(values: tuple[bytes, ...]) -> tuple[()]:
    return ()


def _shape(names: tuple[bytes, ...]) -> Shape:
    def at(name: bytes) -> int:
        """Of a repeated one the last, as everywhere."""
        return _ABSENT if name not in names else len(names) - 1 - names[::-1].index(name)

    kept = [position for position, name in enumerate(names) if rules.passes_downward(name)]
    first, second = at(b"x-request-id"), at(b"request-id")
    odd = names.count(b"content-length") > 1 or b"upgrade" in names
    framed = b"transfer-encoding" in names or b"connection" in names
    usual = not odd and not framed and b"content-length" in names and len(names) <= _FEW
    return Shape(
        names=names,
        usual=usual,
        simple=usual and b"content-type" in names and b"content-encoding" not in names,
        streams=not odd
        and names.count(b"transfer-encoding") == 1
        and b"content-type" in names
        and not {b"connection", b"content-encoding", b"content-length"}.intersection(names),
        odd=odd,
        framed=framed,
        length=at(b"content-length"),
        kind=at(b"content-type"),
        coding=at(b"content-encoding"),
        request_id=second if first == _ABSENT else first,
        both_ids=_ABSENT not in (first, second),
        same_id=first != _ABSENT,
        left=tuple((position, plenty(name)) for position, name in enumerate(names) if plenty(name)),
        downward=b"".join(b"%b: %%b\r\n" % names[position].replace(b"%", b"%%") for position in kept),
        pick=itemgetter(*kept) if kept else _nothing,
    )
