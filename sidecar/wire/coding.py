"""Content codings of answers (RFC 9110 8.4): undone only where a body must be read, and then within bounds."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from sidecar.errors import UpstreamProtocol

if TYPE_CHECKING:
    from zlib import _Decompress

MAX_RATIO: Final = 100
MAX_BYTES: Final = 64 * 1024 * 1024
_SLACK: Final = 1024 * 1024  # a ratio says nothing about a few bytes
_GZIP: Final = (b"gzip", b"x-gzip")
_NONE: Final = (b"identity", b"")  # which no server should say, and some do
_MOST_MEMBERS: Final = 1000
_SLICE_BYTES: Final = 16 * 1024  # what follows a member is copied for the next: small slices keep the work linear
_DAMAGED: Final = "an answer with a damaged content coding"


class Inflate:
    """Undoes gzip or deflate piece by piece. Raises UpstreamProtocol on damage, or when the output outgrows its bounds.

    A gzip body may have several members (RFC 1952 2.2); "deflate" is zlib's form, and from some servers the bare one.
    `finish()` at the end of the body tells a cut one from a whole one.
    """

    __slots__ = ("_gzip", "_in", "_machine", "_members", "_out", "_plain")

    def __init__(self, coding: bytes) -> None:
        name = coding.strip().lower()
        if name not in (*_GZIP, *_NONE, b"deflate"):
            raise UpstreamProtocol("an answer in a content coding that was not asked for")
        self._gzip = name in _GZIP
        self._plain = name in _NONE
        self._machine: _Decompress | None = None  # of the member under way
        self._in = self._out = self._members = 0

    def feed(self, data: bytes) -> bytes:
        if self._plain:
            return data
        pieces: list[bytes] = []
        for at in range(0, len(data), _SLICE_BYTES):
            rest = data[at : at + _SLICE_BYTES]
            self._in += len(rest)
            while rest:
                if self._machine is None or self._machine.eof:
                    self._machine = self._begin(rest)
                pieces.append(self._step(self._machine, rest))
                rest = self._machine.unused_data
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> None:
        """The body has ended. Raises UpstreamProtocol where its coding had not."""
        if self._machine is not None and not self._machine.eof:
            raise UpstreamProtocol("an answer whose content coding is cut off")

    def _begin(self, data: bytes) -> _Decompress:
        self._members += 1
        if self._gzip and self._members <= _MOST_MEMBERS:
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._members > 1:  # bytes behind the end
            raise UpstreamProtocol(_DAMAGED)
        return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 15 == 8 else -zlib.MAX_WBITS)  # 8: RFC 1950 2.2

    def _step(self, machine: _Decompress, data: bytes) -> bytes:
        bound = min(MAX_BYTES, self._in * MAX_RATIO + _SLACK) - self._out
        try:
            out = machine.decompress(data, bound + 1)
        except zlib.error:
            raise UpstreamProtocol(_DAMAGED) from None
        self._out += len(out)
        if len(out) > bound:
            raise UpstreamProtocol("an answer that unpacks to more than it may")
        return out
