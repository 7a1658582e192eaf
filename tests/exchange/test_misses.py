"""What is not in the cache, or not fresh any more: who asks for it, how often, and when it is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.config import Cache
from sidecar.exchange import misses
from sidecar.exchange.tape import Tape
from sidecar.store import LOOK_SECONDS
from tests.exchange import stage
from tests.exchange.clients import Kept
from tests.exchange.passing import later, said, stats
from tests.faults.peer import FIN, REQUEST, Pause, Script
from tests.faults.stand import Stand, ask, comes_true, standing
from tests.faults.transcripts import CHAT, WAYS, reply

LAB = WAYS["chat"]
STALE = Cache(ttl_seconds=60, stale_seconds=30)
ASK = ask(LAB, stream=False)


def worded(word: bytes) -> bytes:
    return reply(CHAT.body.replace(b"one", word))


async def asked(stand: Stand) -> tuple[bytes | None, bytes | None, str]:
    answer = await stand.ask(ASK)
    return *said(answer)[1:], answer.json["choices"][0]["message"]["content"][:3]


async def test_what_is_stale_is_given_while_it_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, worded(b"old"), REQUEST, Pause(go_on), worded(b"new")]
    async with standing(script, cache=STALE) as stand:
        assert await asked(stand) == (b"miss", None, "old")
        later(monkeypatch, stand, 61.0)
        for _ in range(3):  # one asks, and all of them are answered
            assert await asked(stand) == (b"hit", b"61", "old")
        await stand.peer.requested(2)
        go_on.set()
        await comes_true(lambda: not stand.app._duty.flights, "landed")
        assert await asked(stand) == (b"hit", b"0", "new")
        assert len(stand.peer.requests) == 2
        rows = await stand.recorded(6)
        assert (stats(stand)["stale"], stats(stand)["hit"], stats(stand)["miss"]) == (3, 1, 1)
    assert sorted(row["cache"] for row in rows) == ["hit", "miss", "renew", "stale", "stale", "stale"]
    renewed = next(row for row in rows if row["cache"] == "renew")
    assert (renewed["status"], renewed["output_tokens"], renewed["attempts"]) == (200, 2, 1)
    assert sum(row["output_tokens"] or 0 for row in rows) == 4


async def test_a_renewal_that_fails_leaves_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = reply(b'{"error":{"message":"no"}}', status=b"500 Oh")
    async with standing([REQUEST, worded(b"old"), REQUEST, refusal, REQUEST, refusal], cache=STALE) as stand:
        await asked(stand)
        later(monkeypatch, stand, 61.0)
        for _ in range(2):
            assert await asked(stand) == (b"hit", b"61", "old")
            await comes_true(lambda: not stand.app._duty.flights, "landed")
        assert len(stand.peer.requests) == 3
        later(monkeypatch, stand, 91.0)
        assert stats(stand)["uncached"] == {"failed": 2}


async def test_behind_the_stale_seconds_it_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing([REQUEST, worded(b"old"), REQUEST, worded(b"new")], cache=STALE) as stand:
        await asked(stand)
        later(monkeypatch, stand, 91.0)
        assert await asked(stand) == (b"miss", None, "new")


async def test_a_renewal_goes_on_without_its_client_and_ends_with_the_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing([REQUEST, worded(b"old"), REQUEST, Pause(asyncio.Event())], cache=STALE) as stand:
        await asked(stand)
        later(monkeypatch, stand, 61.0)
        assert await asked(stand) == (b"hit", b"61", "old")
        await stand.peer.requested(2)
        assert stand.app._duty.flights
        await stand.app.aclose()
        await comes_true(lambda: not stand.app._duty.flights, "ended")
        assert stats(stand)["uncached"] == {"cut": 1}


async def test_a_miss_goes_on_for_who_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaves: whoever joined gets the answer, and it is kept."""
    go_on = asyncio.Event()
    async with standing([REQUEST, Pause(go_on), LAB.whole()], cache=STALE) as stand, stand.client() as second:
        async with stand.client() as first:
            first.write(ASK)
            await stand.peer.requested()
            second.write(ASK)
            await comes_true(lambda: len(stand.server.work) == 2, "joined")
            await first.run(FIN)
        await comes_true(lambda: len(stand.server.work) == 1, "left")
        go_on.set()
        assert CHAT.body in await second.response()
        assert said(await stand.ask(ASK))[1] == b"hit"


def test_nothing_is_kept_of_an_answer_that_nobody_gave() -> None:
    exchange = stage.exchange(Sidecar(stage.config()))
    tape = Tape(Kept(), 100)
    assert misses.unkept(exchange, tape, b"") == "failed"
    tape.answer(200, [], b"", b"{}", more=False)
    assert misses.unkept(exchange, tape, b"{}") == "cut"


async def test_who_has_waited_for_the_store_long_enough_looks_for_nothing_there() -> None:
    """And what it waits counts for all that it asks the store."""

    class Slow:
        find = None
        looked = 0

        async def lookup(self, keys: list[bytes]) -> list[str]:
            Slow.looked += 1
            await asyncio.sleep(0.01)
            return ["found"] * len(keys)

    cache: Any = Slow()
    exchange = stage.exchange(Sidecar(stage.config()))
    assert [str(each) for each in await misses.look(exchange, cache, [b"a", b"b"])] == ["found", "found"]
    assert exchange.store_seconds == pytest.approx(0.01, abs=0.009)
    exchange.store_seconds = LOOK_SECONDS + 0.001
    assert await misses.look(exchange, cache, [b"a", b"b"]) == [None, None]
    assert Slow.looked == 1
