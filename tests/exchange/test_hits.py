"""Cached streams given again: at once or at their pace, to clients that read slowly, that leave, under any server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.cache.entry import Entry, paced
from sidecar.config import Cache
from sidecar.exchange import hits
from sidecar.types import Outcome, Record
from tests.exchange import stage
from tests.exchange.clients import Kept
from tests.exchange.passing import said
from tests.faults.peer import FIN, REQUEST, RST, STOP_READING, Drip, Script
from tests.faults.stand import ask, comes_true, read, standing
from tests.faults.transcripts import CHAT, LAST, WAYS, chunk, head

LAB = WAYS["chat"]
RECORDED = Cache(ttl_seconds=3600, replay="recorded")
LONG = (*CHAT.events[:1], *[CHAT.events[1] * 400] * 20, *CHAT.events[2:])  # 1.3 MB
PAUSE = 0.15


def slowly() -> Script:
    return [REQUEST, LAB.stream(2), Drip(chunk(CHAT.events[2]), PAUSE, 1), *map(chunk, CHAT.events[3:]), LAST]


async def test_a_recorded_pace_is_kept_to() -> None:
    async with standing(slowly(), cache=RECORDED) as stand:
        first = await stand.ask(ask(LAB))
        async with stand.client() as client:
            loop = asyncio.get_running_loop()
            client.write(ask(LAB))
            began = loop.time()
            await client.take_until(b"one")
            assert CHAT.done not in bytes(client.received)
            middle = loop.time()
            await client.take_until(LAST)
            again = read(bytes(client.received))
        assert loop.time() - middle >= PAUSE / 2
        assert middle - began < PAUSE
        assert said(again) == (200, b"hit", b"0")
        assert (again.body, again.ended) == (first.body, True)
        assert len(stand.peer.requests) == 1


async def test_at_once_is_at_once() -> None:
    async with standing(slowly(), cache=Cache(ttl_seconds=3600)) as stand:
        first = await stand.ask(ask(LAB))
        began = asyncio.get_running_loop().time()
        again = await stand.ask(ask(LAB))
        assert asyncio.get_running_loop().time() - began < PAUSE
        assert again.body == first.body


@pytest.mark.parametrize("cache", [RECORDED, Cache(ttl_seconds=3600)], ids=["recorded", "at once"])
async def test_a_long_stream_waits_for_a_client_that_does_not_read(cache: Cache) -> None:
    sent = head() + b"".join(map(chunk, LONG)) + LAST
    async with standing([REQUEST, sent], cache=cache) as stand:
        first = await stand.ask(ask(LAB))
        assert first.body == b"".join(LONG)
        async with stand.client(receive_buffer=4096) as slow:
            await slow.run(ask(LAB), STOP_READING)
            await comes_true(lambda: stand.server.work, "begun")
            await asyncio.sleep(0.05)
            assert stand.server.work  # it is held, and so is not all of it in memory
            slow.transport.resume_reading()
            await slow.take_until(LAST)
            again = read(bytes(slow.received))
        assert (again.body, again.ended, said(again)[1]) == (first.body, True, b"hit")


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_a_client_that_leaves_a_replay_leaves_nothing(ending: Any) -> None:
    async with standing(slowly(), cache=RECORDED) as stand:
        await stand.ask(ask(LAB))
        async with stand.client() as client:
            client.write(ask(LAB))
            await client.take_until(b"one")
            await client.run(ending)
        await comes_true(lambda: not stand.server.work, "left")
        rows = await stand.recorded(2)
        assert (rows[1]["status"], rows[1]["error"], rows[1]["cache"]) == (499, "caller_gone", "hit")


async def test_a_drain_in_a_replay_tells_its_client() -> None:
    async with standing(slowly(), cache=RECORDED) as stand:
        await stand.ask(ask(LAB))
        async with stand.client() as client:
            client.write(ask(LAB))
            await client.take_until(b"one")
            for work in tuple(stand.server.work):
                work.cancel()
            await client.take_until(LAST)
            body = read(bytes(client.received)).body
        assert b"sidecar_draining" in body
        assert CHAT.done not in body


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waits", [True, False])
async def test_under_a_server_whose_sending_is_waited_for(stream: bool, waits: bool) -> None:
    takes = asyncio.Event() if waits else None
    exchange = stage.exchange(Sidecar(stage.config()))
    client = exchange.client = Kept(takes)
    exchange.record, exchange.outcome = Record(request_id="req_1", cache="hit"), Outcome(0.0)
    entry = Entry(
        made=0.0, head=b"x: y\r\n", body=b"data: 1\n\n", stream=stream, provider="p", model="m", input_tokens=5
    )
    wait = hits.give(exchange, entry, 7.9, paced=False)
    assert (wait is not None) == waits
    if wait is not None and takes is not None:
        takes.set()
        await wait
    assert (b"".join(client.sent), client.ended, exchange.outcome.complete) == (entry.body, True, True)
    assert len(client.sent) == 1 + stream  # a stream's end is written by itself: so it is framed as one
    assert client.lines.startswith(b"x: y\r\nage: 7\r\nx-sidecar-attempts: 0\r\nx-sidecar-overhead-us: ")
    assert client.lines.endswith(b"x-request-id: req_1\r\nrequest-id: req_1\r\n")
    assert (exchange.record.provider, exchange.record.model, exchange.record.status) == ("p", "m", 200)
    assert (exchange.record.saved_input_tokens, exchange.outcome.bytes_sent) == (5, len(entry.body))


async def test_pieces_keep_their_bounds_and_their_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))

    monkeypatch.setattr(hits, "now", lambda: 100.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    exchange = stage.exchange(Sidecar(stage.config()))
    client = exchange.client = Kept()
    exchange.record, exchange.outcome = Record(), Outcome(0.0)
    pace = paced([(5.0, 1), (5.0, 2), (7.5, 3)])
    wait = hits.give(exchange, Entry(made=0.0, head=b"", body=b"abbccc", stream=True, pace=pace), 0.0, paced=True)
    assert wait is not None
    await wait
    assert (client.sent, slept, client.ended) == ([b"a", b"bb", b"ccc", b""], [2.5], True)
