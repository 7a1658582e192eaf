"""Tunnels through a proxy, and which origins the environment sends through one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping

import pytest
import trustme

from sidecar.errors import ConnectFailed, TlsFailed, UpstreamTimeout
from sidecar.pool import Pool
from sidecar.pool.dial import proxy_for
from sidecar.types import Tls
from tests.faults.ground import closed_port, nothing_left
from tests.faults.peer import CLOSE, GONE, REQUEST, RST, Again, RawServer, Script
from tests.pool.asks import (
    LIMITS,
    OK,
    REQUEST_BYTES,
    addresses,
    ask,
    call,
    fails,
    origin,
    pooled,
    serving,
    whole,
    within,
)

ANSWERS = (Again((REQUEST, OK)),)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def test_a_tunnel_through_a_proxy() -> None:
    async with pooled([REQUEST, ESTABLISHED, *ANSWERS]) as (pool, peer):
        to = origin(443, host="provider.test", proxy=f"http://127.0.0.1:{peer.port}")
        for _ in range(2):
            assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        connect = b"CONNECT provider.test:443 HTTP/1.1\r\nhost: provider.test:443\r\n\r\n"
        assert peer.requests == [connect, REQUEST_BYTES, REQUEST_BYTES]
        assert len(peer.connections) == 1


@pytest.mark.parametrize("given", ["http://me:p%40ss@127.0.0.1:{}", "me:p%40ss@127.0.0.1:{}"])
async def test_the_proxys_password_goes_to_the_proxy_only(given: str) -> None:
    async with pooled([REQUEST, ESTABLISHED, *ANSWERS]) as (pool, peer):
        to = origin(443, host="::1", proxy=given.format(peer.port))
        assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
        basic = base64.b64encode(b"me:p@ss")
        assert peer.requests == [
            b"CONNECT [::1]:443 HTTP/1.1\r\nhost: [::1]:443\r\nproxy-authorization: Basic " + basic + b"\r\n\r\n",
            REQUEST_BYTES,
        ]


async def test_tls_inside_a_tunnel(authority: trustme.CA, roots: str) -> None:
    """A proxy that hands bytes on both ways, to a peer that speaks TLS under the origin's name."""
    async with pooled(ANSWERS, tls=serving(authority, "provider.test")) as (pool, peer):
        async with _relaying(peer.port) as proxy:
            to = origin(443, scheme="https", host="provider.test", proxy=proxy, tls=Tls(ca=roots))
            for _ in range(2):
                assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
            assert peer.requests == [REQUEST_BYTES] * 2
            wrong = origin(443, scheme="https", host="other.test", proxy=proxy, tls=Tls(ca=roots))
            with pytest.raises(TlsFailed, match="hostname mismatch"):
                await pool.send(ask(wrong), within(), LIMITS)
            await pool.aclose()


