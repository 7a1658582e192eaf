"""An answer that is cut: never taken for a whole one, never asked for again once a byte of it has gone (D16, D19)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.faults.peer import CLOSE, FIN, REQUEST, RST, Act, Again, Pause, RawServer
from tests.faults.stand import ask, provider, read, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply as answer

ENDINGS = pytest.mark.parametrize("ending", [FIN, CLOSE, RST])
CHAT = WAYS["chat"]


def _fault(way: Way, body: bytes) -> str:
    match = way.ours.fault.search(body)
    assert match, body
    return str(msgspec.json.decode(match[1])["error"]["code"])


@EVERY_WAY
@ENDINGS
async def test_inside_an_event(way: Way, ending: Act) -> None:
    """The client gets the whole events and an error event, not the half one."""
    got = asyncio.Event()
    half = chunk(way.theirs.events[2])[:-30]
    async with standing([REQUEST, way.stream(2), half, Pause(got), ending]) as stand, stand.client() as client:
        client.write(ask(way, b"connection: close"))
        await client.take_until(b"one")
        got.set()
        reply = read(bytes(client.received[: client.taken]) + await client.rest())
        assert reply.ended
        assert way.ours.done not in reply.body
        assert _fault(way, reply.body) == "provider_cut"
        assert b" tw" not in reply.body
        if way.same:
            assert reply.body.startswith(b"".join(way.theirs.events[:2]))
        assert len(stand.peer.requests) == 1


@EVERY_WAY
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_at_every_position_of_a_stream(way: Way, ending: Act) -> None:
    """Whatever the place, and whichever way the bytes arrive: an error, by status or by event, or all of it."""
    stream = way.stream()
    first = len(head())
    positions = [0, 5, first - 1, first, *range(first + 1, len(stream), 53), len(stream) - 5, len(stream) - 1]
    async with standing(lambda number: [REQUEST, stream[: positions[number]], ending]) as stand:
        for at in positions:
            reply = await stand.ask(ask(way))
            assert reply.ended, at
            if reply.status == 200 and way.ours.done not in reply.body:
                assert _fault(way, reply.body) == "provider_cut"
            elif reply.status == 200:
                assert at >= len(stream) - len(LAST), at
            else:
                assert (reply.status, reply.json["error"]["code"]) == (502, "provider_cut")
        assert len(stand.peer.requests) == len(positions)


@EVERY_WAY
async def test_behind_the_last_event_it_is_whole(way: Way) -> None:
    """Everything that the API calls an answer has come; that the transport's own end is missing harms nobody."""
    async with standing([REQUEST, way.stream()[: -len(LAST)], CLOSE]) as stand:
        reply = await stand.ask(ask(way))
        assert reply.ended
        assert way.ours.done in reply.body
        assert b'"error"' not in reply.body


@EVERY_WAY
@pytest.mark.parametrize("ending", [FIN, RST])
async def test_inside_a_whole_answer(way: Way, ending: Act) -> None:
    chunked = head(kind=JSON) + chunk(way.theirs.body)
    for part in (answer(way.theirs.body)[:-1], chunked[:-20], chunked, chunked + b"0\r\n"):
        async with standing([REQUEST, part, ending]) as stand:
            reply = await stand.ask(ask(way, stream=False))
            assert (reply.status, reply.json["error"]["code"], reply.ended) == (502, "provider_cut", True)
            assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("ending", [FIN, RST])
@pytest.mark.parametrize("framing", [None, b"content-length: 900000"])
async def test_inside_a_long_whole_answer_the_client_is_cut_too(ending: Act, framing: bytes | None) -> None:
    data = b'{"x":"' + b"y" * 300_000
    part = head(kind=JSON, framing=framing) + (data if framing else chunk(data))
    async with standing([REQUEST, part, ending]) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.ended) == (200, False)
        assert data.startswith(reply.body)


@pytest.mark.parametrize("ending", [FIN, RST])
@pytest.mark.parametrize("status", [b"400 Bad", b"500 Oh", b"429 Slow"])
async def test_inside_an_error(status: bytes, ending: Act) -> None:
    async with standing([REQUEST, answer(b'{"error":{}}', status=status)[:-3], ending]) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_cut")


@EVERY_WAY
@ENDINGS
async def test_nobody_else_is_asked_after_the_first_byte(way: Way, ending: Act) -> None:
    """D19. Two targets: the second is not asked, though it would answer."""
    kind = "anthropic" if way.model.startswith("claude") else "openai-compatible"
    async with RawServer([Again((REQUEST, way.stream()))]) as other:
        async with standing(
            [REQUEST, way.stream(2), ending],
            models={"fast": (way.model, "other/m")},
            more=lambda _: {"other": provider(other, kind)},
        ) as stand:
            reply = await stand.ask(ask(way, model="fast"))
            if reply.get(b"x-sidecar-attempts") == b"1":
                assert _fault(way, reply.body) == "provider_cut"
                assert other.requests == []
            else:  # the reset overtook the bytes: nothing had gone to the client
                assert (ending, len(other.requests)) == (RST, 1)
            assert len(stand.peer.requests) == 1


@EVERY_WAY
@BOTH
@ENDINGS
async def test_the_next_is_asked_before_the_first_byte(way: Way, stream: bool, ending: Act) -> None:
    kind = "anthropic" if way.model.startswith("claude") else "openai-compatible"
    good = way.stream() if stream else way.whole()
    part = head() + chunk(way.theirs.events[0][:50]) if stream else answer(way.theirs.body)[:-5]
    async with RawServer([Again((REQUEST, good))]) as other:
        async with standing(
            [REQUEST, part, ending],
            models={"fast": (way.model, "other/m")},
            more=lambda _: {"other": provider(other, kind)},
        ) as stand:
            reply = await stand.ask(ask(way, stream=stream, model="fast"))
            assert (reply.status, reply.get(b"x-sidecar-attempts")) == (200, b"2")
            assert b'"error"' not in reply.body
            assert (len(stand.peer.requests), len(other.requests)) == (1, 1)
