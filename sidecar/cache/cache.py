"""The cache as the spine sees it: a store, what was found in it, and why what was not there could not be."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from sidecar.cache.entry import Entry
from sidecar.cache.fit import REASONS
from sidecar.clock import now
from sidecar.config import Config

MOST_BYTES: Final = 16 * 1024 * 1024  # of one answer, whatever there is room for
RESULTS: Final = ("hit", "stale", "miss", "coalesced")


class Store(Protocol):
    """As much of aiocache.base.BaseCache as the cache asks for, and what it has to say. Nothing of it raises."""

    async def get(self, key: bytes) -> Any: ...

    async def multi_get(self, keys: Sequence[bytes]) -> Sequence[Any]: ...

    async def set(self, key: bytes, value: Entry, ttl: float) -> Any: ...

    async def multi_set(self, pairs: Sequence[tuple[bytes, Entry]], ttl: float) -> Any: ...

    def resize(self, max_bytes: int) -> None:
        """Another bound than it was made with."""
        ...

    def shrink(self, to_bytes: int) -> int:
        """Keep at most so many bytes in this process's memory. Answers the bytes that were let go."""
        ...

    def stats(self) -> dict[str, int | str]: ...


class Cache:
    """One for a process, kept over reloads. `find` asks a store that is this process's memory, without waiting."""

    __slots__ = ("_uncached", "find", "most_bytes", "results", "store")

    def __init__(self, store: Store, max_bytes: int) -> None:
        self.store = store
        self.find: Callable[[bytes, float], Any] | None = getattr(store, "find", None)
        self.most_bytes = most(max_bytes)
        self.results = dict.fromkeys(RESULTS, 0)  # how requests fared that may be cached: counted by whoever sees it
        self._uncached: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes that it takes of this process's memory."""
        return getattr(self.store, "bytes", 0)

    def resize(self, max_bytes: int) -> None:
        """Another bound. None at all, where memory is short here, says nothing of a store elsewhere."""
        if not max_bytes and self.find is None:
            return
        self.most_bytes = most(max_bytes)
        self.store.resize(max_bytes)

    def uncached(self, reason: str) -> None:
        """Why a request is not cached, or its answer not kept: one of fit.REASONS."""
        self._uncached[reason] += 1

    async def lookup(self, keys: Sequence[bytes]) -> Sequence[Entry | None]:
        """What is kept by several keys."""
        if self.find is not None:
            moment = now()
            return [self.find(key, moment) for key in keys]
        return await self.store.multi_get(keys)

    def stats(self) -> dict[str, object]:
        """For /status."""
        return {
            **self.store.stats(),
            **self.results,
            "uncached": {reason: self._uncached[reason] for reason in REASONS if self._uncached[reason]},
        }

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4, behind the ledger's."""
        lines = [
            "# HELP sidecar_cache_requests_total Requests that may be cached, by how they fared.",
            "# TYPE sidecar_cache_requests_total counter",
            *(f'sidecar_cache_requests_total{{result="{name}"}} {self.results[name]}' for name in RESULTS),
            "# HELP sidecar_cache_uncached_total Requests or answers that were not cached, by the reason.",
            "# TYPE sidecar_cache_uncached_total counter",
            *(f'sidecar_cache_uncached_total{{reason="{name}"}} {self._uncached[name]}' for name in REASONS),
        ]
        for name, value in self.store.stats().items():
            if type(value) is int:
                lines += [f"# TYPE sidecar_cache_{name} gauge", f"sidecar_cache_{name} {value}"]
        return "\n".join([*lines, ""]).encode()

    def __repr__(self) -> str:
        return f"<Cache {self.store!r}>"


def configured(config: Config, client: object | None, present: Cache | None) -> Cache | None:
    """The cache that a configuration asks for: the present one, where that will do. None: nothing is cached.

    `client`: of the Redis that it is to be in (remote.Bytes), instead of memory.
    """
    if not any((config.cache.ttl_seconds, *(model.cache_ttl_seconds for model in config.models.values()))):
        return None
    if present is not None:
        present.resize(config.cache.max_bytes)
        return present
    kind = "memory" if client is None else "remote"
    module = importlib.import_module(f"sidecar.cache.{kind}")  # aiocache costs time, and most have no cache
    made: Cache = module.build(config.cache.max_bytes, client)
    return made


def most(max_bytes: int) -> int:
    """Bytes of one answer."""
    return min(MOST_BYTES, max_bytes // 8)
