"""One connection to one Redis: commands go out as they come, answers come back in order. It is made again by itself.

Who asks is answered within a bound, or told that nothing was to be had: where the first of those that wait has waited
too long, the connection is given up with all of them. From then on nobody waits: a new one is made in the background,
and asked whether it answers, until one does.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from sidecar.clock import Alarm
from sidecar.secret import Secret
from sidecar.store.resp import Broken, Replies, ReplyError, command

LOST: Final = object()  # instead of a reply: there will be none
ANSWER_SECONDS: Final = 0.04  # for an answer, or nobody waits any more
GRACE_SECONDS: Final = 0.003  # for an answer that has come, but that this process was too busy to read
CONNECT_SECONDS: Final = 1.0  # for a connection and its first answer, while nobody waits
_REST_SECONDS: Final = (0.1, 1.0)  # before a new one is tried; doubled up to the second

Done = Callable[[Any], object]
Dial = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]


class _Session(asyncio.Protocol):
    """One of a lane's connections. What an earlier one has to say is of no interest any more."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.replies = Replies()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        found = cast("asyncio.Transport", transport)  # uvloop's are none by class
        if self.lane.session is not self:
            found.abort()
        else:
            self.transport = found
            self.lane.greet()

    def data_received(self, data: bytes) -> None:
        if self.lane.session is self:
            self.lane.receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lane.session is self:
            self.lane.lost("it closed the connection")


