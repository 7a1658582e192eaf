"""Comments for a client that waits: some hops cut a stream in which nothing comes for a while.

An event stream may hold comments (lines that begin with a colon), which no client takes for anything. The first one
sends the head: an answer has then begun, but no content has gone, so another target may still be tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from sidecar import answer
from sidecar.drive import Lazy
from sidecar.exchange.between import Between
from sidecar.exchange.spending import told
from sidecar.exchange.state import Exchange
from sidecar.types import Headers

COMMENT: Final = b": sidecar\n\n"


class Heartbeat(Between):
    """The client of an exchange (types.Client), which is sent a comment whenever nothing has gone to it for so long.

    One thing is sent at a time: what comes while a comment is under way, under a server whose sending must be waited
    for, goes behind it.
    """

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        super().__init__(exchange.client)
        self._exchange = exchange
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._busy = False  # the client does not take what it is sent: it is not in want of more
        self._comment: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(seconds, self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        if self._comment is not None and self.gone:
            self._comment.cancel()

    def _beat(self) -> None:
        wait = self._sent_at + self._seconds - self._loop.time()
        if wait <= 0:
            self._remark()
            wait = self._seconds
        self._timer = self._loop.call_later(wait, self._beat)

    def _remark(self) -> None:
        if self._busy or self._comment is not None or self.gone:
            return
        self._sent_at = self._loop.time()
        wait = self._client.write(COMMENT, more=True) if self._exchange.streaming else self._begin()
        if wait is not None:
            self._comment = self._loop.create_task(self._send(wait))

    def _begin(self) -> Awaitable[None] | None:
        """The head, although it is not known yet who will answer."""
        exchange = self._exchange
        exchange.streaming = True
        exchange.record.status = 200
        lines = answer.lines(exchange.record, None, {}) + told(exchange)
        return self._client.answer(200, [answer.EVENTS], lines, COMMENT, more=True)

    async def _send(self, wait: Awaitable[None]) -> None:
        try:
            await wait
        except OSError:
            pass  # the client has gone, which whoever answers it will hear of
        finally:
            self._comment = None

    # -- the client's side

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        return self._pass(partial(self._client.answer, status, headers, lines, data, more=more), more=more)

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        return self._pass(partial(self._client.write, data, more=more), more=more)

    def _pass(self, send: Callable[[], Awaitable[None] | None], *, more: bool) -> Awaitable[None] | None:
        if not more:
            self._timer.cancel()
        if self._comment is not None:
            return Lazy(partial(self._behind, send))
        self._sent_at = self._loop.time()
        wait = send()
        return None if wait is None else Lazy(partial(self._taken, wait))

    async def _behind(self, send: Callable[[], Awaitable[None] | None]) -> None:
        while self._comment is not None:
            await asyncio.wait((self._comment,))
        if (wait := send()) is not None:
            await self._taken(wait)

    async def _taken(self, wait: Awaitable[None]) -> None:
        self._busy = True
        try:
            await wait
        finally:
            self._busy = False
            self._sent_at = self._loop.time()

    def __repr__(self) -> str:
        return f"<Heartbeat every {self._seconds:g} s>"
