"""ASGI conformance: each case on our server, and on uvicorn as the reference beside it.

Where the two are meant to differ, the case says so: `differs` names what RELIABILITY demands of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from sidecar.types import ASGIApp, Receive, Scope, Send
from tests.faults.peer import CLOSE, Expect, RawClient
from tests.server.apps import GET, GET_CLOSE, HEAD_200, answer, body_of, chunked, get, http, post
from tests.server.reference import SERVERS, served_by

BOTH = pytest.mark.parametrize("server", SERVERS)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """One loop: the other tests of the server are for both."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


async def say(send: Send, body: bytes) -> None:
    """Answer with a length; without one uvicorn sends chunks, and ours counts what is there in one piece."""
    await answer(send, body, (b"content-length", b"%d" % len(body)))


async def asked(server: str, app: ASGIApp, data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers and body of one answer."""
    async with served_by(server, app) as port, RawClient(port) as client:
        await client.run(data)
        got = await client.response()
        if got.startswith(b"HTTP/1.1 100 "):  # uvicorn's, though the body is there already
            got = await client.response()
        head, _, body = got.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    headers = dict(each.split(b": ", 1) for each in lines)
    headers.pop(b"date", None)
    headers.pop(b"server", None)  # ours names nobody
    return line, headers, body


async def scope_of(server: str, data: bytes) -> Scope:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer(send, b"ok")

    await asked(server, http(app), data)
    return scopes[0]


# -- the scope


@BOTH
@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (GET, {"method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "http_version": "1.1"}),
        (get("/a%20b/%C3%BC?c=%20&d"), {"path": "/a b/ü", "raw_path": b"/a%20b/%C3%BC", "query_string": b"c=%20&d"}),
        (get("/one%2Ftwo"), {"path": "/one/two", "raw_path": b"/one%2Ftwo"}),
        (get("/%FF"), {"path": "/\ufffd", "raw_path": b"/%FF"}),
        (get("/?"), {"path": "/", "raw_path": b"/", "query_string": b""}),
        (get("/a?b?c"), {"path": "/a", "query_string": b"b?c"}),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", {"method": "OPTIONS", "path": "*"}),
        (b"DELETE / HTTP/1.0\r\nHost: a\r\n\r\n", {"method": "DELETE", "http_version": "1.0"}),
        (
            get("/", b"X-Two: 1", b"x-one: 2", b"X-Two: \xff"),
            {"headers": [(b"host", b"a"), (b"x-two", b"1"), (b"x-one", b"2"), (b"x-two", b"\xff")]},
        ),
    ],
)
async def test_what_the_scope_says_of_a_request(server: str, data: bytes, wanted: dict[str, Any]) -> None:
    scope = await scope_of(server, data)
    assert {name: scope[name] for name in wanted} == wanted


@BOTH
async def test_what_every_scope_has(server: str) -> None:
    scope = await scope_of(server, GET)
    assert scope["type"] == "http"
    assert scope["asgi"]["version"] == "3.0"
    assert tuple(map(int, scope["asgi"]["spec_version"].split("."))) >= (2, 3)
    assert (scope["scheme"], scope["root_path"]) == ("http", "")
    assert (scope["client"][0], scope["server"][0]) == ("127.0.0.1", "127.0.0.1")
    assert all(isinstance(port, int) for port in (scope["client"][1], scope["server"][1]))
    assert isinstance(scope["state"], dict)
    assert all(name == name.lower() for name, _ in scope["headers"])


@BOTH
async def test_an_absolute_target(server: str) -> None:
    """Differs: our Host is the authority of the target (RFC 9112 3.2.2), or a check of Host would check another."""
    scope = await scope_of(server, b"GET http://b/c?d HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (scope["path"], scope["query_string"]) == ("/c", b"d")
    assert scope["headers"] == [(b"host", b"b" if server == "sidecar" else b"a")]


@BOTH
async def test_an_upgrade_that_nobody_takes_is_ignored(server: str) -> None:
    upgrade = (b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    assert (await scope_of(server, get("/", *upgrade)))["type"] == "http"


# -- receiving


async def _collected(receive: Receive) -> tuple[bytes, bool]:
    """The body, and whether each message was of the right form."""
    body, good, more = b"", True, True
    while more:
        message = await receive()
        good = good and message["type"] == "http.request" and isinstance(message["body"], bytes)
        body, more = body + message["body"], message["more_body"]
    return body, good


@BOTH
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (GET, b""),
        (post(b""), b""),
        (post(b"x" * 100_000), b"x" * 100_000),
        (chunked(), b""),
        (chunked(b"ab", b"c" * 20_000), b"ab" + b"c" * 20_000),
        (post(b"abc", b"Expect: 100-continue"), b"abc"),
    ],
)
async def test_a_body_is_received(server: str, data: bytes, body: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert await _collected(receive) == (body, True)
        await say(send, b"same")

    assert (await asked(server, http(app), data))[2] == b"same"


@BOTH
async def test_who_waits_is_told_to_go_on_only_when_the_app_reads(server: str) -> None:
    read = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read.wait()
        await say(send, await body_of(receive))

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(post(b"abc", b"Expect: 100-continue")[:-3])
        await asyncio.sleep(0.03)
        assert client.received == b""
        read.set()
        await client.run(Expect(b"HTTP/1.1 100 Continue\r\n\r\n"), b"abc")
        assert (await client.response()).endswith(b"\r\n\r\nabc")


@BOTH
@pytest.mark.parametrize("leave", [True, False])
async def test_behind_the_body_and_the_answer_a_disconnect_is_received(server: str, leave: bool) -> None:
    told: list[str] = []
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        if not leave:
            await answer(send, b"ok")
        told.append((await receive())["type"])
        told.append((await receive())["type"])
        done.set()

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(GET)
        if leave:
            await asyncio.sleep(0.03)
            await client.run(CLOSE)
        async with asyncio.timeout(1):
            await done.wait()
        assert told == ["http.disconnect"] * 2


@BOTH
async def test_sending_to_who_has_left_does_no_harm(server: str) -> None:
    done = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await receive()
        try:
            await answer(send, b"late")
        except OSError:  # as of ASGI 2.4 a server may say so
            assert scope["asgi"]["spec_version"] >= "2.4"
        done.set()

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(GET)
        await asyncio.sleep(0.03)
        await client.run(CLOSE)
        async with asyncio.timeout(1):
            await done.wait()


# -- sending


def _in_pieces(*pieces: bytes, headers: Any = (), of: Callable[[Any], Any] = list) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": of(headers)})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return http(app)


CHUNKED = {b"transfer-encoding": b"chunked"}


@BOTH
@pytest.mark.parametrize(
    ("app", "data", "headers", "body"),
    [
        (_in_pieces(b"ab", b"c", headers=[(b"content-length", b"3")]), GET, {b"content-length": b"3"}, b"abc"),
        (_in_pieces(b"ab", b"", b"c"), GET, CHUNKED, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (_in_pieces(b"ab", headers=[(b"x", b"y")], of=iter), GET, {b"x": b"y", **CHUNKED}, b"2\r\nab\r\n0\r\n\r\n"),
        (_in_pieces(b"ab", headers=[[b"X-Y", b"z"]]), GET, {b"x-y": b"z", **CHUNKED}, b"2\r\nab\r\n0\r\n\r\n"),
        (
            _in_pieces(b"ab", headers=[(b"transfer-encoding", b"chunked")]),
            GET,
            CHUNKED,
            b"2\r\nab\r\n0\r\n\r\n",
        ),
    ],
)
async def test_how_an_answer_is_framed(
    server: str, app: ASGIApp, data: bytes, headers: dict[bytes, bytes], body: bytes
) -> None:
    assert await asked(server, app, data) == (b"HTTP/1.1 200 OK", headers, body)


@BOTH
@pytest.mark.parametrize("status", [200, 206, 404, 429, 503])
async def test_statuses(server: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x", (b"content-length", b"1"), status=status)

    line, _, body = await asked(server, http(app), GET)
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert body == b"x"


@BOTH
@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body(server: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"", status=status)

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(get("/") + GET_CLOSE)
        got = await client.rest()
        assert got.count(b"HTTP/1.1 %d " % status) == 2
        if server == "sidecar":  # differs: a body announced in chunks that nobody may send (RFC 9110 6.4.1)
            assert b"transfer-encoding" not in got


@BOTH
async def test_an_answer_to_head(server: str) -> None:
    async with served_by(server, _in_pieces(b"abc", headers=[(b"content-length", b"3")])) as port:
        async with RawClient(port) as client:
            await client.run(GET_CLOSE.replace(b"GET", b"HEAD"))
            got = await client.rest()
            assert got.partition(b"\r\n\r\n")[2] == b""
            assert b"content-length: 3\r\n" in got


@BOTH
async def test_connections_are_kept_and_closed_alike(server: str) -> None:
    async with served_by(server, _in_pieces(b"abc", headers=[(b"content-length", b"3")])) as port:
        async with RawClient(port) as client:
            for _ in range(3):
                await client.run(GET)
                assert (await client.response()).endswith(b"\r\n\r\nabc")
            await client.run(GET + GET_CLOSE + get("/not-served"))
            got = await client.rest()
            assert got.count(b"HTTP/1.1 200 OK") == 2
            assert got.count(b"connection: close") == 1


@BOTH
async def test_a_header_of_the_app_closes_the_connection(server: str) -> None:
    headers = [(b"connection", b"close"), (b"content-length", b"3")]
    async with served_by(server, _in_pieces(b"abc", headers=headers)) as port, RawClient(port) as client:
        await client.run(GET + GET)
        assert (await client.rest()).count(b"HTTP/1.1 200 OK") == 1


@BOTH
async def test_an_old_client_gets_an_end_by_closing(server: str) -> None:
    """Differs: uvicorn sends chunks, which HTTP/1.0 does not know (RFC 9112 6.1)."""
    async with served_by(server, _in_pieces(b"abc")) as port, RawClient(port) as client:
        await client.run(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        body = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert body == (b"abc" if server == "sidecar" else b"3\r\nabc\r\n0\r\n\r\n")


@BOTH
async def test_pipelined_requests(server: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = scope["path"].encode() + await body_of(receive)
        await say(send, body)

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(get("/1") + post(b"a", path="/2") + get("/3"))
        bodies = [(await client.response()).partition(b"\r\n\r\n")[2] for _ in range(3)]
        assert bodies == [b"/1", b"/2a", b"/3"]


# -- apps that break the rules


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def _sends_a_body_first(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b""})


async def _splits_a_header(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"", (b"x", b"a\r\nb: c"))


async def _splits_a_name(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"", (b"x\r\ny", b"z"))


@BOTH
@pytest.mark.parametrize("app", [_raises, _returns, _sends_a_body_first, _splits_a_header, _splits_a_name])
async def test_an_app_that_gives_no_answer(server: str, app: Callable[..., Any]) -> None:
    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(GET_CLOSE)
        got = await client.rest()
        assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\n") or (got == b"" and server == "uvicorn")
        assert b"b: c" not in got


async def _starts(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})


async def _starts_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
    await _starts(scope, receive, send)
    raise ValueError


async def _sends_less(scope: Scope, receive: Receive, send: Send) -> None:
    await _starts(scope, receive, send)
    await send({"type": "http.response.body", "body": b""})


async def _sends_more(scope: Scope, receive: Receive, send: Send) -> None:
    await _starts(scope, receive, send)
    await send({"type": "http.response.body", "body": b"0123456789"})


@BOTH
@pytest.mark.parametrize("app", [_starts, _starts_and_raises, _sends_less, _sends_more])
async def test_an_answer_that_breaks_is_cut(server: str, app: Callable[..., Any]) -> None:
    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(GET + get("/next"))
        got = await client.rest()
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert got.partition(b"\r\n\r\n")[2] == b"abc"


@BOTH
@pytest.mark.parametrize(
    "messages",
    [
        [HEAD_200, HEAD_200],
        [{"type": "http.response.body"}],
        [HEAD_200, {"type": "http.response.body"}, {"type": "http.response.body"}],
        [HEAD_200, {"type": "http.response.body"}, HEAD_200],
        [{"type": "http.disconnect"}],
    ],
)
async def test_a_message_out_of_order_is_an_error_of_the_app(server: str, messages: list[dict[str, Any]]) -> None:
    raised: list[type[Exception]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            for message in messages:
                await send(dict(message))
        except Exception as error:
            raised.append(type(error))
            raise

    async with served_by(server, http(app)) as port, RawClient(port) as client:
        await client.run(GET_CLOSE)
        await client.rest()
        assert raised == [RuntimeError]
