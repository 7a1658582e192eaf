"""The one connection-pool manager: every byte between this process and providers goes through it."""

from sidecar.pool.pool import Pool

__all__ = ["Pool"]
