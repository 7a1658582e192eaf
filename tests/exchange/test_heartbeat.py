"""Comments in their order: behind silence only, one at a time, and never across what the exchange sends."""

from __future__ import annotations

import asyncio

from sidecar.app import Sidecar
from sidecar.exchange.heartbeat import COMMENT, Heartbeat
from sidecar.exchange.state import Exchange
from tests.exchange import stage
from tests.exchange.clients import Kept
from tests.faults.stand import comes_true

EVERY = 0.03


def _over(client: Kept) -> tuple[Heartbeat, Exchange]:
    exchange = stage.exchange(Sidecar(stage.config()))
    exchange.client = client
    heartbeat = Heartbeat(exchange, EVERY)
    exchange.client = heartbeat
    return heartbeat, exchange


async def test_the_first_comment_sends_the_head_and_later_ones_follow() -> None:
    client = Kept()
    heartbeat, exchange = _over(client)
    await comes_true(lambda: len(client.sent) == 3, "three comments")
    heartbeat.stop()
    assert (client.status, client.sent, exchange.streaming) == (200, [COMMENT] * 3, True)
    await asyncio.sleep(EVERY * 2)
    assert len(client.sent) == 3


async def test_what_is_sent_puts_the_next_comment_off() -> None:
    client = Kept()
    heartbeat, exchange = _over(client)
    heartbeat.answer(200, [], b"", b"head", more=True)
    exchange.streaming = True
    loop = asyncio.get_running_loop()
    until = loop.time() + EVERY * 4
    while loop.time() < until:
        heartbeat.write(b"x", more=True)
        await asyncio.sleep(0.002)
    assert COMMENT not in client.sent
    at = loop.time()
    await comes_true(lambda: client.sent[-1] == COMMENT, "a comment")
    assert loop.time() - at > EVERY * 0.8
    heartbeat.stop()


async def test_the_last_word_ends_them() -> None:
    client = Kept()
    heartbeat, _ = _over(client)
    heartbeat.answer(200, [], b"", b"all", more=False)
    await asyncio.sleep(EVERY * 2)
    assert client.sent == [b"all"]


async def test_an_answer_goes_behind_the_comment_that_is_under_way() -> None:
    takes = asyncio.Event()
    client = Kept(takes)
    heartbeat, exchange = _over(client)
    await comes_true(lambda: exchange.streaming, "a comment under way")
    await asyncio.sleep(EVERY * 2)  # it is one all the same
    wait = heartbeat.write(b"all", more=False)
    assert wait is not None
    asyncio.get_running_loop().call_soon(takes.set)
    await wait
    assert client.sent == [COMMENT, b"all"]
    heartbeat.stop()


async def test_who_does_not_take_its_answer_is_sent_no_comment() -> None:
    takes = asyncio.Event()
    client = Kept(takes)
    heartbeat, exchange = _over(client)
    exchange.streaming = True
    wait = heartbeat.answer(200, [], b"", b"one", more=True)
    assert wait is not None
    asyncio.get_running_loop().call_later(EVERY * 3, takes.set)
    await wait
    assert client.sent == [b"one"]
    await comes_true(lambda: client.sent == [b"one", COMMENT], "a comment afterwards")
    heartbeat.stop()


async def test_who_has_gone_is_sent_nothing_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    client = Kept(asyncio.Event())
    heartbeat, exchange = _over(client)
    await comes_true(lambda: exchange.streaming, "a comment under way")
    client.gone = True
    heartbeat.stop()
    await comes_true(lambda: asyncio.all_tasks() == before, "over")
    assert client.sent == []


async def test_it_is_the_client_that_it_stands_for() -> None:
    client = Kept()
    heartbeat, _ = _over(client)
    heartbeat.stay = True
    client.gone = True
    assert client.stay
    assert heartbeat.gone
    assert (heartbeat.body(1), await heartbeat.read(1)) == (b"", b"")
    assert repr(heartbeat) == "<Heartbeat every 0.03 s>"
    heartbeat.stop()
