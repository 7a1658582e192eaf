"""One exchange on one connection, as dialogues with a raw peer: what goes out, what comes in, and what is left."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from sidecar.errors import Malformed, SidecarError, UpstreamCut, UpstreamProtocol
from sidecar.secret import Secret
from sidecar.types import Auth
from tests.faults.peer import (
    CLOSE,
    FIN,
    GONE,
    REQUEST,
    RST,
    Act,
    Again,
    Expect,
    Pause,
    Script,
)
from tests.pool.asks import HEAD, LIMITS, OK, REQUEST_BYTES, ask, call, numbers, origin, pooled, settled, whole, within

ANSWER = (REQUEST, OK)


async def test_a_request_goes_out_byte_for_byte() -> None:
    async with pooled([*ANSWER]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        assert (answer.status, answer.headers) == (200, [(b"content-length", b"2")])
        assert await whole(answer) == b"ok"
        assert peer.received == REQUEST_BYTES


async def test_the_credential_is_the_last_header_and_in_no_repr() -> None:
    auth = Auth(header=b"authorization", prefix=b"Bearer ", secret=Secret("sk-canary"))
    async with pooled([*ANSWER]) as (pool, peer):
        outbound = ask(peer, headers=[], auth=auth, body=b"")
        await whole(await pool.send(outbound, within(), LIMITS))
        assert peer.received == (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: provider.test\r\ncontent-length: 0\r\n"
            b"authorization: Bearer sk-canary\r\n\r\n"
        )
        assert "canary" not in f"{outbound!r} {pool!r} {pool.stats()!r}"


@pytest.mark.parametrize("size", [64 * 1024, 64 * 1024 + 1, 5_000_000])
async def test_a_long_body_arrives_whole(size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    async with pooled([*ANSWER]) as (pool, peer):
        assert await whole(await pool.send(ask(peer, body=body), within(), LIMITS)) == b"ok"
        assert peer.requests[0].partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
async def test_a_body_in_pieces_arrives_as_one(size: int) -> None:
    long = b"x" * size
    async with pooled([Again((REQUEST, OK))]) as (pool, peer):
        for _ in range(2):
            asked = ask(peer, body=b'{"a":"', more=(memoryview(long), b'"}'))
            assert await whole(await pool.send(asked, within(), LIMITS)) == b"ok"
        head, _, body = peer.requests[1].partition(b"\r\n\r\n")
        assert body == b'{"a":"' + long + b'"}'
        assert head.endswith(b"\r\ncontent-length: %d" % len(body))


@pytest.mark.parametrize(
    ("method", "reply", "status", "body"),
    [
        (b"POST", OK, 200, b"ok"),
        (b"POST", HEAD + b"2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
        (b"POST", HEAD + b"1;a=b\r\no\r\n01\r\nk\r\n0\r\nx-trailer: 1\r\n\r\n", 200, b"ok"),
        (b"POST", b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", 503, b""),
        (b"POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, 200, b"ok"),
        (b"POST", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", 200, b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b""),
    ],
)
async def test_an_answer_is_read_to_its_framed_end_and_the_connection_used_again(
    method: bytes, reply: bytes, status: int, body: bytes
) -> None:
    async with pooled([Again((REQUEST, reply))]) as (pool, peer):
        for _ in range(3):
            answer = await pool.send(ask(peer, method=method), within(), LIMITS)
            assert (answer.status, await whole(answer)) == (status, body)
            assert numbers(pool) == (1, 0, 0, 0)
        assert len(peer.connections) == 1
        assert [row["reuses"] for row in pool.stats()] == [2]


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (OK + b"!", b"ok"),
        (OK + OK, b"ok"),
        (HEAD + b"2\r\nok\r\n0\r\n\r\n\r\n", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\nhello", b""),
    ],
)
async def test_a_connection_on_which_anything_is_odd_is_closed(reply: bytes, body: bytes) -> None:
    async with pooled([REQUEST, reply]) as (pool, peer):
        assert await call(pool, peer) == body
        await peer.left()
        assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("ending", [FIN, CLOSE])
async def test_a_body_without_framing_ends_with_the_connection(ending: Act) -> None:
    async with pooled([REQUEST, b"HTTP/1.1 200 OK\r\n\r\nall of", b" it", ending]) as (pool, peer):
        assert await call(pool, peer) == b"all of it"


async def test_a_reset_does_not_end_a_body_without_framing() -> None:
    read = asyncio.Event()
    async with pooled([REQUEST, b"HTTP/1.1 200 OK\r\n\r\npart", Pause(read), RST]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        assert await answer.read() == b"part"
        read.set()
        with pytest.raises(UpstreamCut, match="provider lab closed the connection inside the answer"):
            await answer.read()
        answer.close()


async def test_an_answer_closed_before_its_end_closes_the_connection() -> None:
    async with pooled([REQUEST, HEAD + b"2\r\nok\r\n", GONE]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        assert await answer.read() == b"ok"
        answer.close()
        answer.close()
        assert numbers(pool) == (0, 0, 0, 0)
        assert await answer.read() == b""
        await peer.left()


async def test_an_answer_of_which_bytes_are_unread_is_not_pooled() -> None:
    async with pooled([REQUEST, OK]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        answer.close()
        assert numbers(pool) == (0, 0, 0, 0)
        await peer.left()


# -- idle connections


@pytest.mark.parametrize("ending", [CLOSE, RST, FIN])
async def test_an_idle_connection_that_its_peer_closes_is_gone_at_once(ending: Act) -> None:
    close = asyncio.Event()
    async with pooled([REQUEST, OK, Pause(close), ending]) as (pool, peer):
        await call(pool, peer)
        assert numbers(pool)[0] == 1
        close.set()
        await settled(lambda: numbers(pool)[0] == 0)
        assert await call(pool, peer) == b"ok"
        assert len(peer.connections) == 2


async def test_bytes_on_an_idle_connection_close_it() -> None:
    late = asyncio.Event()
    async with pooled([REQUEST, OK, Pause(late), b"HTTP/1.1 408 Request Timeout\r\n\r\n"]) as (pool, peer):
        await call(pool, peer)
        late.set()
        await peer.left()
        assert numbers(pool) == (0, 0, 0, 0)


async def test_bytes_that_lie_in_the_kernel_are_never_taken_for_the_next_answer() -> None:
    """The peer's late bytes have come, but the loop has not told: only a look at the socket itself shows them."""
    async with pooled([Again((REQUEST, OK))]) as (pool, peer):
        await call(pool, peer)
        sock = peer.connections[0].transport.get_extra_info("socket")
        os.write(sock.fileno(), b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
        assert await call(pool, peer) == b"ok"
        assert len(peer.connections) == 2
        assert [row["stale_retries"] for row in pool.stats()] == [1]


async def test_a_reused_connection_closed_without_a_byte_is_replaced_once_by_a_fresh_one() -> None:
    def script(number: int) -> Script:
        return [REQUEST, OK, REQUEST, RST] if number == 0 else [REQUEST, OK]

    async with pooled(script) as (pool, peer):
        assert await call(pool, peer) == b"ok"
        assert await call(pool, peer) == b"ok"
        assert [len(wire.requests) for wire in peer.connections] == [2, 1]
        assert peer.requests[1] == peer.requests[2] == REQUEST_BYTES
        assert [row["stale_retries"] for row in pool.stats()] == [1]


async def test_the_fresh_one_is_not_replaced_again() -> None:
    def script(number: int) -> Script:
        return [REQUEST, OK, REQUEST, CLOSE] if number == 0 else [REQUEST, CLOSE]

    async with pooled(script) as (pool, peer):
        await call(pool, peer)
        with pytest.raises(UpstreamCut, match="closed the connection before an answer"):
            await call(pool, peer)
        assert len(peer.requests) == 3


@pytest.mark.parametrize("ending", [FIN, RST, CLOSE])
async def test_a_fresh_connection_closed_without_a_byte_is_a_cut(ending: Act) -> None:
    async with pooled([REQUEST, ending]) as (pool, peer):
        with pytest.raises(UpstreamCut, match="provider lab closed the connection before an answer") as caught:
            await call(pool, peer)
        assert (caught.value.retryable, caught.value.status) == (True, 502)
        assert len(peer.connections) == 1


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nx: y", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_reused_connection_closed_after_a_byte_is_a_cut(part: bytes) -> None:
    async with pooled([REQUEST, OK, REQUEST, part, CLOSE]) as (pool, peer):
        await call(pool, peer)
        with pytest.raises(UpstreamCut):
            await call(pool, peer)
        assert len(peer.connections) == 1


# -- cuts and broken HTTP


@pytest.mark.parametrize("ending", [FIN, RST])
@pytest.mark.parametrize(
    "part",
    [
        HEAD + b"5\r\nhel",
        HEAD + b"3\r\nhel\r\n",
        HEAD + b"3\r\nhel\r\n5",
        HEAD + b"3\r\nhel\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel",
    ],
)
async def test_a_cut_body_is_delivered_so_far_and_then_raises(part: bytes, ending: Act) -> None:
    read = asyncio.Event()
    async with pooled([REQUEST, part, Pause(read), ending]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        assert await answer.read() == b"hel"
        read.set()
        for _ in range(2):
            with pytest.raises(UpstreamCut, match="inside the answer"):
                await answer.read()
        answer.close()
        assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: a\ncontent-length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(101)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 66_000 + b"\r\n\r\n",
        b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"220 smtp.example ready\r\n",
        b"<html>",
    ],
)
async def test_what_is_not_plain_http_is_refused_and_the_connection_closed(reply: bytes) -> None:
    async with pooled([REQUEST, reply, GONE]) as (pool, peer):
        with pytest.raises(UpstreamProtocol, match="provider lab answered in broken HTTP: ") as caught:
            await call(pool, peer)
        assert caught.value.status == 502
        await peer.left()


