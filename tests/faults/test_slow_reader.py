"""A client that does not read: the provider is held, memory stays where it was, and the wait has an end (D23)."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.faults.peer import GONE, READ_ON, REQUEST, STOP_READING, Flood, Script
from tests.faults.stand import ask, comes_true, read, standing
from tests.faults.transcripts import EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head

MIB = 1024 * 1024
PEER = {"send_buffer": 65536}  # so that what it could write is what was taken
CHAT = WAYS["chat"]


def resident() -> int:
    """Bytes of memory in use by this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _tokens(way: Way) -> bytes:
    """About 64 KiB of tokens, as one chunk."""
    token = way.theirs.events[1]
    return chunk(token * (65536 // len(token)))


@EVERY_WAY
async def test_a_provider_is_held_while_its_client_does_not_read(way: Way) -> None:
    flood = _tokens(way)
    script: Script = [REQUEST, way.stream(2), Flood(flood, 200 * MIB // len(flood))]
    async with standing(script, peer=PEER) as stand:
        async with stand.client(receive_buffer=65536) as client:
            gc.collect()
            before = resident()
            await client.run(ask(way), STOP_READING)
            await stand.peer.requested()
            wire, taken = stand.peer.connections[0], -1
            while wire.accepted != taken:
                taken = wire.accepted
                await asyncio.sleep(0.05)
            assert 0 < taken <= 4 * MIB
            assert resident() - before <= 8 * MIB
            assert (await stand.ask(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")).status == 200


@pytest.mark.parametrize("kind", [JSON, b"audio/mpeg"])
async def test_a_long_whole_answer_is_held_too(kind: bytes) -> None:
    async with standing([REQUEST, head(kind=kind), Flood(chunk(b"x" * 65536), 3200)], peer=PEER) as stand:
        async with stand.client(receive_buffer=65536) as client:
            before = resident()
            await client.run(ask(CHAT, stream=False), STOP_READING)
            await stand.peer.requested()
            wire, taken = stand.peer.connections[0], -1
            while wire.accepted != taken:
                taken = wire.accepted
                await asyncio.sleep(0.05)
            assert 0 < taken <= 4 * MIB
            assert resident() - before <= 8 * MIB


async def test_a_client_that_reads_on_gets_every_byte_in_order() -> None:
    tokens = [b"data: %07d%b\n\n" % (number, b"x" * 2000) for number in range(5000)]
    flood = [chunk(b"".join(tokens[at : at + 20])) for at in range(0, 5000, 20)]
    script: Script = [REQUEST, head(), *flood, chunk(b"data: [DONE]\n\n") + LAST]
    async with standing(script) as stand, stand.client(receive_buffer=65536) as client:
        await client.run(ask(CHAT, b"connection: close"), STOP_READING)
        await stand.peer.requested()
        await asyncio.sleep(0.1)
        await client.run(READ_ON)
        reply = read(await client.rest())
        assert reply.ended
        assert reply.body == b"".join(tokens) + b"data: [DONE]\n\n"


@EVERY_WAY
async def test_who_never_reads_is_left_and_the_provider_with_him(way: Way) -> None:
    flood = _tokens(way)
    async with standing(
        [REQUEST, way.stream(2), Flood(flood, 3200), GONE], settings={"send_stall_seconds": 0.15}
    ) as stand:
        async with stand.client(receive_buffer=65536) as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await client.run(ask(way), STOP_READING)
            async with asyncio.timeout(2):
                await stand.peer.left()
            assert loop.time() - began >= 0.15
            await comes_true(stand.idle, "idle")
            assert (await stand.recorded())[0]["status"] == 499
            assert any(line.get("event") == "stalled" for line in stand.lines())
