"""The sending half of a client's connection: one write a round of the loop, and waiting for a client that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from sidecar.drive import Round

HIGH_WATER: Final = 64 * 1024  # bytes held of a request body, of pipelined requests, and of answers not yet taken


class Sending(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_bytes",
        "_drains",
        "_left",
        "_loop",
        "_more",
        "_round",
        "_unsent",
        "pass_on",
        "transport",
        "unflushed",
        "writable",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sending: Round) -> None:
        self._loop = loop
        self._round = sending
        self.transport: asyncio.Transport | None = None
        # Send with no more delay than the transport's own: for a stream, which has one piece a round.
        self.pass_on: Callable[[bytes], object] | None = None
        self.writable = True
        self._left = False  # the client has ended its side
        self._drains: list[asyncio.Future[None]] = []  # of whoever waits for the client to take bytes
        self.unflushed = b""  # written in this round of the loop
        self._more: list[bytes] = []  # and what came behind it
        self._bytes = 0  # of that
        self._unsent = 0  # bytes of an answer that its client had not taken at the last look

    def write(self, data: bytes) -> None:
        """Send at the end of the loop's round (drive.Round), together with what else it brings for this client."""
        if self.transport is None:
            return
        if not self.unflushed:
            self.unflushed = data
            self._round.later(self)
        else:
            self._more.append(data)
            self._bytes += len(data)
            if self._bytes + len(self.unflushed) > HIGH_WATER:  # an app that never waits is told by this to wait
                self.flush()

    def flush(self) -> None:
        """Send what was written in this round."""
        data, self.unflushed = self.unflushed, b""
        if self._bytes:
            data += b"".join(self._more)
            self._more.clear()
            self._bytes = 0
        transport = self.transport
        if data and transport is not None:
            transport.write(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self.pass_on = self.transport.write

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = self.pass_on = None

    def pause_writing(self) -> None:
        self.writable = False
        self.pass_on = None

    def resume_writing(self) -> None:
        self.writable = True
        self.pass_on = None if self.transport is None else self.transport.write
        self._let_send()

    async def drained(self) -> None:
        """Wait until the client has taken enough, or has gone."""
        while not self.writable and self.transport is not None and not self._left:
            future: asyncio.Future[None] = self._loop.create_future()
            self._drains.append(future)
            try:
                await future
            finally:
                self._drains.remove(future)

    def _let_send(self) -> None:
        for future in self._drains:
            if not future.done():
                future.set_result(None)

    def _takes(self) -> bool:
        """Has the client taken anything since the last look, and is there more for it?"""
        if self.transport is None:
            return False
        unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        return bool(self._unsent) and self._unsent != unsent
