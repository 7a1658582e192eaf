"""An answer as it is kept, and as bytes for a store elsewhere. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

# What one costs in memory beside its bytes: its objects, its key, its place in the order (CPython 3.11; see the test).
OVERHEAD: Final = 704
_PIECE: Final = struct.Struct("<II")  # milliseconds since the first piece, and bytes
_MOST_MILLISECONDS: Final = 2**32 - 1


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A whole answer, or one input's embedding. Holds nothing of the exchange that brought it."""

    made: float  # when it was complete, in seconds since the epoch: other machines read it too
    head: bytes  # header lines, in the form of the wire
    body: bytes
    stream: bool = False
    pace: bytes = b""  # of a stream's pieces, where it is to be kept
    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    said: str = ""  # the model as an answer of embeddings names it

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, all told; a sixteenth for the holes between blocks that come and go."""
        size = len(self.head) + len(self.body) + len(self.pace)
        return OVERHEAD + size + size // 16

    def age(self, wall: float) -> float:
        """Seconds since it was made; none where another machine's clock is ahead of ours."""
        return max(0.0, wall - self.made)

    def pieces(self) -> Iterator[tuple[float, bytes]]:
        """A stream as it came: seconds since its first piece, and the piece."""
        start = 0
        for milliseconds, length in _PIECE.iter_unpack(self.pace):
            yield milliseconds / 1000, self.body[start : start + length]
            start += length


def paced(pieces: list[tuple[float, int]]) -> bytes:
    """The pace of pieces that came at such times, in seconds, and have so many bytes."""
    began = pieces[0][0] if pieces else 0.0
    return b"".join(
        _PIECE.pack(min(int((moment - began) * 1000), _MOST_MILLISECONDS), length) for moment, length in pieces
    )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def dumps(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def loads(data: bytes) -> Entry | None:
    """None for what is no entry: another version's, or not ours at all."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(entry.pace) % _PIECE.size or sum(length for _, length in _PIECE.iter_unpack(entry.pace)) not in (
        0,
        len(entry.body),
    ):
        return None
    return entry
