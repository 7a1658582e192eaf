"""Listening and draining: TLS, unix sockets, who is at the other end, bounds on connections, and the way out (R13)."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from sidecar.config import Server as Settings
from sidecar.server import Server, listen
from sidecar.types import Receive, Scope, Send
from tests.faults.ground import nothing_left
from tests.faults.peer import STOP_READING, Expect, RawClient
from tests.server.apps import GET, HEAD_200, Echo, Waits, answer, body_of, get, http, post, serving, undated, until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nGET / "


# -- where it listens


async def test_a_unix_socket_and_who_is_at_its_other_end(place: Path) -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await answer(send, b"%d %d %d" % scope["extensions"]["sidecar.peer"]())

    path = place / "s"
    async with serving(http(app), listen=(f"unix:{path}",)) as ground, RawClient(unix=str(path)) as client:
        assert ground.server.addresses == [f"unix:{path}"]
        await client.run(GET)
        wanted = b"\r\n\r\n%d %d %d" % (os.getpid(), os.getuid(), os.getgid())
        assert (await client.response()).endswith(wanted)
        assert (seen[0]["client"], seen[0]["server"]) == (None, (str(path), None))
    assert not path.exists()


async def test_several_addresses_of_one_server(place: Path) -> None:
    app = Echo()
    async with serving(app, listen=("127.0.0.1:0", "[::1]:0", f"unix:{place}/s")) as ground:
        first, second, _ = ground.server.addresses
        ports = [int(each.rpartition(":")[2]) for each in (first, second)]
        for client in (RawClient(ports[0]), RawClient(ports[1], host="::1"), RawClient(unix=f"{place}/s")):
            async with client:
                await client.run(GET)
                assert undated(await client.response()) == OK
        assert [scope["client"] and scope["client"][0] for scope in app.scopes] == ["127.0.0.1", "::1", None]
        assert app.scopes[1]["server"] == ("::1", ports[1])


async def test_who_is_at_the_other_end_of_tcp_is_not_known() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, repr(scope["extensions"]["sidecar.peer"]()).encode())

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET)
        assert (await client.response()).endswith(b"\r\n\r\nNone")


async def test_sockets_that_somebody_else_has_bound() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with Server(Echo(), Settings(drain_seconds=0.2), sockets=[sock.dup()]):
            async with RawClient(port) as client:
                await client.run(GET)
                assert undated(await client.response()) == OK


# -- TLS


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls(authority: trustme.CA, certificate: dict[str, str]) -> None:
    app = Echo()
    async with serving(app, **certificate) as ground:
        async with RawClient(ground.port, tls=trusting(authority)) as client:
            assert client.transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            for _ in range(2):
                await client.run(GET)
                assert undated(await client.response()) == OK
            await client.run(post(b"x" * 1_000_000))
            assert (await client.response()).endswith(b"x" * 1_000_000)
            await client.run(b"GET / HTTP/1.1\r\n\r\n", Expect(b"HTTP/1.1 400 "))
            await client.gone()
        assert [scope["scheme"] for scope in app.scopes] == ["https"] * 3


async def test_a_client_of_tls_that_leaves(authority: trustme.CA, certificate: dict[str, str]) -> None:
    app = Waits()
    async with serving(app, **certificate) as ground:
        async with RawClient(ground.port, tls=trusting(authority)) as client:
            await client.run(GET)
            await app.began.wait()
        await until(lambda: app.left.is_set() and app.called_back.is_set(), 1)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01"])
async def test_who_does_not_speak_tls_is_closed(certificate: dict[str, str], said: bytes) -> None:
    app = Echo()
    async with serving(app, **certificate, header_seconds=0.15) as ground, ground.client() as client:
        await client.run(said)
        assert b"HTTP" not in await client.rest()
        assert client.closed_at - client.opened_at < 0.8
        await until(lambda: ground.notes.events == ["tls"])
        assert app.calls == []


async def test_old_tls_is_refused(authority: trustme.CA, certificate: dict[str, str]) -> None:
    context = trusting(authority)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with serving(Echo(), **certificate) as ground:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # an alert, or not even that
            async with RawClient(ground.port, tls=context):
                pass


async def test_a_handshake_delays_nobody_else(authority: trustme.CA, certificate: dict[str, str]) -> None:
    async with serving(Echo(), **certificate) as ground:
        async with ground.client(), ground.client(), RawClient(ground.port, tls=trusting(authority)) as client:
            await client.run(GET)
            assert undated(await client.response()) == OK


async def test_handshakes_under_way_do_not_hold_up_the_end(certificate: dict[str, str]) -> None:
    async with serving(Echo(), **certificate, drain_seconds=5) as ground, ground.client() as client:
        await client.run(b"\x16\x03\x01")
        await asyncio.sleep(0.02)
        began = client.loop.time()
        await ground.server.drain(lame_duck_seconds=0, drain_seconds=5)
        assert client.loop.time() - began < 1


# -- bounds on connections


async def test_a_socket_that_somebody_sets_to_block_does_not_block_the_loop() -> None:
    """Whether it blocks is the socket's own, and so of all who share it: a parent, the next process of a restart."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with nothing_left(), Server(Echo(), Settings(), sockets=[sock.dup()]) as server:
            for _ in range(3):
                sock.setblocking(True)
                async with RawClient(int(server.addresses[0].rpartition(":")[2])) as client:
                    await client.run(GET)
                    assert undated(await client.response()) == OK


