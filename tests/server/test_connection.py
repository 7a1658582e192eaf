"""One connection: requests one after another, answers framed to the byte, apps that misbehave."""

from __future__ import annotations

import asyncio
import re

import pytest

from sidecar.types import ASGIApp, Receive, Scope, Send
from tests.faults.peer import Expect
from tests.server.apps import (
    GET,
    GET_CLOSE,
    HEAD_200,
    Echo,
    answer,
    body_of,
    chunked,
    get,
    http,
    post,
    serving,
    undated,
)

INTERNAL = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\nx-sidecar-error: sidecar_internal\r\n"
    b"content-length: 103\r\n\r\n"
    b'{"error":{"message":"an internal error","type":"api_error","param":null,"code":"sidecar_internal"}}'
)


def says(*pieces: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), status: int = 200) -> ASGIApp:
    """An app that answers in these pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": pieces[-1]})

    return http(app)


# -- answers, to the byte


@pytest.mark.parametrize(
    ("app", "request_", "wanted"),
    [
        (says(b"ok"), GET_CLOSE, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"),
        (says(b""), GET_CLOSE, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        (
            says(b"o", b"", b"k", b""),
            GET_CLOSE,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        ),
        (
            says(b"o", b"k"),
            GET_CLOSE,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        ),
        (
            says(b"o", b"k", headers=((b"content-length", b"2"),)),
            GET_CLOSE,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        ),
        (
            says(b"ok", headers=((b"X-A", b"b"), (b"x-a", b"c"), (b"Transfer-Encoding", b"chunked"))),
            GET_CLOSE,
            b"HTTP/1.1 200 OK\r\nx-a: b\r\nx-a: c\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        ),
        (
            says(b"", status=204),
            GET_CLOSE,
            b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        ),
        (
            says(b"not sent", status=304, headers=((b"content-length", b"8"),)),
            GET_CLOSE,
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 8\r\nconnection: close\r\n\r\n",
        ),
        (says(b"", status=299), GET_CLOSE, b"HTTP/1.1 299 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        (
            says(b"ok"),
            b"GET / HTTP/1.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        ),
        (says(b"o", b"k"), b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok"),
        (
            says(b"o", b"k"),  # its end can only be told by closing
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok",
        ),
    ],
)
async def test_answers_to_the_byte(app: ASGIApp, request_: bytes, wanted: bytes) -> None:
    async with serving(app) as ground:
        assert await ground.ask(request_) == wanted


@pytest.mark.parametrize("pieces", [(b"abc",), (b"a", b"bc")])
@pytest.mark.parametrize("headers", [(), ((b"content-length", b"3"),)])
async def test_an_answer_to_head_has_no_body(
    pieces: tuple[bytes, ...], headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    async with serving(says(*pieces, headers=headers)) as ground, ground.client() as client:
        await client.run(GET.replace(b"GET", b"HEAD", 1) + GET)
        head = await client.take_until(b"\r\n\r\n")
        assert (b"content-length: 3" in head) == bool(headers)
        assert b"chunked" not in head
        assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_date_of_the_app_is_the_only_one() -> None:
    date = b"Thu, 01 Jan 1970 00:00:00 GMT"
    async with serving(says(b"", headers=((b"date", date),))) as ground, ground.client() as client:
        await client.run(GET)
        assert re.findall(rb"date: ([^\r]*)\r\n", await client.response()) == [date]
    async with serving(says(b"")) as ground, ground.client() as client:
        await client.run(GET)
        assert len(re.findall(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT\r\n", await client.response())) == 1


# -- one after another


async def test_a_connection_is_kept() -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        for number in range(20):
            await client.run(post(b"x" * number))
            got = undated(await client.response())
            length = len(b"POST / ") + number
            assert got == b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nPOST / " % length + b"x" * number
            assert repr(ground.server) == "<Server 1 connections, 1 idle, 0 exchanges>"
        assert len(app.calls) == 20


@pytest.mark.parametrize("line", [b"Connection: close", b"connection: Keep-Alive, Close"])
async def test_a_connection_is_closed_when_asked(line: bytes) -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        await client.run(get("/", line) + get("/not-served"))
        got = await client.rest()
        assert got.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in got


async def test_an_old_connection_is_kept_only_when_asked() -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        for _ in range(2):
            await client.run(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"\r\nconnection: keep-alive\r\n" in await client.response()
        await client.run(b"GET / HTTP/1.0\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in await client.rest()


async def test_the_app_may_close_a_connection() -> None:
    async with serving(says(b"ok", headers=((b"Connection", b"close"),))) as ground:
        assert await ground.ask(GET) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


async def test_the_app_may_close_a_connection_in_any_spelling() -> None:
    async with serving(says(b"ok", headers=((b"Connection", b"Close, x"),))) as ground, asyncio.timeout(0.3):
        assert b"\r\nconnection: close\r\n" in await ground.ask(GET)


async def test_a_connection_serves_so_many_requests_and_no_more() -> None:
    app = Echo()
    async with serving(app) as ground:
        got = await ground.ask(GET * 1001)
        assert (got.count(b"HTTP/1.1 200 OK"), got.count(b"connection: close")) == (1000, 1)
        assert len(app.calls) == 1000


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    running: list[str] = []
    most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal most
        running.append(scope["path"])
        most = max(most, len(running))
        body = await body_of(receive)
        await asyncio.sleep(0.02 if scope["path"] == "/0" else 0)
        running.remove(scope["path"])
        await answer(send, scope["path"].encode() + body)

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(get("/0") + post(b"a", path="/1") + chunked(b"b", b"c", path="/2") + get("/3"))
        bodies = [(await client.response()).rpartition(b"\r\n")[2] for _ in range(4)]
        assert bodies == [b"/0", b"/1a", b"/2bc", b"/3"]
        assert most == 1


async def test_requests_in_segments_of_one_byte() -> None:
    app = Echo()
    data = get("/a?b=%20", b"X: y") + post(b"abc") + chunked(b"de", b"f" * 17) + b"\r\n" + get("/z")
    async with serving(app) as ground, ground.client() as client:
        for at in range(len(data)):
            client.write(data[at : at + 1])
            await asyncio.sleep(0)
        for _ in range(4):
            await client.response()
        bodies = [("GET", b"/a?b=%20", b""), ("POST", b"/", b"abc"), ("POST", b"/", b"de" + b"f" * 17)]
        assert app.calls == [*bodies, ("GET", b"/z", b"")]


# -- bodies and their announcement


async def test_a_client_that_expects_to_be_told_is_told_once_the_app_reads() -> None:
    reads = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reads.wait()
        await answer(send, await body_of(receive))

    async with serving(http(app)) as ground, ground.client() as client:
        data = post(b"abc", b"Expect: 100-Continue")
        await client.run(data[:-3])
        await asyncio.sleep(0.02)
        assert client.received == b""
        reads.set()
        await client.run(Expect(b"HTTP/1.1 100 Continue\r\n\r\n"), data[-3:])
        assert undated(await client.response()) == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"
        await client.run(post(b"def", b"Expect: 100-continue"))  # it does not wait: nothing to tell
        assert undated(await client.response()) == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ndef"


async def test_a_client_that_expects_to_be_told_may_be_refused_instead() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", status=413)

    async with serving(http(app)) as ground:
        got = await ground.ask(post(b"x" * 1000, b"Expect: 100-continue")[:-1000])
        assert got == (
            b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        ).replace(b"Request Entity Too Large", got.split(b" ", 2)[2].partition(b"\r\n")[0])


@pytest.mark.parametrize("head", [b"POST / HTTP/1.0\r\nContent-Length: 3\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_who_cannot_be_told_or_has_no_body_is_not_told(head: bytes) -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        await client.run(head + b"Expect: 100-continue\r\n\r\n")
        await asyncio.sleep(0.02)
        await client.run(b"abc" if b"POST" in head else b"")
        assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_the_app_does_not_want_is_passed_over_when_it_is_there() -> None:
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await answer(send, b"ok")

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(post(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n") + get("/next"))
        for _ in range(2):
            assert b"connection" not in await client.response()
        assert calls == ["/", "/next"]


async def test_a_body_still_to_come_that_the_app_does_not_want_ends_the_connection() -> None:
    calls: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(scope["path"])
        await answer(send, b"ok")

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(post(b"x" * 100)[:-50])
        assert b"\r\nconnection: close\r\n" in await client.response()
        await client.run(b"x" * 50 + get("/smuggled"))
        assert await client.gone() == "fin"
        assert calls == ["/"]


async def test_an_early_answer_can_be_read_by_a_client_that_sends_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"too large", status=413)

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(post(b"x" * 2_000_000))
        assert (await client.response()).endswith(b"too large")
        assert await client.gone() == "fin"


# -- apps that misbehave


class Broken(Exception):
    """Raised by an app."""


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise Broken


async def _starts_and_returns(scope: Scope, receive: Receive, send: Send) -> None:
    await send(dict(HEAD_200))


async def _starts_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await send(dict(HEAD_200))
    raise Broken


async def _starts_twice(scope: Scope, receive: Receive, send: Send) -> None:
    await send(dict(HEAD_200))
    await send(dict(HEAD_200))


async def _does_not_start(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def _sends_what_is_not_known(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.push"})


def _heads(*headers: tuple[object, object]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


UNANSWERED: dict[str, tuple[ASGIApp, str]] = {
    "returns": (_returns, ""),
    "raises": (_raises, "Broken"),
    "starts and returns": (_starts_and_returns, ""),
    "starts and raises": (_starts_and_raises, "Broken"),
    "starts twice": (_starts_twice, "sent twice"),
    "does not start": (_does_not_start, "before the start"),
    "sends what is not known": (_sends_what_is_not_known, "unexpected message"),
    "a value with a line break": (_heads((b"x", b"a\r\nset-cookie: b")), "line break"),
    "a value with a line feed": (_heads((b"x", b"a\nb")), "line break"),
    "a value with a carriage return": (_heads((b"x", b"a\rb")), "line break"),
    "a value with a NUL": (_heads((b"x", b"a\0b")), "line break"),
    "a name with a line break": (_heads((b"x: y\r\nz", b"a")), "line break"),
    "an end of the head": (_heads((b"x", b"a\r\n\r\nHTTP/1.1 200 OK")), "line break"),
    "a header of str": (_heads(("x", "y")), "TypeError"),
    "a length in words": (_heads((b"content-length", b"two")), "ValueError"),
}


@pytest.mark.parametrize(("app", "trace"), UNANSWERED.values(), ids=UNANSWERED)
async def test_an_app_that_does_not_answer_leaves_its_client_a_500(app: ASGIApp, trace: str) -> None:
    async with serving(http(app)) as ground, ground.client() as client:
        for _ in range(2):
            await client.run(GET)
            got = undated(await client.response())
            assert re.sub(rb"content-length: \d+", b"content-length: 103", got) == INTERNAL
        assert trace in ground.notes.traces
        assert bool(trace) == bool(ground.notes.traces)


def _length(length: bytes, *pieces: bytes, end: bool = True) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", length)] if length else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if end:
            await send({"type": "http.response.body", "body": b""})

    return app


CUT: dict[str, tuple[ASGIApp, bytes]] = {
    "a body shorter than its length": (_length(b"5", b"abc"), b"abc"),
    "a body longer than its length": (_length(b"5", b"abc", b"def"), b"abc"),
    "a body behind a length of zero": (_length(b"0", b"", b"abc"), b""),
    "no end of a length": (_length(b"5", b"abc", end=False), b"abc"),
    "no end of chunks": (_length(b"", b"abc", end=False), b"3\r\nabc\r\n"),
}


@pytest.mark.parametrize(("app", "body"), CUT.values(), ids=CUT)
async def test_an_answer_that_fails_on_its_way_is_cut_and_not_ended(app: ASGIApp, body: bytes) -> None:
    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET + get("/next"))
        got = await client.rest()
        assert got.count(b"HTTP/1.1 ") == 1
        assert got.partition(b"\r\n\r\n")[2] == body
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_in_one_piece_that_is_not_as_long_as_its_length_is_not_sent() -> None:
    async with serving(http(_heads((b"content-length", b"1")))) as ground, ground.client() as client:
        await client.run(GET)
        assert b"ok" not in (await client.rest()).partition(b"\r\n\r\n")[2]
        assert "not as long as its content-length" in ground.notes.traces


async def test_raising_behind_a_whole_answer_is_told_and_harms_nobody() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"ok")
        raise Broken

    async with serving(http(app)) as ground, ground.client() as client:
        for _ in range(3):
            await client.run(GET)
            assert (await client.response()).endswith(b"\r\nok")
        assert ground.notes.events.count("bug") == 3


async def test_sending_behind_the_end_is_an_error_of_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"ok")
        await send({"type": "http.response.body", "body": b"more"})

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET)
        assert (await client.response()).endswith(b"\r\nok")
        await client.run(GET)
        assert (await client.response()).endswith(b"\r\nok")
        assert "after the end" in ground.notes.traces


async def test_what_is_received_behind_the_answer_is_that_it_is_over() -> None:
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append((await receive())["type"])
        await answer(send, b"ok")
        received.append((await receive())["type"])

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET)
        await client.response()
        assert received == ["http.request", "http.disconnect"]


async def test_an_answer_begun_while_the_body_arrives_goes_out_at_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"].upper(), "more_body": more})

    async with serving(http(app)) as ground, ground.client() as client:
        data = chunked(b"abc", b"def")
        cut = data.index(b"3\r\ndef")
        await client.run(data[:cut], Expect(b"3\r\nABC\r\n"), data[cut:], Expect(b"3\r\nDEF\r\n0\r\n\r\n"))
        assert await client.gone() == "fin"
