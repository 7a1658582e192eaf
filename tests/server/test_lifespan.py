"""The app's lifespan: started, ended, absent, failing, hanging."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.config import Server as Settings
from sidecar.server import Server
from sidecar.server.lifespan import AppFailed, Lifespan
from sidecar.types import ASGIApp, Receive, Scope, Send
from tests.faults.ground import nothing_left
from tests.server.apps import GET, Notes, answer, serving, until

NOWHERE = Settings(listen=("127.0.0.1:0",), drain_seconds=0.2)


async def _up_and_down(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


async def test_the_app_is_told_of_start_and_end_and_shares_its_state() -> None:
    told: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
            scope["state"]["pool"] = told
            told.append((await receive())["type"])
            await send({"type": "lifespan.startup.complete"})
            told.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["state"]["pool"] is told
        assert "mine" not in scope["state"]
        scope["state"]["mine"] = True  # of this request alone
        await answer(send, b"ok")

    async with serving(app) as ground, ground.client() as client:
        for _ in range(2):
            await client.run(GET)
            assert (await client.response()).endswith(b"\r\nok")
        assert told == ["lifespan.startup"]
    assert told == ["lifespan.startup", "lifespan.shutdown"]


async def _returns(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await answer(send, b"ok")


async def _raises(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await answer(send, b"ok")


@pytest.mark.parametrize("app", [_returns, _raises])
async def test_an_app_without_a_lifespan_is_served(app: ASGIApp) -> None:
    async with serving(app) as ground, ground.client() as client:
        await client.run(GET)
        assert (await client.response()).endswith(b"\r\nok")
        assert ground.notes.events == []


def _fails(*, message: str | None, raises: bool) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        extra = {} if message is None else {"message": message}
        await send({"type": "lifespan.startup.failed", **extra})
        if raises:
            raise ValueError("not for the eyes of a client")

    return app


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize(("message", "words"), [("no database", "no database"), (None, "it does not say why")])
async def test_an_app_that_cannot_start(message: str | None, words: str, raises: bool) -> None:
    async with nothing_left():
        with pytest.raises(AppFailed, match=f"^the app did not start: {words}$"):
            await Server(_fails(message=message, raises=raises), NOWHERE).start()


async def test_an_app_that_breaks_as_it_starts() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        raise ValueError

    async with nothing_left():
        with pytest.raises(AppFailed, match="ValueError in its lifespan"):
            await Server(app, NOWHERE).start()


async def test_an_address_that_cannot_be_had_ends_the_lifespan() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _up_and_down(scope, receive, send)
        finally:
            ended.set()

    async with nothing_left(), serving(_returns) as ground:
        with pytest.raises(OSError, match="address already in use"):
            await Server(app, Settings(listen=("127.0.0.1:0", ground.server.addresses[0]))).start()
        assert ended.is_set()


async def test_a_start_that_is_given_up() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async with nothing_left():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Server(app, NOWHERE).start()


async def test_an_app_that_does_not_end_well_is_told() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "could not flush"})

    notes = Notes()
    async with nothing_left():
        async with Server(app, NOWHERE, log=notes):
            pass
        assert notes.lines == [
            {"event": "lifespan", "detail": "the app did not end well: could not flush", "client": None}
        ]


async def test_an_app_that_raises_at_the_end_is_told() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError

    lifespan = Lifespan(app, {})
    await lifespan.startup(asyncio.get_running_loop())
    assert await lifespan.shutdown() == "ValueError in its lifespan"


async def test_an_app_that_does_not_end_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.complete"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with nothing_left():
        lifespan = Lifespan(app, {})
        await lifespan.startup(asyncio.get_running_loop())
        assert await lifespan.shutdown(0.05) == "not done within 0.05 s"
        await until(cancelled.is_set)


async def test_a_lifespan_that_never_began_needs_no_end() -> None:
    assert await Lifespan(_up_and_down, {}).shutdown() is None