async def test_at_the_bound_the_oldest_idle_connection_goes() -> None:
    async with serving(Echo(), max_connections=3) as ground:
        clients = [ground.client() for _ in range(4)]
        for client in clients:
            await client.__aenter__()
            await client.run(GET)
            await client.response()
        assert [client.how for client in clients] == ["fin", None, None, None]
        assert len(ground.server.connections) == 3
        for client in clients:
            await client.__aexit__()


async def test_at_the_bound_an_answer_not_yet_taken_is_not_cut() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 8_000_000)

    async with serving(http(app), max_connections=1) as ground, ground.client(receive_buffer=4096) as slow:
        await slow.run(STOP_READING, GET)
        await until(lambda: ground.server.idle)
        async with ground.client():
            await asyncio.sleep(0.15)
            slow.transport.resume_reading()
            assert (await slow.rest()).count(b"x") == 8_000_000


@asynccontextmanager
async def _full(count: int, **settings: object) -> AsyncIterator[tuple[Waits, list[RawClient], list[int]]]:
    """A server with as many busy clients as it takes."""
    app = Waits()
    async with serving(app, max_connections=count, **settings) as ground:
        clients = [ground.client() for _ in range(count)]
        for client in clients:
            await client.__aenter__()
            await client.run(GET)
        await until(lambda: ground.exchanges == count)
        yield app, clients, [int(each.rpartition(":")[2]) for each in ground.server.addresses]
        for client in clients:
            await client.__aexit__()


