"""How an exchange is held back or ended: deadlines, back-pressure, and cancelling in every phase."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import UpstreamCut, UpstreamTimeout
from sidecar.pool.connection import HIGH_WATER
from tests.faults.peer import (
    FIN,
    GONE,
    READ_ON,
    REQUEST,
    STOP_READING,
    Drip,
    Expect,
    Flood,
    Pause,
    Script,
    Step,
    Tell,
)
from tests.pool.asks import HEAD, LIMITS, ask, numbers, pooled, settled, whole, within

# -- deadlines


async def test_no_answer_within_the_first_byte_deadline() -> None:
    async with pooled([REQUEST, GONE]) as (pool, peer):
        error = await _times_out(pool.send(ask(peer), within(first_byte=0.2), LIMITS), 0.2)
        assert (error.phase, error.status, error.message) == (
            "first_byte",
            504,
            "provider lab: no answer within 0.2 s",
        )
        await peer.left()


async def test_interim_answers_do_not_extend_the_first_byte_deadline() -> None:
    async with pooled([REQUEST, Drip(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.06, 7), GONE]) as (pool, peer):
        error = await _times_out(pool.send(ask(peer), within(first_byte=0.2), LIMITS), 0.2)
        assert error.phase == "first_byte"
        await peer.left()


async def test_a_head_that_trickles_does_not_extend_the_first_byte_deadline() -> None:
    async with pooled([REQUEST, b"HTTP/1.1 200 OK\r\n", Drip(b"a: b\r\n", 0.05, 90)]) as (pool, peer):
        error = await _times_out(pool.send(ask(peer), within(first_byte=0.2), LIMITS), 0.2)
        assert error.phase == "first_byte"
        await peer.left()


async def test_silence_between_bytes_of_the_body() -> None:
    async with pooled([REQUEST, HEAD, Drip(b"1\r\nx\r\n", 0.1, 3), GONE]) as (pool, peer):
        answer = await pool.send(ask(peer), within(idle=0.25), LIMITS)
        assert [await answer.read() for _ in range(3)] == [b"x", b"x", b"x"]
        error = await _times_out(answer.read(), 0.25)
        assert (error.phase, error.message) == ("idle", "provider lab: nothing came for 0.25 s")
        answer.close()
        await peer.left()


async def test_a_drip_is_ended_by_the_total_deadline() -> None:
    async with pooled([REQUEST, HEAD, Drip(b"1\r\nx\r\n", 0.05, 200)]) as (pool, peer):
        answer = await pool.send(ask(peer), within(0.4, idle=0.2), LIMITS)
        error = await _times_out(whole(answer), 0.4)
        assert (error.phase, error.message) == ("total", "provider lab: the whole exchange took too long")
        await peer.left()


async def test_a_reader_that_rests_is_not_the_providers_silence() -> None:
    """Above the high water the provider is held: only the total deadline runs, until the reader is back."""
    flood = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
    async with pooled([REQUEST, HEAD, Flood(flood, 100), b"0\r\n\r\n"]) as (pool, peer):
        answer = await pool.send(ask(peer), within(5.0, idle=0.1), LIMITS)
        await asyncio.sleep(0.3)
        assert len(await whole(answer)) == 10_000_000


async def test_the_total_deadline_runs_while_the_reader_rests() -> None:
    flood = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
    async with pooled([REQUEST, HEAD, Flood(flood, 1000)]) as (pool, peer):
        answer = await pool.send(ask(peer), within(0.2), LIMITS)
        await peer.left()
        with pytest.raises(UpstreamTimeout):
            await whole(answer)


async def _times_out(waiting: object, seconds: float) -> UpstreamTimeout:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(UpstreamTimeout) as caught:
        await waiting  # type: ignore[misc]  # any awaitable
    took = loop.time() - began
    assert seconds * 0.9 - 0.002 <= took <= seconds * 1.1 + 0.1
    return caught.value


# -- back-pressure


async def test_a_provider_is_held_when_nobody_reads() -> None:
    chunk = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
    async with pooled([REQUEST, HEAD, Flood(chunk, 3200)], send_buffer=65536) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        wire = peer.connections[0]
        taken = -1
        while wire.accepted != taken:
            taken = wire.accepted
            await asyncio.sleep(0.1)
        assert taken <= 4 * 1024 * 1024
        assert len(await answer.read()) <= HIGH_WATER + 256 * 1024
        answer.close()
        await peer.left()


async def test_every_byte_comes_in_order_however_slow_the_reader() -> None:
    data = b"".join(b"%08d" % n for n in range(250_000))
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data)
    async with pooled([REQUEST, reply, data]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        pieces = []
        while piece := await answer.read():
            pieces.append(piece)
            await asyncio.sleep(0.001)
        answer.close()
        assert b"".join(pieces) == data
        assert numbers(pool) == (1, 0, 0, 0)


async def test_an_early_answer_is_read_though_the_request_is_not_taken() -> None:
    """The peer answers before it has read the body: the answer counts, the connection does not."""
    reply = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"
    async with pooled([Expect(b"\r\n\r\n"), STOP_READING, reply, Pause(done := asyncio.Event()), READ_ON]) as (
        pool,
        peer,
    ):
        answer = await pool.send(ask(peer, body=b"x" * 20_000_000), within(), LIMITS)
        assert (answer.status, await whole(answer)) == (413, b"big")
        assert numbers(pool) == (0, 0, 0, 0)
        done.set()
        await peer.left()


async def test_an_end_is_noticed_though_the_request_is_not_taken() -> None:
    async with pooled([Expect(b"\r\n\r\n"), STOP_READING, FIN, Pause(asyncio.Event())]) as (pool, peer):
        with pytest.raises(UpstreamCut):
            await pool.send(ask(peer, body=b"x" * 20_000_000), within(first_byte=5), LIMITS)
        assert numbers(pool) == (0, 0, 0, 0)


# -- cancelling


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Expect(b"\r\n\r\n"), STOP_READING, GONE], id="writing"),
        pytest.param([REQUEST, GONE], id="waiting for the head"),
        pytest.param([REQUEST, b"HTTP/1.1 200 OK\r\nx: y", GONE], id="inside the head"),
        pytest.param([REQUEST, HEAD, b"2\r\nok\r\n", GONE], id="reading"),
    ],
)
async def test_cancelled_while(script: Script) -> None:
    begun = asyncio.Event()
    steps: list[Step] = [*script[:-1], Tell(begun), *([READ_ON] if STOP_READING in script else []), GONE]
    body = b"x" * (20_000_000 if STOP_READING in script else 10)
    async with pooled(steps) as (pool, peer):

        async def exchange() -> None:
            await whole(await pool.send(ask(peer, body=body), within(), LIMITS))

        task = asyncio.get_running_loop().create_task(exchange())
        await begun.wait()
        await settled(lambda: numbers(pool) == (0, 0, 1, 0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert numbers(pool) == (0, 0, 0, 0)
        loop = asyncio.get_running_loop()
        left_at = loop.time()
        await peer.left()
        assert loop.time() - left_at < 0.5
