"""New connections: names, TCP, unix sockets, TLS, and proxies by CONNECT, all within one absolute deadline."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import certifi

from sidecar.errors import ConnectFailed, Malformed, TlsFailed, UpstreamTimeout
from sidecar.pool.connection import Connection
from sidecar.pool.resolve import Address, Resolver
from sidecar.types import Deadline, Origin, Tls
from sidecar.wire.framing import Limits
from sidecar.wire.heads import ResponseHead
from sidecar.wire.http1 import ResponseReader

Make = Callable[[], Connection]

STAGGER_SECONDS: Final = 0.25  # how long an address has for itself before the next is tried too (RFC 8305 section 5)
_GOODBYE_SECONDS: Final = 2.0  # for a peer's part in the end of a TLS session; asyncio's own is 30 s
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A model may think for minutes: without probes a NAT forgets us, and a peer that is gone is waited for.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    # The kernel's own bound is 6 MiB: so much would be generated, and billed, for a client that does not read.
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024),
)
_PROXY_LIMITS: Final = Limits(header_bytes=16384)
_NOT_TLS: Final = "the answer is not TLS; is the port one of plain HTTP?"
_TOO_OLD: Final = "it speaks no TLS of version 1.2 or newer"
_HUNG_UP: Final = "the connection was closed in the handshake; does the port speak TLS 1.2 or newer?"
_TLS_REASONS: Final = {  # of OpenSSL, where its words do not say it
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _TOO_OLD,
    "TLSV1_ALERT_PROTOCOL_VERSION": _TOO_OLD,
}


class Dialer:
    """Makes connections. `proxies`: the environment's HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."""

    def __init__(self, proxies: Mapping[str, str]) -> None:
        self._proxies = proxies
        self._resolver = Resolver()
        self._contexts: dict[Tls, ssl.SSLContext] = {}
        self._building: dict[Tls, asyncio.Future[ssl.SSLContext]] = {}  # by a thread each, for all who dial meanwhile

    async def dial(self, origin: Origin, deadline: Deadline, make: Make) -> Connection:
        """A connection to use. Raises ConnectFailed, TlsFailed, UpstreamTimeout(connect); not a byte was sent."""
        loop = asyncio.get_running_loop()
        at = min(loop.time() + deadline.connect, deadline.at)
        try:
            async with asyncio.timeout_at(at):
                return await self._dial(origin, make)
        except TimeoutError:
            raise UpstreamTimeout(
                f"provider {origin.name}: no connection to {_where(origin)} within {deadline.connect:g} s",
                phase="connect",
            ) from None
        except ConnectFailed as error:
            raise type(error)(f"provider {origin.name}: {error.message}") from None
        except ssl.SSLError as error:
            raise TlsFailed(f"provider {origin.name}: TLS with {origin.host} failed: {_tls_words(error)}") from None
        except OSError as error:
            raise ConnectFailed(
                f"provider {origin.name}: cannot connect to {_where(origin)}: {_words(error)}"
            ) from None

    async def _dial(self, origin: Origin, make: Make) -> Connection:
        loop = asyncio.get_running_loop()
        if origin.unix is not None:
            _, connection = await loop.create_unix_connection(make, origin.unix)
            return connection
        context = await self._context(origin.tls) if origin.scheme == "https" else None
        name = origin.host if context is not None else None
        proxy = origin.proxy if origin.proxy is not None else proxy_for(origin, self._proxies)
        if not proxy:
            return await self._connect(origin.host, origin.port, make, context, name)
        return await self._through(proxy, origin, make, context)

    async def _connect(
        self,
        host: str,
        port: int,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        name: str | None,
    ) -> Connection:
        loop = asyncio.get_running_loop()
        addresses = await self._resolver.resolve(host)
        if len(addresses) == 1:
            sock = await _open(addresses[0], port)
        else:
            sock, address = await _race(addresses, port)
            self._resolver.prefer(host, address)
        try:
            _, connection = await loop.create_connection(  # on failure, the transport closes the socket
                make,
                sock=sock,
                ssl=context,
                server_hostname=name,
                ssl_shutdown_timeout=_GOODBYE_SECONDS if context is not None else None,
            )
        except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
            if context is None:
                raise
            raise TlsFailed(f"TLS with {name} failed: {_HUNG_UP}") from None
        return connection  # type: ignore[return-value]  # what `make` makes; callers give what they take

    async def _through(self, proxy: str, origin: Origin, make: Make, context: ssl.SSLContext | None) -> Connection:
        """A tunnel by CONNECT (RFC 9110 9.3.6), then TLS to the origin inside it."""
        loop = asyncio.get_running_loop()
        try:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:  # the port is none; its text may be half a password, so it is not repeated
            parts, host, port = None, None, 0
        if parts is None or parts.scheme != "http" or not host:
            raise ConnectFailed("the proxy must be given as http://host:port")
        tunnel = _Tunnel(loop)
        try:
            await self._connect(host, port, lambda: tunnel, None, None)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectFailed(f"cannot connect to the proxy {host}:{port}: {_words(error)}") from None
        try:
            await tunnel.open(origin, parts.username, parts.password)
            transport = tunnel.transport
            assert transport is not None
            connection = make()
            if context is not None:
                secured = await loop.start_tls(
                    transport,
                    connection,
                    context,
                    server_hostname=origin.host,
                    ssl_shutdown_timeout=_GOODBYE_SECONDS,
                )
                assert secured is not None
                connection.connection_made(secured)
            else:
                transport.set_protocol(connection)
                connection.connection_made(transport)
                transport.resume_reading()
        except BaseException:
            if tunnel.transport is not None:
                tunnel.transport.abort()
            raise
        return connection

    async def _context(self, tls: Tls) -> ssl.SSLContext:
        """Built once for each way to trust, off the loop: reading the roots takes milliseconds."""
        context = self._contexts.get(tls)
        if context is not None:
            return context
        building = self._building.get(tls)
        if building is None:
            building = self._building[tls] = _in_thread(lambda: make_context(tls))
            building.add_done_callback(lambda built: self._built(tls, built))
        return await asyncio.shield(building)

    def _built(self, tls: Tls, built: asyncio.Future[ssl.SSLContext]) -> None:
        del self._building[tls]
        if not built.cancelled() and built.exception() is None:
            self._contexts[tls] = built.result()