async def test_with_none_idle_nobody_is_taken_until_one_leaves() -> None:
    async with _full(2) as (_, clients, ports), RawClient(ports[0]) as late:
        await late.run(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(0.15)
        assert late.received == b""
        await clients[0].__aexit__()
        await late.run(Expect(b"HTTP/1.1 400 "))


async def test_the_bound_holds_for_several_listeners_and_wakes_them_all() -> None:
    async with _full(2, listen=("127.0.0.1:0", "127.0.0.1:0")) as (_, clients, ports):
        async with RawClient(ports[0]) as one, RawClient(ports[1]) as other:
            for late in (one, other):
                await late.run(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0.1)
            for client in clients:
                await client.__aexit__()
            for late in (one, other):
                await late.run(Expect(b"HTTP/1.1 400 "))


async def test_one_that_becomes_idle_makes_room() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(send, b"ok")

    async with serving(http(app), max_connections=1) as ground, ground.client() as client:
        await client.run(GET)
        await until(lambda: ground.exchanges)
        async with ground.client() as late:
            await late.run(GET)
            await asyncio.sleep(0.1)
            go_on.set()
            assert (await client.response()).endswith(b"\r\nok")
            assert (await late.response()).endswith(b"\r\nok")


async def test_with_no_descriptors_left_it_waits_and_goes_on() -> None:
    async with serving(Echo()) as ground, ground.client() as idle:
        await idle.run(GET)
        await idle.response()
        client = RawClient(ground.port)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        probe = os.open("/dev/null", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 8, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                taken.extend(os.dup(probe) for _ in range(20))
            os.close(taken.pop())  # for the client's own end
            async with client:
                await client.run(GET)
                assert undated(await client.response()) == OK  # on the descriptor of the idle one
                assert await idle.gone() == "fin"
                assert ground.notes.events == ["cannot accept"]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in (*taken, probe):
                os.close(descriptor)


async def test_no_error_of_accepting_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Echo()) as ground:
        taken = listen._taken
        errors = [OSError(1, "operation not permitted"), ConnectionAbortedError(103, "aborted"), OSError(100, "down")]

        def fails(sock: socket.socket) -> socket.socket | None:
            client = taken(sock)
            if client is not None and errors:
                client.close()
                raise errors.pop()
            return client

        monkeypatch.setattr(listen, "_taken", fails)
        for _ in range(5):
            async with ground.client() as client:
                await client.run(GET)
                await asyncio.wait([client.loop.create_task(client.gone())], timeout=0.02)
        monkeypatch.undo()
        assert not errors
        async with ground.client() as client:
            await client.run(GET)
            assert undated(await client.response()) == OK


# -- the way out


async def test_a_stream_under_way_is_ended_and_nobody_new_is_taken() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(http(app)) as ground, ground.client() as client, ground.client() as idle:
        await client.run(GET + get("/never"), Expect(b"one\r\n"))
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=5))
        assert await idle.gone() == "fin"
        with pytest.raises(ConnectionRefusedError):
            await ground_port_again(client)
        go_on.set()
        assert (await client.rest()).endswith(b"3\r\ntwo\r\n0\r\n\r\n")
        assert client.received.count(b"HTTP/1.1 ") == 1
        await drain


async def ground_port_again(client: RawClient) -> None:
    async with RawClient(client.transport.get_extra_info("peername")[1]):
        pass


async def test_in_the_lame_duck_time_it_serves_on_and_says_close() -> None:
    async with serving(Echo()) as ground:
        port = ground.port
        async with ground.client() as old:
            await old.run(GET)
            assert b"connection" not in await old.response()
            drain = old.loop.create_task(ground.server.drain(lame_duck_seconds=0.3, drain_seconds=5))
            await asyncio.sleep(0.02)
            await old.run(GET)
            assert b"\r\nconnection: close\r\n" in await old.rest()
            async with RawClient(port) as new:
                await new.run(GET)
                assert b"\r\nconnection: close\r\n" in await new.rest()
            began = old.loop.time()
            await drain
            assert old.loop.time() - began < 0.4
        with pytest.raises(ConnectionRefusedError):
            async with RawClient(port):
                pass


async def test_behind_a_stream_that_began_before_it_the_connection_serves_on_too() -> None:
    """Its head said nothing of closing, so its client may ask again at once; that answer then says it."""
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET, Expect(b"one\r\n"))
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0.3, drain_seconds=5))
        await asyncio.sleep(0.02)
        go_on.set()
        await client.run(Expect(b"3\r\ntwo\r\n0\r\n\r\n"), GET)
        again = await client.rest()
        assert b"\r\nconnection: close\r\n" in again
        assert again.endswith(b"3\r\ntwo\r\n0\r\n\r\n")
        await drain


async def test_a_second_signal_ends_the_lame_duck_time_and_what_is_under_way() -> None:
    app = Waits()
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET)
        await app.began.wait()
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=30, drain_seconds=30))
        await asyncio.sleep(0.02)
        began = client.loop.time()
        ground.server.hurry()
        await drain
        assert client.loop.time() - began < 0.5


async def test_whoever_has_connected_before_the_end_is_heard() -> None:
    """In the backlog, accepted in this very moment, or new here and about to ask."""
    async with serving(Echo()) as ground:
        loop = asyncio.get_running_loop()
        socks = [socket.socket() for _ in range(20)]
        for number, sock in enumerate(socks):
            sock.connect(("127.0.0.1", ground.port))  # the loop has no time to accept
            if number % 2:
                sock.sendall(GET)
            sock.setblocking(False)
        drain = loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=5))
        await until(lambda: len(ground.server.connections) == 10)  # those who have not asked
        for sock in socks[::2]:
            await loop.sock_sendall(sock, GET)
        for sock in socks:
            got = b""
            while data := await loop.sock_recv(sock, 65536):
                got += data
            assert b"\r\nconnection: close\r\n" in got
            assert got.endswith(b"GET / ")
            sock.close()
        await drain


