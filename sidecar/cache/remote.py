"""The same cache in Redis: shared by all who are given the same one. aiocache's interface, bytes only.

What is broken or slow is a miss, and told by nobody but the counts: the client beneath has the deadline and the circuit
(see the store). What it holds that is not ours, or of another version, is a miss too.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from aiocache.base import BaseCache

from sidecar.cache import entry
from sidecar.cache.cache import Cache, most
from sidecar.cache.entry import Entry

PREFIX: Final = b"sidecar:cache:1:"  # the number is of the form of what is kept
COMPRESSED_BYTES: Final = 1024  # from here on it is worth it: JSON shrinks to a quarter or less
_THREAD_BYTES: Final = 32 * 1024  # from here on it would hold up the loop for a millisecond
_PLAIN: Final = b"\x00"
_DEFLATED: Final = b"\x01"


class Bytes(Protocol):
    """As much of a client of Redis as is asked for. It answers None where it cannot, in its bounded time."""

    async def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]: ...

    async def set_many(self, pairs: Sequence[tuple[bytes, bytes]], seconds: float) -> bool: ...

    async def delete(self, key: bytes) -> int: ...


class _Entries:
    """A serializer, as aiocache has them."""

    encoding: None = None

    def dumps(self, value: Entry) -> bytes:
        return entry.dumps(value)

    def loads(self, value: bytes | None) -> Entry | None:
        return None if value is None else entry.loads(value)


def _key(key: bytes, namespace: object = None) -> bytes:
    return PREFIX + key


class Remote(BaseCache):
    """An entry has an eighth of `max_bytes` at most; what unpacks to more is none of ours."""

    NAME = "redis"

    def __init__(self, client: Bytes, max_bytes: int) -> None:
        super().__init__(serializer=_Entries(), key_builder=_key, timeout=None)
        self._client = client
        self._most = most(max_bytes)

    def resize(self, max_bytes: int) -> None:
        self._most = most(max_bytes)

    def shrink(self, to_bytes: int) -> int:
        """There is nothing of it in this process."""
        return 0

    def stats(self) -> dict[str, int | str]:
        return {"store": self.NAME}

    async def _get(self, key: bytes, encoding: str | None = None, _conn: object = None) -> bytes | None:
        return (await self._multi_get([key]))[0]

    async def _multi_get(
        self, keys: Sequence[bytes], encoding: str | None = None, _conn: object = None
    ) -> list[bytes | None]:
        return [None if each is None else await self._unpack(each) for each in await self._client.get_many(keys)]

    async def _set(
        self, key: bytes, value: bytes, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        return await self._multi_set([(key, value)], ttl)

    async def _multi_set(
        self, pairs: Iterable[tuple[bytes, bytes]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        packed = [(key, await _aside(_pack, value)) for key, value in pairs if len(value) <= self._most]
        return bool(packed) and await self._client.set_many(packed, ttl or 0.0)

    async def _delete(self, key: bytes, _conn: object = None) -> int:
        return await self._client.delete(key)

    async def _exists(self, key: bytes, _conn: object = None) -> bool:
        return await self._get(key) is not None

    async def _unpack(self, data: bytes) -> bytes | None:
        return data[1:] if data[:1] == _PLAIN else await _aside(self._inflate, data)

    def _inflate(self, data: bytes) -> bytes | None:
        inflate = zlib.decompressobj()
        try:
            out = inflate.decompress(data[1:], self._most) if data[:1] == _DEFLATED else b""
        except zlib.error:
            return None
        return out if inflate.eof and not inflate.unused_data else None

    def __repr__(self) -> str:
        return f"<Remote {self._client!r}>"


def _pack(data: bytes) -> bytes:
    return _PLAIN + data if len(data) < COMPRESSED_BYTES else _DEFLATED + zlib.compress(data, 1)


async def _aside(work: Callable[[bytes], Any], data: bytes) -> Any:
    """In a thread, where it takes long."""
    if len(data) < _THREAD_BYTES:
        return work(data)
    return await asyncio.get_running_loop().run_in_executor(None, work, data)


def build(max_bytes: int, client: Bytes) -> Cache:
    """A cache in Redis."""
    return Cache(Remote(client, max_bytes), max_bytes)
