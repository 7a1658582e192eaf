"""Framing that is not plain is refused: one answer, closed within the second, nothing of it served (R1; D01, D02)."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.peer import FIN
from tests.server.apps import Echo, chunked, get, post, serving
from tests.server.corpus import CORPUS, FOLLOWER

SERVED = {  # what looks odd and is plain: name -> (bytes, calls)
    "an empty line before the request": (b"\r\n" + get("/"), [("GET", b"/", b"")]),
    "a body behind GET": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", [("GET", b"/", b"abc")]),
    "a length with zeros in front": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabc",
        [("POST", b"/", b"abc")],
    ),
    "white space around a value": (
        b"POST / HTTP/1.1\r\nHost:\t a \t\r\nContent-Length: \t3 \t\r\n\r\nabc",
        [("POST", b"/", b"abc")],
    ),
    "a coding in capitals": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        [("POST", b"/", b"abc")],
    ),
    "chunk extensions": (
        b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b;c="d e"\r\nabc\r\n0;x\r\n\r\n',
        [("POST", b"/", b"abc")],
    ),
    "sizes in either case": (chunked(b"x" * 171).replace(b"ab\r\n", b"aB\r\n"), [("POST", b"/", b"x" * 171)]),
    "an absolute target": (
        b"GET http://b:81/c?d HTTP/1.1\r\nHost: a\r\n\r\n",
        [("GET", b"/c?d", b"")],
    ),
    "an absolute target without a path": (b"GET http://b?d HTTP/1.1\r\nHost: a\r\n\r\n", [("GET", b"/?d", b"")]),
    "an asterisk for OPTIONS": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", [("OPTIONS", b"*", b"")]),
    "a target of two slashes": (get("//b/c"), [("GET", b"//b/c", b"")]),
    "a host of an address": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", [("GET", b"/", b"")]),
    "a host that is empty": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", [("GET", b"/", b"")]),
    "a hundred headers": (get("/", *[b"X%d: y" % number for number in range(99)]), [("GET", b"/", b"")]),
    "a request line at its bound": (get("/" + "a" * (8192 - 16)), [("GET", b"/" + b"a" * (8192 - 16), b"")]),
    "headers at their bound": (get("/", b"X: " + b"a" * (65536 - 16)), [("GET", b"/", b"")]),
    "an offer of h2c": (
        get("/", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        [("GET", b"/", b"")],
    ),
    "an offer of a WebSocket": (
        get("/", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        [("GET", b"/", b"")],
    ),
    "an offer with a body": (post(b"abc", b"Connection: Upgrade", b"Upgrade: h2c"), [("POST", b"/", b"abc")]),
}


def _cases() -> list[object]:
    return [pytest.param(*case, id=name) for name, case in CORPUS.items()]


@pytest.mark.parametrize(("data", "status"), _cases())
async def test_what_is_not_plain_is_refused_alone(data: bytes, status: int) -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        await client.run(data + FOLLOWER)
        began = client.loop.time()
        async with asyncio.timeout(1):
            got = await client.rest()
        assert client.loop.time() - began < 0.9
        head, _, body = got.partition(b"\r\n\r\n")
        assert int(head[9:12]) in ((400, 501) if status == 501 else (status,))  # of what is not known: either will do
        assert b"\r\nconnection: close\r\n" in head
        assert b'"error":' in body
        assert b"HTTP/1.1 " not in body
        assert (app.calls, app.gone, ground.notes.events) == ([], 0, ["refused"])


@pytest.mark.parametrize("data", [CORPUS["length and chunked"][0], CORPUS["a size that is not hex"][0]])
async def test_it_is_refused_in_segments_of_one_byte_too(data: bytes) -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        for at in range(len(data)):
            if client.how is None:
                client.write(data[at : at + 1])
                await asyncio.sleep(0)
        got = await client.rest()
        assert got.startswith(b"HTTP/1.1 400 ")
        assert got.count(b"HTTP/1.1 ") == 1
        assert app.calls == []


@pytest.mark.parametrize(("data", "calls"), SERVED.values(), ids=SERVED)
async def test_what_is_plain_is_served_and_so_is_what_follows(
    data: bytes, calls: list[tuple[str, bytes, bytes]]
) -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        await client.run(data + get("/next"))
        for _ in range(2):
            assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert app.calls == [*calls, ("GET", b"/next", b"")]
        assert ground.notes.events == []


async def test_the_authority_of_an_absolute_target_replaces_the_host() -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        await client.run(b"GET https://b:81/c HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n")
        await client.response()
        assert app.scopes[0]["headers"] == [(b"host", b"b:81"), (b"x", b"y")]


TRAILERS = {
    "one": b"X-Checksum: abc\r\n",
    "of framing": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\n",
    "of routing and credentials": b"Authorization: Bearer x\r\nCookie: a=b\r\nConnection: close\r\nExpect: x\r\n",
    "many": b"A: b\r\n" * 2000,
}


@pytest.mark.parametrize("trailers", TRAILERS.values(), ids=TRAILERS)
async def test_trailers_are_not_headers(trailers: bytes) -> None:
    app = Echo()
    data = chunked(b"abc").replace(b"0\r\n\r\n", b"0\r\n" + trailers + b"\r\n")
    async with serving(app) as ground, ground.client() as client:
        await client.run(data + get("/next"))
        for _ in range(2):
            assert b"200 OK" in await client.response()
        assert app.calls == [("POST", b"/", b"abc"), ("GET", b"/next", b"")]
        assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
    ],
    ids=["a name", "a value", "a target"],
)
async def test_what_never_ends_is_refused_at_its_bound(data: bytes) -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        await client.run(data)
        assert (await client.rest())[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 414")


async def test_a_refused_follower_leaves_the_first_answer_whole() -> None:
    app = Echo()
    async with serving(app) as ground:
        got = await ground.ask(get("/first") + b"GET / HTTP/1.1\r\n\r\n" + FOLLOWER)
        first, _, second = got.partition(b"GET /first ")
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert second.startswith(b"HTTP/1.1 400 ")
        assert app.calls == [("GET", b"/first", b"")]


async def test_a_body_cut_by_the_client_is_not_served() -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        await client.run(post(b"abcdef")[:-1], FIN)
        assert await client.rest() == b""
        assert (app.calls, app.gone) == ([], 1)
