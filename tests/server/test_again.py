"""A head that comes again: what is exactly one more request with it, and what is for the reader to see."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.errors import Malformed
from sidecar.server.again import Again, remembered
from sidecar.wire.framing import END, Limits
from sidecar.wire.heads import RequestHead
from sidecar.wire.http1 import RequestReader

BEFORE = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: "
AFTER = b"\r\nX: y\r\n\r\n"


def head_of(data: bytes) -> RequestHead:
    head = RequestReader(Limits()).feed(data)[0]
    assert isinstance(head, RequestHead)
    return head


@pytest.fixture(scope="module")
def again() -> Again:
    found = remembered(head_of(BEFORE + b"2" + AFTER + b"ab"))
    assert found is not None
    return found


def test_a_head_is_cut_where_its_length_stands(again: Again) -> None:
    assert (again.before, again.after) == (BEFORE, AFTER)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 4096 + b"\r\nContent-Length: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nCONTENT-LENGTH: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 \r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00000000001\r\n\r\n",
    ],
)
def test_a_head_that_is_not_remembered(data: bytes) -> None:
    assert remembered(head_of(data)) is None


def test_a_head_that_came_in_pieces_is_not_remembered() -> None:
    reader = RequestReader(Limits())
    reader.feed(BEFORE)
    head = reader.feed(b"2" + AFTER)[0]
    assert isinstance(head, RequestHead)
    assert remembered(head) is None


@pytest.mark.parametrize(
    ("data", "split"),
    [
        (BEFORE + b"2" + AFTER + b"ab", (b"2", b"ab")),
        (BEFORE + b"11" + AFTER + b"hello world", (b"11", b"hello world")),
        (BEFORE + b"0" + AFTER, (b"0", b"")),
        (BEFORE + b"0000000002" + AFTER + b"ab", (b"0000000002", b"ab")),
        (BEFORE + b"00000000002" + AFTER + b"ab", None),
        (BEFORE + AFTER, None),
        (BEFORE + b"+2" + AFTER + b"ab", None),
        (BEFORE + b" 2" + AFTER + b"ab", None),
        (BEFORE + b"1_0" + AFTER + b"x" * 10, None),
        (BEFORE + "\u0662".encode() + AFTER + b"ab", None),
        (BEFORE + b"2" + AFTER + b"a", None),
        (BEFORE + b"2" + AFTER + b"abc", None),
        (BEFORE + b"2" + AFTER[:-1] + b"ab", None),
        (BEFORE + b"2\r\nContent-Length: 3" + AFTER + b"abc", None),
        (BEFORE[1:] + b"2" + AFTER + b"ab", None),
        (b"\r\n" + BEFORE + b"2" + AFTER + b"ab", None),
        (BEFORE, None),
        (b"", None),
    ],
)
def test_what_is_exactly_one_more(again: Again, data: bytes, split: tuple[bytes, bytes] | None) -> None:
    assert again.split(data) == split


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_it_is_taken_for_what_the_reader_takes_it_for(data: st.DataObject) -> None:
    """Whatever is changed in a request: where it is taken, the reader agrees in every word."""
    again = remembered(head_of(BEFORE + b"2" + AFTER))
    assert again is not None
    body = data.draw(st.binary(max_size=30))
    ask = bytearray(BEFORE + b"%d" % len(body) + AFTER + body)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(ask)))
        ask[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b"0", b"1", b"\r\n", b"\n", b" "])
        )
    split = again.split(bytes(ask))
    if split is None:
        return
    digits, taken = split
    try:
        head, *rest = RequestReader(Limits()).feed(bytes(ask))
    except Malformed as error:
        pytest.fail(f"taken, but {error.message}")
    assert isinstance(head, RequestHead)
    wanted = again.with_length(digits)
    wanted.raw = head.raw
    assert (head, rest) == (wanted, [taken, END] if taken else [END])


def test_with_another_length_it_has_no_notes(again: Again) -> None:
    again.head.notes["seen"] = True
    other = again.with_length(b"007")
    assert (other.length, other.index[b"content-length"], other.notes) == (7, b"007", {})
    assert again.head.index[b"content-length"] == b"2"
    again.head.notes.clear()
