"""Bodies: what a head says of one, every byte of it accounted for, and nothing taken that is not plain."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.errors import Malformed
from sidecar.wire.framing import (
    CHUNK_LINES,
    DONE,
    END,
    EVENT_END,
    LAST_CHUNK,
    Bodies,
    Framing,
    Headers,
    Limits,
    chunk,
    connection_tokens,
    count,
    events_in_chunks,
    framing,
)
from sidecar.wire.http1 import ResponseReader

LIMITS = Limits(extension_bytes=40, trailer_bytes=40)


def body(pieces: list[bytes], *, chunked: bool = False, length: int | None = None) -> tuple[bytes, int, int]:
    """The body told, how many ENDs, and how many bytes were left behind it. Raises Malformed."""
    reader, events = Bodies(LIMITS), list[object]()
    reader._begin_body(events, chunked=chunked, length=length, until_close=length is None and not chunked)
    for piece in pieces:
        common = reader.piece(piece)
        if common is not None:
            events.append(common)
            continue
        data, reader._held = reader._held + piece, b""
        if reader._state == DONE:
            reader._held = data
        else:
            reader._feed_body(data, 0, events)
    told = [event for event in events if isinstance(event, bytes)]
    left = len(reader._held) if reader._state == DONE else -1
    return b"".join(told), events.count(END), left


def each(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# -- what the head says


@pytest.mark.parametrize(
    ("headers", "version", "said"),
    [
        ([], "1.1", Framing(False, None, False)),
        ([], "1.0", Framing(False, None, True)),
        ([(b"content-length", b"007")], "1.1", Framing(False, 7, False)),
        ([(b"transfer-encoding", b"Chunked")], "1.1", Framing(True, None, False)),
        ([(b"connection", b"x,\tClose ")], "1.1", Framing(False, None, True)),
        ([(b"connection", b"keep-alive")], "1.1", Framing(False, None, False)),
        ([(b"connection", b"Keep-Alive"), (b"content-length", b"1")], "1.0", Framing(False, 1, False)),
        ([(b"connection", b"keep-alive"), (b"connection", b"close")], "1.0", Framing(False, None, True)),
    ],
)
def test_what_a_head_says_of_its_body(headers: Headers, version: str, said: Framing) -> None:
    assert framing(headers, dict(headers), version) == said


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ([(b"transfer-encoding", b"gzip, chunked")], "1.1", 501),
        ([(b"transfer-encoding", b"")], "1.1", 501),
        ([(b"transfer-encoding", b"chunked")], "1.0", 400),
        ([(b"transfer-encoding", b"chunked"), (b"content-length", b"1")], "1.1", 400),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "1.1", 400),
        ([(b"transfer-encoding", b"gzip"), (b"transfer-encoding", b"chunked")], "1.1", 400),
    ],
)
def test_a_framing_that_may_be_read_in_two_ways_is_refused(headers: Headers, version: str, status: int) -> None:
    with pytest.raises(Malformed) as caught:
        framing(headers, dict(headers), version)
    assert caught.value.status == status


def test_names_and_tokens() -> None:
    headers = [(b"connection", b"A, b"), (b"x", b"close"), (b"connection", b"\tC ")]
    assert connection_tokens(headers) == [b"a", b"b", b"c"]
    assert (count(headers, b"connection"), count(headers, b"y")) == (2, 0)


# -- the body itself


def test_a_chunk() -> None:
    assert (chunk(b"x" * 26), LAST_CHUNK) == (b"1a\r\n" + b"x" * 26 + b"\r\n", b"0\r\n\r\n")


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.binary(max_size=20), st.data())
def test_what_is_written_in_chunks_is_read_whatever_the_cuts(
    pieces: list[bytes], behind: bytes, data: st.DataObject
) -> None:
    wire = b"".join(map(chunk, pieces)) + LAST_CHUNK + behind
    cuts = [0, *sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12))), len(wire)]
    told = (b"".join(pieces), 1, len(behind))
    assert body([wire[i:j] for i, j in itertools.pairwise(cuts)], chunked=True) == told
    assert body(each(wire), chunked=True) == told
    assert body([*map(chunk, pieces), LAST_CHUNK, behind], chunked=True) == told


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40), st.integers(0, 60))
def test_a_body_of_a_length_ends_at_its_last_byte(wire: bytes, length: int, cut: int) -> None:
    ends = len(wire) >= length
    told = (wire[:length], int(ends), len(wire) - length if ends else -1)
    for pieces in ([wire], each(wire), [wire[:cut], wire[cut:]]):
        assert body([piece for piece in pieces if piece], length=length) == told


def test_a_body_without_framing_has_no_end_of_its_own() -> None:
    assert body([b"a", b"\r\n\r\n", b"0\r\n\r\n"]) == (b"a\r\n\r\n0\r\n\r\n", 0, -1)


@pytest.mark.parametrize(
    "wire",
    [
        b"2\r\nabc\r\n0\r\n\r\n",
        b"2\r\nab\n0\r\n\r\n",
        b"2\nab\r\n",
        b"\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"0x2\r\nab\r\n",
        b" 2\r\nab\r\n",
        b"2 \r\nab\r\n",
        b"2_0\r\n",
        b"1000000000000000\r\n",
        b"2;a\nb\r\nab\r\n",
        b"2;a\rb\r\nab\r\n",
        b"2;\0\r\nab\r\n",
        b"2;%b\r\n" % (b"x" * 40),
        b"1;%b\r\na\r\n" % (b"x" * 20) * 2,
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n: no name\r\n\r\n",
        b"0\r\na: b\nc: d\r\n\r\n",
        b"0\r\na: b\rc\r\n\r\n",
        b"0\r\na: \0\r\n\r\n",
        b"0\r\na: %b\r\n\r\n" % (b"x" * 40),
        b"0\r\n" + b"a: b\r\n" * 7 + b"\r\n",
    ],
)
def test_chunks_that_are_not_plain_are_refused_whatever_the_cuts(wire: bytes) -> None:
    for pieces in ([wire], each(wire), [wire[:1], wire[1:]], [wire[:4], wire[4:]]):
        with pytest.raises(Malformed):
            body(pieces, chunked=True)


def test_what_is_held_of_an_unfinished_line_is_bounded() -> None:
    for start in (b"2;", b"0\r\na: "):
        with pytest.raises(Malformed):
            body([start, *each(b"x" * 41)], chunked=True)


# -- chunks of events


@given(st.lists(st.binary(max_size=40), max_size=4), st.binary(max_size=12))
def test_what_is_taken_for_chunks_of_events_is_nothing_else(payloads: list[bytes], tail: bytes) -> None:
    data = b"".join(map(chunk, [payload + b"\n\n" for payload in payloads])) + tail
    size = events_in_chunks(data)
    if not tail:
        assert size == sum(len(payload) + 2 for payload in payloads)
    line, alone = CHUNK_LINES[len(data)]
    if data.startswith(line) and data.endswith(EVENT_END):
        assert size == alone
    if size <= 0:
        return
    reader, events = ResponseReader(Limits()), list[object]()
    reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    events += reader.feed(data)
    assert reader.between
    pieces = [each for each in events if isinstance(each, bytes)]
    assert len(pieces) == len(events)
    assert (sum(map(len, pieces)), all(piece.endswith(b"\n\n") for piece in pieces)) == (size, True)


@given(st.integers(0, 5000))
def test_a_chunk_line_is_that_of_the_only_chunk_of_so_many_bytes(size: int) -> None:
    fitting = [length for length in range(2, size) if len(chunk(b"x" * length)) == size]
    line, length = CHUNK_LINES[size]
    if size > 4096 or not fitting:
        assert not chunk(b"x" * size).startswith(line)
    else:
        assert [(b"%x\r\n" % each, each) for each in fitting] == [(line, length)]


def test_one_byte_is_no_event() -> None:
    assert events_in_chunks(b"1\r\n\n\r\n") == -1
    assert CHUNK_LINES[6][0] != b"1\r\n"
    assert events_in_chunks(b"2\r\n\n\n\r\n") == 2
