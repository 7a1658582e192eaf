"""The sending half of a client's connection: one write a round of the loop, and waiting for a client that is slow."""

from __future__ import annotations

import asyncio
from typing import Final

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
        "_unflushed",
        "_unsent",
        "transport",
        "writable",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sending: Round) -> None:
        self._loop = loop
        self._round = sending
        self.transport: asyncio.Transport | None = None
        self.writable = True
        self._left = False  # the client has ended its side
        self._drains: list[asyncio.Future[None]] = []  # of whoever waits for the client to take bytes
        self._unflushed = b""  # written in this round of the loop
        self._more: list[bytes] = []  # and what came behind it
        self._bytes = 0  # of that
        self._unsent = 0  # bytes of an answer that its client had not taken at the last look

    def write(self, data: bytes) -> None:
        """Send at the end of the loop's round (drive.Round), together with what else it brings for this client."""
        if self.transport is None:
            return
        if not self._unflushed:
            self._unflushed = data
            self._round.later(self)
        else:
            self._more.append(data)
            self._bytes += len(data)
            if self._bytes + len(self._unflushed) > HIGH_WATER:  # an app that never waits is told by this to wait
                self.flush()

    def pass_on(self, data: bytes) -> None:
        """The same, with no more delay than its transport's own: for a stream, which has one piece a round."""
        if self._unflushed:
            self.write(data)
        elif self.transport is not None:
            self.transport.write(data)

    def flush(self) -> None:
        """Send what was written in this round."""
        data, self._unflushed = self._unflushed, b""
        if self._bytes:
            data += b"".join(self._more)
            self._more.clear()
            self._bytes = 0
        transport = self.transport
        if data and transport is not None:
            transport.write(data)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
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
