"""One connection to a provider: a thin pump between a codec without IO (wire.http1) and a stream that knows no HTTP.

A connection is used again only if the answer ended exactly at its framed end, with not a byte behind it (R6).
"""

from __future__ import annotations

import asyncio
import enum
import select
from collections.abc import Awaitable
from typing import Final, Protocol, cast

from sidecar.clock import Alarm
from sidecar.drive import ENOUGH, Round, Signal
from sidecar.errors import Malformed, ProviderError, UpstreamCut, UpstreamProtocol, UpstreamTimeout
from sidecar.pool.outbound import write_head
from sidecar.types import Deadline, Outbound, Sink, Through
from sidecar.wire.framing import CHUNK_LINES, EVENT_END, Limits, events_in_chunks
from sidecar.wire.heads import Event, ResponseHead
from sidecar.wire.http1 import ResponseReader

HIGH_WATER: Final = 64 * 1024  # bytes of an answer held for a relay that does not read; above it the provider is held
_JOIN_BYTES: Final = 64 * 1024  # a smaller body goes out in one write with its head
_LIMITS: Final = Limits()
_RESOLUTION: Final = 0.001  # seconds; of the loop's timers


class Phase(enum.Enum):
    """Where a connection is. Legal moves: IDLE -> HEAD -> BODY -> ENDED -> IDLE, and from anywhere to LOST."""

    IDLE = "idle"
    HEAD = "waiting for the head"
    BODY = "reading the body"
    ENDED = "at the framed end"
    LOST = "lost"


IDLE, HEAD, BODY, ENDED, LOST = Phase  # to look up a member in its class takes Python 3.11 twelve times as long


class Stale(Exception):
    """A reused connection was closed without one byte of an answer: it was closing already, so nothing was served."""


