"""A provider of plain sockets that answers with the bytes it is given, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.conformance.client import Headers


@dataclass
class Asked:
    """A request as it came; header names in lower case, in order."""

    target: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]


@dataclass
class Peer:
    """`answers`: the pieces of each answer to come, a write each."""

    port: int = 0
    answers: deque[list[bytes]] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the other side leaves it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head[:-4].decode("latin-1").split("\r\n")
                headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
                asked = Asked(first.split(" ")[1], headers, b"")
                asked.body = await reader.readexactly(int(asked.header("content-length")[0]))
                self.asked.append(asked)
                for piece in self.answers.popleft():
                    writer.write(piece)
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    found = Peer()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=32 * 1024 * 1024)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


def head(status: int, headers: Headers, framing: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Recorded", *(f"{name}: {value}" for name, value in headers), framing]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status: int, headers: Headers, body: bytes) -> list[bytes]:
    """An answer of one body."""
    return [head(status, headers, f"content-length: {len(body)}") + body]


def pieces(status: int, headers: Headers, body: bytes, cuts: list[int]) -> list[bytes]:
    """An answer in chunks, cut at these places of the body."""
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(body)), len(body)]
    parts = [body[start:stop] for start, stop in itertools.pairwise(places) if stop > start]
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return [head(status, headers, "transfer-encoding: chunked"), *chunks, b"0\r\n\r\n"]
