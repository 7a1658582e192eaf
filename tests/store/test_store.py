"""The store as the spine sees it: decisions, slots, hearts and bytes, on its best and on its worst days."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import Store as Settings, place
from sidecar.store import DECIDE, LEASE_SECONDS, LOST, Store, keys, store as module
from sidecar.store.scripts import SIDECARS, script
from tests.store.fake import fake, friendly, until
from tests.store.servers import Redis

LEASE = int(LEASE_SECONDS * 1e6)
WEB = keys("caller:web")


@asynccontextmanager
async def opened(url: str, processes: int = 1) -> AsyncIterator[tuple[Store, list[dict[str, Any]]]]:
    told: list[dict[str, Any]] = []
    store = Store(Settings(url=place(url)), processes, told.append)
    store.open()
    try:
        yield store, told
    finally:
        await store.aclose()
        await asyncio.sleep(0.01)


async def decide(store: Store, *, lease: bytes = b"", most: int = 0, per_minute: int | None = None) -> Any:
    """What the script answers, or LOST; None where nothing was asked."""
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    rate: list[str | int] = [] if per_minute is None else ["requests_per_minute", 60_000_000 // per_minute]
    if not store.ask(DECIDE, WEB, [lease, most, LEASE, *rate], reply.set_result):
        return None
    return await reply


def calls(store: Store) -> dict[str, int]:
    found = store.stats()["calls"]
    assert isinstance(found, dict)
    return found


async def test_two_stores_of_one_server_count_together(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    async with opened(server.url) as (one, _), opened(f"unix://{server.socket}") as (two, _):
        got = [await decide(store, per_minute=5) for _ in range(4) for store in (one, two)]
        assert [each[0] for each in got] == [1] * 5 + [0] * 3
        assert got[7][2] == pytest.approx(12_000_000, abs=5_000_000)
        await until(lambda: one.sidecars == two.sidecars == 2)
    assert server.ask("ZCARD", SIDECARS) == 0  # they have said goodbye


async def test_a_slot_is_renewed_while_it_is_held_and_free_when_it_is_given_back(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    async with opened(server.url) as (store, _):
        lease = store.lease()
        assert (await decide(store, lease=lease, most=1))[0] == 1
        store.hold(WEB, lease)
        first = float(server.ask("ZSCORE", WEB.leases, lease))
        await until(lambda: float(server.ask("ZSCORE", WEB.leases, lease)) > first)
        server.ask("FLUSHALL")
        await until(lambda: server.ask("ZCARD", WEB.leases) == 1)  # it is there again
        assert (await decide(store, lease=b"other", most=1))[0] == 2
        assert repr(store) == f"<Store {server.url} up, 1 leases held>"
        store.free(WEB, lease)
        assert (await decide(store, lease=b"other", most=1))[0] == 1
        await asyncio.sleep(0.05)
        assert server.ask("ZRANGE", WEB.leases, 0, -1) == [b"other"]


async def test_many_slots_are_renewed_by_several_commands(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_IDS", 10)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    async with opened(server.url) as (store, _):
        for _ in range(25):
            store.hold(WEB, store.lease())
        await until(lambda: server.ask("ZCARD", WEB.leases) == 25)


async def test_ids_are_nobody_elses(server: Redis) -> None:
    async with opened(server.url) as (one, _), opened(server.url) as (two, _):
        assert len({store.lease() for store in (one, two) for _ in range(100)}) == 200


async def test_a_server_that_is_killed_is_lost_at_once_and_back_when_it_is(own_server: Redis) -> None:
    async with opened(own_server.url) as (store, told):
        assert (await decide(store, per_minute=5))[0] == 1
        own_server.kill()
        await until(lambda: not store.up)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert [await decide(store) for _ in range(100)] == [None] * 100
        assert loop.time() - began < 0.05
        own_server.start()
        await until(lambda: store.up)
        assert (await decide(store, per_minute=5))[0] == 1
        assert [each["up"] for each in told] == [True, False, True]
        assert {each["event"] for each in told} == {"store"}
        assert calls(store)["down"] >= 100
        assert store.stats()["last_lost"] == "it closed the connection"


async def test_a_server_that_stands_still_holds_nobody_up(own_server: Redis) -> None:
    async with opened(own_server.url) as (store, told):
        assert (await decide(store))[0] == 1
        own_server.pause()
        loop = asyncio.get_running_loop()
        longest = 0.0
        for _ in range(50):
            began = loop.time()
            assert await decide(store) in (None, LOST)
            longest = max(longest, loop.time() - began)
            await asyncio.sleep(0.01)
        assert 0.039 <= longest < 0.05 + 0.2  # for a machine that is busy with others; alone it is 43 ms
        assert calls(store)["lost"] == 1
        own_server.go_on()
        await until(lambda: store.up)
        assert (await decide(store))[0] == 1
        assert told[1] == {"event": "store", "up": False, "why": "no answer in time"}


async def test_scripts_that_are_not_known_any_more_are_told_anew(server: Redis) -> None:
    async with opened(server.url) as (store, told):
        assert (await decide(store))[0] == 1
        server.ask("SCRIPT", "FLUSH")
        assert await decide(store) is LOST
        assert (await decide(store))[0] == 1
        assert calls(store)["refused"] == 1
        assert len(told) == 1


@pytest.mark.parametrize("error", ["LOADING Redis is loading", "READONLY You can't write", "OOM command not allowed"])
async def test_a_server_that_refuses_is_left_alone_for_a_while(error: str) -> None:
    async with fake() as server, opened(f"redis://127.0.0.1:{server.port}") as (store, told):
        await until(lambda: store.up)
        server.answer = lambda parts: b"-%b\r\n" % error.encode() if parts[0] == b"EVALSHA" else friendly(parts)
        assert await decide(store) is LOST
        await until(lambda: len(told) > 1)
        assert told[1]["why"] == f"it refuses: {error.split()[0]}"
        assert not store.up
        server.answer = friendly
        await until(lambda: store.up)


async def test_an_answer_from_elsewhere_makes_a_cluster_look_again() -> None:
    async with fake() as server:
        row = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:%d\r\n" % server.port
        looked = 0

        def answer(parts: list[bytes]) -> bytes:
            nonlocal looked
            looked += parts[0] == b"CLUSTER"
            if parts[0] == b"EVALSHA":
                return b"-MOVED 1 127.0.0.1:7\r\n"
            return row if parts[0] == b"CLUSTER" else friendly(parts)

        server.answer = answer
        async with opened(f"redis+cluster://127.0.0.1:{server.port}") as (store, _):
            assert await decide(store) is None  # nobody knows yet
            await until(lambda: store.up)
            assert await decide(store) is LOST
            assert store.up
            await until(lambda: looked == 2)


async def test_what_is_so_still_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.store.servers._REFRESH_SECONDS", 0.01)
    async with fake() as server:
        server.answer = lambda parts: b"-ERR no cluster\r\n" if parts[0] == b"CLUSTER" else friendly(parts)
        async with opened(f"redis+cluster://127.0.0.1:{server.port}") as (_, told):
            await until(lambda: len(server.asked) > 5)
            assert told == [{"event": "store", "up": False, "why": "nobody says who has which slots: ERR no cluster"}]


async def test_bytes_are_kept_for_a_while(server: Redis) -> None:
    async with opened(server.url) as (store, _):
        value = bytes(range(256)) * 4000
        assert await store.set_many([(b"a", value), (b"c", b"\r\n")], 60.0)
        assert await store.set_many([(b"b", b"")], 0.01)
        assert await store.set_many([(b"d", b"1")], 0.0)
        assert await store.get_many([b"a", b"none", b"c", b"d"]) == [value, None, b"\r\n", b"1"]
        assert await store.get_many([]) == []
        assert 59_000 < server.ask("PTTL", "a") <= 60_000
        assert server.ask("PTTL", "d") == -1
        await until(lambda: not server.ask("EXISTS", "b"))
        assert [await store.delete(b"a"), await store.delete(b"a")] == [1, 0]
        assert await store.get_many([b"a"]) == [None]


async def test_a_long_value_keeps_no_decision_waiting() -> None:
    """It has a connection of its own; what is lost there is not lost here."""
    async with fake() as server, opened(f"redis://127.0.0.1:{server.port}") as (store, told):
        await until(lambda: store.up)
        server.answer = lambda parts: None if parts[0] == b"GET" else friendly(parts)
        assert await store.get_many([b"a", b"b"]) == [None, None]
        assert await store.get_many([b"a"]) == [None]
        assert store.up
        assert len(told) == 1


async def test_of_several_keys_some_may_be_lost_when_the_asker_is_gone() -> None:
    async with fake() as server, opened(f"redis://127.0.0.1:{server.port}") as (store, _):
        server.answer = lambda parts: None if parts[0] == b"GET" else friendly(parts)
        task = asyncio.create_task(store.get_many([b"a"]))
        await until(lambda: [b"GET", b"a"] in server.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)  # its answer is lost, to nobody


async def test_a_store_that_was_never_seen_is_shared_by_the_processes_that_are_known() -> None:
    async with opened("redis://127.0.0.1:9", processes=4) as (store, told):
        await until(lambda: told)
        assert store.sidecars == 4
        assert not store.up
        assert await store.get_many([b"a"]) == [None]
        assert not await store.set_many([(b"a", b"")], 1.0)
        assert await store.delete(b"a") == 0


async def test_a_start_waits_until_it_is_known_whether_the_store_is_there(server: Redis) -> None:
    async with opened(server.url) as (store, _):
        await store.ready()
        assert store.up
        await store.ready()
    async with opened("redis://127.0.0.1:9") as (store, told):
        await store.ready(10.0)
        assert told
        assert not store.up


async def test_a_start_does_not_wait_for_ever() -> None:
    async with fake() as server:
        server.answer = lambda parts: None
        async with opened(f"redis+cluster://127.0.0.1:{server.port}") as (store, _):
            loop = asyncio.get_running_loop()
            began = loop.time()
            await store.ready(0.05)
            assert 0.04 < loop.time() - began < 0.9


async def test_what_is_closed_asks_nothing_and_may_be_opened_again(server: Redis) -> None:
    async with opened(server.url) as (store, _):
        await until(lambda: store.up)
        await store.aclose()
        assert await decide(store) is None
        await store.aclose()
        store.open()
        store.open()
        assert (await decide(store))[0] == 1


def test_another_loop_has_connections_of_its_own(server: Redis) -> None:
    store = Store(Settings(url=place(server.url)), 1, lambda event: None)

    async def once(*, close: bool) -> None:
        store.open()
        assert (await decide(store))[0] == 1
        if close:
            await store.aclose()
        else:
            await asyncio.sleep(0.01)

    other = asyncio.new_event_loop()
    other.run_until_complete(once(close=False))
    asyncio.run(_both(store, once(close=True)))
    other.run_until_complete(asyncio.sleep(0.02))  # where the first ones are closed
    other.close()


async def _both(store: Store, work: Any) -> None:
    await work
    await store.aclose()


async def test_the_rights_that_the_readme_names_are_enough(own_server: Redis) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rights = re.search(r"Under an ACL it needs\s+`([^`]+)`, for a cache `([^`]+)`", text)
    assert rights is not None
    own_server.ask("ACL", "SETUSER", "side", "on", ">pw", *rights[1].split(), *rights[2].split())
    async with opened(own_server.url.replace("//", "//side:pw@")) as (store, told):
        lease = store.lease()
        assert (await decide(store, lease=lease, most=1, per_minute=60))[0] == 1
        store.settle(WEB, [0, "tokens_per_minute", 5, 1])
        store.hold(WEB, lease)
        store._beat()
        assert await store.set_many([(b"sidecar:cache:1", b"x")], 1.0)
        assert await store.get_many([b"sidecar:cache:1"]) == [b"x"]
        assert await store.delete(b"sidecar:cache:1") == 1
        store.free(WEB, lease)
        await until(lambda: own_server.ask("ZCARD", WEB.leases) == 0)
        assert calls(store)["refused"] == 0
        assert len(told) == 1


async def test_it_tells_how_it_does(server: Redis) -> None:
    async with opened(server.url) as (store, _):
        await decide(store)
        stats = store.stats()
        assert stats["url"] == server.url
        assert stats["up"] is True
        assert 0 < float(str(stats["longest_wait_seconds"])) < 1
        text = store.metrics().decode()
        assert "sidecar_store_up 1\n" in text
        assert f'sidecar_store_calls_total{{result="answered"}} {calls(store)["answered"]}\n' in text
        assert "sidecar_store_local_decisions_total 0\n" in text


async def test_a_password_is_nowhere_to_be_seen() -> None:
    async with opened("redis://user:hunter2@127.0.0.1:9/1") as (store, told):
        await until(lambda: told)
        shown = f"{store!r}{store.stats()}{store.place!r}{store.metrics()!r}{told}"
        assert "hunter2" not in shown
        assert "redis://**********@127.0.0.1:9/1" in shown


def test_a_script_is_told_by_its_text_and_its_clock() -> None:
    assert script("return 1").sha != script("return 1", "").sha
