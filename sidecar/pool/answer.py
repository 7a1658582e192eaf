"""A provider's answer, as the spine has it: what its head says, and ways to read its body."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec

from sidecar.pool.connection import ENDED, Connection
from sidecar.types import Headers, Sink, Through


class Answer(msgspec.Struct, eq=False):
    """A provider's answer whose head has come (types.Inbound). Closing it early closes the connection."""

    status: int
    headers: Headers
    index: dict[bytes, bytes]
    connection: Connection | None

    def whole(self) -> bytes | None:
        """The whole body, if all of it came together with the head."""
        connection = self.connection
        return connection.take() if connection is not None and connection.phase is ENDED else None

    def here(self) -> bytes:
        """What has come already, which may be nothing."""
        connection = self.connection
        return connection.take() if connection is not None and connection.size else b""

    async def read(self) -> bytes:
        """All bytes that have come, b"" at the framed end. Raises UpstreamCut, UpstreamTimeout, UpstreamProtocol."""
        connection = self.connection
        if connection is None:
            return b""
        if connection.size:
            return connection.take()
        return await connection.more()

    async def pump(self, sink: Sink, through: Through | None = None) -> Awaitable[None] | None:
        """Give what comes to `sink`, in the very call that brings it, until the framed end. Raises as `read` does.

        Where `sink` answers something to wait for, that is answered, and the caller pumps on when it has waited.
        """
        return None if self.connection is None else await self.connection.pump(sink, through)

    def interrupt(self) -> None:
        """Let whoever pumps go on, although nothing has come."""
        if self.connection is not None:
            self.connection.interrupt()

    def unread(self, data: bytes) -> None:
        """Put bytes that were read back before those that are still to be read."""
        if self.connection is not None:
            self.connection.put_back(data)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.finish()

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.connection!r}>"
