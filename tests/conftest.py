"""Fixtures for every test: both event loops, no blocking call on a loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import uvloop
from blockbuster import BlockBuster, blockbuster_ctx


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden and tests/transcripts anew")


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Every asynchronous test runs on plain asyncio and on uvloop."""
    if request.param == "uvloop":
        return "asyncio", {"loop_factory": uvloop.new_event_loop}
    return "asyncio", {}


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[BlockBuster]:
    with blockbuster_ctx("sidecar") as blockbuster:
        for name in ("os.stat", "os.unlink"):  # a unix socket's file, at the start and at the end of a server
            blockbuster.functions[name].can_block_in("sidecar/server/sockets.py", {"_bind_unix", "unbind"})
        yield blockbuster
