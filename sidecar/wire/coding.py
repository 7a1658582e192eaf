"""Content codings of answers (RFC 9110 8.4): undone only where a body must be read, and then within bounds."""

from __future__ import annotations

import zlib

from sidecar.errors import UpstreamProtocol

MAX_RATIO = 100
MAX_BYTES = 64 * 1024 * 1024
_SLACK = 1024 * 1024  # a ratio says nothing about a few bytes


class Inflate:
    """Undoes gzip or deflate piece by piece. Raises UpstreamProtocol on damage, or when the output outgrows its bounds."""

    __slots__ = ("_in", "_machine", "_out")

    def __init__(self, coding: bytes) -> None:
        if coding.strip().lower() not in (b"gzip", b"x-gzip", b"deflate"):
            raise UpstreamProtocol("an answer in a content coding that was not asked for")
        self._machine = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
        self._in = self._out = 0

    def feed(self, data: bytes) -> bytes:
        self._in += len(data)
        bound = min(MAX_BYTES, self._in * MAX_RATIO + _SLACK) - self._out
        try:
            out = self._machine.decompress(data, bound + 1)
        except zlib.error:
            raise UpstreamProtocol("an answer with a damaged content coding") from None
        self._out += len(out)
        if len(out) > bound:
            raise UpstreamProtocol("an answer that unpacks to more than it may")
        return out
