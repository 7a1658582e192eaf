"""Who gets which connection: the bound, the queue, reuse and its end; and that no place is ever lost."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import pytest

from sidecar.errors import ConnectFailed, Draining, PoolExhausted
from sidecar.pool import Pool
from sidecar.pool.connection import Connection
from sidecar.types import Outbound, PoolLimits
from tests.faults.ground import closed_port, nothing_left
from tests.faults.peer import REQUEST, RST, Again, Pause, RawServer
from tests.pool.asks import LIMITS, OK, ask, call, numbers, origin, pooled, settled, whole, within

ANSWERS = (Again((REQUEST, OK)),)


def bound(most: int, **changes: float) -> PoolLimits:
    return PoolLimits(max_connections=most, **changes)


async def test_a_new_pool_is_empty_and_made_without_a_loop() -> None:
    pool = await asyncio.to_thread(Pool)
    assert (repr(pool), pool.stats()) == ("<Pool empty>", [])
    await pool.aclose()


async def test_its_state_is_told_in_one_line_and_in_numbers() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        answer = await pool.send(ask(peer), within(), bound(7))
        assert repr(pool) == "<Pool lab: 0 idle, 0 dialing, 1 busy, 0 waiting>"
        await whole(answer)
        assert repr(pool) == "<Pool lab: 1 idle, 0 dialing, 0 busy, 0 waiting>"
        assert pool.stats() == [
            {
                "provider": "lab",
                "origin": f"127.0.0.1:{peer.port}",
                "idle": 1,
                "dialing": 0,
                "busy": 0,
                "waiting": 0,
                "max_connections": 7,
                "dials": 1,
                "reuses": 0,
                "stale_retries": 0,
            }
        ]


async def test_the_freshest_idle_connection_is_used_first() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        answers = [await pool.send(ask(peer), within(), LIMITS) for _ in range(3)]
        for answer in answers:
            await whole(answer)
        assert numbers(pool) == (3, 0, 0, 0)
        for _ in range(4):
            await call(pool, peer)
        assert [len(wire.requests) for wire in peer.connections] == [1, 1, 5]


async def test_providers_at_one_address_share_nothing() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        for name in ("one", "two", "one", "two"):
            await whole(await pool.send(ask(origin(peer, name=name)), within(), bound(1)))
        assert [len(wire.requests) for wire in peer.connections] == [2, 2]
        held = await pool.send(ask(origin(peer, name="one")), within(), bound(1))
        await whole(await pool.send(ask(origin(peer, name="two")), within(), bound(1)))  # does not wait for "one"
        await whole(held)


# -- the bound and the queue


async def test_no_more_connections_than_the_bound_and_first_come_first_served() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        order: list[int] = []

        async def one(number: int) -> None:
            await whole(await pool.send(ask(peer, path=b"/%d" % number), within(), bound(4)))
            order.append(number)

        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(one(number))
            await settled(lambda: len(order) == 8)
        assert len(peer.connections) == 4
        assert sorted(order) == list(range(8))
        assert numbers(pool) == (4, 0, 0, 0)


async def test_those_who_wait_are_served_in_order_on_the_connection_that_is_freed() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        first = await pool.send(ask(peer, path=b"/0"), within(), bound(3))
        others = [await pool.send(ask(peer, path=b"/hold"), within(), bound(3)) for _ in range(2)]

        async with asyncio.TaskGroup() as tasks:
            for number in range(1, 4):
                tasks.create_task(_whole(pool, ask(peer, path=b"/%d" % number), bound(3)))
                await settled(partial(_so_many_wait, pool, number))
            await whole(first)
        for other in others:
            await whole(other)
        assert [request.split()[1] for request in peer.connections[0].requests] == [b"/0", b"/1", b"/2", b"/3"]
        assert len(peer.connections) == 3


def _so_many_wait(pool: Pool, number: int) -> bool:
    return numbers(pool)[3] == number


async def _whole(pool: Pool, outbound: Outbound, limits: PoolLimits) -> bytes:
    return await whole(await pool.send(outbound, within(), limits))


async def test_a_wait_that_is_too_long_is_refused() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(1))
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(PoolExhausted, match="all connections to provider lab are busy") as caught:
            await pool.send(ask(peer), within(), bound(1, wait_seconds=0.1))
        assert 0.09 <= loop.time() - began <= 0.25
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
        assert numbers(pool) == (0, 0, 1, 0)
        await whole(held)
        assert await call(pool, peer) == b"ok"
        assert len(peer.requests) == 2


async def test_nobody_waits_behind_a_full_queue() -> None:
    limits = bound(2, wait_seconds=5.0)
    async with pooled(ANSWERS) as (pool, peer):
        held = [await pool.send(ask(peer), within(), limits) for _ in range(2)]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(_whole(pool, ask(peer), limits))
            await settled(lambda: numbers(pool)[3] == 2)
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(PoolExhausted):
                await pool.send(ask(peer), within(), limits)
            assert loop.time() - began < 0.05
            for answer in held:
                await whole(answer)


async def test_one_who_leaves_the_queue_leaves_nothing() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(1))
        task = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), bound(1)))
        await settled(lambda: numbers(pool)[3] == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert numbers(pool) == (0, 0, 1, 0)
        await whole(held)
        assert (numbers(pool), len(peer.requests)) == ((1, 0, 0, 0), 1)


async def test_a_connection_granted_to_one_who_leaves_goes_to_the_next() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(2))
        other = await pool.send(ask(peer), within(), bound(2))
        loop = asyncio.get_running_loop()
        leaves, stays = (loop.create_task(_whole(pool, ask(peer), bound(2))) for _ in range(2))
        await settled(lambda: numbers(pool)[3] == 2)
        await whole(held)  # granted to the first...
        leaves.cancel()  # ...who leaves before it has woken up
        assert await stays == b"ok"
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await whole(other)
        assert (numbers(pool), len(peer.connections)) == ((2, 0, 0, 0), 2)


async def test_a_granted_connection_that_is_lost_meanwhile_is_replaced() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(1))
        connection = cast("Connection", held.connection)
        waits = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), bound(1)))
        await settled(lambda: numbers(pool)[3] == 1)
        await whole(held)
        connection.abort()
        assert await waits == b"ok"
        assert len(peer.connections) == 2


async def test_a_granted_connection_lost_while_its_waiter_leaves_is_not_kept() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(1))
        connection = cast("Connection", held.connection)
        leaves = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), bound(1)))
        await settled(lambda: numbers(pool)[3] == 1)
        await whole(held)
        connection.abort()
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert numbers(pool) == (0, 0, 0, 0)


async def test_places_are_not_lost_when_a_connection_ends_while_all_who_wait_leave() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = await pool.send(ask(peer), within(), bound(1))
        leaves = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), bound(1)))
        await settled(lambda: numbers(pool)[3] == 1)
        leaves.cancel()
        held.close()  # in the same round of the loop: nobody is there to take the place
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert numbers(pool) == (0, 0, 0, 0)
        assert await call(pool, peer, limits=bound(1)) == b"ok"


async def test_the_place_of_a_failed_dial_goes_to_the_next() -> None:
    async with nothing_left():
        pool = Pool()
        port = closed_port()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(pool.send(ask(origin(port)), within(), bound(4))) for _ in range(8)]
        for task in tasks:
            with pytest.raises(ConnectFailed, match="connection refused"):
                await task
        assert numbers(pool) == (0, 0, 0, 0)
        assert [row["dials"] for row in pool.stats()] == [8]
        await pool.aclose()


async def test_a_fresh_connection_in_place_of_a_stale_one_keeps_to_the_bound() -> None:
    """Two idle ones, both closed by a peer that says so only when used; the bound is two all the time."""

    def script(number: int) -> Any:
        return [REQUEST, OK, REQUEST, RST] if number < 2 else ANSWERS

    async with pooled(script) as (pool, peer):
        answers = [await pool.send(ask(peer), within(), bound(2)) for _ in range(2)]
        for answer in answers:
            await whole(answer)
        assert await call(pool, peer, limits=bound(2)) == b"ok"
        assert sum(numbers(pool)) <= 2


# -- the end of connections


async def test_idle_connections_are_closed_after_the_keep_alive_time() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        limits = PoolLimits(keepalive_seconds=0.15)
        answers = [await pool.send(ask(peer), within(), limits) for _ in range(3)]
        for answer in answers:
            await whole(answer)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await peer.left(3)
        assert 0.14 <= loop.time() - began <= 0.4
        assert numbers(pool) == (0, 0, 0, 0)
        assert [wire.how for wire in peer.connections] == ["fin"] * 3


async def test_each_is_closed_at_its_own_time_and_not_at_the_next_round() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        limits = PoolLimits(keepalive_seconds=0.2)
        loop = asyncio.get_running_loop()
        first, second = [await pool.send(ask(peer), within(), limits) for _ in range(2)]
        await whole(first)
        await asyncio.sleep(0.05)
        began = loop.time()
        await whole(second)
        await peer.left(2)
        assert 0.19 <= loop.time() - began <= 0.32


async def test_what_demand_keeps_warm_stays_and_the_rest_is_closed() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        limits = PoolLimits(keepalive_seconds=0.2)
        answers = [await pool.send(ask(peer), within(), limits) for _ in range(4)]
        for answer in answers:
            await whole(answer)
        while sum(wire.how is not None for wire in peer.connections) < 3:
            await whole(await pool.send(ask(peer), within(), limits))
            await asyncio.sleep(0.02)
        assert numbers(pool) == (1, 0, 0, 0)
        assert len(peer.connections) == 4


async def test_an_idle_connection_past_its_time_is_not_used_though_nobody_has_swept() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        await call(pool, peer)
        await whole(await pool.send(ask(peer), within(), PoolLimits(keepalive_seconds=0.0)))
        assert len(peer.connections) == 2


async def test_a_connection_past_its_age_is_closed_at_the_end_of_its_exchange() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        limits = PoolLimits(max_age_seconds=0.05)
        answer = await pool.send(ask(peer), within(), limits)
        await asyncio.sleep(0.07)
        await whole(answer)
        assert numbers(pool) == (0, 0, 0, 0)
        await peer.left()


async def test_ages_differ_by_at_most_a_tenth() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        held = [await pool.send(ask(peer), within(), PoolLimits(max_age_seconds=100)) for _ in range(20)]
        connections = [cast("Connection", answer.connection) for answer in held]
        ages = [connection.retire_at - connection.born for connection in connections]
        assert all(90 <= age <= 110.1 for age in ages)
        assert max(ages) - min(ages) > 1
        for answer in held:
            await whole(answer)


# -- closing


async def test_closing_ends_all_that_is_idle_busy_or_waiting() -> None:
    async with nothing_left(), RawServer(ANSWERS) as peer:
        pool = Pool()
        idle = await pool.send(ask(peer), within(), bound(2))
        busy = await pool.send(ask(peer), within(), bound(2))
        waits = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), bound(2)))
        await settled(lambda: numbers(pool)[3] == 1)
        await pool.aclose()
        with pytest.raises(Draining):
            await waits
        assert numbers(pool) == (0, 0, 0, 0)
        await peer.left(2)
        idle.close()
        busy.close()
        with pytest.raises(Draining, match="the sidecar is shutting down"):
            await call(pool, peer)
        assert len(peer.connections) == 2


async def test_a_dial_that_ends_after_the_closing_is_for_nobody() -> None:
    async with nothing_left(), RawServer(ANSWERS) as peer:
        pool = Pool()
        dials = asyncio.get_running_loop().create_task(_whole(pool, ask(peer), LIMITS))
        await asyncio.sleep(0)
        assert numbers(pool) == (0, 1, 0, 0)
        await pool.aclose()
        with pytest.raises(Draining):
            await dials
        assert numbers(pool) == (0, 0, 0, 0)
        assert peer.received == b""


async def test_an_answer_that_ends_after_the_closing_is_not_pooled() -> None:
    release = asyncio.Event()
    async with nothing_left(), RawServer([REQUEST, Pause(release), OK]) as peer:
        pool = Pool()
        answer = asyncio.get_running_loop().create_task(call(pool, peer))
        await peer.requested()
        pool.closed = True
        release.set()
        assert await answer == b"ok"
        assert numbers(pool) == (0, 0, 0, 0)
        await pool.aclose()
