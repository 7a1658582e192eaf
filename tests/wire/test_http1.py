"""Readers of requests and answers: what they tell, what they refuse, and that cuts change nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.errors import Malformed
from sidecar.wire.framing import END, LAST_CHUNK, Headers, Limits, chunk
from sidecar.wire.heads import RequestHead, ResponseHead
from sidecar.wire.http1 import RequestReader, ResponseReader
from tests.server.corpus import CORPUS, FOLLOWER

LIMITS = Limits()
Reader = RequestReader | ResponseReader


def facts(event: object) -> object:
    """What of an event the two directions have in common, and what of a body does not depend on its pieces."""
    match event:
        case RequestHead():
            flags = (event.keep_alive, event.has_body, event.length, event.expect_continue, event.upgrade)
            return (event.method, event.target, event.headers, *flags)
        case ResponseHead():
            return (event.status, event.headers, event.keep_alive, event.length)
        case _:
            return event


def read(reader: Reader, segments: Iterable[bytes], *, method: bytes = b"GET", ends: bool = False) -> list[object]:
    """Everything told of these bytes, message by message; adjacent pieces of a body as one."""
    told: list[object] = []

    def take(events: Iterable[object]) -> None:
        for event in events:
            if type(event) is bytes and told and type(told[-1]) is bytes:
                told[-1] = told[-1] + event
            else:
                told.append(facts(event))

    def begin() -> None:
        if isinstance(reader, ResponseReader):
            reader.expect(method)

    begin()
    for segment in segments:
        take(reader.feed(segment))
        while reader.done:
            begin()
            take(reader.next())
    if ends:
        take(reader.end())
    return told


def request(data: bytes, *more: bytes) -> list[object]:
    return read(RequestReader(LIMITS), [data, *more])


def answer(data: bytes, *, method: bytes = b"GET", ends: bool = False) -> list[object]:
    return read(ResponseReader(LIMITS), [data], method=method, ends=ends)


# -- requests

HOST: Headers = [(b"host", b"a")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
            [("GET", b"/a?b", HOST, True, False, None, False, False), END],
        ),
        (
            b"POST / HTTP/1.1\r\nHost:a\r\nX:\t b c \r\nX:\r\nContent-Length: 3\r\n\r\nabc",
            [
                (
                    "POST",
                    b"/",
                    [*HOST, (b"x", b"b c"), (b"x", b""), (b"content-length", b"3")],
                    True,
                    True,
                    3,
                    False,
                    False,
                ),
                b"abc",
                END,
            ],
        ),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n",
            [("PUT", b"/", [*HOST, (b"transfer-encoding", b"chunked")], True, True, None, False, False), b"abc", END],
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            [("POST", b"/", [*HOST, (b"content-length", b"0")], True, False, 0, False, False), END],
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
            [("GET", b"/", [*HOST, (b"connection", b"x, Close")], False, False, None, False, False), END],
        ),
        (
            b"GET / HTTP/1.1\r\nConnection: close\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            [
                (
                    "GET",
                    b"/",
                    [(b"connection", b"close"), *HOST, (b"connection", b"keep-alive")],
                    *(False, False, None, False, False),
                ),
                END,
            ],
        ),
        (b"GET / HTTP/1.0\r\n\r\n", [("GET", b"/", [], False, False, None, False, False), END]),
        (
            b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\nExpect: 100-continue\r\n\r\n",
            [
                (
                    "GET",
                    b"/",
                    [(b"connection", b"Keep-Alive"), (b"expect", b"100-continue")],
                    *(True, False, None, False, False),
                ),
                END,
            ],
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
            b"Content-Length: 1\r\n\r\nx",
            [
                (
                    "POST",
                    b"/",
                    [
                        *HOST,
                        (b"expect", b"100-Continue"),
                        (b"upgrade", b"h2c"),
                        (b"connection", b"upgrade"),
                        (b"content-length", b"1"),
                    ],
                    *(True, True, 1, True, True),
                ),
                b"x",
                END,
            ],
        ),
        (
            b"GET http://b:1?c HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n",
            [("GET", b"/?c", [(b"host", b"b:1"), (b"x", b"y")], True, False, None, False, False), END],
        ),
        (
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            [("OPTIONS", b"*", HOST, True, False, None, False, False), END],
        ),
    ],
)
def test_a_request_is_told_whatever_the_cuts(data: bytes, told: list[object]) -> None:
    assert request(data) == told
    assert request(data + data) == told * 2
    assert read(RequestReader(LIMITS), [data[at : at + 1] for at in range(len(data))]) == told
    for at in range(1, len(data)):
        assert request(data[:at], data[at:] + data) == told * 2


def test_states_between_and_within_messages() -> None:
    reader = RequestReader(LIMITS)
    assert (reader.idle, reader.done, reader.excess) == (True, False, 0)
    assert reader.end() == []
    reader.feed(b"P")
    assert (reader.idle, reader.done) == (False, False)
    reader.feed(b"OST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab")
    assert (reader.idle, reader.done, reader.excess) == (False, False, 0)
    with pytest.raises(Malformed, match="ended inside a message"):
        reader.end()
    assert reader.feed(b"cGET") == [b"c", END]
    assert (reader.idle, reader.done, reader.excess) == (False, True, 3)
    assert reader.feed(b" / HTTP") == []
    assert (reader.done, reader.excess) == (True, 10)
    assert reader.end() == []
    assert reader.next() == []
    assert (reader.idle, reader.done, reader.excess) == (False, False, 0)
    with pytest.raises(Malformed, match="ended inside a message"):
        reader.end()
    assert facts(reader.feed(b"/1.1\r\nHost: b\r\n\r\n")[0]) == (
        *("GET", b"/", [(b"host", b"b")]),
        *(True, False, None, False, False),
    )
    assert (reader.done, reader.excess) == (True, 0)
    reader.next()
    assert (reader.idle, reader.done) == (True, False)


def test_a_body_is_told_as_it_comes() -> None:
    reader = RequestReader(LIMITS)
    assert len(reader.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")) == 1
    assert reader.feed(b"a\r\nab") == [b"ab"]
    assert reader.feed(b"cd") == [b"cd"]
    assert reader.feed(b"efghij\r") == [b"efghij"]
    assert reader.feed(b"\n0\r\n\r") == []
    assert reader.feed(b"\nrest") == [END]
    assert reader.excess == 4


def refused(segments: Iterable[bytes]) -> Malformed:
    with pytest.raises(Malformed) as caught:
        read(RequestReader(LIMITS), segments)
    return caught.value


PLAIN = [pytest.param(*case, id=name) for name, case in CORPUS.items()]


@pytest.mark.parametrize(("data", "status"), PLAIN)
def test_what_is_not_plain_is_refused(data: bytes, status: int) -> None:
    error = refused([data + FOLLOWER])
    assert error.status in ((400, 501) if status == 501 else (status,))
    assert error.message == error.message.strip().rstrip(".")


@pytest.mark.parametrize(("data", "status"), PLAIN)
def test_it_is_refused_whatever_the_cuts_before_anything_behind_it_is_told(data: bytes, status: int) -> None:
    whole = data + FOLLOWER
    step = 1 + len(whole) // 100
    for at in range(1, len(whole), step):
        assert refused([whole[:at], whole[at:]]).status >= 400
    heads: list[object] = []
    with pytest.raises(Malformed):
        _feed_bytes(whole, heads)
    assert len(heads) <= 1  # its own, where the body is what is wrong


def _feed_bytes(data: bytes, heads: list[object]) -> None:
    reader = RequestReader(LIMITS)
    for at in range(len(data)):
        events = reader.feed(data[at : at + 1])
        if reader.done:
            events += reader.next()
        heads += [event for event in events if isinstance(event, RequestHead)]


@pytest.mark.parametrize(
    ("limits", "data", "status"),
    [
        (Limits(headers=2), b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: z\r\n\r\n", 431),
        (Limits(header_bytes=100), b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100 + b"\r\n\r\n", 431),
        (Limits(request_line_bytes=50), b"GET /" + b"y" * 50 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ],
)
def test_limits_are_as_they_are_set(limits: Limits, data: bytes, status: int) -> None:
    assert request(data)
    for segments in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(Malformed) as caught:
            read(RequestReader(limits), segments)
        assert caught.value.status == status


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"x"], ids=["lines", "a name"])
def test_a_head_without_end_is_refused_at_its_bound(piece: bytes) -> None:
    limits = Limits(header_bytes=2000, request_line_bytes=500, headers=1000)
    fed: list[bytes] = []

    def endless() -> Iterable[bytes]:
        yield b"GET / HTTP/1.1\r\nHost: a\r\n"
        for _ in range(5000):
            fed.append(piece)
            yield piece

    with pytest.raises(Malformed) as caught:
        read(RequestReader(limits), endless())
    assert caught.value.status == 431
    assert 2000 <= len(b"".join(fed)) <= 2600


# -- answers


@pytest.mark.parametrize(
    ("data", "ends", "told"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            False,
            [(200, [(b"content-length", b"2")], True, 2), b"ok", END],
        ),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", False, [(200, [(b"content-length", b"0")], True, 0), END]),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            False,
            [(204, [], True, None), END],
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", True, [(200, [], False, None), b"abc", END]),
        (b"HTTP/1.0 200 OK\r\n\r\n", True, [(200, [], False, None), END]),
        (
            b"HTTP/1.1 429 Too Many Requests\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"1\r\nx\r\n0\r\n\r\n",
            False,
            [(429, [(b"transfer-encoding", b"chunked"), (b"connection", b"close")], False, None), b"x", END],
        ),
        (
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            False,
            [(304, [(b"content-length", b"9")], True, 9), END],
        ),
    ],
)
def test_an_answer_is_told_whatever_the_cuts(data: bytes, ends: bool, told: list[object]) -> None:
    assert answer(data, ends=ends) == told
    for at in range(1, len(data)):
        assert read(ResponseReader(LIMITS), [data[:at], data[at:]], ends=ends) == told


def test_an_answer_to_head_has_no_body() -> None:
    told = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", method=b"HEAD")
    assert told == [(200, [(b"content-length", b"9")], True, 9), END]


def test_what_comes_behind_an_answer_is_counted() -> None:
    reader = ResponseReader(LIMITS)
    reader.expect(b"GET")
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200")
    assert (reader.done, reader.excess, reader.idle) == (True, 12, False)


ANSWERS = {
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "the same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a length with a plus": b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a folded value": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a NUL in a value": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a bare carriage return": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "too many interim answers": b"HTTP/1.1 102 Processing\r\n\r\n" * 9,
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "a status above all": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "too large headers": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_not_plain_is_refused(data: bytes) -> None:
    for segments in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(Malformed):
            read(ResponseReader(LIMITS), segments)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ],
)
def test_an_end_inside_an_answer_is_a_cut(data: bytes) -> None:
    with pytest.raises(Malformed, match="ended inside a message"):
        answer(data, ends=True)


def test_an_end_before_an_answer_says_nothing() -> None:
    assert ResponseReader(LIMITS).end() == []


# -- any cut


@settings(deadline=None)
@given(
    bodies=st.lists(st.tuples(st.booleans(), st.lists(st.binary(min_size=1, max_size=50), max_size=4)), max_size=4),
    data=st.data(),
)
def test_any_cut_of_any_bodies_gives_the_same(bodies: list[tuple[bool, list[bytes]]], data: st.DataObject) -> None:
    whole = b""
    for in_chunks, pieces in bodies:
        body = b"".join(pieces)
        if in_chunks:
            whole += b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            whole += b"".join(chunk(piece) for piece in pieces) + LAST_CHUNK
        else:
            whole += b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=20)))
    told = request(whole)
    assert [event for event in told if type(event) is bytes] == [b"".join(pieces) for _, pieces in bodies if pieces]
    assert read(RequestReader(LIMITS), [whole[i:j] for i, j in zip([0, *cuts], [*cuts, None], strict=True)]) == told


@given(st.binary(max_size=200), st.sampled_from([RequestReader, ResponseReader]), st.booleans())
def test_whatever_comes_is_told_or_refused(data: bytes, reader: type[Reader], in_body: bool) -> None:
    start = b"HTTP/1.1 200 OK" if reader is ResponseReader else b"POST / HTTP/1.1\r\nHost: a"
    head = start + b"\r\nTransfer-Encoding: chunked\r\n\r\n" if in_body else b""
    status = 0
    try:
        read(reader(LIMITS), [head, data] if head else [data])
    except Malformed as error:
        status = error.status
    assert status in (0, 400, 414, 417, 431, 501, 505)
