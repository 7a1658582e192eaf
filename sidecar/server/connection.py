"""One client's connection: requests in, one exchange at a time and in order, answers out.

The codec (wire.http1) frames; this file moves bytes, keeps deadlines, and tells the app when its client has gone.
A connection has one alarm, whose meaning is its phase's:

    HEAD      waiting for a request: kept alive, or (from its first byte on) within the header deadline
    BODY      reading a body: idle and total deadlines, unless it is we who hold it back
    SERVING   the request is whole: no deadline, but that of a client which does not read
    LINGER    answered without reading all: what still comes is thrown away for a moment, so that the answer can be read
    CLOSED
"""

from __future__ import annotations

import asyncio
import enum
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from sidecar.clock import Alarm
from sidecar.drive import Signal
from sidecar.errors import Malformed
from sidecar.server.again import Again
from sidecar.server.cycle import Cycle
from sidecar.server.lines import refusal
from sidecar.server.sending import HIGH_WATER, Sending
from sidecar.server.sockets import address, credentials
from sidecar.wire.framing import END
from sidecar.wire.heads import RequestHead
from sidecar.wire.http1 import RequestReader

if TYPE_CHECKING:
    from sidecar.server.listen import Server

LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 4 * 1024 * 1024
MAX_REQUESTS: Final = 1000  # of one connection
MIN_BODY_RATE: Final = 1024  # bytes a second, once a body has had the idle time


class Phase(enum.Enum):
    HEAD = "idle"
    BODY = "reading"
    SERVING = "serving"
    LINGER = "lingering"
    CLOSED = "closed"


HEAD, BODY, SERVING, LINGER, CLOSED = Phase  # to look up a member in its class takes Python 3.11 twelve times as long


