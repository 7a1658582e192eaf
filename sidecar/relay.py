"""The answer's way back: bytes of the provider to bytes of the client, event by event, with a meter watching.

Three ways, one shape: `feed(bytes) -> bytes`, and `finish() -> bytes` at the provider's end. Only whole events are sent
on, so that a stream that is cut never leaves half an event before the error event that tells of it.
"""

from __future__ import annotations

from typing import Protocol

from sidecar.dialects.neutral import Begin, Conversation, Delta, Fault, Finish, Meter, TextDelta, ToolBegin, instead
from sidecar.errors import ProviderError, UpstreamCut
from sidecar.secret import Secret
from sidecar.types import Inbound, Usage
from sidecar.wire import sse
from sidecar.wire.coding import Inflate


class Way(Protocol):
    """How bytes go back. `failed`: the way itself has told the client of an error, in its dialect."""

    meter: Meter
    failed: bool

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Through:
    """Same dialect: whole events go through untouched."""

    __slots__ = ("_inflate", "_splitter", "coded", "failed", "meter", "rest")

    def __init__(self, meter: Meter, coding: bytes | None) -> None:
        self.meter = meter
        self.failed = False
        self._splitter = sse.Splitter()
        self._inflate = Inflate(coding) if coding else None
        self.rest = self._splitter.rest  # of an event that has not ended
        self.coded = coding is not None

    def feed(self, data: bytes) -> bytes:
        if self._inflate is not None:
            data = self._inflate.feed(data)
        splitter = self._splitter
        if not splitter.rest and data.endswith(b"\n\n"):  # what nearly every provider sends nearly every time
            return self.meter.feed(data)
        block = splitter.feed(data)
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
    """Another dialect, or an answer that may have to be gone on with: events are read to deltas and written again."""

    __slots__ = (
        "_before",
        "_called",
        "_goes_on",
        "_inflate",
        "_reader",
        "_said",
        "_secrets",
        "_spaced",
        "_splitter",
        "_writer",
        "broken",
        "failed",
        "meter",
    )

    def __init__(
        self,
        meter: Meter,
        theirs: Conversation,
        ours: Conversation,
        *,
        include_usage: bool,
        coding: bytes | None,
        secrets: tuple[Secret, ...] = (),
        before: list[Usage] | None = None,
    ) -> None:
        self.meter = meter
        self.failed = False
        self._splitter = sse.Splitter()
        self._reader = theirs.stream_reader()
        self._writer = ours.stream_writer(include_usage=include_usage)
        self._inflate = Inflate(coding) if coding else None
        self._secrets = secrets  # that the provider was sent, and may repeat in an error
        self._before = before  # of the streams that this one goes on with; None: none will be gone on with
        self._goes_on = False
        self._said: list[str] = []  # all text so far, where it may have to be gone on with
        self._spaced = False  # what was said last is white space, which the next is not to begin with again
        self._called = False
        self.broken: ProviderError | None = None  # the error in the stream, not told: another may go on

    @property
    def resumable(self) -> bool:
        """May another stream go on where this one stops? Not with a tool's call begun, nor before anything was said."""
        over = self._before is None or self._called or self.failed or self._writer.finished
        return not over and bool(self.text.strip())

    @property
    def text(self) -> str:
        """What has been said."""
        return "".join(self._said)

    def resume(self, meter: Meter, theirs: Conversation, coding: bytes | None, secrets: tuple[Secret, ...]) -> None:
        """Go on with another provider's stream, in the same answer."""
        self.meter = meter
        self._goes_on = True
        self.broken = None
        self._spaced = self.text[-1:].isspace()
        self._splitter = sse.Splitter()
        self._reader = theirs.stream_reader()
        self._inflate = Inflate(coding) if coding else None
        self._secrets = secrets

    def feed(self, data: bytes) -> bytes:
        """Raises the error in a stream that another may go on with; behind what is given out it is `broken` by it."""
        if self.broken is not None:
            raise self.broken
        if self._inflate is not None:
            data = self._inflate.feed(data)
        block = self._splitter.feed(data)
        if not block or self._writer.finished:
            return b""
        self.meter.feed(block)
        out = self._write(self._reader.feed(sse.events(block)))
        if self.broken is not None and not out:
            raise self.broken
        return out

    def finish(self) -> bytes:
        """Raises as `feed` does."""
        if self.broken is not None:
            raise self.broken
        if self._writer.finished:
            return b""
        held, said = self._splitter.held, len(self._said)
        out = b""
        if held.endswith((b"\n", b"\r")):
            self.meter.feed(held + b"\n\n")
            out = self._write(self._reader.feed(sse.events(held + b"\n\n")))
        if not self._writer.finished:
            if self._inflate is not None:
                self._inflate.finish()
            out += self._write(self._reader.finish())
        if self.broken is not None:
            del self._said[said:]  # nobody has seen it
            raise self.broken
        return out

    def _write(self, deltas: list[Delta]) -> bytes:
        """What has come, in the client's dialect; an error among it is told by that, and need not be told again."""
        for delta in deltas:
            if type(delta) is Fault:
                for secret in self._secrets:
                    delta.message = secret.redact(delta.message.encode()).decode()
        if self._before is not None:
            deltas = [delta for delta in deltas if self._tell(delta, self._before)]
        if deltas and type(deltas[-1]) is Fault:  # behind which there is nothing
            self.failed = True
        return self._writer.write(deltas)

    def _tell(self, delta: Delta, before: list[Usage]) -> bool:
        """Remember what is needed to go on with the answer. False: the client is not to see it."""
        kind = type(delta)
        if isinstance(delta, TextDelta):
            if self._spaced:
                delta.text = delta.text.lstrip()
                self._spaced = not delta.text
            self._said.append(delta.text)
            return delta.text != ""
        if isinstance(delta, Fault) and self.resumable:
            self.broken = UpstreamCut(delta.message) if delta.code == UpstreamCut.code else instead(delta)
            return False
        if isinstance(delta, Finish):
            for usage in before:
                delta.usage = usage if delta.usage is None else delta.usage.plus(usage)
        self._called = self._called or kind is ToolBegin
        return kind is not Begin or not self._goes_on  # the answer has begun long ago


async def gather(inbound: Inbound, most: int) -> tuple[bytes, bool]:
    """The body of an answer up to about `most` bytes, and whether that was all of it."""
    pieces: list[bytes] = []
    size = 0
    while size <= most:
        data = await inbound.read()
        if not data:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces), True
        pieces.append(data)
        size += len(data)
    return b"".join(pieces), False
