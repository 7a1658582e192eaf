"""The answer's way back: bytes of the provider to bytes of the client, event by event, with a meter watching.

Three ways, one shape: `feed(bytes) -> bytes`, and `finish() -> bytes` at the provider's end. Only whole events are sent
on, so that a stream that is cut never leaves half an event before the error event that tells of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from sidecar.clock import now
from sidecar.dialects.neutral import Conversation, Delta, Fault, Meter
from sidecar.errors import UpstreamCut, UpstreamTimeout
from sidecar.types import Client, Inbound, Outcome
from sidecar.wire import sse
from sidecar.wire.coding import Inflate

Begin = Callable[[bytes, bool], Awaitable[None]]  # sends the head with the first bytes; is there more?


class Way(Protocol):
    """How bytes go back. `failed`: the way itself has told the client of an error, in its dialect."""

    meter: Meter
    failed: bool

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Through:
    """Same dialect: whole events go through untouched."""

    __slots__ = ("_inflate", "_splitter", "failed", "meter")

    def __init__(self, meter: Meter, coding: bytes | None) -> None:
        self.meter = meter
        self.failed = False
        self._splitter = sse.Splitter()
        self._inflate = Inflate(coding) if coding else None

    def feed(self, data: bytes) -> bytes:
        if self._inflate is not None:
            data = self._inflate.feed(data)
        block = self._splitter.feed(data)
        return self.meter.feed(block) if block else b""

    def finish(self) -> bytes:
        if self._inflate is not None:
            self._inflate.finish()
        held = self._splitter.held
        if held:
            self.meter.feed(held + b"\n\n")
        if not self.meter.ended and self.meter.fault is None:
            raise UpstreamCut("the provider's stream ended before the answer did")
        return held


class Opaque:
    """Same dialect, in a coding that the client accepts: bytes go through as they are, the meter sees inside."""

    __slots__ = ("_inflate", "_splitter", "failed", "meter")

    def __init__(self, meter: Meter, coding: bytes) -> None:
        self.meter = meter
        self.failed = False
        self._splitter = sse.Splitter()
        self._inflate = Inflate(coding)

    def feed(self, data: bytes) -> bytes:
        block = self._splitter.feed(self._inflate.feed(data))
        if block:
            self.meter.feed(block)
        return data

    def finish(self) -> bytes:
        self._inflate.finish()
        self.meter.feed(self._splitter.held + b"\n\n")
        if not self.meter.ended and self.meter.fault is None:
            raise UpstreamCut("the provider's stream ended before the answer did")
        return b""


class Across:
    """Another dialect: events are read to deltas and written again."""

    __slots__ = ("_events", "_inflate", "_reader", "_splitter", "_writer", "failed", "meter")

    def __init__(
        self, meter: Meter, theirs: Conversation, ours: Conversation, *, include_usage: bool, coding: bytes | None
    ) -> None:
        self.meter = meter
        self.failed = False
        self._splitter = sse.Splitter()
        self._reader = theirs.stream_reader()
        self._writer = ours.stream_writer(include_usage=include_usage)
        self._inflate = Inflate(coding) if coding else None

    def feed(self, data: bytes) -> bytes:
        if self._inflate is not None:
            data = self._inflate.feed(data)
        block = self._splitter.feed(data)
        if not block or self._writer.finished:
            return b""
        self.meter.feed(block)
        return self._write(self._reader.feed(sse.events(block)))

    def finish(self) -> bytes:
        if self._writer.finished:
            return b""
        held = self._splitter.held
        if held.endswith((b"\n", b"\r")):
            self.meter.feed(held + b"\n\n")
            out = self._write(self._reader.feed(sse.events(held + b"\n\n")))
        else:
            out = b""
        if not self._writer.finished:
            if self._inflate is not None:
                self._inflate.finish()
            out += self._write(self._reader.finish())
        return out

    def _write(self, deltas: list[Delta]) -> bytes:
        """What has come, in the client's dialect; an error among it is told by that, and need not be told again."""
        self.failed = self.failed or any(type(delta) is Fault for delta in deltas)
        return self._writer.write(deltas)


async def relay(inbound: Inbound, way: Way, client: Client, begin: Begin, outcome: Outcome) -> None:
    """Send the body on until its end; the head goes with the first bytes, and until then another target may still try.

    Raises UpstreamCut and its like. What the client is then told is the spine's to say.
    """
    try:
        while data := await _read(inbound, outcome):
            out = way.feed(data)
            if out:
                outcome.bytes_sent += len(out)
                if outcome.first_byte_at is None:
                    await begin(out, True)
                else:
                    await client.write(out, more=True)
    except (UpstreamCut, UpstreamTimeout):
        if not way.meter.closed:  # behind its last word an answer is whole, whatever becomes of the connection
            raise
    out = way.finish()
    outcome.bytes_sent += len(out)
    outcome.complete = True
    if outcome.first_byte_at is None:
        await begin(out, False)
    else:
        await client.write(out, more=False)


async def gather(inbound: Inbound, most: int, outcome: Outcome) -> tuple[bytes, bool]:
    """The body of an answer up to about `most` bytes, and whether that was all of it."""
    pieces: list[bytes] = []
    size = 0
    while size <= most:
        data = await _read(inbound, outcome)
        if not data:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces), True
        pieces.append(data)
        size += len(data)
    return b"".join(pieces), False


async def _read(inbound: Inbound, outcome: Outcome) -> bytes:
    """Read, counting the time until the first byte has gone as the provider's and not ours."""
    if outcome.first_byte_at is not None:
        return await inbound.read()
    began = now()
    try:
        return await inbound.read()
    finally:
        outcome.waited += now() - began
