"""The store in memory: its bound, its order, its clock; and all that aiocache asks of a cache."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from aiocache.base import BaseCache
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sidecar.cache.entry import Entry
from sidecar.cache.memory import Memory, build

MB = 1024 * 1024
TOP = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def entry(size: int = 0) -> Entry:
    return Entry(made=0.0, head=b"", body=bytes(size))


def test_the_longest_unused_goes_first() -> None:
    room = entry(1000).size
    memory = Memory(10 * room)
    for number in range(10):
        assert memory.keep(number, entry(1000))
    assert memory.find(0, 0.0) is not None  # used, so that 1 is now the longest unused
    memory.keep(10, entry(1000))
    assert (memory.find(1, 0.0), len(memory), memory.bytes, memory.evicted) == (None, 10, 10 * room, 1)
    assert memory.find(0, 0.0) is not None
    assert memory.shrink(4 * room) == 6 * room
    assert [key for key in range(11) if memory.find(key, 0.0)] == [0, 8, 9, 10]
    assert repr(memory) == f"<Memory 4 entries, {4 * room} of {10 * room} bytes>"


def test_what_is_over_a_quarter_is_not_kept_and_what_was_there_is_gone() -> None:
    memory = Memory(4 * entry(9000).size)
    assert memory.keep("a", entry(9000))
    assert not memory.keep("a", entry(9001))
    assert (memory.find("a", 0.0), memory.bytes, len(memory), memory.evicted) == (None, 0, 0, 0)


def test_the_time_to_live_is_looked_at_when_a_key_is_read() -> None:
    memory = Memory(MB)
    memory.keep("a", entry(), 10.0)
    assert memory.find("a", 9.999) is not None
    assert len(memory) == 1
    assert memory.find("a", 10.0) is None
    assert (len(memory), memory.bytes) == (0, 0)


def test_another_bound() -> None:
    memory = Memory(16 * entry(1000).size)
    for number in range(16):
        memory.keep(number, entry(1000))
    memory.resize(8 * entry(1000).size)
    assert [key for key in range(16) if memory.find(key, 0.0)] == [*range(8, 16)]
    assert memory.stats() == {
        "store": "memory",
        "entries": 8,
        "bytes": memory.bytes,
        "max_bytes": memory.max_bytes,
        "evictions": 8,
    }


async def test_it_is_a_cache_of_aiocaches() -> None:
    """Each of aiocache's operations, with its own words, through its base class."""
    clock = Clock()
    cache = Memory(MB, clock)
    assert isinstance(cache, BaseCache)
    assert await cache.set("a", "x", ttl=5)
    assert (await cache.get("a"), await cache.get("b"), await cache.get("b", default=1)) == ("x", None, 1)
    assert await cache.exists("a")
    assert await cache.multi_set([("b", 1), ("c", b"2")], ttl=50)
    assert await cache.multi_get(["a", "b", "c", "d"]) == ["x", 1, b"2", None]
    with pytest.raises(ValueError, match="already exists"):
        await cache.add("a", "y")
    assert await cache.add("e", "y")
    assert (await cache.increment("n"), await cache.increment("n", 4)) == (1, 5)
    with pytest.raises(TypeError, match="not an integer"):
        await cache.increment("a")
    assert (await cache.delete("e"), await cache.delete("e")) == (1, 0)
    assert await cache.expire("a", 10)
    assert not await cache.expire("z", 10)
    clock.at += 9
    assert await cache.get("a") == "x"
    clock.at += 1
    assert not await cache.exists("a")
    assert await cache.get("b") == 1
    assert await cache.expire("b", 0)  # not ever
    clock.at += 1e9
    assert (await cache.get("b"), await cache.get("c")) == (1, None)
    await cache.set("app:1", 1)
    await cache.clear(namespace="app:")
    assert (await cache.get("app:1"), await cache.get("b")) == (None, 1)
    await cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
    await cache.close()


async def test_compare_and_set_and_counting_on() -> None:
    clock = Clock()
    cache = Memory(MB, clock)
    await cache.set("a", 1, ttl=10)
    assert not await cache._set("a", 2, _cas_token=3)
    assert await cache._set("a", 2, ttl=10, _cas_token=await cache._gets("a"))
    assert await cache.increment("a") == 3
    clock.at += 10
    assert await cache.increment("a") == 1  # counted anew: the time to live was kept, and is over


