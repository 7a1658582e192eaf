"""Limits that several sidecars share: by a real store together, without it each by its part, never more than all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.app import Sidecar
from sidecar.clock import now
from sidecar.config import Config, Queue, Server, Store as Settings, place
from sidecar.errors import ConcurrencyLimited
from sidecar.exchange import shared as module
from sidecar.exchange.attempt import admit
from sidecar.exchange.shared import Ask, Lease, Shared, share
from sidecar.limits import Counter, Limits, Reservation
from sidecar.rates import NO_TOKENS, TokenLimits
from sidecar.store import Store
from sidecar.store.scripts import SIDECARS, keys
from sidecar.types import Permit, Refused
from tests.exchange import stage
from tests.store.fake import fake, friendly, until
from tests.store.servers import Redis

KEYS = keys("caller:web")


def sidecar(store: Store, queue: Queue | None = None, clock: Any = None) -> Limits:
    limits = Limits(queue, clock) if clock is not None else Limits(queue)
    limits.make = lambda key, owner: Shared(key, owner, store)
    return limits


def counter(of: Limits, per_minute: int | None, concurrency: int | None, tokens: TokenLimits = NO_TOKENS) -> Shared:
    found = of.counter("caller:web", per_minute, concurrency, tokens)
    assert isinstance(found, Shared)
    return found


@asynccontextmanager
async def stores(url: str, count: int = 2) -> AsyncIterator[list[Store]]:
    made = [Store(Settings(url=place(url)), count, lambda event: None) for _ in range(count)]
    for store in made:
        store.open()
    try:
        yield made
    finally:
        for store in made:
            await store.aclose()
        await asyncio.sleep(0.01)


def held(permit: Permit | Refused | None) -> Lease:
    assert isinstance(permit, Lease)
    return permit


async def test_without_limits_it_is_a_counter_like_any_other() -> None:
    store = Store(Settings(url=place("redis://127.0.0.1:9")), 1, lambda event: None)
    free = counter(sidecar(store), None, None)
    assert free.enter(0.0) is free
    assert free.running == 1
    free.release()
    assert free.running == 0
    assert store.local == 0


def test_what_is_shared_is_what_the_configuration_says() -> None:
    limits = Limits()
    assert share(Config(), limits, lambda event: None) is None
    assert type(limits.counter("caller:web", 1, 1)) is Counter
    limits = Limits()
    where = Settings(url=place("redis://127.0.0.1:9"))
    store = share(Config(store=where, server=Server(workers=3)), limits, lambda event: None)
    assert store is not None
    assert store.sidecars == 3
    assert type(limits.counter("caller:web", 1, 1)) is Shared


async def test_requests_are_counted_together(server: Redis) -> None:
    async with stores(server.url) as (one, two):
        first, second = counter(sidecar(one), 5, None), counter(sidecar(two), 5, None)
        assert isinstance(first.enter(0.0), Ask)
        got = [await each.ask(0, 0) for _ in range(4) for each in (first, second)]
        assert [isinstance(each, Lease) for each in got] == [True] * 5 + [False] * 3
        assert (first.running, second.running) == (3, 2)
        refused = got[-1]
        assert isinstance(refused, Refused)
        assert (refused.scope, refused.limit) == ("caller:web", "requests_per_minute")
        assert 8 < refused.retry_after <= 12
        assert [each.left(now())[0].remaining for each in (first, second)] == [0, 0]
        for each in got:
            if isinstance(each, Lease):
                each.settle(0, 0)
                each.release()
        assert (first.running, second.running) == (0, 0)
        assert one.local == two.local == 0


async def test_tokens_are_reserved_and_settled_together(server: Redis) -> None:
    limits: TokenLimits = (1000, None, 600)
    async with stores(server.url) as (one, two):
        first, second = (counter(sidecar(store), None, None, limits) for store in (one, two))
        permit = held(await first.ask(100, 400))
        refused = await second.ask(300, 300)
        assert isinstance(refused, Refused)
        assert refused.limit == "output_tokens_per_minute"
        assert refused.retry_after == pytest.approx(10, abs=3)
        permit.settle(100, 50, counted=True)  # of 500 in all 150, of 400 out 50
        permit.settle(1000, 1000)  # only once
        assert first.usual == 50
        held(await first.ask(0, 0)).release()  # by then it has been settled there
        again = held(await second.ask(300, 300))
        lefts = {left.name: left.remaining for left in second.left(now())}
        assert lefts["tokens_per_minute"] == pytest.approx(250, abs=60)
        assert lefts["output_tokens_per_minute"] == pytest.approx(250, abs=40)
        again.settle(300, 900)  # more than was reserved: it is overdrawn
        await second.ask(0, 0)
        refused = await first.ask(1, 1)
        assert isinstance(refused, Refused)
        assert refused.limit == "output_tokens_per_minute"
        for each in (permit, again):
            each.release()


async def test_more_than_all_of_it_is_let_in_when_all_of_it_is_there(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store), None, None, (1000, None, None))
        held(await one.ask(10**9, 10**9)).settle(500, 0)
        left = one._store, await one.ask(400, 0)
        assert isinstance(left[1], Lease)


async def test_slots_are_counted_together_and_given_back(server: Redis) -> None:
    async with stores(server.url) as (one, two):
        first, second = counter(sidecar(one), None, 2), counter(sidecar(two), None, 2)
        permits = [held(await each.ask(0, 0)) for each in (first, second)]
        assert await first.ask(0, 0) is None
        assert server.ask("ZCARD", KEYS.leases) == 2
        permits[1].release()
        assert isinstance(await first.ask(0, 0), Lease)
        assert repr(first) == "<Shared caller:web: 2 running of 2, 0 in line>"


async def test_a_provider_that_takes_less_is_asked_less_whatever_the_store_says(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store), None, 10)
        one.adapt(1)
        permit = held(await one.ask(0, 0))
        assert await one.ask(0, 0) is None
        permit.release()
        assert isinstance(await one.ask(0, 0), Lease)


async def test_who_waits_gets_the_slot_that_is_given_back_here_or_elsewhere(server: Redis) -> None:
    async with stores(server.url) as (one, two):
        first, second = counter(sidecar(one), None, 1), counter(sidecar(two), None, 1)
        mine = held(await first.ask(0, 0))
        here = asyncio.create_task(first.queue(Ask(first, 0, 0), 1, 0.0, 60.0))
        await until(lambda: first.line)
        mine.release()
        theirs = held(await here)
        there = asyncio.create_task(second.queue(Ask(second, 0, 0), 1, 0.0, 60.0))
        await asyncio.sleep(0.1)
        assert not there.done()
        theirs.release()
        held(await there).release()
        assert not first.line
        assert not second.line


async def test_a_higher_class_goes_first_and_takes_the_last_ones_place(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store, Queue(length=2, wait_seconds=10)), None, 1)
        mine = held(await one.ask(0, 0))
        order: list[str] = []

        async def wait(name: str, rank: int) -> None:
            got = await one.queue(Ask(one, 0, 0), rank, 0.0, 60.0)
            order.append(name if isinstance(got, Lease) else f"{name} refused")
            if isinstance(got, Lease):
                got.release()

        tasks = [asyncio.create_task(wait("low", 2)), asyncio.create_task(wait("normal", 1))]
        await until(lambda: len(one.line) == 2)
        tasks.append(asyncio.create_task(wait("late", 2)))  # the line is full, and nobody in it is lower
        await until(lambda: order == ["late refused"])
        tasks.append(asyncio.create_task(wait("high", 0)))
        await until(lambda: order == ["late refused", "low refused"])
        mine.release()
        await asyncio.gather(*tasks)
        assert order[2:] == ["high", "normal"]


async def test_nobody_waits_longer_than_it_may(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store, Queue(wait_seconds=0.1)), None, 1)
        mine = held(await one.ask(0, 0))
        loop = asyncio.get_running_loop()
        began = loop.time()
        got = await one.queue(Ask(one, 0, 0), 1, 0.0, 60.0)
        assert got == Refused("caller:web", "concurrency", 1.0)
        assert 0.09 <= loop.time() - began < 2
        assert await one.queue(Ask(one, 0, 0), 1, 0.0, 0.0) == Refused("caller:web", "concurrency", 1.0)
        mine.release()


async def test_who_leaves_the_line_lets_the_next_one_go_on(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store, Queue(length=5, wait_seconds=10)), None, 1)
        mine = held(await one.ask(0, 0))
        tasks = [asyncio.create_task(one.queue(Ask(one, 0, 0), 1, 0.0, 60.0)) for _ in range(2)]
        await until(lambda: len(one.line) == 2)
        tasks[0].cancel()
        mine.release()
        held(await tasks[1]).release()
        assert not one.line
        await until(lambda: server.ask("ZCARD", KEYS.leases) == 0)


@pytest.mark.parametrize("moment", ["asked", "answered"])
async def test_who_leaves_while_the_store_is_asked_takes_nothing(server: Redis, moment: str) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store), None, 1, (1000, None, None))
        held(await one.ask(0, 0)).release()
        task = asyncio.create_task(one.ask(900, 0))
        await asyncio.sleep(0)
        if moment == "answered":
            answered = store.stats()["calls"]
            while store.stats()["calls"] == answered:
                await asyncio.sleep(0)
                if task.done():
                    break
        if not task.cancel():
            pytest.skip("it was too quick to be cancelled")
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.ask("ZCARD", KEYS.leases) == 0 and one.running == 0)
        held(await one.ask(900, 0))  # whose tokens were given back


async def test_while_the_store_is_down_each_has_its_part_and_then_no_more(
    own_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.store.store.BEAT_SECONDS", 0.05)
    async with stores(own_server.url) as (one, two):
        await until(lambda: own_server.ask("ZCARD", SIDECARS) == 2)
        await asyncio.sleep(0.2)
        await until(lambda: one.sidecars == two.sidecars == 2)
        both = [counter(sidecar(store), 100, 8, (1000, None, None)) for store in (one, two)]
        before = [held(await both[n % 2].ask(10, 0)) for n in range(8)]  # 8 of 100 requests, 80 of 1000 tokens
        own_server.kill()
        await until(lambda: not one.up and not two.up)
        for permit in before:
            permit.release()
        got = [[await each.ask(10, 0) for _ in range(60)] for each in both]
        taken = [[each for each in some if isinstance(each, Reservation)] for some in got]
        assert [len(some) for some in taken] == [4, 4]  # slots
        assert got[0][4] is None
        for each in (*taken[0], *taken[1]):
            each.release()
        more = 0
        for one_of in both:
            while isinstance(extra := await one_of.ask(0, 0), Reservation):
                extra.release()
                more += 1
        assert 8 + 8 + more == pytest.approx(100, abs=3)
        assert one.local > 4
        assert both[0].most == 4
        own_server.start()
        await until(lambda: one.up and two.up)
        permits = [held(await both[n % 2].ask(0, 0)) for n in range(8)]  # in full again, and the store was emptied
        assert len(permits) == 8
        assert both[0].most == 8
        assert [left.limit for left in both[0].left(now())] == [100, 1000]


async def test_a_part_is_one_at_the_least(own_server: Redis) -> None:
    store = Store(Settings(url=place("redis://127.0.0.1:9")), 64, lambda event: None)
    one = counter(sidecar(store), 10, 3)
    assert isinstance(one.locally(0, 0), Counter)
    assert one.locally(0, 0) is None
    one.release()
    refused = one.locally(0, 0)
    assert isinstance(refused, Refused)
    assert refused.limit == "requests_per_minute"


async def test_a_lost_answer_is_decided_here_at_once() -> None:
    async with fake() as server, stores(f"redis://127.0.0.1:{server.port}", 1) as (store,):
        await until(lambda: store.up)
        server.answer = lambda parts: None if parts[0] == b"EVALSHA" else friendly(parts)
        one = counter(sidecar(store), 5, 5)
        assert await one.ask(0, 0) is one
        assert store.local == 1
        one.release()


async def test_who_has_waited_long_enough_waits_no_more() -> None:
    """What comes of the question later is given back."""
    async with fake() as server, stores(f"redis://127.0.0.1:{server.port}", 1) as (store,):
        await until(lambda: store.up)
        server.answer = lambda parts: None if parts[0] == b"EVALSHA" else friendly(parts)
        one = counter(sidecar(store), 5, 5)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await one.ask(0, 0, 0.01) is one
        assert loop.time() - began < 0.035
        server.connections[0].write(b"*3\r\n:1\r\n:7\r\n:9\r\n")
        await until(lambda: any(parts[0] == b"ZREM" for parts in server.asked))
        assert one.running == 1
        asked = len(server.asked)
        assert await one.ask(0, 0, 0.0) is one
        assert len(server.asked) == asked


async def test_a_queue_goes_on_when_the_store_goes(own_server: Redis) -> None:
    async with stores(own_server.url, 1) as (store,):
        one = counter(sidecar(store, Queue(wait_seconds=10)), None, 1)
        mine = held(await one.ask(0, 0))
        task = asyncio.create_task(one.queue(Ask(one, 0, 0), 1, 0.0, 60.0))
        await until(lambda: one.line)
        own_server.kill()
        await asyncio.sleep(0.1)
        assert not task.done()  # ours is still held
        mine.release()
        assert await task is one


async def test_a_reload_changes_the_bounds_and_keeps_what_was_used(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        limits = sidecar(store)
        one = counter(limits, 2, None)
        assert all([isinstance(await one.ask(0, 0), Lease) for _ in range(2)])
        assert counter(limits, 4, None) is one
        got = [isinstance(await one.ask(0, 0), Lease) for _ in range(3)]
        assert got[0] is False  # 60 s of the leak are taken, whatever they were called
        permit = await counter(limits, None, None).ask(0, 0)
        held(permit).release()


async def test_tokens_reserved_before_a_reload_are_settled_as_they_were(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        limits = sidecar(store)
        one = counter(limits, None, None, (1000, None, None))
        permit = held(await one.ask(1000, 0))
        counter(limits, None, None, (100, None, None))
        permit.settle(0, 0)
        held(await one.ask(100, 0))


Step = tuple[int, float, int]  # which sidecar asks, after so many seconds, for so many tokens


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 20), st.integers(0, 40)), min_size=1, max_size=120),
    count=st.integers(1, 4),
    limit=st.integers(4, 60),
    crash=st.integers(0, 120),
)
def test_parts_together_are_never_more_than_the_whole(steps: list[Step], count: int, limit: int, crash: int) -> None:
    """Of requests, tokens and slots, whatever the clock does, and whoever is gone."""
    moment = 1000.0
    store = Store(Settings(url=place("redis://127.0.0.1:9")), count, lambda event: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "now", lambda: moment)
        tokens = (limit * 10, None, None)
        all_of = [counter(sidecar(store, clock=lambda: moment), limit, 8, tokens) for _ in range(count)]
        out: list[Any] = []
        requests, used = 0, 0
        for number, (which, after, amount) in enumerate(steps):
            moment += after
            if number == crash and len(all_of) > 1:
                out = [each for each in out if each.counter is not all_of[-1]]
                all_of.pop()
            got = all_of[which % len(all_of)].locally(amount, 0)
            if isinstance(got, Reservation):
                requests, used = requests + 1, used + min(amount, limit * 10 // count)
                out.append(got)
            assert len(out) <= 8
            if len(out) > 4:
                out.pop(random.randrange(len(out))).release()
        minutes = (moment - 1000.0) / 60
        assert requests <= limit * (1 + minutes) + 1e-6
        assert used <= limit * 10 * (1 + minutes) + 1e-6


async def test_one_request_waits_for_all_that_it_asks_together_no_longer_than_it_may() -> None:
    """A store that answers late, but in time to be believed, three times over."""
    async with fake() as server, stores(f"redis://127.0.0.1:{server.port}", 1) as (store,):
        await until(lambda: store.up)
        loop = asyncio.get_running_loop()

        def late(parts: list[bytes]) -> bytes | None:
            if parts[0] != b"EVALSHA" or parts[2] != b"2":
                return friendly(parts)
            transport = server.connections[0]
            loop.call_later(0.03, transport.write, b"*3\r\n:1\r\n:7\r\n:9\r\n")
            return None

        server.answer = late
        asked = stage.exchange(Sidecar(stage.config()))
        began = loop.time()
        for _ in range(3):
            one = counter(sidecar(store), 100, None)
            await admit(asked, one, one.enter(0.0))  # type: ignore[arg-type]  # an Ask is what only it sees
        assert 0.044 <= loop.time() - began < 0.3  # alone it is 45 ms; 90 would be three answers
        assert asked.store_seconds == pytest.approx(loop.time() - began, abs=0.02)
        assert store.local == 2
        assert store.up


async def test_who_finds_others_waiting_waits_behind_them(server: Redis) -> None:
    async with stores(server.url, 1) as (store,):
        one = counter(sidecar(store, Queue(length=5, wait_seconds=10)), None, 1)
        asked = [stage.exchange(Sidecar(stage.config())) for _ in range(2)]
        mine = held(await one.ask(0, 0))
        tasks = [asyncio.create_task(admit(each, one, one.enter(0.0))) for each in asked]  # type: ignore[arg-type]  # as above
        await until(lambda: len(one.line) == 2)
        mine.release()
        for task in tasks:
            (await task).release()
        assert store.local == 0
        refused = counter(sidecar(store, Queue(length=0)), None, 1)
        mine = held(await refused.ask(0, 0))
        with pytest.raises(ConcurrencyLimited):
            await admit(asked[0], refused, refused.enter(0.0))  # type: ignore[arg-type]  # as above
        mine.release()
