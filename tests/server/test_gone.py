"""Gone means gone: the app is told at once that its client has left, in whatever phase, and in both ways (R3)."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.types import Receive, Scope, Send
from tests.faults.peer import CLOSE, FIN, RST, Act, Expect
from tests.server.apps import GET, HEAD_200, Echo, Waits, body_of, get, http, post, serving, until

LEAVE = pytest.mark.parametrize("leave", [CLOSE, FIN, RST], ids=lambda act: act.name)


@LEAVE
async def test_while_the_app_has_not_answered(leave: Act) -> None:
    app = Waits()
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET)
        await app.began.wait()
        await client.run(leave)
        await until(lambda: app.left.is_set() and app.called_back.is_set(), 1)
        await until(lambda: not ground.server.connections)


@LEAVE
async def test_while_the_app_streams_and_is_silent(leave: Act) -> None:
    app = Waits(says=b"data: x\n\n")
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET, Expect(b"data: x\n\n"), leave)
        await until(lambda: app.left.is_set() and app.called_back.is_set(), 1)


@LEAVE
@pytest.mark.parametrize("sent", [0, 50])
async def test_while_the_body_arrives(leave: Act, sent: int) -> None:
    app = Waits()
    async with serving(app) as ground, ground.client() as client:
        await client.run(post(b"x" * 100)[: sent - 100])
        await app.began.wait()
        await client.run(leave)
        await until(lambda: app.left.is_set() and app.called_back.is_set(), 1)


@LEAVE
@pytest.mark.parametrize("waiting", [1, 3, 3000])
async def test_while_more_requests_wait_behind_it(leave: Act, waiting: int) -> None:
    app = Waits()
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET + GET * waiting)
        await app.began.wait()
        await asyncio.sleep(0.02)
        await client.run(leave)
        await until(lambda: app.left.is_set() and app.called_back.is_set(), 1)
        await until(lambda: not ground.server.connections)


@pytest.mark.parametrize("leave", [CLOSE, RST], ids=lambda act: act.name)
async def test_while_the_client_is_held_back(leave: Act) -> None:
    told = asyncio.Event()
    began = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["sidecar.gone"](told.set)
        began.set()
        await told.wait()
        assert (await receive())["type"] == "http.disconnect"

    size = 200_000 if leave is CLOSE else 10_000_000  # a FIN comes only behind what the kernel can take
    async with serving(http(app)) as ground:
        for _ in range(3):  # the descriptor is used again, and watched again
            began.clear()
            told.clear()
            async with ground.client() as client:
                client.write(post(b"x" * size))
                await began.wait()
                await asyncio.sleep(0.05)
                await client.run(leave)
                await until(told.is_set, 1)
            await until(lambda: not ground.server.connections)
        assert ground.notes.traces == ""


@pytest.mark.parametrize(
    "leave",
    [
        CLOSE,
        RST,
        FIN,
    ],
    ids=lambda act: act.name,
)
async def test_while_a_send_waits_for_the_client(leave: Act) -> None:
    ended = asyncio.Event()
    began = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(HEAD_200))
        began.set()
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": b"x" * 20_000_000, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.set()

    async with serving(http(app)) as ground, ground.client(receive_buffer=4096) as client:
        client.transport.pause_reading()
        await client.run(GET)
        await began.wait()
        await asyncio.sleep(0.02)
        await client.run(leave)
        await until(ended.is_set, 0.5)


async def test_an_app_that_asks_late_is_told_all_the_same() -> None:
    go_on, began = asyncio.Event(), asyncio.Event()
    told: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await go_on.wait()
        scope["extensions"]["sidecar.gone"](lambda: told.append("called back"))
        told.append((await receive())["type"])

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET)
        await began.wait()
        await client.run(CLOSE)
        await until(lambda: not ground.server.connections)
        go_on.set()
        await until(lambda: len(told) == 2)
        assert told == ["called back", "http.disconnect"]


async def test_nobody_is_told_of_a_client_that_left_with_its_answer() -> None:
    told: list[str] = []
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["sidecar.gone"](lambda: told.append("gone"))
        await body_of(receive)
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"ok"})
        await left.wait()

    async with serving(http(app)) as ground:
        async with ground.client() as client:
            await client.run(GET)
            await client.response()
        await until(lambda: not ground.server.connections)
        left.set()
        await until(lambda: not ground.exchanges)
        assert told == []


async def test_clients_that_leave_at_once() -> None:
    app = Echo()
    async with serving(app) as ground:
        for _ in range(50):
            async with ground.client() as client:
                client.reset()
        async with ground.client() as client:
            await client.run(GET)
            assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert len(app.calls) == 1


async def test_an_endless_stream_ends_when_its_client_has_gone() -> None:
    """What Starlette's StreamingResponse relies on with `spec_version` 2.4: nobody listens, a send tells."""
    ended = asyncio.Event()
    stop = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            assert scope["asgi"]["spec_version"] >= "2.4"
            await send(dict(HEAD_200))
            while not stop:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.001)
        except OSError:
            ended.set()

    async with serving(http(app)) as ground, ground.client() as client:
        await client.run(GET, Expect(b"x\r\n"), CLOSE)
        try:
            await until(ended.is_set, 0.5)
        finally:
            stop = True


async def test_many_that_leave_leave_nothing() -> None:
    app = Waits()
    async with serving(app) as ground:
        for number in range(100):
            async with ground.client() as client:
                await client.run(get("/") if number % 2 else post(b"abc")[:-1])
        await until(lambda: not ground.exchanges)
        assert repr(ground.server) == "<Server 0 connections, 0 idle, 0 exchanges>"