class Owner(Protocol):
    """Who hands connections out: told when one is free again, and when one is no more."""

    def freed(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        *("_alarm", "_buffer", "_chunks", "_deadline", "_error", "_got", "_idle", "_idle_at", "_loop"),
        *("_origin", "_owner", "_paused", "_poll", "_reader", "_round", "_sink", "_through", "_transport"),
        *("_unsent", "_wait", "answer", "born", "idle_since", "phase", "retire_at", "signal", "size"),
        *("uses",),
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, owner: Owner, origin: str, retire_at: float, sending: Round | None = None
    ) -> None:
        self._loop = loop
        self._owner = owner
        self._origin = origin  # in words, for errors
        self._alarm = Alarm(loop, self._ring)
        self._reader = ResponseReader(_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._round = sending or Round(loop)
        self._unsent = b""  # a request, until the end of the loop's round
        self.signal = Signal(loop)  # for the one exchange that waits for the head, or for bytes
        self._paused = False
        self._poll: select.poll | None = None
        self.phase = IDLE
        self.born = loop.time()
        self.retire_at = retire_at
        self.idle_since = self.born
        self.uses = 0
        # What follows lives as long as one exchange.
        self._buffer: list[bytes] = []
        self._deadline: Deadline | None = None
        self._error: Exception | None = None
        self._got = False
        self.answer: ResponseHead | None = None  # its head
        self.size = 0
        self._chunks: Through | None = None  # who is given whole chunks before the sink is
        self._through: Through | None = None  # the same, while what has come so far ended with a chunk
        self._sink: Sink | None = None  # who is given what comes, instead of the buffer
        self._wait: Awaitable[None] | None = None  # what that one waits for
        self._idle = 0.0  # seconds between bytes, at most
        self._idle_at = 0.0  # when nothing will have come for too long

    # -- the pool's side

    def begin(self, outbound: Outbound, deadline: Deadline) -> None:
        """Send a request; then wait for `signal`. Raises Stale on a reused connection that has been closed.

        Whatever ends the wait but an answer, `abort`: the provider sees at once that nobody listens.
        """
        self.ask(write_head(outbound), outbound.body, deadline, outbound.more)
        if outbound.method != b"POST":
            self._reader.expect(outbound.method)

    def ask(self, head: bytes, body: bytes, deadline: Deadline, more: tuple[bytes | memoryview, ...] = ()) -> None:
        """The same, of a request whose head has been written: of a POST."""
        transport = self._transport
        if transport is None or self.phase is not IDLE:  # closed between being handed over and being used
            raise Stale
        if self.uses and self._readable():
            self.abort()
            raise Stale
        self.phase = HEAD
        self.uses += 1
        self._deadline = deadline
        self._idle = deadline.idle
        self._got = False
        self._alarm.set(min(self._loop.time() + deadline.first_byte, deadline.at))
        if len(body) <= _JOIN_BYTES and not more:
            self._unsent = head + body
            self._round.later(self)
        else:
            transport.writelines((head, body, *more))

    def head(self) -> ResponseHead:
        """What came of it, once `signal` has been waited for. Raises Stale where it was closed without a byte."""
        head = self.answer
        if head is None:
            assert self._error is not None
            raise self._error
        return head

    async def pump(self, sink: Sink, through: Through | None = None) -> Awaitable[None] | None:
        """As `Inbound.pump` of types.py."""
        if self.size and (wait := sink(self.take())) is not None:
            return wait
        self.tap(sink, through)
        try:
            while self._wait is None:
                if self._error is not None:
                    raise self._error
                if self.phase is not BODY:
                    return None
                await self.signal
        finally:
            wait = self._wait
            self.tap(None)
        return wait

    def tap(self, sink: Sink | None, through: Through | None = None) -> None:
        """Give what comes to them, as `pump` does, without a coroutine: `signal` tells of its end. None: no more."""
        self._sink, self._chunks, self._wait = sink, through, None
        self._look()

    async def more(self) -> bytes:
        """The next bytes, when none are held."""
        while not self.size:
            if self._error is not None:
                raise self._error
            if self.phase is not BODY:
                return b""
            await self.signal
        return self.take()

    def interrupt(self) -> None:
        """As `Inbound.interrupt`."""
        if self._sink is not None:
            self.tap(None)
            self._wait = ENOUGH
            self.signal.wake()

    def take(self) -> bytes:
        """All bytes held."""
        buffer = self._buffer
        data = buffer[0] if len(buffer) == 1 else b"".join(buffer)
        buffer.clear()
        self.size = 0
        if self._paused and self._transport is not None:
            self._paused = False
            if self.phase is BODY:
                self._read_on(began=True)
            self._transport.resume_reading()
        return data

    def put_back(self, data: bytes) -> None:
        """Hold bytes again that were taken."""
        self._buffer.insert(0, data)
        self.size += len(data)

    def finish(self) -> None:
        """The exchange is over: free if the answer ended at its framed end and nothing is odd, else closed."""
        transport, head = self._transport, self.answer
        ended = self.phase is ENDED and head is not None and head.keep_alive and not (self.size or self._unsent)
        closed = not ended or transport is None or transport.is_closing() or transport.get_write_buffer_size()
        if closed or not self._reader.renew():
            self.abort()
            return
        self.answer = self._error = self._deadline = None
        self.phase = IDLE
        self.idle_since = self._loop.time()
        self._owner.freed(self)

    def abort(self) -> None:
        """Close at once, with a reset: what is under way at the other end need not go on."""
        if self._transport is not None:
            self._transport.abort()
        self._gone(None)

    def shut(self) -> None:
        """Close an idle connection, politely."""
        if self._transport is not None:
            self._transport.close()
        self._gone(None)

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        if self.phase is LOST:  # inside a tunnel, bytes may come before this call
            self.abort()

    def data_received(self, data: bytes) -> None:
        through = self._through  # a stream, as nearly always: chunks of whole events
        if through is not None and data.endswith(EVENT_END):
            line, size = CHUNK_LINES[len(data)]
            if (data.startswith(line) or (size := events_in_chunks(data)) > 0) and through(data, size):
                self._idle_at = self._loop.time() + self._idle
                return
        phase = self.phase
        if phase is not BODY and phase is not HEAD:
            self.abort()  # bytes that no request asked for: whose answer they would become is not for us to guess
            return
        sink = self._sink
        if sink is not None and (piece := self._reader.piece(data)) is not None:  # a stream, as nearly always
            self._idle_at = self._loop.time() + self._idle
            self._look()
            self._give(sink, piece)
            if self._sink is None:
                self.signal.wake()
            return
        self._got = True
        if phase is HEAD and (whole := self._reader.whole(data)) is not None:
            self.answer, body = whole
            self._buffer.append(body)
            self.size = len(body)
            self.phase = ENDED
            self._alarm.at = None
            self.signal.wake()
            return
        self._take(self._parse(data), phase)
        self._look()

    def _take(self, events: list[Event], phase: Phase) -> None:
        """What has come, to who waits for it. `phase`: before it came."""
        for event in events:
            if type(event) is not bytes:
                if not self._mark(event):
                    return
            elif self._sink is not None:
                self._give(self._sink, event)
            else:
                self._buffer.append(event)
                self.size += len(event)
        if self.phase is BODY:
            self._read_on(began=phase is HEAD)
        if self.answer is not None and (self._sink is None or self.phase is not BODY):
            self.signal.wake()

    def _parse(self, data: bytes) -> list[Event]:
        try:
            return self._reader.feed(data)
        except Malformed as error:
            self._fail(UpstreamProtocol(f"{self._origin} answered in broken HTTP: {error.message}"))
            return []

    def _mark(self, event: object) -> bool:
        """A head, or an end. False where nothing more of it is anybody's."""
        if isinstance(event, ResponseHead):
            self.answer = event
            self.phase = BODY
            return True
        if self.phase is LOST:  # a sink's doing: what else has come is nobody's
            return False
        self.phase = ENDED
        self._alarm.at = None
        return True

    def _give(self, sink: Sink, data: bytes) -> None:
        """To whoever pumps; what it makes of it may fail, which is then the pumping coroutine's to raise."""
        try:
            self._wait = sink(data)
        except Exception as error:  # noqa: BLE001  # raised again, where it belongs
            self._error = error
            self.abort()
        if self._wait is not None or self._error is not None:
            self._sink = self._chunks = self._through = None

    def _look(self) -> None:  # has what has come so far ended with a chunk?
        self._through = self._chunks if self._reader.between else None

    def _read_on(self, *, began: bool) -> None:
        """Move the deadline for the next bytes on, or hold the provider. The alarm itself is set anew when it rings."""
        deadline = self._deadline
        assert deadline is not None
        if self.size > HIGH_WATER:
            self._pause()
            return
        self._idle_at = self._loop.time() + deadline.idle
        if began:
            self._alarm.set(min(deadline.at, self._idle_at))

    def eof_received(self) -> bool:
        if self.phase is BODY:
            try:
                if self._reader.end():
                    self.phase = ENDED
                    self._alarm.at = None
            except Malformed:
                pass  # a cut
        if self.phase is ENDED:
            self.signal.wake()
            return False
        transport = self._transport  # at once: asyncio's own call would wait until what we still write is taken
        self.connection_lost(None)
        if transport is not None:
            transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase is HEAD and not self._got and self.uses > 1:
            self._error = Stale()
        elif self.phase in (HEAD, BODY) and self._error is None:
            when = "before an answer" if self.phase is HEAD else "inside the answer"
            self._error = UpstreamCut(f"{self._origin} closed the connection {when}")
        self._gone(self._error)

    # -- inside

    def flush(self) -> None:
        """The request goes, unless it has been given up within the round."""
        data, self._unsent = self._unsent, b""
        if data and self._transport is not None:
            self._transport.write(data)

    def _readable(self) -> bool:
        """Is there anything to read, or an end, that the loop has not told of yet? It would be taken for the answer."""
        if self._poll is None:
            assert self._transport is not None
            self._poll = select.poll()
            self._poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def _pause(self) -> None:
        """Nobody reads: hold the provider. Its silence is then ours, so only the total deadline runs."""
        if not self._paused and self._transport is not None and self._deadline is not None:
            self._paused = True
            self._transport.pause_reading()
            self._alarm.set(self._deadline.at)

    def _ring(self) -> None:
        deadline = self._deadline
        if deadline is None:
            return
        now = self._loop.time() + _RESOLUTION
        if now >= deadline.at:
            phase, words = "total", "the whole exchange took too long"
        elif self.phase is HEAD:
            phase, words = "first_byte", f"no answer within {deadline.first_byte:g} s"
        elif now < self._idle_at:
            self._alarm.set(min(deadline.at, self._idle_at))
            return
        else:
            phase, words = "idle", f"nothing came for {deadline.idle:g} s"
        self._fail(UpstreamTimeout(f"{self._origin}: {words}", phase=phase))

    def _fail(self, error: ProviderError) -> None:
        self._error = error
        self.abort()

    def _gone(self, error: Exception | None) -> None:
        """The move to LOST, once."""
        if self.phase is LOST:
            return
        ended = self.phase is ENDED
        self.phase = LOST
        self._transport = None
        self._alarm.close()
        if self._error is None and not ended:
            self._error = error or UpstreamCut(f"{self._origin}: the connection was closed")
        self._owner.lost(self)
        self.signal.wake()

    def __repr__(self) -> str:
        return f"<Connection {self._origin} {self.phase.value}, use {self.uses}>"