class Connection(Sending):
    """See the module."""

    __slots__ = (
        *("_alarm", "_body_began", "_body_bytes", "_discarded", "_held_at", "_reading", "again", "asked"),
        *("bound", "client", "cycle", "local", "phase", "reader", "scheme", "server", "signal"),
    )

    def __init__(self, server: Server, *, secure: bool) -> None:
        super().__init__(server.loop, server.round)
        self.server = server
        self.scheme = "https" if secure else "http"
        self.client: tuple[str, int] | None = None
        self.local: tuple[str, int | None] | None = None
        self.phase = HEAD
        self.reader = RequestReader(server.limits)
        self.cycle: Cycle | None = None
        self.again: Again | None = None
        self._alarm = Alarm(server.loop, self._ring)
        self.signal = Signal(server.loop)  # for whoever waits for a request's body, or for its client's going
        self.bound = HIGH_WATER  # bytes held of a body before the client is held back
        self.asked = 0  # requests, so far
        self._reading = True
        self._body_began = 0.0
        self._body_bytes = 0
        self._held_at = 0.0  # since when the client is held back
        self._discarded = 0

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.client = address(transport.get_extra_info("peername"))
        local = transport.get_extra_info("sockname")
        self.local = (local, None) if isinstance(local, str) else address(local)
        self.server.connections.add(self)
        self.server.idle[self] = None
        self._alarm.set(self._loop.time() + self.server.settings.header_seconds)

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        if (again := self.again) is not None:
            if phase is HEAD:
                if (same := again.split(data)) is not None and self.reader.idle:
                    self._serve_again(again, same[0], same[1])
                    return
            elif phase is SERVING and not self.reader.done:  # the request it serves was never the reader's
                self.reader.pass_over()
        if phase is LINGER or phase is CLOSED:  # TLS reads on while it closes
            self._discard(data)
            return
        try:
            began = phase is HEAD and self.reader.idle
            events = self.reader.feed(data)
            if events:
                self._take(events)
            elif began and self.asked and not self.reader.idle:  # of a new connection it runs since it was made
                self._alarm.set(self._loop.time() + self.server.settings.header_seconds)
            elif self.reader.excess > HIGH_WATER:
                self._hold()
        except Malformed as error:
            self._refuse(error)

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES and self._reading and self.transport is not None:
            self._reading = False  # not closed: a reset would tear away what is still being taken
            self.transport.pause_reading()

    def _serve_again(self, again: Again, digits: bytes, body: bytes) -> None:
        """Serve a request whose head is the last one's but for its length. The reader knows nothing of it."""
        self.asked += 1
        self.server.idle.pop(self, None)
        self.phase = SERVING
        self._alarm.at = None
        head, size = again.head, len(body)
        cycle = self.cycle = Cycle(
            self,
            head,
            head.method,
            head.path,
            head.query,
            head.headers,
            head.index,
            head.notes,
            self.signal,
            self.asked >= MAX_REQUESTS,
            head.expect_continue,
            size,
            [body],
            size,
            True,
        )
        server = self.server
        work: Any = None if server.again is None else server.again(cycle, body)
        if work is not None:
            if type(work) is CoroutineType:
                cycle.follow(work)
            elif not cycle.complete:
                cycle.work, cycle.on_gone = work, work.cancel
                server.work.add(work)
        elif not cycle.start_directly():  # the app has another mind by now
            self.again = None
            self.reader.pass_over()
            cycle.head = again.with_length(digits)
            cycle.headers, cycle.index = cycle.head.headers, cycle.head.index
            cycle.start()

    def eof_received(self) -> bool:
        """A client that ends its side has gone: nobody would read the answer (and a cancelled one should not cost)."""
        self._gone()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        self.phase = CLOSED
        self._alarm.close()
        self._watch(hangup=False)
        super().connection_lost(exc)
        self.server.forget(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def resume_writing(self) -> None:
        if self.phase is SERVING:
            self._alarm.clear()
            if self.cycle is None:  # the next request has waited for this
                self._loop.call_soon(self._next)
        super().resume_writing()

    # -- requests

    def _take(self, events: list[Any]) -> None:
        cycle = self.cycle
        for event in events:
            if type(event) is bytes:
                assert cycle is not None
                cycle.pieces.append(event)
                cycle.held += len(event)
                self._body_bytes += len(event)
            elif event is END:
                assert cycle is not None
                self.phase = SERVING
                self._alarm.clear()
                cycle.whole = True
            else:
                cycle = self._begin(event)
        if self.phase is BODY:
            self._read_on()
        elif self.reader.excess > HIGH_WATER:
            self._hold()
        if cycle is not None:
            if cycle.work is None:
                cycle.start()
            else:
                self.signal.wake()  # for whoever reads the body

    def _begin(self, head: RequestHead) -> Cycle:
        self.asked += 1
        self.server.idle.pop(self, None)
        self.phase = BODY
        self._body_began = self._loop.time()
        self._body_bytes = 0
        last = not head.keep_alive or self.asked >= MAX_REQUESTS
        cycle = self.cycle = Cycle(
            self,
            head,
            head.method,
            head.path,
            head.query,
            head.headers,
            head.index,
            head.notes,
            self.signal,
            last,
            head.expect_continue,
            head.length,
        )
        return cycle

    def _read_on(self) -> None:
        """Set the deadline for the next bytes of a body, or hold the client back when the app is slower."""
        assert self.cycle is not None
        if self.cycle.held > self.bound:
            self._hold()
            return
        settings, now = self.server.settings, self._loop.time()
        slow = self._body_began + settings.body_idle_seconds + self._body_bytes / MIN_BODY_RATE
        until = min(now + settings.body_idle_seconds, self._body_began + settings.body_seconds)
        self._alarm.set(min(until, slow))

    def _hold(self) -> None:
        """Stop reading; its going is then seen by the hang-up watch, since nothing else would tell."""
        if self._reading and self.transport is not None:
            self._reading = False
            self._held_at = self._loop.time()
            self.transport.pause_reading()
            if self.phase is BODY:
                self._alarm.clear()
            self._watch(hangup=True)

    def unhold(self) -> None:
        """Read again, after the app has taken what was held."""
        if not self._reading and self.transport is not None:
            self._reading = True
            self._watch(hangup=False)
            self.transport.resume_reading()
            if self.phase is BODY:
                self._body_began += self._loop.time() - self._held_at  # the wait was ours
                self._read_on()

    def _watch(self, *, hangup: bool) -> None:
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None:  # a TLS transport that has closed has none
            if hangup:
                self.server.hangups.add(sock.fileno(), self)
            else:
                self.server.hangups.discard(sock.fileno())

    def hung_up(self) -> None:
        """The client has gone while nothing was read from it."""
        self.abort()

    # -- answers

    def answered(self, cycle: Cycle) -> None:
        """The answer is written. On to the next request, or to the end."""
        if self.cycle is not cycle or self.phase is CLOSED:
            return
        self.cycle = None
        if not cycle.whole:  # part of the body is still to come, and nobody wants it
            self._linger()
        elif cycle.close or self.server.closing:  # in the lame-duck time only who was told so is left
            if self.reader.excess:  # never to be read, and a reset would tear the answer away
                self._linger()
            else:
                self.close()
        elif not self.reader.done:  # which knows nothing of this request: its head was the last one's
            self._rest(self.server.settings.keepalive_seconds)
        elif self.reader.excess:  # a pipelined request: not inside the call that answered the one before it
            self._loop.call_soon(self._next)
        else:
            self._next()

    def _rest(self, seconds: float) -> None:
        """Between requests, for so long at most; but who does not take answers gets no more of them."""
        if self.writable and self.transport is not None:
            self.phase = HEAD
            self.server.idle[self] = None
            self._alarm.set(self._loop.time() + seconds)

    def _next(self) -> None:
        if self.transport is None or self.phase is not SERVING or self.cycle is not None:
            return
        if not self.writable:  # who does not take answers gets no more of them
            return
        self.phase = HEAD
        self.server.idle[self] = None
        settings = self.server.settings
        try:
            events = self.reader.next()
            wait = settings.keepalive_seconds if self.reader.idle else settings.header_seconds
            self._alarm.set(self._loop.time() + wait)
            if events:
                self._take(events)
            if not self._reading and self.reader.excess <= HIGH_WATER:
                self.unhold()
        except Malformed as error:
            self._refuse(error)

    def _refuse(self, error: Malformed) -> None:
        """Answer a request that is not plain, and close: what follows it cannot be told apart."""
        self.server.note("refused", error.message, self.client)
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.leave()
            if cycle.began:
                self.abort()
                return
        self.write(refusal(error))
        self._linger()

    def _linger(self) -> None:
        """Close in a way that lets the client read: a reset for bytes we never read would tear the answer away."""
        transport = self.transport
        if transport is None:
            return
        self.phase = LINGER
        self.server.idle.pop(self, None)
        self.unhold()
        self._alarm.set(self._loop.time() + LINGER_SECONDS)
        self.flush()
        if transport.can_write_eof():
            transport.write_eof()

    def _gone(self) -> None:
        """The client is not there any more: tell the app now, whatever it waits for."""
        self._left = True
        cycle, self.cycle = self.cycle, None
        if cycle is not None:
            cycle.leave()
        self._let_send()

    def close(self) -> None:
        """Close once what is written has been taken."""
        if self.transport is not None:
            self.phase = CLOSED
            self.server.idle.pop(self, None)
            self.flush()
            self.transport.close()
            self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)

    def abort(self) -> None:
        if self.transport is not None:
            self.phase = CLOSED
            self.server.idle.pop(self, None)
            self.flush()  # what was sent before it broke
            self.transport.abort()

    def _ring(self) -> None:
        """A deadline has passed."""
        if self.phase is LINGER and self._takes():
            self._alarm.set(self._loop.time() + self.server.settings.send_stall_seconds)
            return
        if self.phase in (LINGER, CLOSED) or not self.writable:
            if not self.writable:
                self.server.note("stalled", "the client does not take its answer", self.client)
            self.abort()
        elif self.phase is BODY:
            self._refuse(Malformed("the body took too long to arrive", 408))
        elif not self.reader.idle:
            self._refuse(Malformed("the head of the request took too long to arrive", 408))
        else:
            self.close()

    def peer(self) -> tuple[int, int, int] | None:
        """(pid, uid, gid) of the process at the other end of a unix socket."""
        return None if self.transport is None else credentials(self.transport.get_extra_info("socket"))

    def __repr__(self) -> str:
        return f"<Connection {self.client} {self.phase.value}, request {self.asked}>"