async def _open(address: Address, port: int) -> socket.socket:
    """A TCP connection to one address."""
    family, host = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        for level, option, value in _OPTIONS:
            sock.setsockopt(level, option, value)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: list[Address], port: int) -> tuple[socket.socket, Address]:
    """The first connection of several addresses: each is tried once those before it failed or kept quiet."""
    loop = asyncio.get_running_loop()
    left = addresses[::-1]
    running: dict[asyncio.Task[socket.socket], Address] = {}
    failure: OSError | None = None
    try:
        while left or running:
            if left:
                address = left.pop()
                running[loop.create_task(_open(address, port))] = address
            done, _ = await asyncio.wait(
                running, timeout=STAGGER_SECONDS if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                address = running.pop(task)
                error = task.exception()
                if error is None:
                    return task.result(), address
                if not isinstance(error, OSError):
                    raise error
                failure = error
    finally:
        for task in running:
            task.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(late, socket.socket):
                late.close()
    assert failure is not None
    raise failure


def make_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 or newer, name and chain verified, with the system's roots and certifi's or the one file configured."""
    if tls.ca is not None:
        try:
            context = ssl.create_default_context(cafile=tls.ca)
        except OSError as error:
            words = "it holds no certificate" if isinstance(error, ssl.SSLError) else _words(error)
            raise TlsFailed(f"tls_ca: {tls.ca} cannot be used: {words}") from None
    else:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not tls.verify:  # `tls_verify = false`, of which the start has warned
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _in_thread(build: Callable[[], ssl.SSLContext]) -> asyncio.Future[ssl.SSLContext]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ssl.SSLContext] = loop.create_future()

    def tell(context: ssl.SSLContext | None, error: Exception | None) -> None:
        if future.done():
            return
        if context is not None:
            future.set_result(context)
        elif error is not None:
            future.set_exception(error)

    def run() -> None:
        context: ssl.SSLContext | None = None
        failure: Exception | None = None
        try:
            context = build()
        except (TlsFailed, OSError) as error:
            failure = error
        try:
            loop.call_soon_threadsafe(tell, context, failure)
        except RuntimeError:  # the loop has closed meanwhile
            return

    threading.Thread(target=run, name="sidecar-tls", daemon=True).start()
    return future


class _Tunnel(asyncio.Protocol):
    """The conversation with a proxy, up to the end of the head of its answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport | None = None
        self._reader = ResponseReader(_PROXY_LIMITS)
        self._status: asyncio.Future[int] = loop.create_future()

    async def open(self, origin: Origin, user: str | None, password: str | None) -> None:
        assert self.transport is not None
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        head = f"CONNECT {host}:{origin.port} HTTP/1.1\r\nhost: {host}:{origin.port}\r\n"
        if user is not None:
            plain = f"{unquote(user)}:{unquote(password or '')}".encode()
            head += f"proxy-authorization: Basic {base64.b64encode(plain).decode()}\r\n"
        self._reader.expect(b"HEAD")  # like an answer to HEAD, a 2xx to CONNECT has no body (RFC 9110 9.3.6)
        self.transport.write(head.encode() + b"\r\n")
        status = await self._status
        if not 200 <= status < 300:
            raise ConnectFailed(f"the proxy refused the connection with status {status}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        try:
            events = self._reader.feed(data)
        except Malformed as error:
            self._fail(ConnectFailed(f"the proxy answered in broken HTTP: {error.message}"))
            return
        for event in events:
            if isinstance(event, ResponseHead) and not self._status.done():
                if self._reader.excess:  # a proxy has nothing to say before the origin is spoken to
                    self._fail(ConnectFailed("the proxy sent bytes behind its answer"))
                    return
                assert self.transport is not None
                self.transport.pause_reading()  # whatever comes next is the origin's, for another protocol
                self._status.set_result(event.status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectFailed("the proxy closed the connection"))

    def _fail(self, error: ConnectFailed) -> None:
        if not self._status.done():
            self._status.set_exception(error)
            self._status.exception()  # told to whoever waits; nobody may, when the dial was given up


def proxy_for(origin: Origin, env: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for an origin; none for loopback, nor for what NO_PROXY lists."""
    names = ["https_proxy", "HTTPS_PROXY"] if origin.scheme == "https" else ["http_proxy"]
    proxy = next((env[name] for name in (*names, "all_proxy", "ALL_PROXY") if env.get(name)), None)
    if proxy is None or _is_loopback(origin.host):
        return None
    listed = env.get("no_proxy") or env.get("NO_PROXY") or ""
    if any(_matches(entry.strip().lower(), origin) for entry in listed.split(",")):
        return None
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _matches(entry: str, origin: Origin) -> bool:
    """One entry of NO_PROXY: `*`, a host with or without its port, a suffix, an address or a network."""
    if not entry:
        return False
    host = origin.host.lower()
    if entry == "*":
        return True
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and "/" not in entry and ":" not in name:
        return int(port) == origin.port and _matches(name, origin)
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        suffix = entry.removeprefix("*").removeprefix(".")
        return host == suffix or host.endswith("." + suffix)


def _where(origin: Origin) -> str:
    return f"unix:{origin.unix}" if origin.unix is not None else f"{origin.host}:{origin.port}"


def _words(error: OSError) -> str:
    if error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error).lower() or type(error).__name__


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.lower()
    reason = error.reason or str(error)
    return _TLS_REASONS.get(reason) or reason.lower().replace("_", " ")
