"""New connections: what is refused, what hangs, unix sockets, TLS, proxies; no byte of a request before it stands."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
import trustme

from sidecar.errors import ConnectFailed, ProviderError, TlsFailed, UpstreamTimeout
from sidecar.pool import Pool, dial
from sidecar.pool.dial import Dialer, make_context
from sidecar.types import Tls
from tests.faults.ground import black_hole, closed_port, nothing_left
from tests.faults.peer import CLOSE, FIN, GONE, REQUEST, RST, Act, Again, Expect, Script
from tests.pool.asks import (
    LIMITS,
    OK,
    REQUEST_BYTES,
    ask,
    call,
    fails,
    numbers,
    origin,
    pooled,
    serving,
    settled,
    whole,
    within,
)

ANSWERS = (Again((REQUEST, OK)),)


# -- TCP and unix sockets


async def test_a_refused_connection() -> None:
    async with nothing_left():
        pool = Pool()
        port = closed_port()
        error = await fails(pool, origin(port))
        assert type(error) is ConnectFailed
        assert error.message == f"provider lab: cannot connect to 127.0.0.1:{port}: connection refused"
        assert (error.status, error.retryable) == (502, True)
        await pool.aclose()


async def test_an_unreachable_address() -> None:
    async with nothing_left():
        pool = Pool()
        error = await fails(pool, origin(9, host="255.255.255.255"), connect=1)
        assert type(error) is ConnectFailed
        assert error.message.startswith("provider lab: cannot connect to 255.255.255.255:9: ")
        await pool.aclose()


async def test_a_black_hole_is_left_at_the_connect_deadline() -> None:
    async with nothing_left(), black_hole() as port:
        pool = Pool()
        loop = asyncio.get_running_loop()
        began = loop.time()
        error = await fails(pool, origin(port), connect=0.3)
        assert 0.29 <= loop.time() - began <= 0.6
        assert isinstance(error, UpstreamTimeout)
        assert (error.phase, error.status) == ("connect", 504)
        assert error.message == f"provider lab: no connection to 127.0.0.1:{port} within 0.3 s"
        await pool.aclose()


async def test_a_dial_that_is_cancelled_leaves_nothing() -> None:
    async with nothing_left(), black_hole() as port:
        pool = Pool()
        task = asyncio.get_running_loop().create_task(pool.send(ask(origin(port)), within(), LIMITS))
        await settled(lambda: numbers(pool) == (0, 1, 0, 0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert numbers(pool) == (0, 0, 0, 0)
        await pool.aclose()


@pytest.mark.parametrize("first", ["refuses", "hangs"])
async def test_the_next_address_is_tried_and_remembered(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """RFC 8305: a dead first address costs a quarter of a second, once."""
    async with pooled(ANSWERS) as (pool, peer), _deaf("127.0.0.9", peer.port) if first == "hangs" else nullcontext():
        monkeypatch.setattr(socket, "getaddrinfo", _names("127.0.0.9", "127.0.0.1"))
        loop = asyncio.get_running_loop()
        to = origin(peer, host="provider.test")
        began = loop.time()
        held = await pool.send(ask(to), within(), LIMITS)
        took = loop.time() - began
        assert (0.24 <= took <= 0.5) if first == "hangs" else took <= 0.1
        began = loop.time()
        assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        assert loop.time() - began <= 0.1
        await whole(held)
        assert len(peer.connections) == 2


async def test_when_no_address_answers_the_last_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nothing_left(), black_hole() as hole:
        monkeypatch.setattr(socket, "getaddrinfo", _names("127.0.0.9", "127.0.0.8"))
        pool = Pool()
        error = await fails(pool, origin(hole, host="provider.test"))
        assert error.message == f"provider lab: cannot connect to provider.test:{hole}: connection refused"
        monkeypatch.setattr(socket, "getaddrinfo", _names("127.0.0.9", "127.0.0.1"))
        error = await fails(pool, origin(hole, host="hole.test"), connect=0.2)
        assert isinstance(error, UpstreamTimeout)
        await pool.aclose()


async def test_a_race_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with nothing_left(), black_hole() as hole, _deaf("127.0.0.9", hole):
        monkeypatch.setattr(socket, "getaddrinfo", _names("127.0.0.9", "127.0.0.1"))
        pool = Pool()
        task = asyncio.get_running_loop().create_task(
            pool.send(ask(origin(hole, host="provider.test")), within(), LIMITS)
        )
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert numbers(pool) == (0, 0, 0, 0)
        await pool.aclose()


async def test_two_addresses_that_answer_at_once_make_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "STAGGER_SECONDS", 0.0)
    async with pooled(ANSWERS) as (pool, peer):
        monkeypatch.setattr(socket, "getaddrinfo", _names("127.0.0.1", "127.0.0.1", "127.0.0.2"))
        for number in range(20):
            name = f"provider{number}.test"
            assert await whole(await pool.send(ask(origin(peer, host=name)), within(), LIMITS)) == b"ok"
        assert len(peer.requests) == 20


async def test_a_connection_is_probed_while_it_is_silent() -> None:
    async with pooled([REQUEST, GONE]) as (pool, peer):
        task = asyncio.get_running_loop().create_task(pool.send(ask(peer), within(), LIMITS))
        await peer.requested()
        connection = next(iter(next(iter(pool._bulkheads.values())).busy))
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def _names(*addresses: str) -> object:
    """A getaddrinfo that knows one answer."""

    def found(host: str, port: None, *, type: int) -> list[object]:  # noqa: A002  # getaddrinfo's own word
        return [(socket.AF_INET, type, 6, "", (address, 0)) for address in addresses]

    return found


@asynccontextmanager
async def _deaf(address: str, port: int) -> AsyncIterator[None]:
    """A full backlog at an address and port of choice."""
    with socket.socket() as listening:
        listening.bind((address, port))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield
        for filler in fillers:
            filler.close()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "provider.sock")
    async with pooled(ANSWERS, unix=path) as (pool, peer):
        to = origin(peer, unix=path, host="localhost")
        assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        assert (len(peer.connections), pool.stats()[0]["origin"]) == (1, f"unix:{path}")
        assert peer.requests == [REQUEST_BYTES] * 2


async def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    async with nothing_left():
        pool = Pool()
        path = str(tmp_path / "nobody.sock")
        error = await fails(pool, origin(1, unix=path))
        assert error.message == f"provider lab: cannot connect to unix:{path}: no such file or directory"
        await pool.aclose()


async def test_a_fresh_connection_that_is_lost_before_its_use_keeps_no_place() -> None:
    async with pooled(ANSWERS) as (pool, peer):
        made = pool._dialer.dial
        lost = 0

        async def dial_and_lose(*arguments: object) -> object:
            nonlocal lost
            connection = await made(*arguments)  # type: ignore[arg-type]  # passed on
            if lost < 2:
                lost += 1
                connection.abort()
            return connection

        pool._dialer.dial = dial_and_lose  # type: ignore[method-assign, assignment]  # one that fails
        with pytest.raises(ProviderError, match="closed the connection before an answer"):
            await call(pool, peer)
        assert numbers(pool) == (0, 0, 0, 0)
        assert await call(pool, peer) == b"ok"


# -- TLS


async def test_tls_with_the_name_and_the_roots_as_they_should_be(authority: trustme.CA, roots: str) -> None:
    context = serving(authority, "localhost")
    seen: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    async with pooled(ANSWERS, tls=context) as (pool, peer):
        to = origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots))
        for _ in range(2):
            assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        assert (seen, len(peer.connections), peer.requests) == (["localhost"], 1, [REQUEST_BYTES] * 2)
        tls = peer.connections[0].transport.get_extra_info("ssl_object")
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("name", "hostname mismatch, certificate is not valid for 'localhost'"),
        ("expired", "certificate has expired"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
async def test_a_certificate_that_is_not_good(authority: trustme.CA, roots: str, fault: str, words: str) -> None:
    issuer = trustme.CA() if fault == "stranger" else authority
    context = serving(issuer, "other.test" if fault == "name" else "localhost", expired=fault == "expired")
    async with pooled(ANSWERS, tls=context) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)))
        assert type(error) is TlsFailed
        assert (error.code, error.status) == ("provider_tls_failed", 502)
        assert error.message.rstrip(".") == f"provider lab: TLS with localhost failed: {words}"
        assert peer.received == b""


async def test_a_stranger_is_refused_with_the_systems_roots_too(authority: trustme.CA) -> None:
    async with pooled(ANSWERS, tls=serving(authority, "localhost")) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost"))
        assert type(error) is TlsFailed
        assert "issuer certificate" in error.message or "self-signed" in error.message
        assert peer.received == b""


async def test_an_old_version_of_tls(authority: trustme.CA, roots: str) -> None:
    context = serving(authority, "localhost")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with pooled(ANSWERS, tls=context) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)))
        assert type(error) is TlsFailed
        assert error.message == (  # asyncio's server sends no alert
            "provider lab: TLS with localhost failed: "
            "the connection was closed in the handshake; does the port speak TLS 1.2 or newer?"
        )
        assert peer.received == b""


async def test_a_peer_that_refuses_our_versions_of_tls(roots: str) -> None:
    protocol_version = b"\x15\x03\x01\x00\x02\x02\x46"  # a fatal alert, RFC 8446 6.2
    async with pooled([Expect(1), protocol_version, CLOSE]) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)))
        assert type(error) is TlsFailed
        assert error.message == "provider lab: TLS with localhost failed: it speaks no TLS of version 1.2 or newer"
        assert b"POST" not in peer.received


async def test_plain_http_where_tls_should_be(roots: str) -> None:
    script: Script = [Expect(1), b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", CLOSE]
    async with pooled(script) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)))
        assert type(error) is TlsFailed
        assert error.message == (
            "provider lab: TLS with localhost failed: the answer is not TLS; is the port one of plain HTTP?"
        )
        assert b"POST" not in peer.received


@pytest.mark.parametrize("ending", [CLOSE, FIN, RST])
async def test_a_peer_that_closes_in_the_handshake(roots: str, ending: Act) -> None:
    async with pooled([Expect(1), ending]) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)))
        assert type(error) is TlsFailed
        assert error.message.startswith("provider lab: TLS with localhost failed: ")
        assert b"POST" not in peer.received


async def test_a_handshake_that_hangs_is_left_at_the_connect_deadline(roots: str) -> None:
    async with pooled([GONE]) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots)), connect=0.3)
        assert isinstance(error, UpstreamTimeout)
        assert error.phase == "connect"
        await peer.left()


async def test_a_handshake_that_is_cancelled_leaves_nothing(roots: str) -> None:
    async with pooled([GONE]) as (pool, peer):
        to = origin(peer, scheme="https", host="localhost", tls=Tls(ca=roots))
        task = asyncio.get_running_loop().create_task(pool.send(ask(to), within(), LIMITS))
        await settled(lambda: peer.received)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert numbers(pool) == (0, 0, 0, 0)
        await peer.left()


async def test_verification_is_off_only_where_that_is_said(authority: trustme.CA) -> None:
    async with pooled(ANSWERS, tls=serving(authority, "other.test")) as (pool, peer):
        to = origin(peer, scheme="https", host="localhost", tls=Tls(verify=False))
        assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        assert type(await fails(pool_of(pool), origin(peer, scheme="https", host="localhost"))) is TlsFailed


def pool_of(_: Pool) -> Pool:
    return Pool()


@pytest.mark.parametrize("text", [None, "no certificate"])
async def test_a_file_of_roots_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    async with pooled(ANSWERS) as (pool, peer):
        error = await fails(pool, origin(peer, scheme="https", host="localhost", tls=Tls(ca=str(path))))
        assert type(error) is TlsFailed
        assert error.message.startswith(f"provider lab: tls_ca: {path} cannot be used: ")
        assert peer.connections == []


def test_the_defaults_of_tls() -> None:
    context = make_context(Tls())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) > 50


async def test_a_context_is_built_once_for_all_who_dial(monkeypatch: pytest.MonkeyPatch, roots: str) -> None:
    built: list[str] = []
    go_on = threading.Event()

    def build(tls: Tls) -> ssl.SSLContext:
        built.append(threading.current_thread().name)
        go_on.wait(5)
        return make_context(tls)

    monkeypatch.setattr(dial, "make_context", build)
    dialer = Dialer({})
    tls = Tls(ca=roots)
    loop = asyncio.get_running_loop()
    first, *others = [loop.create_task(dialer._context(tls)) for _ in range(50)]
    await settled(lambda: built)
    assert built == ["sidecar-tls"]  # a build has a thread
    first.cancel()  # who asked first may leave: the others still get theirs
    go_on.set()
    contexts = await asyncio.gather(*others)
    assert (built, len(set(map(id, contexts)))) == (["sidecar-tls"], 1)
    assert await dialer._context(tls) is contexts[0]
