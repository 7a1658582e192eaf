"""A client that leaves, in any phase: the provider's connection ends within a second, every slot is free (D09-D11)."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.config import Limits, Pool
from tests.faults.ground import black_hole
from tests.faults.peer import (
    CLOSE,
    FIN,
    GONE,
    READ_ON,
    REQUEST,
    RST,
    STOP_READING,
    Act,
    Again,
    Drip,
    Expect,
    Flood,
    Pause,
    RawClient,
    Script,
    Tell,
)
from tests.faults.stand import Stand, ask, comes_true, post, provider, read, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, JSON, WAYS, Way, chunk, head

ENDINGS = pytest.mark.parametrize("ending", [FIN, CLOSE, RST])
CHAT = WAYS["chat"]


async def _gone(stand: Stand, client: RawClient, ending: Act) -> None:
    """The client leaves; within a second the provider sees it, nothing is under way, and the log says who left."""
    async with asyncio.timeout(1.0):
        await client.run(ending)
        await stand.peer.left()
        await comes_true(stand.idle, "idle")
    assert stand.peer.connections[0].how in ("fin", "rst")
    rows = await stand.recorded()
    assert [(row["status"], row["error"]) for row in rows] == [(499, "caller_gone")]


@EVERY_WAY
@ENDINGS
async def test_while_streaming(way: Way, ending: Act) -> None:
    async with standing([REQUEST, way.stream(3), GONE]) as stand, stand.client() as client:
        client.write(ask(way))
        await client.take_until(b"one")
        await _gone(stand, client, ending)


@EVERY_WAY
@BOTH
@ENDINGS
async def test_before_the_first_byte(way: Way, stream: bool, ending: Act) -> None:
    async with standing([REQUEST, GONE]) as stand, stand.client() as client:
        client.write(ask(way, stream=stream))
        await stand.peer.requested()
        await _gone(stand, client, ending)
        assert client.received == b""


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([b"HTTP/1.1 200 OK\r\nx: y"], id="inside the head"),
        pytest.param([b"HTTP/1.1 103 Early Hints\r\n\r\n"], id="behind an interim answer"),
        pytest.param([head()], id="behind the head"),
        pytest.param([head(), chunk(b"data: {")], id="inside the first event"),
        pytest.param([head(), chunk(b": ping\n\n")], id="behind a comment"),
        pytest.param([head(kind=JSON), chunk(b"{")], id="inside a whole answer"),
        pytest.param([head(kind=JSON, status=b"500 Oh"), chunk(b"{")], id="inside an error"),
        pytest.param([head(), Drip(chunk(b"data: {}\n\n"), 0.01, 1000)], id="while events drip"),
    ],
)
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_while_the_provider_is(steps: list[bytes], ending: Act) -> None:
    begun = asyncio.Event()
    async with standing([REQUEST, steps[0], Tell(begun), *steps[1:], GONE]) as stand, stand.client() as client:
        client.write(ask(CHAT))
        await begun.wait()
        await _gone(stand, client, ending)


@BOTH
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_while_the_provider_does_not_take_the_request(stream: bool, ending: Act) -> None:
    begun = asyncio.Event()
    script: Script = [Expect(b"\r\n\r\n"), STOP_READING, Tell(begun), Pause(asyncio.Event()), READ_ON]
    body = b'{"model":"lab/m","stream":%b,"x":"%b"}' % (b"true" if stream else b"false", b"x" * 20_000_000)
    async with standing(script) as stand, stand.client() as client:
        client.write(post(CHAT.path, body))
        await begun.wait()
        await comes_true(lambda: not client.transport.get_write_buffer_size(), "sent")
        await client.run(ending)
        await comes_true(stand.idle, "idle")


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_while_a_connection_is_made(ending: Act) -> None:
    async with black_hole() as port:
        async with standing([], more=lambda _: {"hole": provider(port)}) as stand, stand.client() as client:
            client.write(ask(CHAT, model="hole/m"))
            await comes_true(lambda: any(row["dialing"] for row in stand.app.pool.stats()), "dialing")
            await client.run(ending)
            await comes_true(stand.idle, "idle")
            assert (await stand.recorded())[0]["status"] == 499


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_while_it_sends_its_request(ending: Act) -> None:
    async with standing([]) as stand, stand.client() as client:
        await client.run(post(CHAT.path, b'{"model":"lab/m"', length=1000))
        await comes_true(lambda: stand.server.work, "being read")
        await client.run(ending)
        await comes_true(stand.idle, "idle")
        assert stand.peer.connections == []
        assert (await stand.recorded())[0]["status"] == 499


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_with_other_requests_pipelined_behind(ending: Act) -> None:
    async with standing([REQUEST, CHAT.stream(2), GONE]) as stand, stand.client() as client:
        client.write(ask(CHAT) * 3)
        await client.take_until(b"one")
        await _gone(stand, client, ending)
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_with_so_much_pipelined_that_nothing_more_is_read(ending: Act) -> None:
    """Reading is paused then, so the end of the connection shows in no read."""
    async with standing([REQUEST, CHAT.stream(2), GONE]) as stand, stand.client() as client:
        client.write(ask(CHAT) + post(CHAT.path, b"x" * 60_000) * 3)
        await client.take_until(b"one")
        await comes_true(lambda: not client.transport.get_write_buffer_size(), "sent")
        await _gone(stand, client, ending)


@EVERY_WAY
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_that_had_stopped_reading(way: Way, ending: Act) -> None:
    flood = Flood(chunk(way.theirs.events[1] * 400), 20_000)
    async with standing([REQUEST, way.stream(1), flood]) as stand:
        async with stand.client(receive_buffer=4096) as client:
            await client.run(ask(way), STOP_READING)
            await stand.peer.requested()
            wire = stand.peer.connections[0]
            taken = -1
            while wire.accepted != taken:
                taken = wire.accepted
                await asyncio.sleep(0.25)  # longer than looking into one read takes, with coverage and all
            await _gone(stand, client, ending)


# -- in a queue (D11)


async def _queued(stand: Stand) -> None:
    await comes_true(lambda: "1 waiting" in repr(stand.app._limits) + repr(stand.app.pool), "waiting")


@pytest.mark.parametrize("options", [{"limits": Limits(concurrency=1)}, {"pool": Pool(max_connections=1)}])
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_while_queued(options: dict[str, object], ending: Act) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), CHAT.whole(), Again((REQUEST, CHAT.whole()))]
    async with standing(script, options=options) as stand, stand.client() as first:
        first.write(ask(CHAT, stream=False))
        await stand.peer.requested()
        async with stand.client() as leaves, stand.client() as stays:
            leaves.write(ask(CHAT, stream=False))
            await _queued(stand)
            await leaves.run(ending)
            await comes_true(lambda: "0 waiting>" in repr(stand.app._limits), "gone")
            await comes_true(lambda: "1 waiting" not in repr(stand.app.pool), "gone")
            stays.write(ask(CHAT, stream=False))
            await _queued(stand)
            go_on.set()
            for client in (first, stays):
                assert read(await client.response()).body == CHAT.theirs.body
        rows = await stand.recorded(3)
        assert sorted(row["status"] for row in rows) == [200, 200, 499]
        assert len(stand.peer.requests) == 2
