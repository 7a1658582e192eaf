"""A provider that takes the request and says nothing, or nothing that is an answer: told at the deadline (D13)."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.peer import GONE, REQUEST, Drip, Script
from tests.faults.stand import Stand, ask, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, JSON, WAYS, Way, chunk, head, reply as answer

CHAT = WAYS["chat"]


async def _told_in(stand: Stand, request: bytes, seconds: float) -> None:
    """A 504 in the client's dialect at the deadline, give or take a tenth; the provider's connection is not kept."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await stand.ask(request)
    took = loop.time() - began
    assert seconds * 0.9 <= took <= seconds * 1.1 + 0.15
    assert (reply.status, reply.get(b"x-sidecar-error"), reply.ended) == (504, b"provider_timeout", True)
    assert reply.json["error"]["code"] == "provider_timeout"
    assert reply.get(b"retry-after") is None
    await stand.peer.left()
    assert len(stand.peer.requests) == 1
    assert stand.app.pool.stats()[0]["idle"] == 0


@EVERY_WAY
@BOTH
async def test_silence(way: Way, stream: bool) -> None:
    async with standing([REQUEST, GONE], timeouts={"first_byte_seconds": 0.1}) as stand:
        await _told_in(stand, ask(way, stream=stream), 0.1)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([REQUEST, Drip(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.05, 8), GONE], id="interim answers"),
        pytest.param([REQUEST, b"HTTP/1.1 200 OK\r\n", Drip(b"a: b\r\n", 0.02, 90)], id="a head that trickles"),
        pytest.param([REQUEST, Drip(b"H", 0.05, 1), GONE], id="one byte"),
    ],
)
async def test_nothing_that_is_an_answer_extends_the_deadline(script: Script) -> None:
    async with standing(script, timeouts={"first_byte_seconds": 0.2}) as stand:
        await _told_in(stand, ask(CHAT), 0.2)


@EVERY_WAY
@BOTH
async def test_a_head_without_a_body(way: Way, stream: bool) -> None:
    """Nothing has gone to the client, so it is still told by a status."""
    script: Script = [REQUEST, head() if stream else head(kind=JSON), GONE]
    async with standing(script, timeouts={"idle_seconds": 0.1}) as stand:
        await _told_in(stand, ask(way, stream=stream), 0.1)


async def test_half_an_event_and_half_a_body_are_nothing_yet() -> None:
    halves: list[tuple[bytes, bool]] = [
        (head() + chunk(CHAT.theirs.events[0][:40]), True),
        (head(kind=JSON) + chunk(CHAT.theirs.body[:40]), False),
        (answer(CHAT.theirs.body)[:-9], False),
    ]
    for half, stream in halves:
        async with standing([REQUEST, half, GONE], timeouts={"idle_seconds": 0.1}) as stand:
            await _told_in(stand, ask(CHAT, stream=stream), 0.1)


@pytest.mark.parametrize("header", [b"x-sidecar-timeout-ms: 200"])
@BOTH
async def test_the_clients_own_deadline(header: bytes, stream: bool) -> None:
    async with standing([REQUEST, GONE]) as stand:
        await _told_in(stand, ask(CHAT, header, stream=stream), 0.2)


async def test_the_next_target_is_asked_in_what_time_is_left() -> None:
    async with standing(
        lambda number: [REQUEST, GONE] if number == 0 else [REQUEST, CHAT.stream()],
        timeouts={"first_byte_seconds": 0.1},
        models={"fast": ("lab/slow", "lab/m")},
    ) as stand:
        reply = await stand.ask(ask(CHAT, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-attempts"), len(stand.peer.requests)) == (200, b"2", 2)
        assert reply.body == b"".join(CHAT.theirs.events)
