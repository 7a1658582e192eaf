"""What pool tests send: requests, deadlines, and a pool between them and a raw peer that must be left with nothing."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from sidecar.errors import ProviderError
from sidecar.pool import Pool
from sidecar.pool.answer import Answer
from sidecar.pool.connection import Connection
from sidecar.types import Auth, Deadline, Headers, Origin, Outbound, PoolLimits
from sidecar.wire.heads import head_lines
from tests.faults.ground import nothing_left
from tests.faults.peer import RawServer, Script

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LIMITS = PoolLimits()
REQUEST_BYTES = b"POST /v1/chat/completions HTTP/1.1\r\nhost: provider.test\r\nx-one: 1\r\ncontent-length: 2\r\n\r\n{}"


def origin(peer: RawServer | int, **changes: Any) -> Origin:
    port = peer if isinstance(peer, int) else peer.port
    fields: dict[str, Any] = {"name": "lab", "scheme": "http", "host": "127.0.0.1", "port": port, **changes}
    return Origin(**fields)


def ask(
    to: Origin | RawServer,
    *,
    method: bytes = b"POST",
    path: bytes = b"/v1/chat/completions",
    headers: Headers | None = None,
    auth: Auth | None = None,
    body: bytes = b"{}",
    more: tuple[bytes | memoryview, ...] = (),
) -> Outbound:
    return Outbound(
        origin=to if isinstance(to, Origin) else origin(to),
        method=method,
        path=path,
        lines=head_lines([(b"host", b"provider.test"), *([(b"x-one", b"1")] if headers is None else headers)]),
        auth=auth,
        body=body,
        more=more,
    )


def within(total: float = 10.0, *, connect: float = 5.0, first_byte: float = 5.0, idle: float = 5.0) -> Deadline:
    return Deadline(at=asyncio.get_running_loop().time() + total, connect=connect, first_byte=first_byte, idle=idle)


async def whole(answer: Answer) -> bytes:
    """The body to its end; then the connection is given back."""
    try:
        pieces = []
        while piece := await answer.read():
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        answer.close()


class Owner:
    """Counts what the pool would be told."""

    def __init__(self) -> None:
        self.free = self.gone = 0

    def freed(self, connection: Connection) -> None:
        self.free += 1

    def lost(self, connection: Connection) -> None:
        self.gone += 1


class Transport(asyncio.Transport):
    """A transport without a socket. Readable never; written to without bound."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def fresh() -> tuple[Connection, Transport, Owner]:
    owner, transport = Owner(), Transport()
    loop = asyncio.get_running_loop()
    connection = Connection(loop, owner, "provider lab", loop.time() + 600)
    connection.connection_made(transport)
    return connection, transport, owner


async def exchanged(connection: Connection) -> Answer:
    """What the pool does with a connection that it has assigned."""
    try:
        connection.begin(ask(origin(1)), within())
        await connection.signal
        head = connection.head()
        return Answer(head.status, head.headers, head.index, connection)
    except BaseException:
        connection.abort()
        raise


async def call(pool: Pool, peer: RawServer, *, limits: PoolLimits = LIMITS) -> bytes:
    """One ordinary exchange."""
    return await whole(await pool.send(ask(peer), within(), limits))


def numbers(pool: Pool) -> tuple[int, int, int, int]:
    """idle, dialing, busy, waiting, over all origins."""
    names = ("idle", "dialing", "busy", "waiting")
    rows: Sequence[Mapping[str, Any]] = pool.stats()
    idle, dialing, busy, waiting = (sum(row[name] for row in rows) for name in names)
    return idle, dialing, busy, waiting


async def settled(true: Callable[[], object]) -> None:
    """Wait until something holds that takes a few rounds of the loop; a second at most."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 1.0
    while not true():
        assert loop.time() < deadline, "it did not come to hold within a second"
        await asyncio.sleep(0.001)


@asynccontextmanager
async def pooled(
    script: Script | Callable[[int], Script], *, proxies: Mapping[str, str] | None = None, **server: Any
) -> AsyncIterator[tuple[Pool, RawServer]]:
    """A pool and a peer. Afterwards nothing is active in the pool, and after its closing nothing is left at all."""
    async with nothing_left(), RawServer(script, **server) as peer:
        pool = Pool(proxies)
        try:
            yield pool, peer
            assert numbers(pool)[1:] == (0, 0, 0), repr(pool)
        finally:
            await pool.aclose()
        assert numbers(pool) == (0, 0, 0, 0), repr(pool)


async def fails(pool: Pool, to: Origin, *, connect: float = 5.0) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await pool.send(ask(to), within(connect=connect), LIMITS)
    assert numbers(pool) == (0, 0, 0, 0)
    return caught.value


def addresses(*addresses: str) -> object:
    async def resolve(_: str) -> list[tuple[int, str]]:
        return [(2, address) for address in addresses]

    return resolve


def serving(issuer: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(*names, not_after=past if expired else None).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
