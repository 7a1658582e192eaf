"""Raw scripted peers, byte-exact and with no HTTP library in them: a provider's side (server) and a caller's (client).

A server runs one script on each connection, a client runs steps as a test asks; the steps are those of `wire`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.faults.wire import (
    CLOSE,
    FIN,
    GONE,
    READ_ON,
    REQUEST,
    RST,
    STOP_READING,
    Act,
    Again,
    Drip,
    Expect,
    Flood,
    Left,
    Pause,
    Script,
    Step,
    Tell,
    Wire,
)

__all__ = [
    "CLOSE",
    "FIN",
    "GONE",
    "READ_ON",
    "REQUEST",
    "RST",
    "STOP_READING",
    "Act",
    "Again",
    "Drip",
    "Expect",
    "Flood",
    "Left",
    "Pause",
    "RawClient",
    "RawServer",
    "Script",
    "Step",
    "Tell",
    "Wire",
]


class RawServer:
    """A provider that does as its script says, on each connection from the start; or as a callable says by number.

    `async with RawServer([REQUEST, b"HTTP/1.1 200 OK...", GONE]) as peer:` and then `peer.port`, `peer.connections`
    (Wires, as they arrived), `peer.requests`. A script that ends leaves the connection open until the other side goes.
    """

    def __init__(
        self,
        script: Script | Callable[[int], Script],
        *,
        tls: ssl.SSLContext | None = None,
        unix: str | None = None,
        host: str = "127.0.0.1",
        send_buffer: int | None = None,
    ) -> None:
        self._script = script
        self._send_buffer = send_buffer  # bytes the kernel takes from it that the other side has no room for
        self._tls = tls
        self._unix = unix
        self.host = host
        self.port = 0
        self.connections: list[Wire] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def requests(self) -> list[bytes]:
        """Every message taken, connection by connection."""
        return [request for wire in self.connections for request in wire.requests]

    @property
    def received(self) -> bytes:
        """Every byte that arrived."""
        return b"".join(bytes(wire.received) for wire in self.connections)

    @property
    def open(self) -> int:
        """Connections that are not over."""
        return sum(1 for wire in self.connections if wire.how is None)

    async def connected(self, count: int = 1) -> Wire:
        """Wait for that many connections; the last of them."""
        while len(self.connections) < count:
            await self._change()
        return self.connections[count - 1]

    async def requested(self, count: int = 1) -> None:
        """Wait until that many messages have been taken."""
        while len(self.requests) < count:
            await self._change()

    async def left(self, count: int = 1) -> None:
        """Wait until that many connections are over."""
        while sum(1 for wire in self.connections if wire.how is not None) < count:
            await self._change()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _wire(self) -> Wire:
        return Wire(self._opened, self._notify)

    def _opened(self, wire: Wire) -> None:
        number = len(self.connections)
        self.connections.append(wire)
        script = self._script(number) if callable(self._script) else self._script
        task = asyncio.get_running_loop().create_task(self._play(wire, script))
        self._tasks.add(task)
        self._notify()

    async def _play(self, wire: Wire, script: Script) -> None:
        try:
            await wire.run(*script)
            await wire.gone()
        except Left:
            pass
        finally:
            wire.transport.close()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self._unix is not None:
            self._server = await loop.create_unix_server(self._wire, self._unix, ssl=self._tls)
        else:
            self._server = await loop.create_server(self._wire, self.host, 0, ssl=self._tls)
            listening = self._server.sockets[0]
            self.port = listening.getsockname()[1]
            if self._send_buffer is not None:  # which accepted ones inherit
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in self.connections:
            wire.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)
        failures = [task.exception() for task in self._tasks if not task.cancelled()]
        for failure in failures:
            if failure is not None and exc is None:
                raise failure


class RawClient(Wire):
    """A caller that does as a test says: `async with RawClient(port) as client: await client.run(b"GET ...", ...)`."""

    def __init__(
        self,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        unix: str | None = None,
        tls: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__()
        self._address = (host, port)
        self._unix = unix
        self._tls = tls
        self._receive_buffer = receive_buffer  # bytes the kernel holds for a client that does not read

    async def __aenter__(self) -> Self:
        name = self._address[0] if self._tls is not None else None
        if self._unix is not None:
            await self.loop.create_unix_connection(lambda: self, self._unix)
            return self
        sock = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET)
        sock.setblocking(False)
        if self._receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        try:
            await self.loop.sock_connect(sock, self._address)
            await self.loop.create_connection(lambda: self, sock=sock, ssl=self._tls, server_hostname=name)
        except BaseException:
            sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.abort()
        while not self._ended:
            await self._change()

    async def response(self) -> bytes:
        """One HTTP/1.1 message, whole."""
        return await self.take_message()

    async def rest(self) -> bytes:
        """Everything not taken yet, once the other side has left."""
        await self.gone()
        data = bytes(self.received[self.taken :])
        self.taken = len(self.received)
        return data
