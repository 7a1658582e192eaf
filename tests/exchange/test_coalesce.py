"""A flight without sockets: what each follower is given, what is kept, and who is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.errors import UpstreamCut
from sidecar.exchange import coalesce
from sidecar.exchange.coalesce import HIGH_WATER, MOST_BYTES, Flight
from sidecar.exchange.state import Exchange
from sidecar.types import Outcome, Record
from tests.exchange import stage
from tests.exchange.clients import Kept
from tests.faults.stand import comes_true

Fly = Callable[[Exchange], Coroutine[Any, Any, None]]


async def _hang(_: Exchange) -> None:
    await asyncio.Event().wait()


def _asked(app: Sidecar, client: Kept | None = None) -> Exchange:
    exchange = stage.exchange(app)
    exchange.client = client or Kept()
    exchange.record, exchange.outcome = Record(), Outcome(0.0)
    return exchange


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _follow(flight: Flight, exchange: Exchange, *, joined: bool) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(flight.follow(exchange, joined=joined))


async def test_each_is_given_all_of_it() -> None:
    app = Sidecar(stage.config())
    first, late = _asked(app), _asked(app)
    flight = Flight(first, _hang)
    one = _follow(flight, first, joined=False)
    flight.answer(200, [], b"x-sidecar-cache: off\r\n", b"a", more=True)
    await comes_true(lambda: first.outcome.bytes_sent == 1, "given")
    two = _follow(flight, late, joined=True)
    flight.write(b"b", more=True)
    flight.write(b"c", more=False)
    await one
    await two
    for each, lines in ((first, b"x-sidecar-cache: off\r\n"), (late, b"x-sidecar-cache: coalesced\r\n")):
        assert isinstance(each.client, Kept)
        assert (b"".join(each.client.sent), each.client.ended, each.client.lines) == (b"abc", True, lines)
        assert (each.record.status, each.outcome.bytes_sent, each.outcome.complete) == (200, 3, True)
    assert repr(flight) == "<Flight 200, 3 bytes, 0 follow>"
    assert not flight.open
    await _end(flight.task)


async def test_the_last_that_leaves_ends_it_and_nobody_joins_any_more() -> None:
    app = Sidecar(stage.config())
    exchange = _asked(app)
    flight = Flight(exchange, _hang)
    following = _follow(flight, exchange, joined=False)
    await asyncio.sleep(0)
    assert flight.open
    await _end(following)
    assert (flight.gone, flight.open) == (True, False)
    assert flight.write(b"x", more=True) is None
    await _end(flight.task)
    assert flight.task.cancelled()


async def test_one_that_breaks_off_without_an_end_is_told_so() -> None:
    async def fail(alike: Exchange) -> None:
        alike.client.answer(200, [], b"", b"half", more=True)

    app = Sidecar(stage.config())
    exchange = _asked(app)
    with pytest.raises(UpstreamCut, match="has broken off"):
        await coalesce.join(exchange, fail)
    await comes_true(lambda: not app._duty.flights, "landed")


async def test_it_waits_for_the_fastest_and_for_no_other() -> None:
    app = Sidecar(stage.config())
    fast, slow = _asked(app), _asked(app, Kept(asyncio.Event()))
    flight = Flight(fast, _hang)
    tasks = [_follow(flight, each, joined=each is slow) for each in (fast, slow)]
    await asyncio.sleep(0)
    wait = flight.answer(200, [], b"", b"x" * (HIGH_WATER + 1), more=True)
    assert wait is not None
    await wait  # until the fast one has it
    assert fast.outcome.bytes_sent == HIGH_WATER + 1
    assert slow.outcome.bytes_sent == HIGH_WATER + 1  # one piece, which its client has not taken
    await _end(*tasks, flight.task)


async def test_what_is_kept_has_a_bound() -> None:
    app = Sidecar(stage.config())
    fast, slow = _asked(app), _asked(app, Kept(takes := asyncio.Event()))
    flight = Flight(fast, _hang)
    tasks = [_follow(flight, each, joined=each is slow) for each in (fast, slow)]
    await asyncio.sleep(0)
    piece = b"x" * 1_000_000
    flight.answer(200, [], b"", piece, more=True)
    for _ in range(40):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        flight.write(piece, more=True)
        assert sum(map(len, flight._pieces)) <= MOST_BYTES + 2 * len(piece)
    assert not flight.open
    takes.set()
    with pytest.raises(UpstreamCut, match="too slowly"):
        await tasks[1]
    await _end(*tasks, flight.task)


@pytest.mark.parametrize(
    "change",
    [
        {"query": b"a=1"},
        {"headers": [(b"x-own", b"1")]},
        {"headers": [(b"authorization", b"Bearer another")]},
    ],
)
async def test_what_makes_another_key(change: dict[str, Any]) -> None:
    app = Sidecar(stage.config())
    one, other = _asked(app), _asked(app)
    assert coalesce._key(one) == coalesce._key(other)
    for name, value in change.items():
        setattr(other.client, name, value)
    assert coalesce._key(one) != coalesce._key(other)


async def test_a_reload_begins_anew() -> None:
    app = Sidecar(stage.config())
    one = _asked(app)
    app.reload(stage.config())
    assert coalesce._key(one) != coalesce._key(_asked(app))


async def test_nothing_is_read_from_a_flight() -> None:
    flight = Flight(_asked(Sidecar(stage.config())), _hang)
    assert (flight.body(1), await flight.read(1)) == (b"", b"")
    await _end(flight.task)
