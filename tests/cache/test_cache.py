"""What the cache counts and tells, and how it asks its store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.cache import Cache, Entry
from sidecar.cache.cache import MOST_BYTES, most
from sidecar.cache.memory import build

MB = 1024 * 1024


class Elsewhere:
    """A store that has to be waited for."""

    async def get(self, key: bytes) -> Any:
        return None

    async def multi_get(self, keys: Sequence[bytes]) -> Sequence[Any]:
        return [key.decode() for key in keys]

    async def set(self, key: bytes, value: Entry, ttl: float) -> Any: ...

    async def multi_set(self, pairs: Sequence[tuple[bytes, Entry]], ttl: float) -> Any: ...

    def resize(self, max_bytes: int) -> None: ...

    def shrink(self, to_bytes: int) -> int:
        return 0

    def stats(self) -> dict[str, int | str]:
        return {"store": "elsewhere"}


async def test_it_asks_for_several_at_once() -> None:
    away = Cache(Elsewhere(), MB)
    assert away.find is None
    found: list[Any] = [*await away.lookup([b"a", b"b"])]
    assert found == ["a", "b"]
    near = build(MB)
    entry = Entry(made=0.0, head=b"", body=b"x")
    await near.store.set(b"a", entry, 60)
    assert await near.lookup([b"a", b"b"]) == [entry, None]


def test_what_it_tells() -> None:
    cache = build(MB)
    cache.results["hit"] += 2
    cache.results["miss"] += 1
    cache.uncached("cut")
    assert cache.stats() == {
        "store": "memory",
        "entries": 0,
        "bytes": 0,
        "max_bytes": MB,
        "evictions": 0,
        "hit": 2,
        "stale": 0,
        "miss": 1,
        "coalesced": 0,
        "uncached": {"cut": 1},
    }
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(cache.metrics().decode())
        for sample in family.samples
    }
    assert told[("sidecar_cache_requests_total", "hit")] == 2
    assert told[("sidecar_cache_uncached_total", "cut")] == 1
    assert told[("sidecar_cache_uncached_total", "asked")] == 0
    assert told[("sidecar_cache_max_bytes",)] == MB


def test_where_memory_is_short_only_what_is_here_gives_way() -> None:
    away, near = Cache(Elsewhere(), MB), build(MB)
    near.store.keep(b"a", Entry(made=0.0, head=b"", body=b"x"))  # type: ignore[attr-defined]
    for cache in (away, near):
        cache.resize(0)
    assert (away.most_bytes, near.most_bytes, near.held, away.held) == (MB // 8, 0, 0, 0)
    away.resize(2 * MB)
    assert away.most_bytes == MB // 4


@pytest.mark.parametrize(("room", "one"), [(MB, MB // 8), (1024**4, MOST_BYTES)])
def test_the_most_of_one_answer(room: int, one: int) -> None:
    assert most(room) == one
    assert Cache(Elsewhere(), room).most_bytes == one
