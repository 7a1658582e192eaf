"""The way back, seen from outside: whole events, when they have come; and no head before there is something to send."""

from __future__ import annotations

import asyncio

from tests.faults.peer import CLOSE, REQUEST, Pause, Script
from tests.faults.stand import ask, read, standing
from tests.faults.transcripts import CHAT_EVENTS, EVERY_WAY, LAST, WAYS, Way, chunk, head

CHAT = WAYS["chat"]


@EVERY_WAY
async def test_an_event_goes_on_while_the_provider_still_holds_the_rest(way: Way) -> None:
    go_on = asyncio.Event()
    events = way.theirs.events
    script: Script = [REQUEST, head() + b"".join(map(chunk, events[:3])), Pause(go_on), *map(chunk, events[3:]), LAST]
    async with standing(script) as stand, stand.client() as client:
        client.write(ask(way))
        await client.take_until(b"one")
        go_on.set()
        await client.take_until(LAST)
        reply = read(bytes(client.received))
    assert reply.ended
    assert way.ours.done in reply.body


async def test_half_an_event_waits_for_its_other_half() -> None:
    go_on = asyncio.Event()
    whole, half, rest = CHAT_EVENTS[1], CHAT_EVENTS[2][:40], CHAT_EVENTS[2][40:] + b"".join(CHAT_EVENTS[3:])
    script: Script = [REQUEST, head() + chunk(CHAT_EVENTS[0] + whole + half), Pause(go_on), chunk(rest), LAST]
    async with standing(script) as stand, stand.client() as client:
        client.write(ask(CHAT))
        await client.take_until(b'"one"')
        before = read(bytes(client.received)).body
        go_on.set()
        await client.take_until(LAST)
        reply = read(bytes(client.received))
    assert CHAT_EVENTS[2][:10] not in before.removeprefix(CHAT_EVENTS[0] + whole)
    assert (reply.ended, reply.body) == (True, b"".join(CHAT_EVENTS))


async def test_a_stream_that_ends_before_its_first_event_leaves_the_next_target_to_be_asked() -> None:
    def script(number: int) -> Script:
        return [REQUEST, head(), CLOSE] if number == 0 else [REQUEST, CHAT.stream()]

    async with standing(script, models={"both": ("lab/a", "lab/b")}) as stand:
        reply = await stand.ask(ask(CHAT, model="both"))
    assert (reply.status, reply.ended, reply.body) == (200, True, b"".join(CHAT_EVENTS))
    assert (reply.get(b"x-sidecar-attempts"), reply.get(b"x-sidecar-model")) == (b"2", b"b")
