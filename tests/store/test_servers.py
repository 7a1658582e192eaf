"""Who is asked: one server, a cluster's by slot, or whom sentinels name. Against real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from hypothesis import given, settings, strategies as st

from sidecar.config import Place, place
from sidecar.store import servers as module
from sidecar.store.resp import command
from sidecar.store.scripts import DECIDE, keys
from sidecar.store.servers import Servers, connect, slot
from sidecar.store.wire import LOST
from tests.store.fake import fake, friendly, until
from tests.store.servers import Redis, redis

LOAD = command("SCRIPT", "LOAD", DECIDE.text)


@asynccontextmanager
async def connected(where: Place | str) -> AsyncIterator[tuple[Servers, list[str | None]]]:
    told: list[str | None] = []
    found = connect(where if isinstance(where, Place) else place(where), None, [LOAD], told.append)
    try:
        yield found, told
    finally:
        found.close()
        await asyncio.sleep(0.01)


async def said(of: Servers, key: bytes, packed: bytes) -> Any:
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    lane = of.lane(key)
    assert lane is not None
    assert lane.call(packed, reply.set_result)
    return await reply


def decide(counter: str) -> bytes:
    found = keys(counter)
    return DECIDE.known(2, *found, b"lease", 1, 5_000_000, "requests_per_minute", 1_000_000)


@settings(max_examples=50)
@given(key=st.one_of(st.binary(max_size=30), st.from_regex(rb"[ab]?\{[abc{]*\}?[}]?x?", fullmatch=True)))
def test_slots_are_as_redis_py_has_them(key: bytes) -> None:
    assert slot(key) == redis_py.crc.key_slot(key)


@pytest.mark.parametrize("counter", ["caller:web", "provider:openai", "model:a}b", "caller:{x}", "caller:"])
def test_what_one_script_is_given_is_in_one_slot(counter: str) -> None:
    rates, leases = keys(counter)
    assert slot(rates) == slot(leases)


async def test_one_server_by_port_and_by_socket(server: Redis) -> None:
    for url in (f"redis://127.0.0.1:{server.port}/2", f"unix://{server.socket}?db=2"):
        async with connected(url) as (found, told):
            assert await said(found, b"k", command("INCR", "k")) in (1, 2)
            assert found.up
            assert told == [None]
    assert server.ask("KEYS", "*") == []  # which are of database 0


async def test_a_password_is_sent_and_must_be_right() -> None:
    with redis("--requirepass", "hunter2") as server:
        async with connected(f"redis://:hunter2@127.0.0.1:{server.port}") as (found, _):
            assert await said(found, b"k", decide("caller:web")) == [1, pytest.approx(0, abs=1e17), 1_000_000]
        async with connected(f"redis://127.0.0.1:{server.port}") as (found, told):
            await until(lambda: told)
            assert told[0] == "it refuses: NOAUTH"


async def test_a_cluster_is_asked_where_the_slot_is(cluster_server: Redis) -> None:
    cluster_server.ask("FLUSHALL")
    async with connected(f"redis+cluster://127.0.0.1:9,127.0.0.1:{cluster_server.port}") as (found, told):
        assert found.lane(b"any") is None
        await until(lambda: found.up)
        assert told == [None]
        got = await said(found, keys("caller:web").rates, decide("caller:web"))
        assert (got[0], got[2]) == (1, 1_000_000)
        assert (await said(found, keys("caller:web").rates, decide("caller:web")))[0] == 2


async def test_a_cluster_whose_slots_move_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.01)
    async with fake() as one, fake() as two:
        rows = {"all": (one.port, one.port)}

        def slots() -> bytes:
            row = b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"
            return b"*2\r\n" + row % (0, 8191, rows["all"][0]) + row % (8192, 16383, rows["all"][1])

        for each in (one, two):
            each.answer = lambda parts: slots() if parts[0] == b"CLUSTER" else friendly(parts)
        async with connected(f"redis+cluster://127.0.0.1:{one.port}") as (found, _):
            await until(lambda: found.up)
            low, high = b"bar", b"foo"
            assert slot(low) < 8192 <= slot(high)
            assert found.lane(low) is found.lane(high)
            rows["all"] = (one.port, two.port)
            for _ in range(3):
                found.moved()  # of several that see it, one looks
            await until(lambda: found.lane(low) is not found.lane(high))
            await until(lambda: found.up)
            rows["all"] = (two.port, two.port)
            await asyncio.sleep(0.02)
            found.moved()
            await until(lambda: found.lane(low) is found.lane(high))
            await until(lambda: not one.connections)


async def test_a_cluster_of_which_nobody_answers_is_told_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.01)
    async with fake() as server:
        server.answer = lambda parts: b"-ERR no cluster\r\n" if parts[0] == b"CLUSTER" else friendly(parts)
        async with connected(f"redis+cluster://127.0.0.1:{server.port}") as (found, told):
            await until(lambda: len(told) > 1)
            assert told[0] == "nobody says who has which slots: ERR no cluster"
            assert not found.up


async def test_a_cluster_behind_a_url_of_one_server_is_told_of(cluster_server: Redis) -> None:
    async with connected(cluster_server.url) as (found, told):
        await until(lambda: found.up)
        found.moved()
        assert told == [None, "it is one of a cluster: say redis+cluster://"]


async def test_sentinels_are_asked_for_the_master_each_time(tmp_path: Path) -> None:
    with redis() as first, redis() as second, redis(sentinel=True) as sentinel:
        sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", first.port, 1)
        url = f"redis+sentinel://127.0.0.1:9,127.0.0.1:{sentinel.port}/main"
        async with connected(url) as (found, _):
            await until(lambda: found.up)
            assert await said(found, b"k", command("SET", "k", "v")) == b"OK"
            assert first.ask("GET", "k") == b"v"
            sentinel.ask("SENTINEL", "REMOVE", "main")
            sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", second.port, 1)
            first.kill()
            await until(lambda: not found.up)
            await until(lambda: found.up)
            assert await said(found, b"k", command("SET", "k", "w")) == b"OK"
            assert second.ask("GET", "k") == b"w"


async def test_a_service_that_sentinels_do_not_know_is_told() -> None:
    async with fake() as server:
        server.answer = lambda parts: b"*-1\r\n"
        async with connected(f"redis+sentinel://127.0.0.1:{server.port}/main") as (_, told):
            await until(lambda: told)
            assert told == ["no connection: no sentinel knows the service"]
    async with connected("redis+sentinel://127.0.0.1:9/main") as (found, told):
        lane = found.lane(b"k")
        got: list[Any] = []
        assert lane is not None
        lane.call(b"x", got.append)
        await until(lambda: told)
        assert got == [LOST]


async def test_closing_a_cluster_that_is_looked_at_leaves_nothing() -> None:
    async with fake() as server:
        server.answer = lambda parts: None
        async with connected(f"redis+cluster://127.0.0.1:{server.port}"):
            await until(lambda: server.asked)
        await until(lambda: not server.connections)
