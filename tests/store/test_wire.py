"""One connection: in order, together, bounded, and back by itself."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme

from sidecar.secret import Secret
from sidecar.store import wire
from sidecar.store.resp import Broken, ReplyError, command
from sidecar.store.wire import LOST, Dial, Lane, ask, dialer, greeting
from tests.store.fake import Fake, fake, friendly, until
from tests.store.servers import Redis

ECHO = command("ECHO", "x")


class Told(list[str | None]):
    """What a lane said of itself."""


@asynccontextmanager
async def lane(dial: Dial, *, password: Secret | None = None) -> AsyncIterator[tuple[Lane, Told]]:
    told = Told()
    made = Lane(dial, lambda: greeting("", password, 0), told.append)
    try:
        yield made, told
    finally:
        made.close()
        await asyncio.sleep(0.01)


async def said(of: Lane, packed: bytes = ECHO) -> Any:
    """The reply, or LOST; None where nothing was asked."""
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[Any] = loop.create_future()
    if not of.call(packed, reply.set_result):
        return None
    return await reply


async def test_who_asks_at_once_waits_for_the_first_connection(server: Redis) -> None:
    async with lane(dialer("127.0.0.1", server.port)) as (found, told):
        assert not found.up
        assert await said(found) == b"x"
        assert found.up
        assert told == [None]
        assert repr(found) == "<Lane up, 0 asked>"


async def test_answers_come_in_order_and_what_is_asked_in_one_round_goes_together() -> None:
    async with fake() as server, lane(dialer("127.0.0.1", server.port)) as (found, _):
        await until(lambda: found.up)
        server.answer = lambda parts: b"$%d\r\n%b\r\n" % (len(parts[1]), parts[1])
        got: list[bytes] = []
        for number in range(100):
            assert found.call(command("ECHO", number), got.append)
        await until(lambda: len(got) == 100)
        assert got == [b"%d" % number for number in range(100)]
        assert server.reads[1:] == [100]


async def test_the_greeting_comes_first_and_its_error_is_told() -> None:
    async with fake() as server:
        server.answer = lambda parts: b"-WRONGPASS secret\r\n" if parts[0] == b"AUTH" else friendly(parts)
        async with lane(dialer("127.0.0.1", server.port), password=Secret("hunter2")) as (found, told):
            assert await said(found) == b"OK"  # to nobody's harm: what the server says is the server's
            await until(lambda: told)
            assert told == ["it refuses: WRONGPASS"]
            assert [parts[0] for parts in server.asked[:3]] == [b"AUTH", b"PING", b"ECHO"]
            assert await said(found) is None
            server.answer = friendly
            await until(lambda: found.up)
            assert told == ["it refuses: WRONGPASS", None]


async def test_no_answer_costs_forty_milliseconds_once_and_then_nothing() -> None:
    async with fake() as server, lane(dialer("127.0.0.1", server.port)) as (found, told):
        await until(lambda: found.up)
        loop = asyncio.get_running_loop()
        server.answer = lambda parts: None
        began = loop.time()
        assert list(await asyncio.gather(*(said(found) for _ in range(3)))) == [LOST] * 3
        assert 0.039 <= loop.time() - began < 0.5
        began = loop.time()
        assert [await said(found) for _ in range(100)] == [None] * 100
        assert loop.time() - began < 0.02
        assert told == [None, "no answer in time"]
        server.answer = friendly
        await until(lambda: found.up)
        assert await said(found) == b"OK"


async def test_an_answer_that_came_while_the_loop_was_busy_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as server, lane(dialer("127.0.0.1", server.port)) as (found, told):
        await until(lambda: found.up)
        got: list[Any] = []
        found.call(ECHO, got.append)
        await asyncio.sleep(0)
        hold = asyncio.get_running_loop().time() + 0.1
        while asyncio.get_running_loop().time() < hold:
            pass
        await until(lambda: got)
        assert got == [b"OK"]
        assert told == [None]


async def test_a_first_connection_that_hangs_holds_nobody_for_longer() -> None:
    async with fake() as server:
        server.answer = lambda parts: None
        async with lane(dialer("127.0.0.1", server.port)) as (found, told):
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await said(found) is LOST
            assert loop.time() - began < 0.5
            assert await said(found) is None
            assert told == ["no answer in time"]


async def test_a_connection_that_is_never_made_holds_nobody() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        taken = [socket.create_connection(full.getsockname()) for _ in range(1)]
        async with lane(dialer(*full.getsockname())) as (found, told):
            assert await said(found) is LOST
            assert told == ["no answer in time"]
        for each in taken:
            each.close()


async def test_a_connection_that_is_lost_is_told_at_once_and_made_again() -> None:
    async with fake() as server, lane(dialer("127.0.0.1", server.port)) as (found, told):
        await until(lambda: found.up)
        server.answer = lambda parts: None
        waits = asyncio.gather(*(said(found) for _ in range(2)))
        await until(lambda: len(server.asked) == 3)
        server.answer = friendly
        server.drop()
        assert list(await waits) == [LOST, LOST]
        await until(lambda: found.up)
        assert told == [None, "it closed the connection", None]
        assert await said(found) == b"OK"


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as server:
        port = server.port
    async with lane(dialer("127.0.0.1", port)) as (found, told):
        assert await said(found) is LOST
        assert len(told) == 1
        assert str(told[0]).startswith("no connection: ")


async def test_what_does_not_speak_the_protocol_is_left() -> None:
    async with fake() as server:
        server.answer = lambda parts: b"HTTP/1.1 400 Bad Request\r\n\r\n"
        async with lane(dialer("127.0.0.1", server.port)) as (found, told):
            assert await said(found) is LOST
            assert told == ["it does not speak Redis' protocol: not a reply"]


async def test_an_answer_to_nothing_is_believed_no_more_than_the_next() -> None:
    async with fake() as server, lane(dialer("127.0.0.1", server.port)) as (found, told):
        await until(lambda: found.up)
        server.connections[0].write(b"+OK\r\n")
        await until(lambda: len(told) > 1)
        assert told[1] == "it does not speak Redis' protocol: an answer to nothing"


async def test_closing_sends_what_is_to_be_sent_and_loses_what_waits() -> None:
    async with fake() as server:
        async with lane(dialer("127.0.0.1", server.port)) as (found, told):
            await until(lambda: found.up)
            got: list[Any] = []
            found.call(command("ZREM", "a", "b"), got.append)
        assert got == [LOST]
        await until(lambda: [b"ZREM", b"a", b"b"] in server.asked)
        await until(lambda: not server.connections)
        assert not found.call(ECHO, got.append)
        assert told == [None]


async def test_closing_while_it_connects_leaves_nothing() -> None:
    async with fake() as server:
        async with lane(dialer("127.0.0.1", server.port)):
            pass
        await until(lambda: not server.connections)


async def test_over_tls_and_only_with_whom_it_was_told_to_trust() -> None:
    authority, other = trustme.CA(), trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    loop = asyncio.get_running_loop()
    made = Fake()
    from tests.store.fake import _Peer

    server = await loop.create_server(lambda: _Peer(made), "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    async with lane(dialer("127.0.0.1", port, context=trusting)) as (found, _):
        await until(lambda: found.up)
        assert await said(found) == b"OK"
    strangers = ssl.create_default_context()
    other.configure_trust(strangers)
    async with lane(dialer("127.0.0.1", port, context=strangers)) as (found, told):
        await until(lambda: told)
        assert told == ["no TLS: CERTIFICATE_VERIFY_FAILED"]
    server.close()
    await until(lambda: not made.connections)


async def test_a_question_on_a_connection_of_its_own(server: Redis) -> None:
    dial = dialer("", 0, path=server.socket)
    assert await ask(dial, [command("PING"), ECHO]) == b"x"
    with pytest.raises(ReplyError, match="ERR unknown command"):
        await ask(dial, [command("NOSUCH")])
    async with fake() as other:
        other.answer = lambda parts: b"?\r\n"
        with pytest.raises(Broken):
            await ask(dialer("127.0.0.1", other.port), [ECHO])
        other.answer = lambda parts: None
        task = asyncio.create_task(ask(dialer("127.0.0.1", other.port), [ECHO]))
        await until(lambda: len(other.asked) == 2)
        other.drop()
        with pytest.raises(ConnectionResetError):
            await task


def test_a_greeting_logs_in_and_takes_the_database() -> None:
    assert greeting("", None, 0) == [command("PING")]
    assert greeting("", Secret("p"), 3) == [command("AUTH", "p"), command("SELECT", 3), command("PING")]
    assert greeting("u", Secret("p"), 0) == [command("AUTH", "u", "p"), command("PING")]


def test_all_that_one_request_waits_is_below_fifty_milliseconds() -> None:
    from sidecar.store import BUDGET_SECONDS

    assert wire.ANSWER_SECONDS + wire.GRACE_SECONDS < BUDGET_SECONDS < 0.05