@pytest.mark.parametrize("chunks", [b"2\r\nokX\r\n", b"2\nok\n", b"x\r\n", b"2 \x01\r\n", b"fffffffffffffffff\r\n"])
async def test_a_broken_chunk_raises(chunks: bytes) -> None:
    async with pooled([REQUEST, HEAD, Expect(0), chunks, GONE]) as (pool, peer):
        with pytest.raises(UpstreamProtocol):
            await call(pool, peer)
        await peer.left()


@pytest.mark.parametrize(
    ("name", "value"), [(b"x", b"a\r\nevil: 1"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x", b"\0"), (b"a\r\nb", b"c")]
)
def test_header_lines_that_would_split_the_request_cannot_be_made(name: bytes, value: bytes) -> None:
    with pytest.raises(Malformed, match="line break"):
        ask(origin(1), headers=[(name, value)])


@pytest.mark.parametrize("path", [b"/v1 HTTP/1.1\r\nx: y\r\n\r\n", b"/a b", b"/a\tb", b"", b"/a\n"])
async def test_a_path_that_would_split_the_request_is_never_sent(path: bytes) -> None:
    async with pooled([*ANSWER]) as (pool, peer):
        with pytest.raises(UpstreamProtocol, match="white space"):
            await pool.send(ask(peer, path=path), within(), LIMITS)
        await peer.left()
        assert peer.received == b""


async def test_a_key_with_a_line_break_is_never_sent_nor_shown() -> None:
    auth = Auth(header=b"authorization", prefix=b"Bearer ", secret=Secret("canary\r\nx: y"))
    async with pooled([*ANSWER]) as (pool, peer):
        with pytest.raises(UpstreamProtocol) as caught:
            await pool.send(ask(peer, auth=auth), within(), LIMITS)
        assert "canary" not in str(caught.value)
        await peer.left()
        assert peer.received == b""


async def test_every_error_is_of_the_tree_and_names_the_provider() -> None:
    scripts: list[Script] = [[REQUEST, RST], [REQUEST, b"\0"], [REQUEST, GONE]]
    for script in scripts:
        async with pooled(script) as (pool, peer):
            with pytest.raises(SidecarError) as caught:
                await pool.send(ask(peer), within(first_byte=0.05), LIMITS)
            assert re.match(r"provider lab[ :]", caught.value.message)
