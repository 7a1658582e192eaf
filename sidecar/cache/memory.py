"""A cache in this process's memory, bounded in bytes: the longest unused goes first. aiocache's interface.

All of it is dictionary work, O(1) each: there is no timer a key (the time to live is looked at when a key is read) and
no copy of a value. `find` is what the spine asks, without a coroutine.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from sidecar.cache.cache import Cache
from sidecar.cache.entry import OVERHEAD
from sidecar.clock import now

_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_MAPPED_BYTES: Final = 128 * 1024


class Slot(NamedTuple):
    value: Any
    expires: float  # by the monotonic clock
    size: int


class Memory(BaseCache):
    """Holds at most `max_bytes`, its own overhead included. A value that is over a quarter of that is not kept."""

    NAME = "memory"

    def __init__(self, max_bytes: int, clock: Callable[[], float] = now) -> None:
        super().__init__(serializer=NullSerializer(), timeout=None)
        self._clock = clock
        self._slots: OrderedDict[Any, Slot] = OrderedDict()  # the longest unused first
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    # -- without waiting

    def find(self, key: Any, moment: float) -> Any:
        """What is kept by a key and is still to be, else None; it is then the last to go."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        if slot.expires <= moment:
            self._drop(key)
            return None
        self._slots.move_to_end(key)
        return slot.value

    def keep(self, key: Any, value: Any, expires: float = math.inf) -> bool:
        """Keep a value until `expires`, at the cost of others. False: it is too large, and what was there is gone."""
        self._drop(key)
        size = _size(value)
        if size > self.max_bytes // 4:
            return False
        self._slots[key] = Slot(value, expires, size)
        self.bytes += size
        if self.bytes > self.max_bytes:
            self.shrink(self.max_bytes)
        return True

    def shrink(self, to_bytes: int) -> int:
        """Let the longest unused go until at most so many bytes are left. Answers the bytes that were let go."""
        before = self.bytes
        while self.bytes > to_bytes and self._slots:
            _, slot = self._slots.popitem(last=False)
            self.bytes -= slot.size
            self.evicted += 1
        return before - self.bytes

    def resize(self, max_bytes: int) -> None:
        """Another bound."""
        self.max_bytes = max_bytes
        self.shrink(max_bytes)

    def stats(self) -> dict[str, int | str]:
        return {
            "store": self.NAME,
            "entries": len(self._slots),
            "bytes": self.bytes,
            "max_bytes": self.max_bytes,
            "evictions": self.evicted,
        }

    def _drop(self, key: Any) -> int:
        slot = self._slots.pop(key, None)
        if slot is None:
            return 0
        self.bytes -= slot.size
        return 1

    def _expires(self, ttl: float | None) -> float:
        return self._clock() + ttl if ttl else math.inf  # none, or 0: it does not expire

    # -- what aiocache.base.BaseCache asks of a cache

    async def _get(self, key: Any, encoding: str | None = None, _conn: object = None) -> Any:
        return self.find(key, self._clock())

    async def _gets(self, key: Any, encoding: str | None = None, _conn: object = None) -> Any:
        return self.find(key, self._clock())

    async def _multi_get(self, keys: Iterable[Any], encoding: str | None = None, _conn: object = None) -> list[Any]:
        moment = self._clock()
        return [self.find(key, moment) for key in keys]

    async def _set(
        self, key: Any, value: Any, ttl: float | None = None, _cas_token: Any = None, _conn: object = None
    ) -> bool:
        seen = _cas_token  # by the caller: the entry that this one is to replace
        if seen is not None and seen != self.find(key, self._clock()):
            return False
        return self.keep(key, value, self._expires(ttl))

    async def _multi_set(
        self, pairs: Iterable[tuple[Any, Any]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        expires = self._expires(ttl)
        kept = [self.keep(key, value, expires) for key, value in pairs]
        return all(kept)

    async def _add(self, key: Any, value: Any, ttl: float | None = None, _conn: object = None) -> bool:
        if self.find(key, self._clock()) is not None:
            raise ValueError(f"Key {key} already exists, use .set to update the value")
        return self.keep(key, value, self._expires(ttl))

    async def _exists(self, key: Any, _conn: object = None) -> bool:
        return self.find(key, self._clock()) is not None

    async def _increment(self, key: Any, delta: int, _conn: object = None) -> int:
        slot = self._slots.get(key)
        value = self.find(key, self._clock())
        try:
            total = delta if value is None else int(value) + delta
        except ValueError:
            raise TypeError("Value is not an integer") from None
        self.keep(key, total, math.inf if value is None or slot is None else slot.expires)
        return total

    async def _expire(self, key: Any, ttl: float, _conn: object = None) -> bool:
        value = self.find(key, self._clock())
        return value is not None and self.keep(key, value, self._expires(ttl))

    async def _delete(self, key: Any, _conn: object = None) -> int:
        return self._drop(key)

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        if namespace is None:
            self._slots.clear()
            self.bytes = 0
        else:
            for key in [key for key in self._slots if key.startswith(namespace)]:
                self._drop(key)
        return True

    def __repr__(self) -> str:
        return f"<Memory {len(self._slots)} entries, {self.bytes} of {self.max_bytes} bytes>"


def _size(value: Any) -> int:
    """Bytes of a value, all told: one of ours knows, of another what Python says of it."""
    size = getattr(value, "size", None)
    return size if type(size) is int else OVERHEAD + sys.getsizeof(value)


def build(max_bytes: int, client: None = None) -> Cache:
    """A cache in memory.

    glibc is told to keep to its threshold of 128 KiB, from which on each block is mapped by itself and given back at
    once. Left to itself it raises that by the largest block that it ever freed, up to 32 MiB; entries of all sizes that
    come and go then leave holes: 12 to 38 % more memory than there are bytes in it, where it is 2 to 4 with this.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # musl has none, and does so anyway
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    return Cache(Memory(max_bytes), max_bytes)
