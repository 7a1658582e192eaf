"""Streams at once, each piece timed: to the first token, and between events."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import uvloop

from benchmarks.answers import body_of

TOKEN: Final = re.compile(rb'"content": ?"[^"]')
STREAM_SECONDS: Final = 0.32  # of the simulated provider's


class Measured(NamedTuple):
    """`first`: seconds to the first token of each right stream. `gaps`: between its events. `failed` by class."""

    asked: int
    first: list[float]
    gaps: list[float]
    failed: Counter[str]


class Reader(asyncio.Protocol):
    """One connection: a stream after another, until there are enough of them."""

    def __init__(self, request: bytes, times: int, done: asyncio.Future[None]) -> None:
        self._request = request
        self._left = times
        self._done = done
        self._pieces: list[tuple[float, bytes]] = []
        self.late = False  # the last stream
        self.streams: list[list[tuple[float, bytes]]] = []  # what came and when; before it the moment of asking

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._left -= 1
        self._pieces = [(time.perf_counter(), b"")]
        self.streams.append(self._pieces)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append((time.perf_counter(), data))
        tail = data if len(data) > 4 else b"".join(piece for _, piece in self._pieces[-3:])
        refused = len(self._pieces) == 2 and not data.startswith(b"HTTP/1.1 200")
        if not refused and not tail.endswith(b"0\r\n\r\n"):
            return
        if self._left and not refused:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def abort(self) -> None:
        """Whoever has not ended by now is late."""
        self.late = not self._done.done()
        self._transport.abort()


def times(pieces: list[tuple[float, bytes]]) -> tuple[float | None, list[float]]:
    """Seconds to the first token, and between events, of one stream; events that come together have none between."""
    asked, _ = pieces[0]
    first, last, gaps, before = None, 0.0, list[float](), b""
    for moment, piece in pieces[1:]:
        events = piece.count(b"data: ")
        if last and events:
            gaps += [moment - last, *[0.0] * (events - 1)]
        if events:
            last = moment
        if first is None:
            before += piece
            if TOKEN.search(before):
                first = moment - asked
    return first, gaps


def run(
    port: int, request: bytes, right: Callable[[bytes], bool], *, streams: int, each: int, limit: float
) -> Measured:
    """So many streams at once, each so often, begun evenly over the length of one. `limit`: seconds for all of it."""
    readers = uvloop.run(_run(port, request, streams, each, limit))
    first, gaps, failed = list[float](), list[float](), Counter[str]()
    late = [reader.streams[-1] for reader in readers if reader.late and reader.streams]
    for pieces in itertools.chain.from_iterable(reader.streams for reader in readers):
        if any(pieces is each for each in late):
            failed["timeout"] += 1
            continue
        body = body_of(b"".join(piece for _, piece in pieces))
        if right(body):
            to_first, between = times(pieces)
            first += [] if to_first is None else [to_first]
            gaps += between
        else:
            failed["wrong" if body else "status" if len(pieces) > 1 else "nothing"] += 1
    missing = streams * each - len(first) - failed.total()
    return Measured(streams * each, first, gaps, failed + Counter(unasked=missing))


async def _run(port: int, request: bytes, streams: int, each: int, limit: float) -> list[Reader]:
    loop = asyncio.get_running_loop()
    until = time.perf_counter() + limit
    readers, waiting = list[Reader](), list[asyncio.Future[None]]()
    for _ in range(streams):
        done: asyncio.Future[None] = loop.create_future()
        _, reader = await loop.create_connection(lambda done=done: Reader(request, each, done), "127.0.0.1", port)  # type: ignore[misc]
        readers.append(reader)
        waiting.append(done)
        await asyncio.sleep(STREAM_SECONDS / streams)
    await asyncio.wait(waiting, timeout=max(until - time.perf_counter(), 0))
    for reader in readers:
        reader.abort()
    await asyncio.wait(waiting)  # a loop that is closed before its connections may hang
    return readers
