"""One end of a connection that does what a script says, and records what the other end does.

A script is a list of steps: bytes are sent, and the others below say what they do.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class Expect:
    """Wait for these bytes (anywhere behind what earlier steps took), a pattern, or so many bytes; and take them."""

    what: bytes | int | re.Pattern[bytes]


@dataclass(frozen=True)
class Pause:
    """Wait for an event of the test."""

    until: asyncio.Event


@dataclass(frozen=True)
class Tell:
    """Set an event of the test."""

    event: asyncio.Event


@dataclass(frozen=True)
class Flood:
    """Send `data` so many times, as fast as the other side takes it."""

    data: bytes
    times: int


@dataclass(frozen=True)
class Drip:
    """Send `data` so many times, with a rest before each."""

    data: bytes
    seconds: float
    times: int


@dataclass(frozen=True)
class Again:
    """These steps over and over, until the other side leaves."""

    steps: tuple[Step, ...]


class Act(enum.Enum):
    REQUEST = "take one HTTP/1.1 message: its head, and its body by content-length or chunked"
    FIN = "end our side; the other may go on"
    CLOSE = "close, politely"
    RST = "close with a reset"
    STOP_READING = "let what arrives pile up in the kernel"
    READ_ON = "read again"
    GONE = "wait until the other side has closed or reset"


REQUEST, FIN, CLOSE, RST, STOP_READING, READ_ON, GONE = Act
Step = bytes | Expect | Pause | Tell | Flood | Drip | Again | Act
Script = Sequence[Step]

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n")


class Left(Exception):
    """The other side left before the step was done."""


class Wire(asyncio.Protocol):
    """One end of a connection that does what a script says.

    `received`: every byte. `requests`: the messages taken by REQUEST. `how`: "fin" or "rst" once the other side has
    left, "ours" where this side closed first; at the loop time `closed_at`. `unfinished`: the step that was under way.
    """

    def __init__(self, opened: Callable[[Wire], None] | None = None, changed: Callable[[], None] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.received = bytearray()
        self.requests: list[bytes] = []
        self.taken = 0
        self.opened_at = self.closed_at = 0.0
        self.how: str | None = None
        self.unfinished: Step | None = None
        self.written = 0
        self._opened = opened
        self._changed = changed
        self._ended = False  # our end of the connection is no more
        self._writable = True
        self._waiting: list[asyncio.Future[None]] = []
        self._transport: asyncio.Transport | None = None

    # -- what tests ask and do

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @property
    def accepted(self) -> int:
        """Bytes written that the kernel has taken: what the other side cannot refuse any more."""
        return self.written - (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    async def run(self, *steps: Step) -> None:
        """Do the steps in order. Raises Left when the other side goes before they are done."""
        for step in steps:
            try:
                await self._do(step)
            except Left:
                self.unfinished = self.unfinished or step
                raise

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until a condition on this wire holds. Raises Left when it cannot any more."""
        while not true():
            if self.how is not None or self._ended:
                raise Left(f"the other side left ({self.how}) after {bytes(self.received[-200:])!r}")
            await self._change()

    async def take(self, size: int) -> bytes:
        await self.until(lambda: len(self.received) >= self.taken + size)
        data = bytes(self.received[self.taken : self.taken + size])
        self.taken += size
        return data

    async def take_until(self, what: bytes | re.Pattern[bytes]) -> bytes:
        """Everything from what was taken before to the end of the first match."""
        pattern = re.compile(re.escape(what)) if isinstance(what, bytes) else what
        await self.until(lambda: pattern.search(self.received, self.taken))
        match = pattern.search(self.received, self.taken)
        assert match is not None
        data = bytes(self.received[self.taken : match.end()])
        self.taken = match.end()
        return data

    async def take_message(self) -> bytes:
        """One HTTP/1.1 message with its body."""
        head = await self.take_until(b"\r\n\r\n")
        if length := _LENGTH.search(head):
            body = await self.take(int(length[1]))
        elif _CHUNKED.search(head):
            body = await self._take_chunks()
        else:
            body = b""
        return head + body

    async def _take_chunks(self) -> bytes:
        body = b""
        size = -1
        while size:
            line = await self.take_until(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            body += line + await self.take(size + 2)  # trailers are sent by nobody here
        return body

    async def gone(self) -> str:
        """Wait until the connection is over: `how`."""
        while self.how is None:
            await self._change()
        return self.how

    def reset(self) -> None:
        """Close with a reset, whatever is buffered on either side."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self.transport.write(data)

    # -- steps

    async def _do(self, step: Step) -> None:
        match step:
            case bytes():
                self.write(step)
                await self._drained()
            case Expect(int(size)):
                await self.take(size)
            case Expect(what):
                assert not isinstance(what, int)
                await self.take_until(what)
            case Pause(until):
                await until.wait()
            case Tell(event):
                event.set()
            case Act():
                await self._act(step)
            case _:
                await self._repeat(step)

    async def _repeat(self, step: Flood | Drip | Again) -> None:
        match step:
            case Flood(data, times):
                for _ in range(times):
                    await self._do(data)
            case Drip(data, seconds, times):
                for _ in range(times):
                    await self._rest(seconds)
                    await self._do(data)
            case Again(steps):
                while True:
                    await self.run(*steps)

    async def _act(self, act: Act) -> None:
        match act:
            case Act.REQUEST:
                self.requests.append(await self.take_message())
                self._notify()
            case Act.FIN:
                self.transport.write_eof()
            case Act.CLOSE:
                self.transport.close()
            case Act.RST:
                self.reset()
            case Act.STOP_READING:
                self.transport.pause_reading()
            case Act.READ_ON:
                self.transport.resume_reading()
            case Act.GONE:
                await self.gone()

    async def _rest(self, seconds: float) -> None:
        """Let time pass, unless the other side leaves."""
        try:
            async with asyncio.timeout(seconds):
                await self.until(lambda: False)
        except TimeoutError:
            return

    async def _drained(self) -> None:
        while not self._writable and not self._ended:
            await self._change()
        if self._ended:
            raise Left("the other side left while it was written to")

    async def _change(self) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(future)
        await future

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if self._changed is not None:
            self._changed()

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.opened_at = self.loop.time()
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._notify()

    def eof_received(self) -> bool:
        self._left("fin")
        return self.transport.get_extra_info("sslcontext") is None  # TLS knows no half-closed connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._left("ours" if exc is None else "rst")
        self._notify()

    def _left(self, how: str) -> None:
        if self.how is None:
            self.how = how
            self.closed_at = self.loop.time()
            self._notify()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._notify()
