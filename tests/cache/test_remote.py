"""The store elsewhere: bytes of any kind, packed where that is worth it; what is not ours, or not there, is a miss."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import pytest
from aiocache.base import BaseCache

from sidecar.cache import entry
from sidecar.cache.entry import Entry
from sidecar.cache.remote import PREFIX, Remote

MB = 1024 * 1024


class Redis:
    """As much of one as is asked for. `broken`: it answers nothing."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.seconds = 0.0
        self.broken = False

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [None if self.broken else self.kept.get(key) for key in keys]

    async def set_many(self, pairs: Sequence[tuple[bytes, bytes]], seconds: float) -> bool:
        self.kept.update(pairs)
        self.seconds = seconds
        return not self.broken

    async def delete(self, key: bytes) -> int:
        return int(self.kept.pop(key, None) is not None)

    def __repr__(self) -> str:
        return "<Redis>"


def made(body: bytes) -> Entry:
    return Entry(made=1.0, head=b"h: 1\r\n", body=body)


@pytest.mark.parametrize("body", [b"", b"\x00\xff\r\n", b"a" * 100_000, os.urandom(100_000)])
async def test_what_is_kept_is_given_again(body: bytes) -> None:
    redis = Redis()
    cache = Remote(redis, 80 * MB)
    assert isinstance(cache, BaseCache)
    key = os.urandom(32)
    assert await cache.set(key, made(body), ttl=2.5)
    assert (redis.seconds, [*redis.kept]) == (2.5, [PREFIX + key])
    assert await cache.get(key) == made(body)
    assert await cache.multi_get([b"x", key]) == [None, made(body)]
    assert await cache.exists(key)
    assert await cache.multi_set([(b"a", made(b"1")), (b"b", made(b"2"))], ttl=1)
    assert await cache.multi_get([b"b", b"a"]) == [made(b"2"), made(b"1")]
    assert (await cache.delete(key), await cache.exists(key)) == (1, False)
    await cache.close()


async def test_what_is_long_and_alike_is_packed() -> None:
    redis = Redis()
    cache = Remote(redis, 80 * MB)
    await cache.set(b"a", made(b"a" * 100_000), ttl=1)
    await cache.set(b"b", made(b"b" * 100), ttl=1)
    assert len(redis.kept[PREFIX + b"a"]) < 2000
    assert b"b" * 100 in redis.kept[PREFIX + b"b"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00not msgpack",
        b"\x01not zlib",
        b"\x01" + zlib.compress(entry.dumps(made(b"x" * 5000)))[:-1],
        b"\x01" + zlib.compress(entry.dumps(made(b"x"))) + b"more",
        b"\x01" + zlib.compress(entry.dumps(made(bytes(MB)))),  # more than any entry has
        b"\x02" + entry.dumps(made(b"x")),
        entry.dumps(made(b"x")),
    ],
)
async def test_what_is_not_ours_is_a_miss(data: bytes) -> None:
    redis = Redis()
    redis.kept[PREFIX + b"k"] = data
    assert await Remote(redis, 4 * MB).get(b"k") is None


async def test_what_is_too_large_is_not_sent() -> None:
    redis = Redis()
    cache = Remote(redis, 8 * MB)
    assert not await cache.set(b"k", made(bytes(MB)), ttl=1)
    assert not redis.kept
    cache.resize(16 * MB)
    assert await cache.set(b"k", made(bytes(MB)), ttl=1)


async def test_a_broken_one_is_a_miss() -> None:
    redis = Redis()
    redis.broken = True
    cache = Remote(redis, MB)
    assert (await cache.set(b"k", made(b"x"), ttl=1), await cache.get(b"k")) == (False, None)
    assert (cache.shrink(0), cache.stats(), repr(cache)) == (0, {"store": "redis"}, "<Remote <Redis>>")
