"""Comments for a client that waits: some hops cut a stream in which nothing comes for a while.

An event stream may hold comments (lines that begin with a colon), which no client takes for anything. The first one
sends the head: an answer has then begun, but no content has gone, so another target may still be tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from sidecar import answer
from sidecar.exchange.state import Exchange

COMMENT: Final = b": sidecar\n\n"


class Heartbeat:
    """Sends a comment whenever nothing has gone to the client for so many seconds, until it is stopped."""

    __slots__ = ("_exchange", "_loop", "_seconds", "_sending", "_sent", "_timer")

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        self._exchange = exchange
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._sent = 0  # bytes of the answer, at the last look
        self._sending: asyncio.Task[None] | None = None  # under a server whose sending has to be waited for
        self._timer = self._loop.call_later(seconds, self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def _beat(self) -> None:
        exchange, outcome = self._exchange, self._exchange.outcome
        if outcome.complete or exchange.client.gone:
            return
        self._timer = self._loop.call_later(self._seconds, self._beat)
        quiet, self._sent = outcome.bytes_sent == self._sent, outcome.bytes_sent
        if not quiet or self._sending is not None:
            return
        wait = exchange.client.write(COMMENT, more=True) if exchange.streaming else self._begin()
        if wait is not None:
            self._sending = self._loop.create_task(self._send(wait))

    def _begin(self) -> Awaitable[None] | None:
        """The head, although it is not known yet who will answer."""
        exchange = self._exchange
        exchange.streaming = True
        exchange.record.status = 200
        lines = answer.lines(exchange.record, None, {})
        return exchange.client.answer(200, [answer.EVENTS], lines, COMMENT, more=True)

    async def _send(self, wait: Awaitable[None]) -> None:
        try:
            await wait
        finally:
            self._sending = None

    def __repr__(self) -> str:
        return f"<Heartbeat every {self._seconds:g} s>"