class _relaying:  # noqa: N801  # reads as a word where it is used
    """A proxy that takes one head, says yes, and joins the two sides."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ESTABLISHED)
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._copy(reader, ours)), loop.create_task(self._copy(theirs, writer))]

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
        except ConnectionError:
            pass
        finally:
            sink.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",), "with status 407"),
        ((b"HTTP/1.1 502 Bad Gateway\r\n\r\n",), "with status 502"),
        ((b"HTTP/1.1 302 Found\r\nlocation: x\r\n\r\n",), "with status 302"),
        ((b"SSH-2.0-x\r\n",), "the proxy answered in broken HTTP"),
        ((ESTABLISHED + b"!",), "the proxy sent bytes behind its answer"),
        ((b"HTTP/1.1 200 OK\r\nx: " + b"a" * 40_000, GONE), "the proxy answered in broken HTTP: more than 16384"),
        ((CLOSE,), "the proxy closed the connection"),
        ((RST,), "the proxy closed the connection"),
        ((b"HTTP/1.1 200 OK\r\n", CLOSE), "the proxy closed the connection"),
    ],
)
async def test_a_proxy_that_says_no(reply: Script, words: str) -> None:
    async with pooled([REQUEST, *reply]) as (pool, peer):
        error = await fails(pool, origin(443, host="provider.test", proxy=f"http://me:canary@127.0.0.1:{peer.port}"))
        assert type(error) is ConnectFailed
        assert error.message.startswith("provider lab: ")
        assert words in error.message
        assert "canary" not in error.message
        await peer.left()
        assert len(peer.requests) == 1
        assert b"POST" not in peer.received


async def test_a_proxy_that_is_not_there() -> None:
    async with nothing_left():
        pool = Pool()
        port = closed_port()
        error = await fails(pool, origin(443, host="provider.test", proxy=f"http://me:canary@127.0.0.1:{port}"))
        assert type(error) is ConnectFailed
        assert error.message == f"provider lab: cannot connect to the proxy 127.0.0.1:{port}: connection refused"
        await pool.aclose()


@pytest.mark.parametrize(
    "proxy", ["https://proxy.test:1", "socks5://proxy.test:1", "http://", "http://me:canary@h:x", "http://[::1"]
)
async def test_a_proxy_of_which_nothing_is_understood(proxy: str) -> None:
    async with nothing_left():
        pool = Pool()
        error = await fails(pool, origin(443, host="provider.test", proxy=proxy))
        assert error.message == "provider lab: the proxy must be given as http://host:port"
        await pool.aclose()


@pytest.mark.parametrize("steps", [(REQUEST, GONE), (REQUEST, b"HTTP/1.1 200", GONE)])
async def test_a_proxy_that_hangs(steps: Script) -> None:
    async with pooled(steps) as (pool, peer):
        to = origin(443, host="provider.test", proxy=f"http://127.0.0.1:{peer.port}")
        error = await fails(pool, to, connect=0.2)
        assert isinstance(error, UpstreamTimeout)
        assert error.phase == "connect"
        await peer.left(1)

        task = asyncio.get_running_loop().create_task(pool.send(ask(to), within(), LIMITS))
        await peer.requested(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.left(2)


async def test_the_proxy_of_the_environment_and_none_where_the_origin_says_so() -> None:
    async with RawServer([REQUEST, ESTABLISHED, *ANSWERS]) as proxy:
        async with pooled(
            ANSWERS, proxies={"HTTPS_PROXY": "http://x.test:1", "http_proxy": f"127.0.0.1:{proxy.port}"}
        ) as (
            pool,
            peer,
        ):
            assert await whole(await pool.send(ask(origin(80, host="provider.test")), within(), LIMITS)) == b"ok"
            assert proxy.requests[0].startswith(b"CONNECT provider.test:80 ")
            assert await call(pool, peer) == b"ok"  # loopback
            pool._dialer._resolver.resolve = addresses("127.0.0.1")  # type: ignore[method-assign, assignment]  # a name
            to = origin(peer, host="provider.test", proxy="")
            assert await whole(await pool.send(ask(to), within(), LIMITS)) == b"ok"
            await pool.aclose()
        assert (len(proxy.connections), len(peer.connections)) == (1, 2)


P = "http://p.test:1"


@pytest.mark.parametrize(
    ("env", "scheme", "host", "proxied"),
    [
        ({}, "https", "a.test", False),
        ({"HTTPS_PROXY": P}, "https", "a.test", True),
        ({"https_proxy": P}, "https", "a.test", True),
        ({"HTTPS_PROXY": P}, "http", "a.test", False),
        ({"http_proxy": P}, "http", "a.test", True),
        ({"HTTP_PROXY": P}, "http", "a.test", False),  # a CGI program's client could set it by a header
        ({"ALL_PROXY": P}, "http", "a.test", True),
        ({"all_proxy": P}, "https", "a.test", True),
        ({"HTTPS_PROXY": ""}, "https", "a.test", False),
        ({"ALL_PROXY": P}, "https", "127.0.0.2", False),
        ({"ALL_PROXY": P}, "https", "::1", False),
        ({"ALL_PROXY": P}, "https", "localhost", False),
        ({"ALL_PROXY": P, "NO_PROXY": "*"}, "https", "a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": "a.test"}, "https", "a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": " x , A.TEST "}, "https", "a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": "test"}, "https", "a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": ".a.test"}, "https", "b.a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": "*.a.test"}, "https", "b.a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": "a.test"}, "https", "ba.test", True),
        ({"ALL_PROXY": P, "NO_PROXY": "a.test:443"}, "https", "a.test", False),
        ({"ALL_PROXY": P, "NO_PROXY": "a.test:8443"}, "https", "a.test", True),
        ({"ALL_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, "https", "10.1.2.3", False),
        ({"ALL_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, "https", "11.1.2.3", True),
        ({"ALL_PROXY": P, "NO_PROXY": "10.1.2.3"}, "https", "10.1.2.3", False),
        ({"ALL_PROXY": P, "NO_PROXY": "fd00::/8"}, "https", "fd00::1", False),
        ({"ALL_PROXY": P, "NO_PROXY": ",,"}, "https", "a.test", True),
        ({"ALL_PROXY": P, "no_proxy": "a.test", "NO_PROXY": "b.test"}, "https", "b.test", True),
    ],
)
def test_which_origins_go_through_the_environments_proxy(
    env: Mapping[str, str], scheme: str, host: str, proxied: bool
) -> None:
    assert proxy_for(origin(443, scheme=scheme, host=host), env) == (P if proxied else None)
