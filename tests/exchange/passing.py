"""What tests of the cache have in common: time that passes, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar import clock
from sidecar.cache import cache
from sidecar.exchange import batches, cached, misses
from tests.faults.stand import Reply, Stand


def said(answer: Reply) -> tuple[int, bytes | None, bytes | None]:
    """Its status, what it says of the cache, and its age."""
    return answer.status, answer.get(b"x-sidecar-cache"), answer.get(b"age")


def stats(stand: Stand) -> dict[str, Any]:
    """What the cache tells of itself."""
    assert stand.app._cache is not None
    return stand.app._cache.stats()


def later(monkeypatch: pytest.MonkeyPatch, stand: Stand, seconds: float) -> None:
    """Let so many seconds have passed for the cache, since the test began."""
    assert stand.app._cache is not None

    def now() -> float:
        return clock.now() + seconds

    def wall() -> float:
        return clock.wall() + seconds

    monkeypatch.setattr(stand.app._cache.store, "_clock", now)
    for module in (cache, cached):
        monkeypatch.setattr(module, "now", now)
    for module in (batches, cached, misses):
        monkeypatch.setattr(module, "wall", wall)