class Lane:
    """`dial` connects a protocol; `greeting` are the commands that come first, whose answers must be no errors.

    `told` is called with None when it is up, and with the reason when it is down.
    """

    def __init__(
        self,
        dial: Dial,
        greeting: Callable[[], list[bytes]],
        told: Callable[[str | None], object],
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._answer_seconds = answer_seconds
        self._loop = asyncio.get_running_loop()
        self._dial = dial
        self._greeting = greeting
        self._told = told
        self.session = _Session(self)
        self._task: asyncio.Task[None] | None = None  # of connecting
        self._timer: asyncio.TimerHandle | None = None
        self._alarm = Alarm(self._loop, self._late)
        self._asked: deque[tuple[float, Done]] = deque()  # what has no answer yet: until when one is waited for
        self._out: list[bytes] = []  # what is sent at the end of the loop's round
        self._greeted = 0  # answers to the greeting that have not come
        self._rest = _REST_SECONDS[0]
        self._closed = False
        self.up = False
        self.hopeful = True  # it is tried for the first time, so that calls wait for it
        self._connect()

    def call(self, packed: bytes, done: Done) -> bool:
        """Send a command; `done` gets its reply, or LOST after `answer_seconds`. False: it is down, and was not sent.

        All have the same patience: the first that was sent is the first to lose it.
        """
        if not self.up and not self.hopeful:
            return False
        due = self._loop.time() + self._answer_seconds
        if not self._asked:
            self._alarm.set(due)
        self._asked.append((due, done))
        self._out.append(packed)
        if self.up and len(self._out) == 1:
            self._loop.call_soon(self._flush)
        return True

    def close(self) -> None:
        """For good. What waits is lost; what was to be sent is."""
        self._flush()
        self._closed = True
        self._stop()

    # -- the session's side

    def greet(self) -> None:
        """There is a connection."""
        first = self._greeting()
        self._greeted = len(first)
        due = self._loop.time() + (self._answer_seconds if self.hopeful else CONNECT_SECONDS)
        if self._asked:
            due = min(due, self._asked[0][0])
        self._asked.extendleft([(due, self._welcome)] * len(first))
        self._alarm.set(due)
        self._out[:0] = first
        self._flush()

    def receive(self, data: bytes) -> None:
        try:
            for reply in self.session.replies.feed(data):
                if not self._asked:
                    raise Broken("an answer to nothing")
                self._asked.popleft()[1](reply)
        except Broken as error:
            self.lost(f"it does not speak Redis' protocol: {error}")
            return
        if self._asked:
            self._alarm.set(self._asked[0][0])
        else:
            self._alarm.clear()

    def lost(self, why: str) -> None:
        """Nothing is to be had of it: whoever waits is told, and it is left alone for a moment."""
        if self._closed or self._timer is not None:
            return
        was_hopeful = self.hopeful
        self._stop()
        self._timer = self._loop.call_later(self._rest * random.uniform(0.5, 1.0), self._connect)  # noqa: S311
        self._rest = min(self._rest * 2, _REST_SECONDS[1])
        if was_hopeful:
            self._told(why)

    # -- inside

    def _connect(self) -> None:
        self._timer = None
        self.session = _Session(self)
        self._task = self._loop.create_task(self._try(self.session))

    async def _try(self, session: _Session) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._dial(lambda: session)
            return
        except TimeoutError:
            why = "no connection within a second"
        except ssl.SSLError as error:
            why = f"no TLS: {error.reason or 'it failed'}"
        except (OSError, Broken, ReplyError) as error:
            why = f"no connection: {error}"
        if session is self.session:
            self.lost(why)

    def _welcome(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            self._loop.call_soon(self.lost, f"it refuses: {reply.kind}")
        elif reply is not LOST:
            self._greeted -= 1
            if self._greeted == 0:
                self.up = self.hopeful = True
                self._rest = _REST_SECONDS[0]
                self._told(None)
                self._flush()

    def _flush(self) -> None:
        if self._out and self.session.transport is not None:
            out, self._out = self._out, []
            self.session.transport.write(b"".join(out))

    def _late(self) -> None:
        """The first has waited too long, unless its answer is here, and this process has not read it yet."""
        if self._asked:
            self._loop.call_later(GRACE_SECONDS, self._too_late, self._asked[0])

    def _too_late(self, first: tuple[float, Done]) -> None:
        if self._asked and self._asked[0] is first:
            self.lost("no answer in time")

    def _stop(self) -> None:
        """No connection, and nobody who waits."""
        self.up = self.hopeful = False
        self._alarm.clear()
        session, self.session = self.session, _Session(self)
        if session.transport is not None:
            if self._closed:
                session.transport.close()
            else:
                session.transport.abort()
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._out = []
        asked, self._asked = self._asked, deque()
        for _, done in asked:
            done(LOST)

    def __repr__(self) -> str:
        return f"<Lane {'up' if self.up else 'down'}, {len(self._asked)} asked>"


class _Asking(asyncio.Protocol):
    """Sends commands once it is connected, and waits for their replies."""

    def __init__(self, commands: list[bytes]) -> None:
        self._commands = commands
        self._replies = Replies()
        self._got: list[Any] = []
        self.all: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(b"".join(self._commands))

    def data_received(self, data: bytes) -> None:
        try:
            self._got += self._replies.feed(data)
        except Broken as error:
            self._end(error)
        if len(self._got) >= len(self._commands):
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionResetError("it closed the connection"))

    def _end(self, error: Exception | None) -> None:
        if not self.all.done():
            if error is None:
                self.all.set_result(self._got)
            else:
                self.all.set_exception(error)


async def ask(dial: Dial, commands: list[bytes]) -> Any:
    """The last reply of several commands, over a connection of its own. Raises OSError, Broken, ReplyError."""
    asking: list[_Asking] = []

    def made() -> asyncio.Protocol:
        asking.append(_Asking(commands))
        return asking[0]

    await dial(made)
    try:
        for reply in (replies := await asking[0].all):
            if isinstance(reply, ReplyError):
                raise reply
    finally:
        if (transport := asking[0].transport) is not None:
            transport.close()
    return replies[-1]


def greeting(user: str, password: Secret | None, db: int) -> list[bytes]:
    """What a connection begins with. The password is revealed here, and goes to the store alone."""
    first = []
    if password is not None:
        first.append(command("AUTH", *((user,) if user else ()), password.reveal()))
    if db:
        first.append(command("SELECT", db))
    return [*first, command("PING")]


def dialer(host: str, port: int, *, path: str | None = None, context: ssl.SSLContext | None = None) -> Dial:
    """How to connect to one server."""

    async def dial(protocol: Callable[[], asyncio.Protocol]) -> object:
        loop = asyncio.get_running_loop()
        if path is not None:
            return await loop.create_unix_connection(protocol, path)
        name = host if context is not None else None
        return await loop.create_connection(protocol, host, port, ssl=context, server_hostname=name)

    return dial
