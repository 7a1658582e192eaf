"""Heads: an answer's that is taken without llhttp says what llhttp says of it; and how heads are written."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import example, given, settings, strategies as st

from sidecar.errors import Malformed
from sidecar.wire.framing import END, Limits
from sidecar.wire.heads import RequestHead, ResponseHead, head_lines
from sidecar.wire.http1 import RequestReader, ResponseReader

LIMITS = Limits()
TOKEN = "!#$%&'*+-.^_`|~0123456789abcxyzABCXYZ"

# -- answers: all at once, some at a time, and byte by byte


class Llhttp:
    """What llhttp itself makes of an answer's head."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.whole = True


class Bare(ResponseReader):
    """A reader that has llhttp read every head."""

    def _feed_plain(self, data: bytes) -> None:
        return None


def _said(reader: ResponseReader, pieces: list[bytes], method: bytes) -> list[object]:
    """What is told, pieces of a body as one; and where it is refused, that. Then whether the peer's end is in order."""
    said: list[object] = []
    reader.expect(method)
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                if isinstance(event, ResponseHead):
                    assert event.index == dict(event.headers)
                    said.append((event.status, event.headers, event.keep_alive, event.length))
                elif type(event) is bytes and said and type(said[-1]) is bytes:
                    said[-1] = said[-1] + event
                elif event:
                    said.append(event)
    except Malformed as error:
        return [*said, ("refused", error.status)]
    return [*said, ("done", reader.done, reader.excess), _ended(reader)]


def _ended(reader: ResponseReader) -> object:
    try:
        return reader.end()
    except Malformed as error:
        return error.message


def _apart(said: list[object]) -> tuple[list[object], bool]:
    """What is told, and whether it ends in a refusal; then without the body, of which more is told byte by byte."""
    refused = type(said[-1]) is tuple and said[-1][0] == "refused"
    return [event for event in said if not (refused and (type(event) is bytes or event is said[-1]))], refused


def _agree(data: bytes, method: bytes, cuts: list[int]) -> None:
    """However it comes, the same is said of it; and where nothing is cut, exactly what llhttp's reading gives."""
    whole = _said(ResponseReader(LIMITS), [data], method)
    assert whole == _said(Bare(LIMITS), [data], method)
    single = _said(ResponseReader(LIMITS), [data[at : at + 1] for at in range(len(data))], method)
    assert single == _said(Bare(LIMITS), [data[at : at + 1] for at in range(len(data))], method)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[i:j] for i, j in itertools.pairwise(edges) if i != j]
    for said in (single, _said(ResponseReader(LIMITS), pieces, method)):
        (told, refused), (also, too) = _apart(whole), _apart(said)
        assert refused == too
        if refused:  # read at once, what is wrong behind a head is found before the head is told
            assert told == also[: len(told)]
        else:
            assert told == also


NAMES = st.one_of(
    st.sampled_from(["X", "x-request-id", "Content-Type", "Connection", "Connection", "Upgrade", "Trailer"]),
    st.text(TOKEN, min_size=1, max_size=12),
)
TELLING = [b"close", b"keep-alive", b"upgrade", b"Close, x", b"h2c", b"chunked", b"1", b"a b", b"a\tb", b"\xc3\xa9"]
PLAIN = st.one_of(
    st.sampled_from(TELLING), st.text("abc:;,= \t", max_size=9).map(lambda text: b"a" + text.encode() + b"z")
)
VALUES = st.one_of(
    PLAIN, st.binary(max_size=12).map(lambda value: value.translate(None, b"\r\n\0")), st.binary(max_size=12)
)
COLONS = st.sampled_from([b": "] * 6 + [b":", b":  ", b":\t", b" : ", b" :", b"", b"::"])
ENDS = st.sampled_from([b"\r\n"] * 9 + [b" \r\n", b"\t\r\n", b" \t \r\n", b"\n", b"\r", b"\r\r\n", b"\r\n x\r\n"])
LENGTHS = [b"%d", b"0%d", b"+%d", b"-%d", b"%d ", b" %d", b"%d, %d", b"0x%d", b"%d.0", b"00000000000000000000%d"]
CODINGS = [b"chunked", b"Chunked", b"gzip", b"gzip, chunked", b"chunked, gzip", b"identity", b"chunked,", b" chunked "]
STATUSES = st.sampled_from([200, 200, 201, 204, 205, 304, 404, 429, 500, 599])
ODD_STATUSES = st.sampled_from([100, 103, 101, 199, 600, 99, 1000, 204, 200])
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/0.9"])
REASONS = st.sampled_from([b" OK"] * 6 + [b" ", b"", b" \xe4\xf6", b"  x", b" a\tb", b" \x7f", b" \0", b"OK"])


