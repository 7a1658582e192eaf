"""Listening and draining: sockets of every kind, the bound on connections, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from sidecar.config import Server as Settings
from sidecar.drive import Round
from sidecar.memory import SHED, SPARE
from sidecar.server.connection import Connection
from sidecar.server.cycle import Cycle, Work
from sidecar.server.lifespan import Lifespan
from sidecar.server.sockets import BACKLOG, bind_all, most_connections, named, unbind
from sidecar.types import ASGIApp
from sidecar.wire.framing import Limits

LAST_WORDS_SECONDS: Final = 1.0  # for an app whose task was cancelled at the deadline, to end its answer
LAST_CALL_SECONDS: Final = 0.25  # for who has connected before the end of listening, to begin to ask
RETRY_SECONDS: Final = 0.05
# The kernel's own bound is 4 MiB: so much would be generated, and billed, for a client that does not read.
_SEND_BUFFER_BYTES: Final = 256 * 1024
_CLIENTS_OWN: Final = frozenset((errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.EINTR))

Log = Callable[[Mapping[str, Any]], None]
# An app may have a method `direct(cycle)`: offered each request before a scope is built, it answers a coroutine that
# serves it through the Cycle's own methods, or None to have it served as ASGI. And one `on_level(call)`, to have the
# server told how short memory is.
Direct = Callable[[Cycle], Coroutine[Any, Any, None] | None]
Again = Callable[[Cycle, bytes], Work | Coroutine[Any, Any, None] | None]


class Hangups:
    """Clients that are not being read are watched here for their going: one epoll, itself watched by the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._watched: dict[int, Connection] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, connection: Connection) -> None:
        if fd not in self._watched:
            self._watched[fd] = connection
            self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)

    def discard(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already, and so not registered any more
                self._epoll.unregister(fd)

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            connection = self._watched.get(fd)
            self.discard(fd)
            if connection is not None:
                connection.hung_up()

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class Server:
    """`async with Server(app, settings) as server`: listens, serves, and drains at the end.

    `sockets`: bound ones to use instead of `settings.listen`. Raises OSError when an address cannot be had.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, *, sockets: list[socket.socket] | None = None, log: Log | None = None
    ) -> None:
        self.app = app
        self.settings = settings
        self.limits = Limits(
            request_line_bytes=settings.max_request_line_bytes,
            header_bytes=settings.max_header_bytes,
            headers=settings.max_headers,
        )
        self.state: dict[str, Any] = {}  # of the app's lifespan
        self.connections: set[Connection] = set()
        self.idle: dict[Connection, None] = {}  # between requests, the one idle longest first
        self.work: set[Work] = set()  # one for each exchange
        self.direct: Direct | None = getattr(app, "direct", None)
        self.again: Again | None = getattr(app, "again", None)
        self.draining = False  # answers close their connections: it ends, or memory is short
        self._ending = False
        self.stopping = False
        self.loop: asyncio.AbstractEventLoop
        self.hangups: Hangups
        self.round: Round
        self._log = log
        self._sockets = sockets or []
        self._accepting: list[asyncio.Task[None]] = []
        self._arrivals: dict[socket.socket, asyncio.Future[None]] = {}  # who waits for a client to come
        self.closing = False  # nobody is waited for any more
        self._shaking: set[asyncio.Task[None]] = set()  # TLS handshakes
        self._room = asyncio.Event()  # there may be room for one more connection
        self._empty = asyncio.Event()  # there are no connections any more
        self._hurried = asyncio.Event()
        self._worked = asyncio.Event()  # no app is at work any more, while stopping
        self._lifespan = Lifespan(app, self.state)
        if (on_level := getattr(app, "on_level", None)) is not None:
            on_level(self.spare)
        self._most = settings.max_connections or most_connections(settings.workers)
        self._context = _tls(settings)

    # -- life

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(lame_duck_seconds=0.0, drain_seconds=self.settings.drain_seconds)

    async def start(self) -> None:
        """Raises OSError (addresses) or AppFailed, and leaves nothing behind then."""
        self.loop = asyncio.get_running_loop()
        self.hangups = Hangups(self.loop)
        self.round = Round(self.loop)
        try:
            await self._lifespan.startup(self.loop)
            if not self._sockets:
                self._sockets = bind_all(self.settings)
            for sock in self._sockets:
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # accepted ones inherit it
                sock.listen(BACKLOG)
        except BaseException:
            await self._lifespan.shutdown(0.0)
            self._unbind()
            self.hangups.close()
            raise
        self._accepting = [self.loop.create_task(self._accept(sock)) for sock in self._sockets]

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with real ports: `127.0.0.1:4000`, `unix:/run/sidecar.sock`."""
        return [named(sock) for sock in self._sockets]

    async def drain(self, *, lame_duck_seconds: float, drain_seconds: float) -> None:
        """Stop: serve on for the lame-duck time, then only what is under way, until the deadline; then cut it short."""
        self._ending = self.draining = True
        await _happens(self._hurried, lame_duck_seconds)
        await self._stop_accepting()
        await self._last_call()
        await self._until_empty(drain_seconds)
        self.stopping = True
        for work in list(self.work):
            work.cancel()
        if self.work:
            await _happens(self._worked, LAST_WORDS_SECONDS)
        await self._close_all()
        if (words := await self._lifespan.shutdown()) is not None:
            self.note("lifespan", f"the app did not end well: {words}", None)
        self.hangups.close()

    def spare(self, level: int) -> None:
        """Memory is so short (sidecar.memory): no connection is kept that nobody needs, then no request taken."""
        shed = level >= SHED
        self.direct = None if shed else getattr(self.app, "direct", None)
        self.again = None if shed else getattr(self.app, "again", None)
        self.draining = self._ending or level >= SPARE
        if level >= SPARE:
            self._close_idle(new_too=False)

    def forget_work(self, work: Work) -> None:
        """An exchange's app has ended."""
        self.work.discard(work)
        if self.stopping and not self.work:
            self._worked.set()

    def hurry(self) -> None:
        """A second signal: do not wait for what is under way."""
        self._hurried.set()
        self._empty.set()

    async def _until_empty(self, seconds: float) -> None:
        """Wait until the last connection has closed, for a time, unless in a hurry."""
        if self.connections and not self._hurried.is_set():
            self._empty.clear()
            await _happens(self._empty, seconds)

    async def _stop_accepting(self) -> None:
        """Take whoever has connected, and nobody more. Without cancelling: a client just accepted would be lost."""
        self.closing = True
        self._room.set()
        for arrival in self._arrivals.values():
            _settle(arrival)
        await asyncio.gather(*self._accepting, return_exceptions=True)
        last = self._take_last()
        self._unbind()
        for client in last:
            with contextlib.suppress(OSError):
                await self._welcome(client)

    def _take_last(self) -> list[socket.socket]:
        """Whoever waits to be accepted, within the bound. Between this and the closing nobody may have time to come."""
        taken: list[socket.socket] = []
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                while self._has_room(len(taken)) and (client := _taken(sock)) is not None:
                    taken.append(client)
        return taken

    async def _last_call(self) -> None:
        """Close who is idle; but what has been sent is read first, and who is new here may begin, for a moment."""
        await _rounds()
        self._close_idle(new_too=False)
        if self._shaking:
            await asyncio.wait(self._shaking, timeout=LAST_CALL_SECONDS)
        if self.idle:
            await self._until_empty(LAST_CALL_SECONDS)
        shaking = list(self._shaking)
        for task in shaking:
            task.cancel()
        await asyncio.gather(*shaking, return_exceptions=True)
        self._close_idle(new_too=True)

    def _close_idle(self, *, new_too: bool) -> None:
        for connection in list(self.idle):
            if connection.reader.idle and (new_too or connection.asked):  # another has begun to ask
                connection.close()

    def _unbind(self) -> None:
        for sock in self._sockets:
            unbind(sock)

    async def _close_all(self) -> None:
        for connection in list(self.connections):
            connection.close()
        await self._until_empty(LAST_WORDS_SECONDS)
        for connection in list(self.connections):
            connection.abort()
        await _rounds()  # in which transports tell of their closing

    # -- accepting

    async def _accept(self, sock: socket.socket) -> None:
        """Take clients for as long as the server listens: there is no error of one client that may end it."""
        failing = False
        while not self.closing:
            try:
                client = _taken(sock)
                if client is None:
                    await self._arrival(sock)
                else:
                    await self._welcome(client)
                failing = False
            except OSError as error:
                if error.errno in _CLIENTS_OWN:
                    continue
                if _waited_on(sock):  # with no descriptor left, accepting fails with nobody there too
                    if not failing:  # told once, not twenty times a second
                        self.note("cannot accept", f"{error}", None)
                    failing = True
                    self._close_oldest()  # it has a descriptor, if that is what there are too few of
                await asyncio.sleep(RETRY_SECONDS)

    async def _arrival(self, sock: socket.socket) -> None:
        """Wait for the next client, or for the end of listening."""
        arrival: asyncio.Future[None] = self.loop.create_future()
        self._arrivals[sock] = arrival
        self.loop.add_reader(sock, _settle, arrival)
        try:
            await arrival
        finally:
            self.loop.remove_reader(sock)
            del self._arrivals[sock]

    async def _welcome(self, client: socket.socket) -> None:
        try:
            await self._make_room()
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                await self.loop.connect_accepted_socket(lambda: Connection(self, secure=False), client)
            else:
                self._shake(client)
        except BaseException:
            client.close()
            raise

    def _shake(self, client: socket.socket) -> None:
        """A TLS handshake takes as long as its client likes, up to the header deadline: nobody else waits for it."""
        task = self.loop.create_task(self._secure(client))
        self._shaking.add(task)
        task.add_done_callback(self._shaken)

    def _shaken(self, task: asyncio.Task[None]) -> None:
        self._shaking.discard(task)
        self._room.set()

    async def _secure(self, client: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: Connection(self, secure=True),
                client,
                ssl=self._context,
                ssl_handshake_timeout=self.settings.header_seconds,
                ssl_shutdown_timeout=self.settings.send_stall_seconds,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is one
            client.close()
            self.note("tls", f"handshake failed: {type(error).__name__}", None)

    async def _make_room(self) -> None:
        """At the bound the oldest idle connection goes; with none idle, nobody is served until one is, or closes."""
        while not self._has_room() and not self.closing:
            self._room.clear()
            self._close_oldest()
            await _happens(self._room, RETRY_SECONDS)  # not for ever: one that becomes idle does not tell

    def _has_room(self, more: int = 0) -> bool:
        return len(self.connections) + len(self._shaking) + more < self._most

    def _close_oldest(self) -> None:
        oldest = next(iter(self.idle), None)
        if oldest is not None:
            oldest.close()  # not abort: its last answer may not be all taken

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        self._room.set()
        if not self.connections:
            self._empty.set()

    # -- telling

    def note(self, event: str, words: str, client: tuple[str, int] | None) -> None:
        """One structured line for what a peer did."""
        if self._log is not None:
            self._log({"event": event, "detail": words, "client": f"{client[0]}:{client[1]}" if client else None})

    def bug(self, trace: str) -> None:
        if self._log is not None:
            self._log({"event": "bug", "trace": trace})

    def __repr__(self) -> str:
        return f"<Server {len(self.connections)} connections, {len(self.idle)} idle, {len(self.work)} exchanges>"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _taken(sock: socket.socket) -> socket.socket | None:
    """The client that has waited longest to be accepted, if any does."""
    sock.setblocking(False)  # each time: whoever else has this socket may have said otherwise, for all who have it
    try:
        client, _ = sock.accept()
    except BlockingIOError:
        return None
    client.setblocking(False)
    return client


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _waited_on(sock: socket.socket) -> bool:
    """Whether a client waits to be accepted."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


async def _rounds() -> None:
    """Let the loop read all that there is to read, and call all that has been put off."""
    for _ in range(3):
        await asyncio.sleep(0)


async def _happens(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, and no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
