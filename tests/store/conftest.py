"""A Redis for the tests of a module, and one for each test that hurts it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.store.servers import Redis, redis


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Redis]:
    with redis() as server:
        yield server


@pytest.fixture
def server(shared_server: Redis) -> Redis:
    """Empty, and not to be hurt."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[Redis]:
    """A cluster of one: what it is given must be in one slot, as in any other."""
    with redis("--cluster-enabled", "yes") as server:
        server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while b"cluster_state:ok" not in server.ask("CLUSTER", "INFO"):
            time.sleep(0.01)  # two seconds: it waits to hear from others
        yield server


@pytest.fixture
def own_server() -> Iterator[Redis]:
    with redis() as server:
        yield server
