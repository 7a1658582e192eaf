"""Names to addresses: cached, bounded, and none of them held up by another."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.errors import ConnectFailed
from sidecar.pool import resolve
from sidecar.pool.resolve import MOST_THREADS, NEGATIVE_SECONDS, STALE_SECONDS, TTL_SECONDS, Resolver
from tests.pool.asks import settled

FOUND = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]


class Names:
    """A getaddrinfo in a test's hand: names that are known, names that fail, names that hang until `release`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: dict[str, OSError] = {}
        self.hanging: set[str] = set()
        self.release = threading.Event()

    def __call__(self, host: str, port: None, *, type: int) -> list[Any]:  # noqa: A002  # getaddrinfo's own word
        self.asked.append(host)
        if host in self.hanging:
            self.release.wait(10)
        if host in self.failing:
            raise self.failing[host]
        rows = [(family, type, 6, "", (address, 0)) for family, address in FOUND]
        return [*rows, rows[0]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setattr(resolve, "TIMEOUT_SECONDS", 0.2)
    before = set(threading.enumerate())
    yield names
    names.release.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let seconds pass for the resolver: what it knows grows older."""

    def pass_time(resolver: Resolver, seconds: float) -> None:
        for entry in resolver._known.values():
            entry.at -= seconds

    return pass_time


async def test_addresses_come_in_the_systems_order_each_once(names: Names) -> None:
    assert await Resolver().resolve("a.test") == FOUND


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("192.0.2.9", socket.AF_INET)]
)
async def test_an_address_is_its_own_answer(names: Names, host: str, family: int) -> None:
    assert await Resolver().resolve(host) == [(family, host)]
    assert names.asked == []


async def test_a_name_is_asked_for_once_in_its_time(names: Names, later: Any) -> None:
    resolver = Resolver()
    for _ in range(3):
        await resolver.resolve("a.test")
    assert names.asked == ["a.test"]
    later(resolver, TTL_SECONDS - 1)
    await resolver.resolve("a.test")
    assert names.asked == ["a.test"]
    later(resolver, 1)
    await resolver.resolve("a.test")
    assert names.asked == ["a.test"] * 2


async def test_all_who_ask_for_a_name_share_one_thread(names: Names) -> None:
    resolver = Resolver()
    names.hanging.add("a.test")
    before = threading.active_count()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(resolver.resolve("a.test")) for _ in range(100)]
    await settled(lambda: names.asked)
    assert threading.active_count() == before + 1
    tasks[0].cancel()  # who asked first may leave
    await asyncio.sleep(0)
    names.release.set()
    assert await asyncio.gather(*tasks[1:]) == [FOUND] * 99
    assert names.asked == ["a.test"]


async def test_a_name_that_does_not_exist_is_remembered_for_a_short_time(names: Names, later: Any) -> None:
    resolver = Resolver()
    names.failing["no.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    for _ in range(3):
        with pytest.raises(ConnectFailed, match=r"the name no\.test does not resolve: name or service not known"):
            await resolver.resolve("no.test")
    assert names.asked == ["no.test"]
    later(resolver, NEGATIVE_SECONDS)
    del names.failing["no.test"]
    assert await resolver.resolve("no.test") == FOUND


@pytest.mark.parametrize("host", ["a..test", "a" * 64 + ".test"])
async def test_what_is_no_host_name_is_refused(host: str) -> None:
    resolver = Resolver()
    with pytest.raises(ConnectFailed, match="does not resolve: "):
        await resolver.resolve(host)
    assert resolver._asking == {}


async def test_a_name_that_hangs_is_left_in_time_and_its_late_answer_kept(names: Names) -> None:
    resolver = Resolver()
    names.hanging.add("slow.test")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConnectFailed, match=r"the name slow\.test was not resolved within 0\.2 s"):
        await resolver.resolve("slow.test")
    assert 0.19 <= loop.time() - began <= 0.35
    names.release.set()
    await settled(lambda: resolver._known)
    assert await resolver.resolve("slow.test") == FOUND
    assert names.asked == ["slow.test"]


async def test_names_that_hang_do_not_delay_another(names: Names) -> None:
    resolver = Resolver()
    hung = [f"hung{n}.test" for n in range(MOST_THREADS - 1)]
    names.hanging.update(hung)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(resolver.resolve(name)) for name in hung]
    await settled(lambda: len(names.asked) == len(hung))
    began = loop.time()
    for number in range(10):
        assert await resolver.resolve(f"fine{number}.test") == FOUND
    assert loop.time() - began < 0.1
    for task in tasks:
        with pytest.raises(ConnectFailed):
            await task


async def test_more_names_than_threads_take_turns(names: Names) -> None:
    resolver = Resolver()
    assert await asyncio.gather(*[resolver.resolve(f"{n}.test") for n in range(50)]) == [FOUND] * 50
    assert len(names.asked) == 50
    assert resolver._asking == {}


async def test_when_every_thread_hangs_the_next_name_fails_at_once(names: Names) -> None:
    resolver = Resolver()
    hung = [f"hung{n}.test" for n in range(MOST_THREADS)]
    names.hanging.update(hung)
    for result in await asyncio.gather(*[resolver.resolve(name) for name in hung], return_exceptions=True):
        assert isinstance(result, ConnectFailed)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConnectFailed, match=r"cannot be resolved: all 32 look-ups under way hang"):
        await resolver.resolve("fine.test")
    assert loop.time() - began < 0.05
    assert names.asked == hung
    names.release.set()
    await settled(lambda: not resolver._asking)
    assert await resolver.resolve("fine.test") == FOUND


@pytest.mark.parametrize("fault", ["fails", "hangs", "no thread"])
async def test_old_addresses_serve_while_there_are_no_new_ones(names: Names, later: Any, fault: str) -> None:
    resolver = Resolver()
    await resolver.resolve("a.test")
    later(resolver, TTL_SECONDS)
    if fault == "fails":
        names.failing["a.test"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    elif fault == "hangs":
        names.hanging.add("a.test")
    else:
        hung = [f"hung{n}.test" for n in range(MOST_THREADS)]
        names.hanging.update(hung)
        await asyncio.gather(*[resolver.resolve(name) for name in hung], return_exceptions=True)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        began = loop.time()
        assert await resolver.resolve("a.test") == FOUND
        assert loop.time() - began < 0.15
    later(resolver, STALE_SECONDS - TTL_SECONDS)
    with pytest.raises(ConnectFailed):
        await resolver.resolve("a.test")


async def test_an_answer_after_the_loop_has_closed_is_nobodys(names: Names) -> None:
    names.hanging.add("slow.test")
    done = threading.Event()

    def other_loop() -> None:
        async def leave() -> None:
            with pytest.raises(ConnectFailed):
                await Resolver().resolve("slow.test")

        asyncio.run(leave())
        done.set()

    await asyncio.to_thread(other_loop)
    assert done.is_set()
    names.release.set()  # the thread ends without a word: an exception in it would fail this test


async def test_an_address_that_answered_is_first_until_the_next_look_up(names: Names, later: Any) -> None:
    resolver = Resolver()
    before = await resolver.resolve("a.test")
    resolver.prefer("a.test", FOUND[1])
    resolver.prefer("b.test", FOUND[1])  # of which nothing is known
    assert await resolver.resolve("a.test") == FOUND[::-1]
    assert before == FOUND  # who tries these is not disturbed
    later(resolver, TTL_SECONDS)
    assert await resolver.resolve("a.test") == FOUND


async def test_what_is_known_is_bounded(names: Names) -> None:
    resolver = Resolver()
    for number in range(1100):
        await resolver.resolve(f"{number}.test")
    assert len(resolver._known) <= 1024
