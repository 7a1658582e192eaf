"""The same app under our server and under uvicorn, to compare what each makes of ASGI."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import uvicorn

from sidecar.config import Server as Settings
from sidecar.server import Server
from sidecar.types import ASGIApp
from tests.server.apps import until

SERVERS = ("sidecar", "uvicorn")


@asynccontextmanager
async def _ours(app: ASGIApp) -> AsyncIterator[int]:
    settings = Settings(listen=("127.0.0.1:0",), drain_seconds=0.2, lame_duck_seconds=0.0)
    async with Server(app, settings) as server:
        yield int(server.addresses[0].rpartition(":")[2])


@asynccontextmanager
async def _uvicorns(app: ASGIApp) -> AsyncIterator[int]:
    """What its `serve` does, without the signals and the tenths of a second that it sleeps at the end."""
    logging.getLogger("uvicorn.error").disabled = True
    config = uvicorn.Config(cast("Any", app), http="httptools", ws="none", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    await server.startup([sock])
    await server.on_tick(0)  # makes the date
    try:
        yield sock.getsockname()[1]
    finally:
        for each in server.servers:
            each.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        state = server.server_state
        await until(lambda: not state.connections and not state.tasks)
        await server.lifespan.shutdown()
        sock.close()


def served_by(name: str, app: ASGIApp) -> AbstractAsyncContextManager[int]:
    """The app under one of `SERVERS`: the port."""
    return _ours(app) if name == "sidecar" else _uvicorns(app)
