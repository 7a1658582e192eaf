"""Hundreds of drains while clients stream: a stream ends whole, or as its API says; who has connected is heard.

In the ordinary run there are few of each; `pytest -m storm` does the 1 000.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from sidecar.app import Sidecar
from sidecar.server import Server
from tests.e2e.storm import Load, config, source, under
from tests.faults.ground import nothing_left

FEW, MANY = 15, 1_000


async def _hand_over(count: int) -> None:
    """One listening socket, and a server after another behind it: the next one serves before the last one drains."""
    async with nothing_left(), source() as (port, sent):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            address = listening.getsockname()[1]

            async def next_server() -> Server:
                app = Sidecar(config(port))
                server = Server(app, app.config.server, sockets=[listening.dup()], log=app.note)
                await server.start()
                return server

            servers = [await next_server()]
            load = Load(sent=sent, port=lambda: address)

            async def storm() -> None:
                for _ in range(count):
                    servers.append(await next_server())
                    await servers.pop(0).drain(lame_duck_seconds=0.005, drain_seconds=5.0)

            await under(load, storm)
            await servers[0].drain(lame_duck_seconds=0.0, drain_seconds=5.0)
            assert (load.shut, load.refused, load.unheard) == (0, 0, 0)
            print(
                f"{count} servers handed over, {load.whole} streams whole, {load.stale} kept connections found closed"
            )


async def test_servers_handed_over_under_streams_lose_no_byte() -> None:
    await _hand_over(FEW)


@pytest.mark.storm
@pytest.mark.timeout(900)
async def test_a_thousand_servers_handed_over_under_streams_lose_no_byte() -> None:
    await _hand_over(MANY)


async def _drain(count: int) -> None:
    """A server after another, each drained under way; of every second one the deadline is before the streams' end."""
    async with nothing_left(), source() as (port, sent):
        address = 0
        load = Load(sent=sent, port=lambda: address)

        async def server() -> Server:
            nonlocal address
            app = Sidecar(config(port))
            server = Server(app, app.config.server, log=app.note)
            await server.start()
            address = int(server.addresses[0].rpartition(":")[2])
            return server

        async def storm() -> None:
            for number in range(count):
                before = load.whole + load.shut
                while load.whole + load.shut < before + 12:
                    await asyncio.sleep(0.001)
                await servers.pop().drain(lame_duck_seconds=0.0, drain_seconds=0.004 if number % 2 else 5.0)
                servers.append(await server())

        servers = [await server()]
        await under(load, storm, again=True)
        await servers[0].drain(lame_duck_seconds=0.0, drain_seconds=5.0)
        assert load.shut, "some were ended at the deadline"
        print(
            f"{count} drains, {load.whole} streams whole, {load.shut} ended by an error event, {load.refused} refused"
        )


async def test_drains_under_streams_lose_no_byte() -> None:
    await _drain(FEW)


@pytest.mark.storm
@pytest.mark.timeout(900)
async def test_a_thousand_drains_under_streams_lose_no_byte() -> None:
    await _drain(MANY)
