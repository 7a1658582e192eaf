"""Listening and draining: sockets of every kind, the bound on connections, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import socket
import ssl
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from sidecar.config import Server as Settings
from sidecar.server.connection import Connection
from sidecar.types import ASGIApp, Message
from sidecar.wire.http1 import Limits

BACKLOG: Final = 2048
LAST_WORDS_SECONDS: Final = 1.0  # for an app whose task was cancelled at the deadline, to end its answer
_MOST_CONNECTIONS: Final = 4096
_FD_SHARE: Final = 0.45  # an exchange holds two descriptors, and something must be left

Log = Callable[[Mapping[str, Any]], None]


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
        self.tasks: set[asyncio.Task[None]] = set()  # one for each exchange
        self.draining = False
        self.stopping = False
        self.loop: asyncio.AbstractEventLoop
        self.hangups: Hangups
        self._log = log
        self._sockets = sockets
        self._accepting: list[asyncio.Task[None]] = []
        self._shaking: set[asyncio.Task[Any]] = set()  # TLS handshakes
        self._room: asyncio.Future[None] | None = None
        self._gone_idle: asyncio.Future[None] | None = None
        self._lifespan: Lifespan | None = None
        self._most = settings.max_connections or _most_connections()
        self._context = _tls(settings)

    # -- life

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(lame_duck_seconds=0.0, drain_seconds=self.settings.drain_seconds)

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.hangups = Hangups(self.loop)
        self._lifespan = Lifespan(self.app, self.state)
        await self._lifespan.startup(self.loop)
        if self._sockets is None:
            self._sockets = [bind(address, self.settings) for address in self.settings.listen]
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(BACKLOG)
            self._accepting.append(self.loop.create_task(self._accept(sock)))

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with real ports: `127.0.0.1:4000`, `unix:/run/sidecar.sock`."""
        return [_named(sock) for sock in self._sockets or ()]

    async def drain(self, *, lame_duck_seconds: float, drain_seconds: float) -> None:
        """Stop: serve on for the lame-duck time, then only what is under way, until the deadline; then cut it short."""
        self.draining = True
        if lame_duck_seconds > 0:
            await asyncio.sleep(lame_duck_seconds)
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets or ():
            unbind(sock)
        for connection in list(self.idle):
            connection.close()
        await self._until_idle(drain_seconds)
        self.stopping = True
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=LAST_WORDS_SECONDS)
        await self._until_closed()
        if self._lifespan is not None:
            await self._lifespan.shutdown()
        self.hangups.close()

    def hurry(self) -> None:
        """A second signal: do not wait for what is under way."""
        if self._gone_idle is not None and not self._gone_idle.done():
            self._gone_idle.set_result(None)

    async def _until_idle(self, seconds: float) -> None:
        if self.connections and seconds > 0:
            self._gone_idle = self.loop.create_future()
            timer = self.loop.call_later(seconds, self.hurry)
            try:
                await self._gone_idle
            finally:
                timer.cancel()

    async def _until_closed(self) -> None:
        for task in self._shaking:
            task.cancel()
        for connection in list(self.connections):
            connection.close()
        for _ in range(3):  # transports tell of their closing in the loop's next rounds
            await asyncio.sleep(0)
        for connection in list(self.connections):
            connection.abort()
        for _ in range(3):
            await asyncio.sleep(0)

    # -- accepting

    async def _accept(self, sock: socket.socket) -> None:
        while True:
            await self._make_room()
            try:
                client, _ = await self.loop.sock_accept(sock)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.note("out of descriptors", str(error), None)
                    self._close_oldest()
                    await asyncio.sleep(0.05)
                    continue
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                raise
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                await self.loop.connect_accepted_socket(lambda: Connection(self, secure=False), client)
            else:
                self._shake(client)

    def _shake(self, client: socket.socket) -> None:
        """A TLS handshake takes as long as its client likes, up to the header deadline: nobody else waits for it."""
        task = self.loop.create_task(self._secure(client))
        self._shaking.add(task)
        task.add_done_callback(self._shaking.discard)

    async def _secure(self, client: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(
                lambda: Connection(self, secure=True),
                client,
                ssl=self._context,
                ssl_handshake_timeout=self.settings.header_seconds,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is one
            client.close()
            self.note("tls", f"handshake failed: {type(error).__name__}", None)

    async def _make_room(self) -> None:
        """At the bound the oldest idle connection goes; with none idle, nobody new is taken until one closes."""
        while len(self.connections) + len(self._shaking) >= self._most:
            if not self._close_oldest():
                self._room = self.loop.create_future()
                await self._room
                self._room = None
            else:
                await asyncio.sleep(0)

    def _close_oldest(self) -> bool:
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        oldest.abort()
        return True

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.idle.pop(connection, None)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self.draining and not self.connections:
            self.hurry()

    # -- telling

    def note(self, event: str, words: str, client: tuple[str, int] | None) -> None:
        """One structured line for what a peer did."""
        if self._log is not None:
            self._log({"event": event, "detail": words, "client": f"{client[0]}:{client[1]}" if client else None})

    def bug(self, trace: str) -> None:
        if self._log is not None:
            self._log({"event": "bug", "trace": trace})

    def __repr__(self) -> str:
        return f"<Server {len(self.connections)} connections, {len(self.idle)} idle, {len(self.tasks)} exchanges>"


class Lifespan:
    """The app's lifespan (ASGI lifespan 2.0). An app that raises before it answers has none, and is served all the same."""

    def __init__(self, app: ASGIApp, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._told: list[Message] = []
        self._heard: asyncio.Future[None] | None = None
        self._stop: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._receives = 0

    async def startup(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises RuntimeError when the app says that it cannot start."""
        self._heard, self._stop = loop.create_future(), loop.create_future()
        self._task = loop.create_task(self._run())
        await self._heard
        if any(message["type"] == "lifespan.startup.failed" for message in self._told):
            raise RuntimeError(f"the app did not start: {self._told[-1].get('message', '')}")

    async def shutdown(self) -> None:
        if self._task is None or self._stop is None:
            return
        if not self._stop.done():
            self._stop.set_result(None)
        await asyncio.wait([self._task], timeout=10)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception:  # noqa: BLE001  # ASGI: raising means that lifespan is not supported
            if self._told:
                self._told.append({"type": "lifespan.startup.failed", "message": "an error in its lifespan"})
        finally:
            self._hear()

    async def _receive(self) -> Message:
        self._receives += 1
        if self._receives == 1:
            return {"type": "lifespan.startup"}
        assert self._stop is not None
        await self._stop
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        self._told.append(message)
        self._hear()

    def _hear(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)


# -- sockets


def bind(address: str, settings: Settings, *, reuse_port: bool = False) -> socket.socket:
    """A bound socket for `host:port`, `unix:/path` or `fd:N`. Raises OSError saying what is wrong with the address."""
    try:
        return _bind(address, settings, reuse_port=reuse_port)
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise OSError(error.errno, f"cannot listen on {address}: {words}") from None


def _bind(address: str, settings: Settings, *, reuse_port: bool) -> socket.socket:
    if address.startswith("fd:"):
        return socket.socket(fileno=int(address.removeprefix("fd:")))
    if address.startswith("unix:"):
        return _bind_unix(address.removeprefix("unix:"), settings.socket_mode)
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host or "0.0.0.0", int(port)))  # noqa: S104  # what ":4000" means; config.load demands callers for it
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, mode: int) -> socket.socket:
    """Its mode is right before anyone can connect, which is when it listens. A socket nobody answers on is removed."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, "somebody does already")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        os.chmod(path, mode)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def unbind(sock: socket.socket) -> None:
    """Close a listening socket; a unix socket's file goes with it, if it is still the one that was made."""
    path = sock.getsockname() if sock.family == socket.AF_UNIX else None
    sock.close()
    if isinstance(path, str) and path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _named(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _most_connections() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST_CONNECTIONS, int(soft * _FD_SHARE)) if soft != resource.RLIM_INFINITY else _MOST_CONNECTIONS
