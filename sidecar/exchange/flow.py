"""A stream in the hot lane (lane.py): held until its first content, then relayed from one connection's callback to the
other, without a coroutine.

It is left for the spine at the first sight of anything but content and a proper end: an error, a cut, a slow client, a
client that goes. Before the first content the spine has it from its beginning; behind that, from where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec

from sidecar.drive import ENOUGH
from sidecar.exchange.deliver import chunks
from sidecar.exchange.state import Attempt, Exchange
from sidecar.pool.answer import Answer
from sidecar.pool.connection import BODY, ENDED
from sidecar.relay import Through
from sidecar.types import Outcome
from sidecar.wire.heads import ResponseHead
from sidecar.wire.shapes import Shape

if TYPE_CHECKING:
    from sidecar.exchange.lane import Lane


class Flow(msgspec.Struct, eq=False):
    """See the module."""

    lane: Lane
    head: ResponseHead
    shape: Shape
    way: Through
    outcome: Outcome
    raw: list[bytes] = []  # what has come, while it is held
    out: list[bytes] = []  # and what the client will have of it
    size: int = 0  # of that
    timer: asyncio.TimerHandle | None = None
    request_id: str = ""  # once it has begun
    overhead: int = 0  # microseconds

    def begin(self) -> None:
        """Step hold."""
        connection, model = self.lane.connection, self.lane.lead.plan.model
        if connection.size and self._hold(connection.take()) is not None:
            self._held()
            return
        connection.tap(self._hold)
        connection.signal.attach(self._held)
        self.timer = asyncio.get_running_loop().call_later(model.commit_seconds, self._late)

    def _hold(self, data: bytes) -> Awaitable[None] | None:
        """ENOUGH, where it is certain what comes of it."""
        self.raw.append(data)
        out, meter = self.way.feed(data), self.way.meter
        self.out.append(out)
        self.size += len(out)
        enough = meter.started or meter.fault is not None or self.size > self.lane.lead.plan.model.commit_bytes
        return ENOUGH if enough else None

    def _late(self) -> None:
        """Held for as long as it may be."""
        self.lane.connection.signal.detach()
        self._held()

    def _held(self) -> None:
        """Content, an error, an end; or it was held for long enough."""
        lane, meter = self.lane, self.way.meter
        try:
            if lane.connection.phase is not BODY or meter.fault is not None or not lane.client.plain:
                lane.leave()
                return
            self._untap()
            meter.start()
            self.request_id, self.overhead = lane.begin_stream(self.head, self.shape, self.outcome, b"".join(self.out))
            self.raw, self.out = [], []
            self._relay()
        except Exception as error:  # noqa: BLE001  # a bug of ours: the spine tells of it
            lane.leave(error)

    def _relay(self) -> None:
        """Step relay."""
        connection = self.lane.connection
        if connection.size and self._pass(connection.take()) is not None:
            self.lane.leave()
            return
        connection.tap(self._pass, chunks(self.lane.client, self.way, self.outcome))
        connection.signal.attach(self._over)

    def _pass(self, data: bytes) -> Awaitable[None] | None:
        out = self.way.feed(data)
        if not out:
            return None
        self.outcome.bytes_sent += len(out)
        return self.lane.client.write(out, more=True)

    def _over(self) -> None:
        """An end; or what is the spine's to deal with: a client that does not read, an error, a cut."""
        lane, way = self.lane, self.way
        connection, meter = lane.connection, way.meter
        try:
            ended = connection.phase is ENDED and not (connection.size or way.rest) and meter.ended
            if ended and meter.fault is None and lane.client.plain:
                self._untap()
                lane.client.end()
                lane.place.target.breaker.cuts = 0
                lane.account(self.request_id, self.outcome, self.overhead, meter.usage)
            else:
                lane.leave()
        except Exception as error:  # noqa: BLE001  # as above
            lane.leave(error)

    def hand_over(self, exchange: Exchange, attempt: Attempt) -> None:
        """The spine goes on with it: from its beginning, where nothing of it has been sent."""
        lane, record, outcome = self.lane, exchange.record, self.outcome
        self._untap()
        if not self.request_id:
            if self.raw:
                lane.connection.put_back(b"".join(self.raw))
            return
        record.request_id, record.status, record.attempts, record.overhead_us = self.request_id, 200, 1, self.overhead
        _, record.provider, record.model = lane.lead.names
        exchange.outcome, exchange.streaming, exchange.target = outcome, True, lane.lead.target
        attempt.sent, attempt.inbound = None, Answer(200, [], {}, lane.connection)
        attempt.way, attempt.meter = self.way, self.way.meter

    def _untap(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.lane.connection.tap(None)
