"""Content codings: any cuts, several members, both deflates; and bounds on what a few bytes may become."""

from __future__ import annotations

import gzip
import itertools
import time
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from sidecar.errors import UpstreamProtocol
from sidecar.wire.coding import MAX_BYTES, Inflate

TEXT = b'data: {"choices":[{"delta":{"content":"h\xc3\xa9"}}]}\n\n' * 40


def bare(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


CODED = {
    "gzip": (b"gzip", gzip.compress(TEXT, mtime=0)),
    "x-gzip": (b" X-GZIP ", gzip.compress(TEXT, mtime=0)),
    "members": (b"gzip", gzip.compress(TEXT[:99], mtime=0) + gzip.compress(b"") + gzip.compress(TEXT[99:])),
    "deflate": (b"Deflate", zlib.compress(TEXT)),
    "bare deflate": (b"deflate", bare(TEXT)),
    "stored": (b"deflate", zlib.compress(TEXT, 0)),
    "none": (b"Identity", TEXT),
}
NAMES = st.sampled_from(sorted(CODED.keys() - {"none"}))


def unpacked(coding: bytes, pieces: list[bytes]) -> bytes:
    inflate = Inflate(coding)
    data = b"".join(inflate.feed(piece) for piece in pieces)
    inflate.finish()
    return data


@pytest.mark.parametrize("name", CODED)
def test_whole_and_cut_in_two_everywhere(name: str) -> None:
    coding, data = CODED[name]
    for at in range(len(data)):
        assert unpacked(coding, [data[:at], data[at:]]) == TEXT
    assert unpacked(coding, [bytes([byte]) for byte in data]) == TEXT


@given(NAMES, st.data())
def test_a_cut_off_body_is_never_taken_for_a_whole_one(name: str, chance: st.DataObject) -> None:
    coding, data = CODED[name]
    at = chance.draw(st.integers(1, len(data) - 1))
    inflate = Inflate(coding)
    if (plain := inflate.feed(data[:at])) != TEXT[:99] or name != "members":  # which is whole between two members
        assert TEXT.startswith(plain)
        with pytest.raises(UpstreamProtocol, match="cut off"):
            inflate.finish()


@given(st.sampled_from([b"gzip", b"deflate"]), st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_anything_else_is_an_error_of_the_tree(coding: bytes, junk: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 200]
    try:
        unpacked(coding, [junk[start:stop] for start, stop in itertools.pairwise(edges)])
    except UpstreamProtocol:
        return


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"compress", b"utf-8"])
def test_a_coding_that_nobody_asked_for(coding: bytes) -> None:
    with pytest.raises(UpstreamProtocol, match="a content coding that was not asked for"):
        Inflate(coding)


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        (b"gzip", TEXT),
        (b"gzip", zlib.compress(TEXT)),
        (b"gzip", gzip.compress(TEXT, mtime=0)[:-8] + b"\0" * 8),  # the checksum is another
        (b"gzip", gzip.compress(TEXT, mtime=0) + b"junk"),
        (b"deflate", zlib.compress(TEXT) + b"junk"),
        (b"deflate", zlib.compress(TEXT) + zlib.compress(TEXT)),
    ],
)
def test_damage(coding: bytes, data: bytes) -> None:
    with pytest.raises(UpstreamProtocol, match="damaged"):
        unpacked(coding, [data])


def test_nothing_is_nothing() -> None:
    assert unpacked(b"gzip", []) == unpacked(b"deflate", [b""]) == b""


def refused_after(pieces: Iterable[bytes]) -> int:
    """How many bytes came out before it was refused to unpack more."""
    sizes: list[int] = []
    with pytest.raises(UpstreamProtocol, match="unpacks to more than it may"):
        sizes.extend(map(len, map(Inflate(b"gzip").feed, pieces)))
    return sum(sizes)


@pytest.mark.parametrize("size", [20_000_000, 200_000_000])
def test_a_bomb_is_refused_before_it_goes_off(size: int) -> None:
    machine = zlib.compressobj(9, wbits=31)
    bomb = b"".join(machine.compress(bytes(1_000_000)) for _ in range(size // 1_000_000)) + machine.flush()
    assert refused_after(bomb[at : at + 4096] for at in range(0, len(bomb), 4096)) <= 2 * 1024 * 1024


def test_no_more_than_the_bound_at_an_honest_ratio() -> None:
    block = bytes(range(256)) * 4096  # the coding does not even make it shorter
    machine = zlib.compressobj(0, wbits=31)
    out = refused_after(machine.compress(block) for _ in range(MAX_BYTES // len(block) + 2))
    assert MAX_BYTES - 2 * len(block) <= out <= MAX_BYTES


def test_members_without_end_cost_little_and_are_refused() -> None:
    began = time.perf_counter()
    with pytest.raises(UpstreamProtocol):
        Inflate(b"gzip").feed(gzip.compress(b"") * 200_000)
    assert time.perf_counter() - began < 1.0