def test_no_timer_and_no_task_is_made() -> None:
    """There is no event loop here, so whatever asked for one would raise."""
    cache = Memory(MB)
    for work in (cache.set("a", 1, ttl=5), cache.get("a"), cache.expire("a", 3), cache.delete("a"), cache.clear()):
        _run(work)


def _run(work: Awaitable[Any]) -> None:
    """To its end, which comes without waiting."""
    try:
        work.__await__().send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


class Model(RuleBasedStateMachine):
    """Whatever is done: the bytes are right, in their bound, and nothing is given that was not kept, or is over."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.memory = Memory(20 * entry(500).size)
        self.kept: dict[int, tuple[Entry, float]] = {}

    @rule(key=st.integers(0, 30), size=st.integers(0, 4000), ttl=st.integers(1, 20))
    def keep(self, key: int, size: int, ttl: int) -> None:
        value = entry(size)
        self.kept[key] = (value, self.clock + ttl)
        assert self.memory.keep(key, value, self.clock + ttl) == (value.size <= self.memory.max_bytes // 4)

    @rule(key=st.integers(0, 30))
    def find(self, key: int) -> None:
        found = self.memory.find(key, self.clock)
        if found is not None:
            value, expires = self.kept[key]
            assert found is value
            assert expires > self.clock

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.clock += seconds

    @rule(to=st.integers(0, 20_000))
    def shrink(self, to: int) -> None:
        self.memory.shrink(to)
        assert self.memory.bytes <= max(to, 0)

    @invariant()
    def bytes_are_right(self) -> None:
        assert self.memory.bytes == sum(slot.size for slot in self.memory._slots.values())
        assert self.memory.bytes <= self.memory.max_bytes


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=40)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
def test_the_order_is_that_of_use(steps: list[tuple[str, bool]]) -> None:
    size = entry().size
    memory = Memory(8 * size)
    memory.max_bytes = 3 * size
    order: list[str] = []
    for key, read in steps:
        if read:
            assert (memory.find(key, 0.0) is not None) == (key in order)
            if key not in order:
                continue
        if key in order:
            order.remove(key)
        order.append(key)
        if not read:
            memory._drop(key)
            memory.max_bytes = 8 * size
            memory.keep(key, entry(), math.inf)
            memory.max_bytes = 3 * size
            memory.shrink(3 * size)
        del order[:-3]
        assert [*memory._slots] == order


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_what_an_entry_is_said_to_take_it_takes(size: int) -> None:
    """So that the bound is one of the process's memory: within a tenth of what Python's allocator has given out."""
    memory = Memory(64 * MB)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(4000):
            body, key = os.urandom(size), os.urandom(32)
            memory.keep(
                key, Entry(made=1e9 + number, head=os.urandom(300), body=body, input_tokens=number), 1e9 + number
            )
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= memory.bytes * 1.02
    assert taken >= memory.bytes * 0.7


CHURN = """
import os, random
from sidecar.cache.entry import Entry
from sidecar.cache.memory import build
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
most = 24 * 1024 * 1024
cache = build(most)
base, peak, draw, done = rss(), 0, random.Random(1), 0
blob = os.urandom(1 << 20)
while done < 6 * most:
    size = min(int(draw.lognormvariate(9, 1.3)), 1 << 20)
    entry = Entry(made=1.0 + done, head=blob[:300], body=bytes(memoryview(blob)[:size]), input_tokens=1000 + done)
    cache.store.keep(os.urandom(32), entry, 1e9 + done)
    done += entry.size
    peak = max(peak, rss() - base)
assert cache.store.evicted > 1000
print(peak / most)
"""


def test_the_process_stays_within_the_bound_under_churn() -> None:
    """Entries of all sizes come and go, six times as much as there is room for: resident memory, to 5 %."""
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True, cwd=TOP)
    assert float(done.stdout) <= 1.05


def test_what_is_built() -> None:
    cache = build(80 * MB)
    assert (cache.most_bytes, cache.find == cache.store.find) == (10 * MB, True)  # type: ignore[attr-defined]
    cache.resize(8 * MB)
    assert (cache.most_bytes, cache.stats()["max_bytes"]) == (MB, 8 * MB)
    assert cache.store.shrink(0) == 0
    assert repr(cache) == f"<Cache <Memory 0 entries, 0 of {8 * MB} bytes>>"