def _named(name: str) -> st.SearchStrategy[bytes]:
    """A name in some case."""
    return st.sampled_from([name, name.title(), name.upper()]).map(str.encode)


@st.composite
def framings(draw: st.DrawFn, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header pairs that frame a body, well or not, and the body in that form."""
    kind = draw(st.sampled_from(["length", "chunks", "none", "length", "odd length", "odd coding", "both", "two"]))
    length = (draw(_named("content-length")), b"%d" % len(body))
    coding = (draw(_named("transfer-encoding")), b"chunked")
    sizes = draw(st.lists(st.integers(1, 9), max_size=5))
    chunks, rest = b"", body
    for size in [*sizes, len(body)]:
        if rest[:size]:
            line = draw(st.sampled_from([b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n"]))
            chunks += line % len(rest[:size]) + rest[:size] + b"\r\n"
            rest = rest[size:]
    chunks += draw(
        st.sampled_from([b"0\r\n\r\n"] * 4 + [b"00\r\n\r\n", b"0\r\nT: u\r\n\r\n", b"0\r\nT u\r\n\r\n", b""])
    )
    if kind == "odd length":
        form = draw(st.sampled_from(LENGTHS))
        return [(length[0], form.replace(b"%d", length[1]))], body
    if kind == "odd coding":
        return [(coding[0], draw(st.sampled_from(CODINGS)))], chunks
    pairs = {"length": [length], "chunks": [coding], "none": [], "both": [length, coding], "two": [length, length]}[
        kind
    ]
    return pairs, chunks if coding in pairs else body


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer whose head is plain but for some things, or none; with a body, and something or nothing more."""
    odd = draw(st.sets(st.sampled_from(["colon", "end", "value", "line", "before"]), max_size=2))
    ends = ENDS if "end" in odd else st.just(b"\r\n")
    body = draw(st.binary(max_size=30))
    pairs, body = draw(framings(body))
    for _ in range(draw(st.integers(0, 3))):
        pair = draw(NAMES).encode(), draw(VALUES if "value" in odd else PLAIN)
        pairs.insert(draw(st.integers(0, len(pairs))), pair)
    lines = [name + draw(COLONS if "colon" in odd else st.just(b": ")) + value + draw(ends) for name, value in pairs]
    if "line" in odd:
        first = b"%b %d%b" % (draw(VERSIONS), draw(ODD_STATUSES), draw(REASONS))
    else:
        first = b"HTTP/1.1 %d OK" % draw(STATUSES)
    before = draw(st.sampled_from([b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\n", b" "])) if "before" in odd else b""
    after = draw(st.sampled_from([b"", b"", b"", b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))
    return before + first + draw(ends) + b"".join(lines) + b"\r\n" + body + after


@settings(max_examples=500, deadline=None)
@given(answers(), st.sampled_from([b"POST"] * 5 + [b"HEAD"]), st.lists(st.integers(0, 400), max_size=3))
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"POST", [38])
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"POST", [])
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 2 \r\n\r\nok", b"POST", [])
@example(b"HTTP/1.1 200 OK\r\nx: \xff\r\nx: y\r\n\r\nuntil the end", b"POST", [])
@example(b"HTTP/1.1 200 OK\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nok", b"POST", [])
def test_of_an_answer_the_same_is_said_however_it_comes(data: bytes, method: bytes, cuts: list[int]) -> None:
    _agree(data, method, cuts)


@settings(max_examples=500, deadline=None)
@given(answers())
def test_what_llhttp_refuses_no_shorter_way_takes(data: bytes) -> None:
    reader, seen = ResponseReader(LIMITS), Llhttp()
    whole = reader.whole(data)
    if whole is not None:  # then it is exactly what feeding says
        head, body, end = ResponseReader(LIMITS).feed(data)
        assert isinstance(head, ResponseHead)
        assert (whole[0].status, whole[0].headers, whole[0].keep_alive, whole[0].length, whole[1], end) == (
            *(head.status, head.headers, head.keep_alive, head.length),
            *(body, END),
        )
    try:
        events = reader._feed_plain(data)
    except Malformed:
        return  # refusing more than llhttp does is our right
    if events is None:
        return
    parser = httptools.HttpResponseParser(seen)
    try:
        parser.feed_data(data[: data.index(b"\r\n\r\n") + 4])
    except httptools.HttpParserUpgrade:
        pytest.fail("an upgrade is taken for plain")
    head = events[0]
    assert isinstance(head, ResponseHead)
    assert (head.status, head.headers, seen.whole) == (parser.get_status_code(), seen.headers, True)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=60), st.integers(0, 70))
def test_one_chunk_a_read_says_what_bytes_say(body: bytes, junk: bytes, at: int) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    good = b"%x\r\n%b\r\n" % (len(body), body)
    broken = good[:at] + junk + good[at:]
    for piece in (good, broken, junk, good[:-2] + b"ab", good[:-1] + b"a"):
        single = [(head + piece)[i : i + 1] for i in range(len(head + piece))]
        whole = _said(ResponseReader(LIMITS), [head, piece], b"POST")
        assert _apart(whole)[1] == _apart(_said(ResponseReader(LIMITS), single, b"POST"))[1]
        if not _apart(whole)[1]:
            assert whole == _said(ResponseReader(LIMITS), single, b"POST")


def test_the_one_chunk_of_a_read_is_told_at_once_and_the_next_is_awaited() -> None:
    reader = ResponseReader(LIMITS)
    reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    assert reader.feed(b"4\r\n\r\n\r\n\r\n") == [b"\r\n\r\n"]
    assert reader.feed(b"2\r\nab\r\n1\r\nc\r\n") == [b"ab", b"c"]
    assert reader.feed(b"2\r\nabX\n"[:5]) == [b"ab"]
    with pytest.raises(Malformed, match="longer than it says"):
        reader.feed(b"X\n")


# -- requests


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_request_may_have_one_empty_line_before_it_and_no_more(count: int) -> None:
    ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for blanks in ([b"\r\n"], [b"\r", b"\n"]):
        reader = RequestReader(LIMITS)
        for _ in range(count):
            for piece in blanks:
                assert reader.feed(piece) == []
                assert not reader.idle
            events = reader.feed(ask)
            assert isinstance(events[0], RequestHead)
            assert (events[0].raw, events[1:]) == (ask, [END])
            assert reader.next() == []
            assert reader.idle
        reader.feed(b"\r\n")
        with pytest.raises(Malformed, match="line breaks before"):
            reader.feed(b"\r\n")


def test_a_head_in_one_piece_is_kept_as_it_came() -> None:
    ask = b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
    heads = [RequestReader(LIMITS).feed(ask + b"x")[0]]
    reader = RequestReader(LIMITS)
    reader.feed(ask[:30])
    heads += reader.feed(ask[30:])
    for head, raw in zip(heads, (ask, b""), strict=True):
        assert isinstance(head, RequestHead)
        assert (head.raw, head.path, head.query, head.plain) == (raw, b"/a", b"b", True)


# -- writing


def test_lines_of_a_head() -> None:
    assert head_lines([(b"a", b"b"), (b"c", b"")]) == b"a: b\r\nc: \r\n"
    assert head_lines([]) == b""


@pytest.mark.parametrize(
    "pair", [(b"a", b"b\r\nc: d"), (b"a", b"b\n"), (b"a", b"\rb"), (b"a", b"\0"), (b"a\r\nb", b"c")]
)
def test_a_header_that_would_split_a_head_is_not_written(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(Malformed, match="line break"):
        head_lines([(b"x", b"y"), pair])
