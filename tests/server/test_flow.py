"""Flow control: whoever is slow holds the other side, and memory stays bounded meanwhile (R2)."""

from __future__ import annotations

import asyncio
import os

from sidecar.server.sending import HIGH_WATER
from sidecar.types import Receive, Scope, Send
from tests.faults.peer import READ_ON, STOP_READING
from tests.server.apps import GET, HEAD_200, answer, body_of, chunked, http, post, serving, until

MEGABYTE = 1_000_000
KERNEL = 8 * MEGABYTE  # at most, in the buffers of both sockets


def resident() -> int:
    """Bytes of memory this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_an_app_is_held_by_a_client_that_does_not_read() -> None:
    sent = 0
    piece = b"x" * 50_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(dict(HEAD_200))
        for _ in range(4000):  # 200 MB
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        before = resident()
        await client.run(STOP_READING, GET)
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.05)
        assert 0 < sent < KERNEL
        assert resident() - before < 8 * MEGABYTE


async def test_an_app_goes_on_when_its_client_does() -> None:
    piece = b"x" * 50_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        for number in range(400):
            await send({"type": "http.response.body", "body": piece, "more_body": number < 399})

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        for _ in range(3):
            await client.run(STOP_READING, *([GET] if not client.written else []))
            await asyncio.sleep(0.03)
            await client.run(READ_ON)
            await asyncio.sleep(0.01)
        got = await client.rest()
        assert got.endswith(b"\r\n0\r\n\r\n")
        assert got.count(b"x") == 20 * MEGABYTE


async def test_a_client_is_held_by_an_app_that_does_not_receive() -> None:
    go_on = asyncio.Event()
    pieces: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        size, more = 0, True
        while more:
            message = await receive()
            pieces.append(len(message["body"]))
            size, more = size + pieces[-1], message["more_body"]
        await answer(send, b"%d" % size)

    async with serving(http(app)) as ground, ground.client() as client:
        client.write(post(b"x" * (50 * MEGABYTE)))
        taken = -1
        while client.accepted != taken:
            taken = client.accepted
            await asyncio.sleep(0.05)
        assert 0 < taken < KERNEL + HIGH_WATER
        go_on.set()
        assert (await client.response()).endswith(b"\r\n\r\n%d" % (50 * MEGABYTE))
        assert max(pieces) <= HIGH_WATER + 512 * 1024  # one reading past the mark


async def test_a_client_held_back_for_longer_than_its_deadlines_is_not_blamed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.5)
        await answer(send, b"%d" % len(await body_of(receive)))

    async with serving(http(app), body_idle_seconds=0.2, body_seconds=0.3) as ground, ground.client() as client:
        client.write(post(b"x" * (5 * MEGABYTE)))
        assert (await client.response()).endswith(b"\r\n\r\n%d" % (5 * MEGABYTE))


async def test_a_client_held_back_once_may_still_take_its_time() -> None:
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        first = await receive()
        begun.set()
        await answer(send, b"%d" % (len(first["body"]) + len(await body_of(receive))))

    async with serving(http(app)) as ground, ground.client() as client:
        data = post(b"x" * 300_000)
        await client.run(data[:-10])
        await begun.wait()
        await asyncio.sleep(0.1)
        await client.run(data[-10:])
        assert (await client.response()).endswith(b"\r\n\r\n300000")


async def test_pipelined_requests_hold_their_client() -> None:
    go_on = asyncio.Event()
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await go_on.wait()
        await body_of(receive)
        await answer(send, b"ok")

    async with serving(http(app)) as ground, ground.client() as client:
        request = chunked(b"x" * 10_000)
        client.write(request * 900)
        await until(lambda: calls)
        await asyncio.sleep(0.1)
        assert client.accepted < KERNEL
        assert calls == 1
        go_on.set()
        for _ in range(900):
            await client.response()
        assert calls == 900


async def test_both_ways_at_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    async with serving(http(app)) as ground, ground.client() as client:
        client.write(post(b"x" * (20 * MEGABYTE)))
        got = await client.rest()
        assert got.endswith(b"\r\n0\r\n\r\n")
        assert got.count(b"x") == 20 * MEGABYTE
