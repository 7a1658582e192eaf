"""Requests at a constant rate, whatever comes back: latency counts from the moment that each was due (open loop).

A client that waits for an answer before it asks again hides a server's stall (coordinated omission); this one does
not. Due moments come from a timerfd, since the event loop's own timers have a resolution of a millisecond.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import uvloop

from benchmarks.answers import body_of

CONNECTIONS: Final = 64  # at most; requests beyond wait, and their clocks run
READY: Final = 16  # connections that are opened before the first request
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_libc = ctypes.CDLL(None, use_errno=True)


class Measured(NamedTuple):
    """`took`: seconds of each right answer. `failed`: the others by class. `asked` is all of both."""

    asked: int
    took: list[float]
    failed: Counter[str]


class Ticks:
    """A file descriptor that is readable at `start` (of time.perf_counter) and every 1/rate seconds after."""

    def __init__(self, start: float, rate: float) -> None:
        self.fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self.step = round(1e9 / rate)  # nanoseconds
        first = round(start * 1e9)
        spec = struct.pack("qqqq", *divmod(self.step, 10**9), *divmod(first, 10**9))
        if self.fd < 0 or _libc.timerfd_settime(self.fd, _ABSOLUTE, spec, None):
            raise OSError(ctypes.get_errno(), "no timerfd")

    def passed(self) -> int:
        """Ticks since the last time this was asked."""
        return int(struct.unpack("Q", os.read(self.fd, 8))[0])


class Connection(asyncio.Protocol):
    """One request at a time; tells its load when the answer is there, or never will be."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._data = b""
        self._end = 0  # length of the whole answer; 0 while unknown, -1 for a chunked one
        self.due = 0.0  # of the request under way; 0 when idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, due: float) -> None:
        self.due = due
        self._data, self._end = b"", 0
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._end and (head := self._data.find(b"\r\n\r\n")) > 0:
            length = LENGTH.search(self._data, 0, head + 2)
            self._end = head + 4 + int(length[1]) if length else -1
        whole = 0 < self._end <= len(self._data)
        if self.due and (whole or (self._end < 0 and self._data.endswith(b"0\r\n\r\n"))):
            self._load.answered(self, self._data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)

    def abort(self) -> None:
        self._transport.abort()


class Load:
    """One round. `right` judges each body, after the round. `limit`: seconds that a request may take."""

    def __init__(self, port: int, request: bytes, right: Callable[[bytes], bool], *, limit: float) -> None:
        self.request = request
        self._port = port
        self._right = right
        self._limit = limit
        self._idle: list[Connection] = []  # the last one used is used first: others may rest
        self._open: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[float] = deque()  # due moments without a connection
        self._answers: list[tuple[float, bytes]] = []
        self._failed: Counter[str] = Counter()
        self._asked = 0

    async def run(self, rate: float, seconds: float) -> Measured:
        """So many requests a second. What is not answered `limit` after the last one was due has failed."""
        loop = asyncio.get_running_loop()
        wanted = max(round(rate * seconds), 1)
        for _ in range(min(READY, wanted)):
            await self._connect()
        over: asyncio.Future[None] = loop.create_future()
        start = time.perf_counter() + 0.05
        ticks = Ticks(start, rate)

        def due() -> None:
            for _ in range(min(ticks.passed(), wanted - self._asked)):
                self._ask(start + self._asked * ticks.step / 1e9)
                self._asked += 1
            if self._asked == wanted and not over.done():
                loop.remove_reader(ticks.fd)
                over.set_result(None)

        loop.add_reader(ticks.fd, due)
        try:
            await over
        finally:
            os.close(ticks.fd)
        until = start + wanted / rate + self._limit
        while len(self._answers) + self._failed.total() < wanted and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        missing = wanted - len(self._answers) - self._failed.total()
        self._failed["timeout"] += missing
        self._waiting.clear()
        while self._open or self._opening:  # a loop that is closed before its connections may hang
            for connection in self._open:
                connection.due = 0.0
                connection.abort()
            await asyncio.sleep(0)
        return self._judged(wanted)

    def _judged(self, wanted: int) -> Measured:
        failed = +self._failed
        took = []
        for seconds, answer in self._answers:
            body = body_of(answer)
            if not self._right(body):
                failed["wrong" if body else "status"] += 1
            elif seconds > self._limit:
                failed["timeout"] += 1
            else:
                took.append(seconds)
        return Measured(wanted, took, failed)

    def _ask(self, due: float) -> None:
        if self._idle:
            self._idle.pop().ask(due)
            return
        self._waiting.append(due)
        if len(self._open) + self._opening < CONNECTIONS:
            self._opening += 1
            task = asyncio.get_running_loop().create_task(self._connect_more())
            task.add_done_callback(lambda done: done.exception())

    async def _connect_more(self) -> None:
        try:
            await self._connect()
        except OSError:
            if self._waiting:
                self._waiting.popleft()
                self._failed["connect"] += 1
        finally:
            self._opening -= 1

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        self._open.add(connection)
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        if self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def answered(self, connection: Connection, answer: bytes) -> None:
        self._answers.append((time.perf_counter() - connection.due, answer))
        connection.due = 0.0
        self._free(connection)

    def lost(self, connection: Connection) -> None:
        """Closed: the request on it has failed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.due:
            self._failed["closed"] += 1


def run(
    port: int, request: bytes, right: Callable[[bytes], bool], *, rate: float, seconds: float, limit: float
) -> Measured:
    """One round on the core of whoever calls."""

    async def load() -> Measured:
        return await Load(port, request, right, limit=limit).run(rate, seconds)

    return uvloop.run(load())
