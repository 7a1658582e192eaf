"""What becomes of an answer whose client has left, on real sockets: it is cut off at once, or heard out and counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.config import Limits, OnDisconnect, Retry
from tests.faults.peer import CLOSE, FIN, GONE, REQUEST, RST, Act, Again, Pause, RawClient, Script
from tests.faults.stand import Stand, ask, comes_true, provider, read, standing
from tests.faults.transcripts import BOTH, CHAT, EVERY_WAY, LAST, MESSAGES, WAYS, Way, chunk, reply

LAB = WAYS["chat"]
DRAIN: dict[str, Any] = {"on_disconnect": OnDisconnect(policy="drain")}
ENDINGS = pytest.mark.parametrize("ending", [FIN, CLOSE, RST])
SOON = 0.05
USAGE = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
)


def ends(way: Way) -> bytes:
    """The rest of a stream behind its second event, with what it used."""
    events = way.theirs.events
    rest = [*events[2:4], USAGE, events[4]] if way.theirs is CHAT else events[2:]
    return b"".join(map(chunk, rest)) + LAST


async def _leaves(stand: Stand, client: RawClient, ending: Act) -> None:
    await client.run(ending)
    await comes_true(lambda: all(cycle.gone for cycle in _cycles(stand)), "seen")


def _cycles(stand: Stand) -> list[Any]:
    return [connection.cycle for connection in stand.server.connections if connection.cycle is not None]


async def _kept(stand: Stand, way: Way) -> None:
    """The connection is free for the next, which is answered on it."""
    await comes_true(stand.idle, "idle")
    assert (await stand.ask(ask(way, stream=False))).body
    assert len(stand.peer.connections) == 1
    assert stand.peer.open == 1


@EVERY_WAY
@ENDINGS
async def test_a_stream_is_heard_out(way: Way, ending: Act) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, way.stream(2), Pause(go_on), ends(way), REQUEST, way.whole()]
    async with standing(script, **DRAIN) as stand, stand.client() as client:
        client.write(ask(way))
        await client.take_until(b"one")
        await _leaves(stand, client, ending)
        assert stand.peer.open == 1
        go_on.set()
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert (row["input_tokens"], row["output_tokens"]) == (3, 2)
        await _kept(stand, way)
        assert len(stand.peer.requests) == 2


@EVERY_WAY
@BOTH
@ENDINGS
async def test_an_answer_that_had_not_begun_is_heard_out(way: Way, stream: bool, ending: Act) -> None:
    go_on = asyncio.Event()
    good = [way.stream(2), ends(way)] if stream else [way.whole()]
    script: Script = [REQUEST, Pause(go_on), *good, REQUEST, way.whole()]
    async with standing(script, **DRAIN) as stand, stand.client() as client:
        client.write(ask(way, stream=stream))
        await stand.peer.requested()
        await _leaves(stand, client, ending)
        go_on.set()
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert (row["input_tokens"], row["output_tokens"]) == (3, 2)
        await _kept(stand, way)


async def test_an_answer_that_nobody_read_is_heard_out() -> None:
    """The client had stopped reading, so the provider was held; it goes on when the client has left."""
    piece = chunk(CHAT.events[1] * 400)
    script: Script = [REQUEST, LAB.stream(2), *[piece] * 400, ends(LAB), GONE]
    async with standing(script, **DRAIN) as stand, stand.client(receive_buffer=4096) as client:
        client.write(ask(LAB))
        client.transport.pause_reading()
        wire = await stand.peer.connected()
        taken = -1
        while wire.accepted != taken:
            taken = wire.accepted
            await asyncio.sleep(0.05)
        client.reset()
        row = (await stand.recorded())[0]
        assert (row["status"], row["output_tokens"]) == (499, 2)


@EVERY_WAY
async def test_what_goes_wrong_then_is_a_499_all_the_same(way: Way) -> None:
    cut = asyncio.Event()
    async with standing([REQUEST, way.stream(2), Pause(cut), RST], **DRAIN) as stand, stand.client() as client:
        client.write(ask(way))
        await client.take_until(b"one")
        await _leaves(stand, client, RST)
        cut.set()
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert row["input_tokens"] == (3 if way.theirs is MESSAGES else None)


async def test_nothing_new_is_begun_for_who_has_left() -> None:
    """Neither a retry nor a fall-back."""
    fail = asyncio.Event()
    script: Script = [REQUEST, Pause(fail), reply(b'{"error":{"message":"no","type":"x"}}', status=b"500 Oh")]
    options: dict[str, Any] = {**DRAIN, "retry": Retry(attempts=2, base_seconds=0.01)}
    async with standing(script, models={"two": ("lab/a", "lab/b")}, **options) as stand, stand.client() as client:
        client.write(ask(LAB, model="two"))
        await stand.peer.requested()
        await _leaves(stand, client, RST)
        fail.set()
        assert (await stand.recorded())[0]["status"] == 499
        await comes_true(stand.idle, "idle")
        assert len(stand.peer.requests) == 1


async def test_who_leaves_while_queued_is_not_asked_for() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.whole(), Again((REQUEST, LAB.whole()))]
    options = {"limits": Limits(concurrency=1)}
    async with standing(script, options=options, **DRAIN) as stand, stand.client() as first, stand.client() as leaves:
        first.write(ask(LAB, stream=False))
        await stand.peer.requested()
        leaves.write(ask(LAB, stream=False))
        await comes_true(lambda: "1 waiting" in repr(stand.app._limits), "waiting")
        await leaves.run(RST)
        await comes_true(lambda: "0 waiting" in repr(stand.app._limits), "gone")
        go_on.set()
        assert read(await first.response()).body == CHAT.body
        rows = await stand.recorded(2)
        assert sorted(row["status"] for row in rows) == [200, 499]
        assert len(stand.peer.requests) == 1


async def test_the_providers_own_deadlines_bound_it() -> None:
    script: Script = [REQUEST, LAB.stream(2), GONE]
    async with standing(script, timeouts={"idle_seconds": 0.1}, **DRAIN) as stand, stand.client() as client:
        client.write(ask(LAB))
        await client.take_until(b"one")
        await client.run(RST)
        await comes_true(lambda: not stand.peer.open, "given up")
        assert (await stand.recorded())[0]["status"] == 499


@EVERY_WAY
@ENDINGS
async def test_by_default_it_is_cut_off_at_once_and_what_was_told_is_counted(way: Way, ending: Act) -> None:
    async with standing([REQUEST, way.stream(2), GONE]) as stand, stand.client() as client:
        client.write(ask(way))
        await client.take_until(b"one")
        await client.run(ending)
        at = asyncio.get_running_loop().time()
        await comes_true(lambda: not stand.peer.open, "left")
        assert stand.peer.connections[0].closed_at - at < SOON
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert row["input_tokens"] == (3 if way.theirs is MESSAGES else None)


async def test_others_are_served_meanwhile() -> None:
    go_on = asyncio.Event()

    def script(number: int) -> Script:
        return [REQUEST, LAB.stream(2), Pause(go_on), ends(LAB)] if number == 0 else [REQUEST, LAB.whole()]

    async with standing(script, more=lambda raw: {"other": provider(raw)}, **DRAIN) as stand:
        async with stand.client() as client:
            client.write(ask(LAB))
            await client.take_until(b"one")
            await _leaves(stand, client, RST)
            assert (await stand.ask(ask(LAB, model="other/m", stream=False))).body == CHAT.body
            go_on.set()
            rows = await stand.recorded(2)
            assert sorted(row["status"] for row in rows) == [200, 499]
