"""The raw peers against each other: what one does, the other records."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.faults.ground import black_hole, closed_port, nothing_left
from tests.faults.peer import (
    CLOSE,
    FIN,
    GONE,
    READ_ON,
    REQUEST,
    RST,
    STOP_READING,
    Act,
    Again,
    Drip,
    Expect,
    Flood,
    Left,
    Pause,
    RawClient,
    RawServer,
    Script,
    Tell,
)


async def test_messages_are_taken_one_by_one_whatever_their_framing() -> None:
    messages = [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ]
    async with nothing_left(), RawServer([Again((REQUEST, b"ok"))]) as server, RawClient(server.port) as client:
        await client.run(b"".join(messages), Expect(8))
        assert server.requests == messages
        assert (bytes(client.received), server.received) == (b"ok" * 4, b"".join(messages))


async def test_each_connection_has_a_script_by_its_number() -> None:
    async with nothing_left(), RawServer(lambda number: [b"%d" % number, CLOSE]) as server:
        for number in range(3):
            async with RawClient(server.port) as client:
                assert await client.rest() == b"%d" % number
        assert len(server.connections) == 3


@pytest.mark.parametrize(("ending", "how"), [(FIN, "fin"), (CLOSE, "fin"), (RST, "rst")])
async def test_how_the_other_side_left(ending: Act, how: str) -> None:
    async with nothing_left(), RawServer([b"x", ending]) as server, RawClient(server.port) as client:
        assert await client.gone() == how
        assert client.closed_at >= client.opened_at > 0
    async with nothing_left(), RawServer([GONE]) as server:
        async with RawClient(server.port) as client:
            await client.run(b"x", ending)
            assert await (await server.connected()).gone() == how
        assert server.open == 0


async def test_a_half_closed_connection_still_carries_the_other_way() -> None:
    async with nothing_left(), RawServer([GONE, b"late"]) as server, RawClient(server.port) as client:
        await client.run(FIN, Expect(b"late"))


async def test_a_step_that_cannot_be_done_any_more_is_remembered() -> None:
    step = Expect(re.compile(rb"never\d"))
    async with nothing_left(), RawServer([step, b"not sent"]) as server:
        async with RawClient(server.port) as client:
            await client.run(b"never", CLOSE)
            wire = await server.connected()
            await wire.gone()
        await server.left()
        assert wire.unfinished == step
    async with nothing_left(), RawServer([CLOSE]) as server, RawClient(server.port) as client:
        with pytest.raises(Left, match=r"the other side left \(fin\) after b''"):
            await client.response()


async def test_who_does_not_read_holds_the_other() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    script: Script = [STOP_READING, Tell(begun), Pause(go_on), READ_ON, Expect(50_000_000), b"all"]
    async with nothing_left(), RawServer(script) as server, RawClient(server.port) as client:
        await begun.wait()
        task = asyncio.get_running_loop().create_task(client.run(Flood(b"x" * 1_000_000, 50), Expect(b"all")))
        taken = -1
        while client.accepted != taken or not taken:
            taken = client.accepted
            await asyncio.sleep(0.05)
        assert taken < 20_000_000
        go_on.set()
        await task


async def test_a_drip_takes_its_time() -> None:
    async with nothing_left(), RawServer([Drip(b"x", 0.03, 3)]) as server, RawClient(server.port) as client:
        await client.take(3)
        assert 0.08 <= client.loop.time() - client.opened_at <= 0.3


async def test_the_ground_is_as_it_says() -> None:
    async with nothing_left(), black_hole() as port:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), RawClient(port):
                pass
    async with nothing_left():
        with pytest.raises(ConnectionRefusedError):
            async with RawClient(closed_port()):
                pass


async def test_what_is_left_behind_is_told() -> None:
    async def leaks() -> None:
        async with nothing_left(0.05):
            tasks.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    tasks: list[asyncio.Task[bool]] = []
    with pytest.raises(AssertionError, match="left behind"):
        await leaks()
    tasks[0].cancel()
