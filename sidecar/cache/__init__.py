"""The one cache: whole, good answers by all that they depend on; in memory or in Redis, behind aiocache's interface."""

from sidecar.cache.cache import Cache, configured
from sidecar.cache.entry import Entry

__all__ = ["Cache", "Entry", "configured"]
