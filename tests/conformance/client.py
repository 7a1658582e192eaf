"""A client of plain sockets for the conformance suite: one connection, kept alive, and no HTTP library in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_LIMIT = 32 * 1024 * 1024
Headers = list[tuple[str, str]]


@dataclass
class Reply:
    """An answer: header names in lower case, in order; the body with its chunks joined."""

    status: int
    headers: Headers
    body: bytes
    bare: bytes = field(default=b"", repr=False)  # the head as it came

    def header(self, name: str) -> str | None:
        found = [value for each, value in self.headers if each == name]
        assert len(found) < 2, f"{name} came {len(found)} times"
        return found[0] if found else None


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Reply:
        lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
        if method == "POST":
            lines.append(f"content-length: {len(body)}")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        await self._writer.drain()
        return await self._reply()

    async def _reply(self) -> Reply:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        reply = Reply(int(first.split(" ")[1]), headers, b"", head)
        if reply.header("transfer-encoding") == "chunked":
            reply.body = await self._chunks()
        else:
            reply.body = await self._reader.readexactly(int(reply.header("content-length") or 0))
        return reply

    async def _chunks(self) -> bytes:
        pieces: list[bytes] = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            pieces.append(await self._reader.readexactly(size))
            assert await self._reader.readexactly(2) == b"\r\n"
        assert await self._reader.readexactly(2) == b"\r\n"
        return b"".join(pieces)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()