async def test_who_is_new_and_does_not_ask_does_not_hold_up_the_end() -> None:
    async with serving(Echo()) as ground, ground.client() as client, ground.client() as kept:
        await kept.run(GET)
        await kept.response()
        began = client.loop.time()
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=5))
        assert await kept.gone() == "fin"
        assert client.loop.time() - began < 0.2
        assert await client.gone() == "fin"
        assert client.loop.time() - began < 0.8
        await drain


async def test_a_second_signal_ends_the_wait_for_what_is_under_way() -> None:
    app = Waits(says=b"one")
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET, Expect(b"one\r\n"))
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=30))
        await asyncio.sleep(0.02)
        ground.server.hurry()
        await drain
        assert b"0\r\n\r\n" not in await client.rest()


async def test_half_a_request_at_the_time_of_the_end_may_still_be_finished() -> None:
    app = Echo()
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET[:-2])
        await asyncio.sleep(0.02)
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=5))
        await asyncio.sleep(0.02)
        await client.run(GET[-2:])
        assert b"\r\nconnection: close\r\n" in await client.rest()
        await drain


@pytest.mark.parametrize("begun", [True, False])
async def test_at_the_deadline_an_app_has_its_last_words(begun: bool) -> None:
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        if begun:
            await send(dict(HEAD_200))
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not begun:
                await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"event: error\n\n"})

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET)
        await running.wait()
        began = client.loop.time()
        await ground.server.drain(lame_duck_seconds=0, drain_seconds=0.2)
        assert 0.15 < client.loop.time() - began < 0.6
        got = await client.rest()
        assert b"event: error\n\n" in got
        assert got.endswith(b"\r\n0\r\n\r\n" if begun else b"error\n\n")


async def test_an_app_that_ignores_its_cancelling_is_left_behind_within_bounds() -> None:
    let_go = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async with nothing_left():
        async with Server(http(app), Settings(listen=("127.0.0.1:0",), drain_seconds=0.1)) as server:
            async with RawClient(int(server.addresses[0].rpartition(":")[2])) as client:
                await client.run(GET)
                await until(lambda: "1 exchanges" in repr(server))
                began = client.loop.time()
                await server.drain(lame_duck_seconds=0, drain_seconds=0.1)
                assert 1.0 < client.loop.time() - began < 1.8
                assert await client.rest() == b""
                let_go.set()
                await until(lambda: "0 exchanges" in repr(server))


async def test_last_words_on_their_way_may_be_taken() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"x" * 8_000_000)

    async with serving(http(app)) as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING, GET)
        await until(lambda: ground.server.idle)
        drain = client.loop.create_task(ground.server.drain(lame_duck_seconds=0, drain_seconds=0.1))
        await asyncio.sleep(0.3)
        client.transport.resume_reading()
        assert (await client.rest()).count(b"x") == 8_000_000
        await drain


async def test_clients_that_linger_do_not_hold_up_the_end() -> None:
    async with serving(Echo(), drain_seconds=5) as ground, ground.client() as client:
        await client.run(b"GET / HTTP/1.1\r\n\r\n", Expect(b"HTTP/1.1 400 "))
        began = client.loop.time()
        await ground.server.drain(lame_duck_seconds=0, drain_seconds=5)
        assert client.loop.time() - began < 1.3


@pytest.mark.parametrize("phase", [GET[:-2], post(b"abc")[:-1], GET])
async def test_whoever_stays_is_cut_at_the_deadline(phase: bytes) -> None:
    async with serving(Waits()) as ground, ground.client() as client:
        await client.run(phase)
        await asyncio.sleep(0.02)
        began = client.loop.time()
        await ground.server.drain(lame_duck_seconds=0, drain_seconds=0.2)
        assert 0.15 < client.loop.time() - began < 0.8
        await client.gone()


async def test_a_server_may_be_ended_twice() -> None:
    async with serving(Echo()) as ground:
        await ground.server.drain(lame_duck_seconds=0, drain_seconds=0)
