"""Any cut of any valid sequence of requests gives the same calls of the app, and the same bytes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import uvloop
from hypothesis import given, settings, strategies as st

from tests.server.apps import Echo, serving, undated

TOKEN = st.text("abcXYZ019-_.~!", min_size=1, max_size=12).map(str.encode)
TARGET = st.text("abz/?&=%20:@,;", max_size=30).map(lambda text: b"/" + text.replace("%", "%2").encode())
VALUE = st.binary(max_size=40).map(lambda data: bytes(byte for byte in data if byte >= 0x20 and byte != 0x7F).strip())
PIECE = st.binary(min_size=1, max_size=300)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request that is plain, framed in any of the ways there are."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"]))
    lines = [b"Host: a"]
    lines += [
        b"X-%b:%b%b" % (name, b" " * len(value[:1]), value)
        for name, value in draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))
    ]
    body = b""
    match draw(st.sampled_from(["none", "length", "chunked"])):
        case "length":
            body = draw(st.binary(max_size=600))
            lines.append(b"Content-Length: %d" % len(body))
        case "chunked":
            lines.append(b"transfer-encoding: chunked")
            pieces = draw(st.lists(PIECE, max_size=5))
            extension = draw(st.sampled_from([b"", b";a=b", b' ; a="b c"']))
            trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"Content-Length: 9\r\nHost: b\r\n"]))
            chunks = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
            body = b"".join(chunks) + b"0" + extension + b"\r\n" + trailers + b"\r\n"
        case _:
            pass
    empty_line = draw(st.sampled_from([b"", b"", b"\r\n"]))
    return empty_line + b"%b %b HTTP/1.1\r\n" % (method, draw(TARGET)) + b"\r\n".join(lines) + b"\r\n\r\n" + body


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def exchange(segments: Sequence[bytes]) -> tuple[list[tuple[str, bytes, bytes]], list[object], bytes]:
    """What the app saw and what came back."""
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        for segment in segments:
            client.write(segment)
            for _ in range(3):  # time for it to arrive alone
                await asyncio.sleep(0)
        got = await client.rest()
    return app.calls, [scope["headers"] for scope in app.scopes], undated(got)


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@settings(deadline=None, max_examples=40)
@given(sequence=st.lists(requests(), min_size=1, max_size=4), data=st.data())
def test_any_cut_gives_the_same(factory: object, sequence: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(sequence) + LAST
    at = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    cut = [whole[start:stop] for start, stop in zip([0, *at], [*at, None], strict=True)]
    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]  # a parameter of the test
        wanted = runner.run(exchange([whole]))
        assert len(wanted[0]) == len(sequence) + 1
        assert wanted[2].count(b"HTTP/1.1 200 OK\r\n") >= len(sequence) + 1
        assert runner.run(exchange(cut)) == wanted


async def test_every_single_cut_and_every_byte_alone() -> None:
    parts = (
        b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nX: \xff y \r\nContent-Length: 3\r\n\r\nabc",
        b"PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n1\r\nf\r\n0\r\nT: u\r\n\r\n",
        LAST,
    )
    whole = b"".join(parts)
    wanted = await exchange([whole])
    assert [call[2] for call in wanted[0]] == [b"abc", b"def", b""]
    assert await exchange([whole[at : at + 1] for at in range(len(whole))]) == wanted
    for at in range(1, len(whole)):
        assert await exchange([whole[:at], whole[at:]]) == wanted
