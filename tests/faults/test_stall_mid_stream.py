"""A provider that falls silent inside its answer, or never comes to its end (D14, D15)."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest

from tests.faults.peer import GONE, REQUEST, Drip, Script
from tests.faults.stand import Reply, ask, read, standing
from tests.faults.transcripts import EVERY_WAY, JSON, WAYS, Way, chunk, head

CHAT = WAYS["chat"]


def _told(reply: Reply, way: Way, code: str) -> None:
    """The stream ends with one error event of its API, properly, and never as if it were whole."""
    assert (reply.status, reply.ended, reply.rest) == (200, True, b"")
    match = way.ours.fault.search(reply.body)
    assert match, reply.body
    error = msgspec.json.decode(match[1])["error"]
    assert error["code"] == code
    assert way.ours.done not in reply.body
    assert len(re.findall(rb'"error":', reply.body)) == 1


@EVERY_WAY
async def test_silence_between_tokens(way: Way) -> None:
    async with standing([REQUEST, way.stream(3), GONE], timeouts={"idle_seconds": 0.2}) as stand:
        async with stand.client() as client:
            client.write(ask(way, b"connection: close"))
            await client.take_until("tw\u00f6".encode())
            loop = asyncio.get_running_loop()
            began = loop.time()
            data = bytes(client.received[: client.taken]) + await client.rest()
            assert 0.18 <= loop.time() - began <= 0.37
            _told(read(data), way, "provider_timeout")
        await stand.peer.left()
        assert len(stand.peer.requests) == 1
        assert (await stand.recorded())[0]["error"] == "provider_timeout"


@EVERY_WAY
async def test_a_stream_without_end(way: Way) -> None:
    token = chunk(way.theirs.events[1])
    script: Script = [REQUEST, way.stream(2), Drip(token, 0.02, 1000)]
    async with standing(script, timeouts={"total_seconds": 0.2, "idle_seconds": 0.1}) as stand:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await stand.ask(ask(way))
        assert 0.18 <= loop.time() - began <= 0.37
        _told(reply, way, "provider_timeout")
        assert reply.body.count(b"one") >= 3
        await stand.peer.left()


@pytest.mark.parametrize("filler", [b": ping\n\n", b"\n", b"event: x\n", b"data: "])
async def test_what_is_no_token_does_not_extend_the_total_deadline(filler: bytes) -> None:
    script: Script = [REQUEST, CHAT.stream(3), Drip(chunk(filler), 0.01, 1000)]
    async with standing(script, timeouts={"total_seconds": 0.2}) as stand:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await stand.ask(ask(CHAT))
        assert 0.18 <= loop.time() - began <= 0.35
        assert reply.ended
        assert b'"error"' in reply.body
        assert CHAT.ours.done not in reply.body
        await stand.peer.left()


async def test_a_whole_answer_that_drips_is_ended_by_the_total_deadline() -> None:
    script: Script = [REQUEST, head(kind=JSON), Drip(chunk(b" "), 0.01, 1000)]
    async with standing(script, timeouts={"total_seconds": 0.2}) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.json["error"]["code"]) == (504, "provider_timeout")
        await stand.peer.left()


async def test_a_long_answer_that_falls_silent_is_cut_and_not_ended() -> None:
    """More than is held back has gone to the client already: nothing is left to say it with but the cut."""
    script: Script = [REQUEST, head(kind=JSON), chunk(b'{"x":"' + b"y" * 200_000), GONE]
    async with standing(script, timeouts={"idle_seconds": 0.2}) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.ended) == (200, False)
        await stand.peer.left()
