"""Deadlines that trickling bytes do not extend, and closing so that the last words can be read (R2; D03, D04)."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from sidecar.types import Receive, Scope, Send
from tests.faults.peer import READ_ON, STOP_READING, Drip, Expect, Left, RawClient, Step
from tests.server.apps import GET, HEAD_200, Echo, Ground, answer, body_of, get, http, post, serving, until

HALF = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
SLACK = 0.25  # of a busy machine


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """One loop, the one that serves: these tests are waiting, and the clock of the other is the same."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


async def closes(client: RawClient, seconds: float, *, since: float) -> bytes:
    """All that still comes; the connection ends at the deadline, neither before nor long behind it."""
    async with asyncio.timeout(seconds + 2):
        got = await client.rest()
    took = client.closed_at - since
    assert seconds - 0.02 <= took <= seconds + SLACK, took
    return got


async def drips(client: RawClient, data: bytes, seconds: float) -> None:
    """Send a bit every now and then for as long as the other side stays."""
    with pytest.raises(Left):
        await client.run(Drip(data, seconds, 1000))


async def drip_until_closed(client: RawClient, data: bytes, seconds: float, *, since: float) -> bytes:
    task = asyncio.get_running_loop().create_task(drips(client, data, 0.03))
    try:
        return await closes(client, seconds, since=since)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- heads


async def test_a_client_that_says_nothing() -> None:
    async with serving(Echo(), header_seconds=0.3) as ground, ground.client() as client:
        assert await closes(client, 0.3, since=client.opened_at) == b""
        assert ground.notes.events == []


async def test_half_a_head() -> None:
    async with serving(Echo(), header_seconds=0.3) as ground, ground.client() as client:
        await client.run(HALF)
        got = await closes(client, 0.3, since=client.opened_at)
        assert got.startswith(b"HTTP/1.1 408 ")
        assert ground.notes.events == ["refused"]


@pytest.mark.parametrize(("first", "drip"), [(HALF, b"x"), (b"GET / HTTP/1.1\r\n", b"X: y\r\n"), (b"G", b"")])
async def test_a_head_that_trickles(first: bytes, drip: bytes) -> None:
    app = Echo()
    async with serving(app, header_seconds=0.3) as ground, ground.client() as client:
        await client.run(first)
        assert (await drip_until_closed(client, drip, 0.3, since=client.opened_at)).startswith(b"HTTP/1.1 408 ")
        assert app.calls == []


async def test_the_first_byte_of_a_connection_does_not_extend_its_deadline() -> None:
    async with serving(Echo(), header_seconds=0.4) as ground, ground.client() as client:
        await asyncio.sleep(0.3)
        await client.run(HALF)
        await closes(client, 0.4, since=client.opened_at)


@pytest.mark.parametrize("first", [b"", GET])
async def test_an_empty_line_does_not_extend_a_deadline(first: bytes) -> None:
    async with serving(Echo(), header_seconds=0.3, keepalive_seconds=0.3) as ground, ground.client() as client:
        since = client.opened_at
        if first:
            await client.run(first)
            await client.response()
            since = client.loop.time()
        await asyncio.sleep(0.2)
        await client.run(b"\r\n")
        await closes(client, 0.3, since=since)


async def test_a_connection_that_idles_behind_an_answer() -> None:
    async with serving(Echo(), header_seconds=5, keepalive_seconds=0.3) as ground, ground.client() as client:
        await client.run(GET)
        await client.response()
        assert await closes(client, 0.3, since=client.loop.time()) == b""
        assert ground.notes.events == []


async def test_a_head_that_trickles_behind_an_answer() -> None:
    async with serving(Echo(), header_seconds=0.3, keepalive_seconds=5) as ground, ground.client() as client:
        await client.run(GET)
        await client.response()
        await asyncio.sleep(0.35)
        await client.run(HALF)
        since = client.loop.time()
        assert (await drip_until_closed(client, b"x", 0.3, since=since)).startswith(b"HTTP/1.1 408 ")


async def test_half_a_head_pipelined_behind_a_request() -> None:
    async with serving(Echo(), header_seconds=0.3, keepalive_seconds=5) as ground, ground.client() as client:
        await client.run(GET + HALF)
        await client.response()
        assert (await closes(client, 0.3, since=client.loop.time())).startswith(b"HTTP/1.1 408 ")


async def test_an_app_may_take_longer_than_any_deadline_of_reading() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await asyncio.sleep(0.4)
        await answer(send, b"late")

    short = {"header_seconds": 0.1, "body_idle_seconds": 0.1, "body_seconds": 0.1, "keepalive_seconds": 0.1}
    async with serving(http(app), **short) as ground, ground.client() as client:
        await client.run(post(b"abc"))
        assert (await client.response()).endswith(b"\r\nlate")


# -- bodies


async def test_a_body_that_stops() -> None:
    app = Echo()
    async with serving(app, body_idle_seconds=0.3) as ground, ground.client() as client:
        await client.run(post(b"x" * 100)[:-50])
        got = await closes(client, 0.3, since=client.loop.time())
        assert got.startswith(b"HTTP/1.1 408 ")
        assert b"x-sidecar-error: caller_body_timeout\r\n" in got
        assert (app.calls, app.gone) == ([], 1)


async def test_a_body_that_trickles_has_a_least_rate() -> None:
    app = Echo()
    async with serving(app, body_idle_seconds=0.3) as ground, ground.client() as client:
        await client.run(post(b"x" * 1000)[:-1000])
        got = await drip_until_closed(client, b"x", 0.3, since=client.loop.time())
        assert got.startswith(b"HTTP/1.1 408 ")
        assert (app.calls, app.gone) == ([], 1)


