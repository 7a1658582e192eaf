"""A client of raw bytes: sends what it is told, keeps what comes, piece by piece, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import msgspec

from sidecar.simulator import Simulator

CHAT = {"model": "sim-large", "messages": [{"role": "user", "content": "hello there"}]}
MESSAGES = {**CHAT, "max_tokens": 100}
ANTHROPIC = (("anthropic-version", "2023-06-01"), ("x-api-key", "k"))


class Raw(asyncio.Protocol):
    """One connection of the client."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.end = ""  # "eof" or "reset", once it has ended
        self._changed: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self._change()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end = "eof" if exc is None else "reset"
        self._change()

    def _change(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    async def until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed

    async def to_end(self) -> bytes:
        """All that comes before the other side ends the connection."""
        await self.until(lambda: bool(self.end))
        return self.data

    async def to(self, mark: bytes, count: int = 1) -> bytes:
        """All that comes, once it holds the mark so often."""
        await self.until(lambda: self.data.count(mark) >= count or bool(self.end))
        return self.data


@asynccontextmanager
async def connected(simulator: Simulator) -> AsyncIterator[Raw]:
    loop = asyncio.get_running_loop()
    if simulator.settings.unix is not None:
        transport, raw = await loop.create_unix_connection(Raw, simulator.settings.unix)
    else:
        transport, raw = await loop.create_connection(Raw, "127.0.0.1", simulator.port)
    try:
        yield raw
    finally:
        transport.abort()
        await raw.until(lambda: bool(raw.end))


def post(
    value: object,
    *headers: tuple[str, str],
    path: str = "/v1/chat/completions",
    close: bool = True,
    method: str = "POST",
) -> bytes:
    """A request, as bytes."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    lines = [("host", "sim"), ("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    if close:
        lines.append(("connection", "close"))
    text = "".join(f"{name}: {text}\r\n" for name, text in lines)
    return f"{method} {path} HTTP/1.1\r\n{text}\r\n".encode() + body


async def ask(simulator: Simulator, request: bytes) -> tuple[bytes, str]:
    """Send one request on a connection of its own; answer all that came, and how it ended."""
    async with connected(simulator) as raw:
        raw.send(request)
        return await raw.to_end(), raw.end


async def until(met: Callable[[], bool]) -> None:
    """Let the loop turn until something is so (the test's own timeout bounds it)."""
    while not met():
        await asyncio.sleep(0)


def split(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body (chunks joined) of one answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return int(first.split(" ")[1]), headers, body


def unchunked(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(data[:length])
        assert data[length : length + 2] == b"\r\n"
        data = data[length + 2 :]
    return b"".join(pieces)


def chunks(data: bytes) -> list[bytes]:
    """The chunks of a complete chunked body, as they stand on the wire."""
    found = []
    while data:
        line = data.index(b"\r\n")
        stop = line + 2 + int(data[:line], 16) + 2
        found.append(data[:stop])
        data = data[stop:]
    return found
