"""What several sidecars share, in a Redis: limits, slots, bytes. Start with store.py."""

from sidecar.store.scripts import DECIDE, Keys, keys
from sidecar.store.store import BUDGET_SECONDS, LEASE_SECONDS, LOOK_SECONDS, Store
from sidecar.store.wire import LOST

__all__ = ["BUDGET_SECONDS", "DECIDE", "LEASE_SECONDS", "LOOK_SECONDS", "LOST", "Keys", "Store", "keys"]