async def test_a_body_in_chunks_that_trickles() -> None:
    app = Echo()
    async with serving(app, body_idle_seconds=0.3) as ground, ground.client() as client:
        await client.run(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        got = await drip_until_closed(client, b"1;a=b\r\nx\r\n", 0.3, since=client.loop.time())
        assert got.startswith(b"HTTP/1.1 408 ")


async def test_a_body_has_a_deadline_however_fast_it_comes() -> None:
    app = Echo()
    async with serving(app, body_idle_seconds=5, body_seconds=0.3) as ground, ground.client() as client:
        await client.run(post(b"x" * 10_000_000)[:-10_000_000])
        got = await drip_until_closed(client, b"x" * 1000, 0.3, since=client.loop.time())
        assert got.startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_stops_behind_the_head_of_the_answer_cuts_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await body_of(receive)

    async with serving(http(app), body_idle_seconds=0.3) as ground, ground.client() as client:
        await client.run(post(b"x" * 100)[:-50])
        got = await closes(client, 0.3, since=client.loop.time())
        assert got.endswith(b"\r\n\r\n3\r\nabc\r\n")
        assert got.count(b"HTTP/1.1") == 1


# -- a client that does not read


async def stalls(ground: Ground, client: RawClient, seconds: float) -> None:
    """The server ends a connection whose client does not read, at the deadline."""
    since = client.loop.time()
    await until(lambda: not ground.server.connections, seconds + 2)
    took = client.loop.time() - since
    assert seconds - 0.1 <= took <= seconds + SLACK + 0.2, took
    assert "stalled" in ground.notes.events


async def test_a_client_that_does_not_read_a_stream() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        try:
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
                if (await asyncio.wait([task], timeout=0))[0]:
                    break
        finally:
            ended.set()

    task = asyncio.get_running_loop().create_task(ended.wait())
    async with serving(http(app), send_stall_seconds=0.4) as ground:
        async with ground.client(receive_buffer=4096) as client:
            await client.run(STOP_READING, GET)
            await stalls(ground, client, 0.4)
            ended.set()
            await task


@pytest.mark.parametrize("line", [b"Connection: close", b"X: y"])
async def test_a_client_that_does_not_read_one_large_answer(line: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 20_000_000)

    async with serving(http(app), send_stall_seconds=0.4) as ground:
        async with ground.client(receive_buffer=4096) as client:
            await client.run(STOP_READING, get("/", line))
            await stalls(ground, client, 0.4)


async def test_a_client_that_sends_requests_and_reads_no_answers() -> None:
    app = Echo()
    async with serving(app, send_stall_seconds=0.4) as ground:
        async with ground.client(receive_buffer=4096) as client:
            request = post(b"x" * 60_000)
            await client.run(STOP_READING)
            for _ in range(200):
                client.write(request)
            await until(lambda: "stalled" in ground.notes.events, 3)
            await until(lambda: not ground.server.connections)
            assert len(app.calls) < 120  # the kernel takes some megabytes of answers, the server none behind them


async def test_a_next_request_does_not_excuse_a_client_that_does_not_read() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"x" * 8_000_000, "more_body": scope["path"] == "/stream"})

    async with serving(http(app), send_stall_seconds=0.4) as ground:
        async with ground.client(receive_buffer=4096) as client:
            await client.run(STOP_READING, GET, get("/stream"))
            await until(lambda: ground.notes.events, 1)


async def test_a_slow_reader_gets_all_of_a_large_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 8_000_000)

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING, get("/", b"Connection: close"))
        await asyncio.sleep(0.1)
        await client.run(READ_ON)
        assert len((await client.rest()).partition(b"\r\n\r\n")[2]) == 8_000_000


# -- the last words can be read


async def test_a_refused_client_that_sends_on_can_read_why() -> None:
    steps: list[Step] = [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n" + b"x" * 3_000_000]
    async with serving(Echo()) as ground, ground.client() as client:
        await client.run(*steps, Expect(b"HTTP/1.1 400 "))
        await client.rest()
        assert client.how == "fin"


async def test_who_is_told_to_go_and_stays_is_closed_within_the_second() -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        await client.run(b"GET / HTTP/1.1\r\n\r\n", Expect(b"HTTP/1.1 400 "))
        await client.gone()
        began = client.loop.time()
        await until(lambda: not ground.server.connections)
        assert client.loop.time() - began < 1.2


async def test_who_is_told_to_go_and_sends_without_end_is_closed() -> None:
    async with serving(Echo()) as ground, ground.client() as client:
        client.write(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 20_000_000)
        await until(lambda: ground.notes.events)
        began = client.loop.time()
        await until(lambda: not ground.server.connections)
        assert client.loop.time() - began < 1.2  # by the number of bytes, or by the clock


async def test_a_slow_reader_gets_all_of_an_early_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 8_000_000)

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING, post(b"abc")[:-1])
        await asyncio.sleep(1.3)
        await client.run(READ_ON)
        assert len((await client.rest()).partition(b"\r\n\r\n")[2]) == 8_000_000


async def test_who_sends_on_behind_a_last_request_can_read_its_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 3_000_000)

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING)
        client.write(get("/", b"Connection: close") + b"y" * 5_000_000)
        await asyncio.sleep(0.2)
        await client.run(READ_ON)
        assert len((await client.rest()).partition(b"\r\n\r\n")[2]) == 3_000_000
