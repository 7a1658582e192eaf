"""A client in memory: it keeps what it is sent, and takes it only when a test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from sidecar.drive import Lazy
from sidecar.types import Headers, Hold, freely


class Kept:
    """See types.Client. `takes`: while it is not set, whoever sends has to wait; None: nobody ever has to."""

    def __init__(self, takes: asyncio.Event | None = None) -> None:
        self.headers: Headers = []
        self.index: dict[bytes, bytes] = {}
        self.query = b""
        self.notes: dict[str, Any] = {}
        self.gone = self.stay = False
        self.takes = takes
        self.status = 0
        self.lines = b""
        self.sent: list[bytes] = []
        self.ended = False

    def body(self, most: int) -> bytes | None:
        return b""

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        return b""

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        assert not self.status, "a second head"
        self.status, self.lines = status, lines
        return self.write(data, more=more)

    def pipe(self) -> None:
        return None

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        assert self.status, "bytes before the head"
        assert not self.ended, "bytes behind the end"
        if self.takes is None:
            self._keep(data, more=more)
            return None
        return Lazy(partial(self._take, self.takes, data, more=more))

    async def _take(self, takes: asyncio.Event, data: bytes, *, more: bool) -> None:
        await takes.wait()
        self._keep(data, more=more)

    def _keep(self, data: bytes, *, more: bool) -> None:
        self.sent.append(data)
        self.ended = not more
