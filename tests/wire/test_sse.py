"""Server-sent events: any chunking means the same events, no byte is lost or added, and the work is linear."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given, strategies as st

from sidecar.errors import UpstreamProtocol
from sidecar.wire import sse
from sidecar.wire.sse import Event, Reader, Splitter, events

LINES = st.sampled_from(
    [
        *(b"", b"data: a", b"data:b", b"data", b"data:  c", b"event: e", b"event:f ", b": note", b"id: 1"),
        *(b"retry: 5", b"x: y", b"\xef\xbb\xbfdata: bom", b"data: \xc3\xa9", b"data: \xff", b"data: \xef\xbb\xbf"),
    ]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=14).map(lambda lines: b"".join(a + b for a, b in lines))
MIXED = (
    b"\xef\xbb\xbf: hi\r\n\r\ndata: 1\r\n\r\nevent: e\rdata: 2\rdata: 3\r\rdata: 4\n\n\n: ping\n\n"
    b"data: h\xc3\xa9\r\n\ndata: 5\n\r\ndata: [DONE]\r\n\r\n"
)
EVENTS = [Event("", b"1"), Event("e", b"2\n3"), Event("", b"4"), Event("", b"h\xc3\xa9"), Event("", b"5")]
EVENTS.append(Event("", b"[DONE]"))


def reference(stream: bytes) -> list[Event]:
    """The standard's algorithm (WHATWG HTML 9.2.6), the plain way: by lines, of a stream that is all there."""
    found, name, data = [], "", list[bytes]()
    for line in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        field, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            found += [Event(name, b"\n".join(data))] if data else []
            name, data = "", []
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.strip().decode()
    return found


def read(pieces: list[bytes]) -> list[Event]:
    reader = Reader()
    return [event for piece in pieces for event in reader.feed(piece)] + reader.finish()


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(stream)}), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(edges)]


def test_every_line_end_comment_and_field() -> None:
    assert read([MIXED]) == EVENTS == reference(MIXED)


def test_every_cut_and_every_two_cuts_of_it() -> None:
    for first in range(len(MIXED)):
        for second in range(first, len(MIXED), 3):
            assert read(pieces_of(MIXED, [first, second])) == EVENTS


def test_byte_by_byte() -> None:
    assert read([MIXED[at : at + 1] for at in range(len(MIXED))]) == EVENTS


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
@example(b"data: a\r\rdata: b\n\n", [9])
@example(b"data: a\r\n\r\n", [8, 9, 10])
@example(b"data: a\n\r\n\r\n", [8])
def test_any_cuts_give_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    stream += b"\n\n"
    assert read(pieces_of(stream, cuts)) == reference(stream)


@given(st.binary(max_size=80) | STREAMS, st.lists(st.integers(0, 80), max_size=12))
def test_no_byte_is_lost_added_or_moved(stream: bytes, cuts: list[int]) -> None:
    splitter = Splitter()
    out = b"".join(splitter.feed(piece) for piece in pieces_of(stream, cuts))
    assert out + splitter.held == stream


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
def test_what_is_let_through_is_whole_events_only(stream: bytes, cuts: list[int]) -> None:
    """Cut off behind any block, the client has the events so far and not half a line of another."""
    splitter = Splitter()
    sent = b""
    for piece in pieces_of(stream, cuts):
        sent += splitter.feed(piece)
        assert not sent or sent.endswith((b"\n", b"\r"))
        assert reference(sent + b"\n\n") == reference(sent)


def test_what_is_whole_is_let_through_at_once() -> None:
    splitter = Splitter()
    for end in (b"\n\n", b"\r\n\r\n"):
        assert splitter.feed(b"data: 1" + end) == b"data: 1" + end
        assert splitter.feed(b"data: 2" + end + b"data") == b"data: 2" + end
        assert splitter.held == b"data"
        assert splitter.feed(b": 3" + end) == b"data: 3" + end
        assert splitter.held == b""


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"data: a", []),
        (b"data: a\n", [Event("", b"a")]),
        (b"data: a\r", [Event("", b"a")]),
        (b"data: a\r\n", [Event("", b"a")]),
        (b"data: a\r\r", [Event("", b"a")]),
        (b"data: a\ndata: b", []),
        (b": only a comment\n", []),
        (b"", []),
    ],
)
def test_the_end_of_a_stream_without_its_last_empty_line(stream: bytes, found: list[Event]) -> None:
    assert read([stream]) == found


def test_an_event_has_a_bound() -> None:
    splitter = Splitter(100)
    assert splitter.feed(b"data: " + b"x" * 92 + b"\n\n") != b""
    assert splitter.feed(b"x" * 100) == b""
    with pytest.raises(UpstreamProtocol, match="an event of more than 100 bytes"):
        splitter.feed(b"x")
    with pytest.raises(UpstreamProtocol):
        Splitter(100).feed(b"data: 1\n\n" + b"x" * 101)


@pytest.mark.parametrize("piece", [b"x", b"\r", b"x\r", b"\nx", b": c\n"])
def test_the_work_is_linear(piece: bytes) -> None:
    """Four times the pieces of one event that never ends take about four times as long, and not sixteen."""

    def seconds(count: int) -> float:
        splitter = Splitter()
        began = time.perf_counter()
        for _ in range(count):
            splitter.feed(piece)
        return time.perf_counter() - began

    assert min(seconds(80_000) for _ in range(2)) < 8 * max(min(seconds(20_000) for _ in range(3)), 0.002)


def test_writing() -> None:
    assert sse.write(b"{}") == b"data: {}\n\n"
    assert sse.write(b"{}", "error") == b"event: error\ndata: {}\n\n"
    assert events(sse.write(b"{}", "error")) == [Event("error", b"{}")]
