"""Memory that is short: bodies for which there is no room are refused unread, and levels are acted upon."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sidecar.config import Cache, Model
from sidecar.memory import SHED, SHRINK, SPARE
from tests.faults.peer import FIN, REQUEST, Again, Pause, Script
from tests.faults.stand import Stand, ask, comes_true, post, read, standing
from tests.faults.transcripts import EVERY_WAY, WAYS, Way

MIB = 1024 * 1024
LAB = WAYS["chat"]
LIVE, READY, METRICS, STATUS = (
    b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n" % path for path in (b"livez", b"readyz", b"metrics", b"status")
)


def sized(way: Way, size: int, model: str | None = None) -> bytes:
    """A request of about so many bytes."""
    return ask(way, stream=False, model=model, messages=[{"role": "user", "content": "x" * size}])


def whole(way: Way = LAB) -> Script:
    return [Again((REQUEST, way.whole()))]


async def told(stand: Stand) -> dict[str, Any]:
    found: dict[str, Any] = (await stand.ask(STATUS)).json["memory"]
    return found


def level(stand: Stand, number: int) -> None:
    """As the watch does at a look."""
    pressure = stand.app._memory
    pressure.watch.level = number
    pressure._act(number)


# -- bodies


@EVERY_WAY
async def test_a_body_without_room_is_refused_before_it_is_read(way: Way) -> None:
    async with standing(whole(way)) as stand, stand.client() as client:
        room = stand.app._memory.room
        room.most = 2 * 100_000
        room.take(1, 1)
        client.write(post(way.path, b"{", length=100_000))
        reply = read(await client.response())
        assert (reply.status, reply.get(b"x-sidecar-error")) == (503, b"sidecar_overloaded")
        assert (reply.get(b"retry-after"), reply.get(b"connection")) == (b"1", b"close")
        assert reply.json["error"]["message"].startswith("too much is under way")
        await client.gone()
        assert (await stand.recorded())[0]["error"] == "sidecar_overloaded"
        assert not stand.peer.requests
        assert (await told(stand))["bodies_refused"] == 1
        room.give(1)


async def test_a_body_that_comes_with_its_head_is_counted_too() -> None:
    async with standing(whole()) as stand:
        stand.app._memory.room.most = 2 * 20_000
        for size, status in ((15_000, 200), (20_000, 413), (3000, 200)):
            assert (await stand.ask(sized(LAB, size))).status == status
        assert (await told(stand))["bodies_bytes"] == 0


async def test_short_ones_are_not_counted() -> None:
    async with standing(whole()) as stand:
        room = stand.app._memory.room
        room.most = 0
        assert (await stand.ask(sized(LAB, 3900))).status == 200
        assert (await stand.ask(sized(LAB, 4200))).status == 413
        assert room.refused == 1


async def test_what_comes_in_pieces_is_counted_as_it_comes() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    piece = b"%x\r\n%b\r\n" % (50_000, b" " * 50_000)
    async with standing(whole()) as stand, stand.client() as client:
        room = stand.app._memory.room
        room.most = 2 * 220_000
        room.take(100_000, 100_000)
        client.write(head + piece)
        await comes_true(lambda: room.held >= 150_000, "the first piece is counted")
        client.write(piece)
        await comes_true(lambda: room.held >= 200_000, "so is the second")
        client.write(piece)
        assert read(await client.response()).status == 503
        await comes_true(lambda: room.held == 100_000, "given back")
        assert not stand.peer.requests
        room.give(100_000)


async def test_a_body_is_held_to_the_last_byte_of_its_answer() -> None:
    go_on = asyncio.Event()
    async with standing([Again((REQUEST, Pause(go_on), LAB.whole()))]) as stand, AsyncExitStack() as stack:
        room = stand.app._memory.room
        room.most = 2 * 100_000
        first, second = [await stack.enter_async_context(stand.client()) for _ in range(2)]
        first.write(sized(LAB, 60_000))
        await stand.peer.requested()
        assert 60_000 < room.held < 61_000
        assert (await stand.ask(sized(LAB, 60_000))).status == 503
        go_on.set()
        assert read(await first.response()).status == 200
        await comes_true(lambda: not room.held, "given back")
        second.write(sized(LAB, 60_000))
        assert read(await second.response()).status == 200
        assert len(stand.peer.requests) == 2


async def test_who_leaves_gives_back_what_was_held_for_him() -> None:
    async with standing([REQUEST]) as stand:
        room = stand.app._memory.room
        async with stand.client() as client:
            client.write(sized(LAB, 60_000))
            await stand.peer.requested()
            assert room.held > 60_000
        await comes_true(lambda: not room.held, "given back")
        async with stand.client() as client:  # and in the middle of the body
            client.write(sized(LAB, 90_000)[:80_000])
            await comes_true(lambda: room.held > 90_000, "all of it is held")
            await client.run(FIN)
            await comes_true(lambda: not room.held, "given back")


async def test_those_who_ask_the_same_hold_a_body_each_and_the_answer_s_for_as_long_as_it_is_asked_for() -> None:
    go_on = asyncio.Event()
    models = {"one": Model(targets=("lab/m",), coalesce=True)}
    async with standing([REQUEST, Pause(go_on), LAB.whole()], models=models) as stand, AsyncExitStack() as stack:
        room = stand.app._memory.room
        request = sized(LAB, 60_000, model="one")
        first, second = [await stack.enter_async_context(stand.client()) for _ in range(2)]
        first.write(request)
        await stand.peer.requested()
        second.write(request)
        await comes_true(lambda: room.held > 120_000, "both are held")
        await first.run(FIN)  # it was the one that asked
        await comes_true(lambda: len(stand.server.work) == 1, "the first has left")
        assert room.held > 120_000
        go_on.set()
        assert read(await second.response()).status == 200
        await comes_true(lambda: not room.held, "given back")


@pytest.mark.parametrize("stream", [False, True])
async def test_those_that_come_again_on_a_connection_are_counted_too(stream: bool) -> None:
    """By the hot lane: whole answers it delivers itself, streams it leaves to the spine."""
    go_on = asyncio.Event()
    way = LAB.stream() if stream else LAB.whole()
    script: Script = [*(REQUEST, way) * 3, REQUEST, Pause(go_on), way, REQUEST, way]
    async with standing(script) as stand, stand.client() as client:
        room = stand.app._memory.room
        request = ask(LAB, stream=stream, messages=[{"role": "user", "content": "x" * 20_000}])
        for _ in range(3):
            client.write(request)
            assert read(await client.response()).status == 200
            await comes_true(lambda: not room.held, "given back")
        client.write(request)
        await stand.peer.requested(4)
        assert [type(work).__name__ for work in stand.server.work] == ["Lane"]
        assert 20_000 < room.held < 21_000
        room.most = 2 * 30_000
        assert (await stand.ask(request)).status == 503
        go_on.set()
        assert read(await client.response()).status == 200
        await comes_true(lambda: not room.held, "given back")
        room.most = 2 * 10_000
        client.write(request)
        assert read(await client.response()).status == 413


# -- levels


async def test_while_memory_is_spared_connections_are_not_kept() -> None:
    async with standing(whole()) as stand, AsyncExitStack() as stack:
        idle, busy = [await stack.enter_async_context(stand.client()) for _ in range(2)]
        for client in (idle, busy):
            client.write(LIVE)
            assert read(await client.response()).status == 200
        level(stand, SHRINK)
        assert stand.server.idle
        busy.write(sized(LAB, 10)[:-5])
        await comes_true(lambda: len(stand.server.idle) == 1, "one asks")
        level(stand, SPARE)
        await idle.gone()  # nobody needs it
        busy.write(sized(LAB, 10)[-5:])
        reply = read(await busy.response())
        assert (reply.status, reply.get(b"connection")) == (200, b"close")
        await busy.gone()
        level(stand, 0)
        kept = await stack.enter_async_context(stand.client())
        for _ in range(2):
            kept.write(sized(LAB, 10))
            reply = read(await kept.response())
            assert (reply.status, reply.get(b"connection")) == (200, None)


async def test_a_level_that_ends_does_not_end_a_drain() -> None:
    async with standing(whole()) as stand, stand.client() as client:
        level(stand, SPARE)
        stand.server._ending = True
        level(stand, 0)
        client.write(LIVE)
        assert read(await client.response()).get(b"connection") == b"close"


@EVERY_WAY
async def test_what_there_is_no_memory_for_is_refused_in_its_dialect(way: Way) -> None:
    go_on = asyncio.Event()
    async with standing([REQUEST, Pause(go_on), way.whole()]) as stand, AsyncExitStack() as stack:
        before, refused = [await stack.enter_async_context(stand.client()) for _ in range(2)]
        before.write(sized(way, 10))
        await stand.peer.requested()
        level(stand, SHED)
        refused.write(post(way.path, b"{", length=1_000_000))  # and not read
        reply = read(await refused.response())
        assert (reply.status, reply.get(b"retry-after"), reply.get(b"connection")) == (503, b"1", b"close")
        assert reply.get(b"x-sidecar-error") == b"sidecar_overloaded"
        assert ("type" in reply.json) is (way.path == "/v1/messages")
        assert reply.json["error"]["type"] == "overloaded_error"
        assert (await stand.ask(LIVE)).body == b"ok\n"
        ready = await stand.ask(READY)
        assert (ready.status, ready.body, ready.get(b"retry-after")) == (503, b"overloaded\n", b"1")
        metrics = (await stand.ask(METRICS)).body
        assert b'status="503",error="sidecar_overloaded"} 1\n' in metrics
        assert b"\nsidecar_memory_level 3\n" in metrics
        assert (await told(stand))["level"] == 3
        go_on.set()  # what was under way goes on
        assert read(await before.response()).status == 200
        level(stand, 0)
        assert (await stand.ask(READY)).status == 200
        rows = await stand.recorded(2)
        assert sorted(row["status"] for row in rows) == [200, 503]


async def test_the_server_has_no_more_connections_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.server.sockets.connections", lambda most, workers: 3)
    async with standing(whole()) as stand:
        assert stand.server._most == 3
    async with standing(whole(), settings={"max_connections": 5}) as stand:
        assert stand.server._most == 5


# -- the cache


async def asked_anew(stand: Stand, numbers: range) -> None:
    for number in numbers:
        assert (await stand.ask(ask(LAB, stream=False, user=f"{number}"))).status == 200


async def test_the_cache_gives_way_first() -> None:
    async with standing(whole(), cache=Cache(ttl_seconds=60)) as stand:
        cache = stand.app._cache
        assert cache is not None
        await asked_anew(stand, range(8))
        full = cache.held
        assert full > 0
        level(stand, SHRINK)
        assert full // 3 < cache.held <= full // 2
        level(stand, SPARE)
        assert cache.held == 0
        await asked_anew(stand, range(8, 10))
        assert cache.held == 0  # and nothing is kept
        level(stand, 0)
        await asked_anew(stand, range(8, 16))
        assert cache.held == pytest.approx(full, abs=64)


async def test_the_cache_has_its_share_of_the_container_and_no_more_than_it_may() -> None:
    async with standing(whole(), cache=Cache(ttl_seconds=60, memory_percent=20)) as stand:
        app = stand.app
        assert app._cache is not None
        app._memory.bytes = 100 * MIB
        app.reload(app.config)
        assert app._cache.most_bytes == 20 * MIB // 8
        app._memory.workers = 4
        app.reload(app.config)
        assert app._cache.most_bytes == 5 * MIB // 8
        app._memory.bytes = 1 << 40
        app.reload(app.config)
        assert app._cache.most_bytes == 64 * MIB // 8


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_was_kept_and_let_go_is_in_no_circle(stream: bool) -> None:
    """Else the memory of answers that the cache holds no more would be taken until the collector comes."""
    script: Script = [Again((REQUEST, LAB.stream() if stream else LAB.whole()))]
    async with standing(script, cache=Cache(ttl_seconds=60)) as stand, stand.client() as client:

        async def answer(number: int) -> None:
            client.write(ask(LAB, stream=stream, user=f"{number}"))
            assert read(await client.response()).get(b"x-sidecar-cache") == b"miss"

        await answer(0)
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 6):
                await answer(number)
            await comes_true(lambda: not stand.app._duty.flights, "landed")
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("sidecar")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert left == []
