"""Entries as bytes, and the pace of a stream."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given, strategies as st

from sidecar.cache.entry import OVERHEAD, Entry, dumps, loads, paced

ENTRY = Entry(
    made=1.5,
    head=b"content-type: x\r\n",
    body=b"a\x00\xff",
    stream=True,
    pace=paced([(7.0, 1), (7.25, 2)]),
    provider="openai",
    model="m",
    input_tokens=3,
    output_tokens=4,
    said="s",
)


def test_as_bytes_and_back() -> None:
    assert loads(dumps(ENTRY)) == ENTRY
    assert type(dumps(ENTRY)) is bytes


@given(st.binary(max_size=200))
def test_what_is_no_entry_is_none(data: bytes) -> None:
    found = loads(data)
    assert found is None or isinstance(found, Entry)


@given(st.integers(0, 80))
def test_a_cut_one_is_none(at: int) -> None:
    data = dumps(ENTRY)
    assert loads(data[: at % len(data)]) is None


@pytest.mark.parametrize("pace", [b"1234567", struct.pack("<II", 0, 2), struct.pack("<IIII", 0, 3, 1, 1)])
def test_a_pace_that_is_not_of_its_body(pace: bytes) -> None:
    assert loads(dumps(msgspec.structs.replace(ENTRY, pace=pace))) is None


def test_its_pieces_as_they_came() -> None:
    assert [*ENTRY.pieces()] == [(0.0, b"a"), (0.25, b"\x00\xff")]
    assert paced([]) == b""
    assert [*Entry(made=0.0, head=b"", body=b"x", pace=paced([(0.0, 0), (1e9, 1)])).pieces()] == [
        (0.0, b""),
        ((2**32 - 1) / 1000, b"x"),
    ]


def test_its_age_and_its_size() -> None:
    assert (ENTRY.age(5.0), ENTRY.age(1.0)) == (3.5, 0.0)
    assert Entry(made=0.0, head=b"1" * 8, body=b"2" * 16, pace=b"3" * 8).size == OVERHEAD + 34
