"""A server on the loop that answers as the test says: what a real Redis does on its worst days, to the byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from sidecar.store.resp import Replies

Answer = Callable[[list[bytes]], bytes | None]  # None: nothing at all


def friendly(parts: list[bytes]) -> bytes:
    return b"+PONG\r\n" if parts[0] == b"PING" else b"+OK\r\n"


class Fake:
    """`asked`: every command, in order. `answer` may be changed at any time."""

    def __init__(self) -> None:
        self.answer: Answer = friendly
        self.asked: list[list[bytes]] = []
        self.connections: list[asyncio.Transport] = []
        self.reads: list[int] = []  # commands that came together
        self.port = 0

    def take(self, parts: list[bytes], transport: asyncio.Transport) -> None:
        self.asked.append(parts)
        if (reply := self.answer(parts)) is not None:
            transport.write(reply)

    def drop(self) -> None:
        for transport in self.connections:
            transport.abort()


class _Peer(asyncio.Protocol):
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self._replies = Replies()  # commands have the form of replies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._fake.connections.append(self._transport)

    def data_received(self, data: bytes) -> None:
        commands = self._replies.feed(data)
        self._fake.reads.append(len(commands))
        for parts in commands:
            self._fake.take(parts, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake.connections.remove(self._transport)


@asynccontextmanager
async def fake() -> AsyncIterator[Fake]:
    made = Fake()
    server = await asyncio.get_running_loop().create_server(lambda: _Peer(made), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.drop()
        await server.wait_closed()
        await asyncio.sleep(0)


async def until(true: Callable[[], object]) -> None:
    """Raises TimeoutError where it does not come true within ten seconds."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.002)
