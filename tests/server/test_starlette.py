"""Starlette's kinds of apps on our server, and on uvicorn beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route

from sidecar.types import ASGIApp
from tests.faults.peer import CLOSE, Expect, RawClient
from tests.server.apps import GET, GET_CLOSE, chunked, get, post, until
from tests.server.reference import SERVERS, served_by

BOTH = pytest.mark.parametrize("server", SERVERS)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """One loop: the other tests of the server are for both."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


def app_of(*routes: Route | Mount, **extra: Any) -> ASGIApp:
    return cast("ASGIApp", Starlette(routes=routes, **extra))


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def dechunked(body: bytes) -> bytes:
    out = b""
    while body != b"0\r\n\r\n":
        size, _, rest = body.partition(b"\r\n")
        out += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return out


@BOTH
async def test_json_and_its_request(server: str) -> None:
    async def echo(request: Request) -> Response:
        return JSONResponse({"got": await request.json(), "query": request.query_params["a"], "url": str(request.url)})

    async with served_by(server, app_of(Route("/{x:path}", echo, methods=["POST"]))) as port, RawClient(port) as client:
        for data in (post(b'{"b": 1}', path="/c?a=d"), chunked(b'{"b"', b": 1}", path="/c?a=d")):
            await client.run(data)
            assert body_of(await client.response()) == b'{"got":{"b":1},"query":"d","url":"http://a/c?a=d"}'


@BOTH
async def test_a_form_with_a_file(server: str) -> None:
    async def upload(request: Request) -> Response:
        data = b""
        async for piece in request.stream():
            data += piece
        return PlainTextResponse(f"{len(data)} {request.headers['content-type']}")

    async with served_by(server, app_of(Route("/", upload, methods=["POST"]))) as port, RawClient(port) as client:
        await client.run(post(b"x" * 300_000, b"Content-Type: multipart/form-data; boundary=b"))
        assert body_of(await client.response()) == b"300000 multipart/form-data; boundary=b"


def _streams(kind: str) -> Any:
    async def slowly() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(0)

    def at_once() -> Iterator[bytes]:
        yield from (b"data: %d\n\n" % number for number in range(3))

    return slowly() if kind == "async" else at_once()


@BOTH
@pytest.mark.parametrize("kind", ["async", "threaded"])
async def test_a_stream(server: str, kind: str) -> None:
    async def stream(request: Request) -> Response:
        return StreamingResponse(_streams(kind), media_type="text/event-stream")

    async with served_by(server, app_of(Route("/", stream))) as port, RawClient(port) as client:
        for _ in range(2):
            await client.run(GET)
            got = await client.response()
            assert b"\r\ncontent-type: text/event-stream; charset=utf-8\r\n" in got
            assert dechunked(body_of(got)) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


_ENDLESS = ["sidecar", "uvicorn"]


@pytest.mark.parametrize("server", _ENDLESS)
async def test_an_endless_stream_ends_with_its_client(server: str) -> None:
    ended = asyncio.Event()
    stop = False

    async def endless() -> AsyncIterator[bytes]:
        try:
            while not stop:
                yield b"x"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(endless())

    async with served_by(server, app_of(Route("/", stream))) as port:
        async with RawClient(port) as client:
            await client.run(GET, Expect(b"x\r\n"), CLOSE)
        try:
            await until(ended.is_set, 0.5)
        finally:
            stop = True
            await until(ended.is_set)


@BOTH
async def test_a_file_and_a_part_of_it(server: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"0123456789" * 20_000)

    async def file(request: Request) -> Response:
        return FileResponse(path, media_type="text/plain")  # guessing it reads files

    async with served_by(server, app_of(Route("/", file))) as port, RawClient(port) as client:
        await client.run(GET)
        assert body_of(await client.response()) == path.read_bytes()
        await client.run(get("/", b"Range: bytes=5-14"))
        got = await client.response()
        assert got.startswith(b"HTTP/1.1 206 Partial Content\r\n")
        assert body_of(got) == b"5678901234"
        await client.run(GET_CLOSE.replace(b"GET", b"HEAD"))
        head = await client.rest()
        assert b"\r\ncontent-length: 200000\r\n" in head
        assert body_of(head) == b""


@BOTH
async def test_work_behind_the_answer(server: str) -> None:
    go_on, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        done.set()

    async def answered(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(work))

    async with served_by(server, app_of(Route("/", answered))) as port, RawClient(port) as client:
        await client.run(GET)
        assert body_of(await client.response()) == b"ok"
        await client.run(get("/missing"))
        assert (await client.response()).startswith(b"HTTP/1.1 404 ")
        assert not done.is_set()
        go_on.set()
        await until(done.is_set)


@BOTH
async def test_is_disconnected(server: str) -> None:
    seen: list[bool] = []
    begun, done = asyncio.Event(), asyncio.Event()

    async def watch(request: Request) -> Response:
        await request.body()
        seen.append(await request.is_disconnected())
        begun.set()
        for _ in range(500):
            if await request.is_disconnected():
                seen.append(True)
                break
            await asyncio.sleep(0.002)
        done.set()
        return Response()

    async with served_by(server, app_of(Route("/", watch))) as port, RawClient(port) as client:
        await client.run(GET)
        await begun.wait()
        await client.run(CLOSE)
        await until(done.is_set)
        assert seen == [False, True]


@BOTH
async def test_a_client_that_leaves_within_its_body(server: str) -> None:
    raised: list[type[Exception]] = []

    async def body(request: Request) -> Response:
        try:
            await request.body()
        except ClientDisconnect as error:
            raised.append(type(error))
        return Response()

    async with served_by(server, app_of(Route("/", body, methods=["POST"]))) as port, RawClient(port) as client:
        await client.run(post(b"x" * 100)[:-50])
        await asyncio.sleep(0.02)
        await client.run(CLOSE)
        await until(lambda: raised)
        assert raised == [ClientDisconnect]


@BOTH
async def test_a_lifespan_and_its_state(server: str) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        told.append("up")
        yield {"who": "me"}
        told.append("down")

    async def who(request: Request) -> Response:
        return PlainTextResponse(request.state.who)

    async with served_by(server, app_of(Route("/", who), lifespan=lifespan)) as port, RawClient(port) as client:
        await client.run(GET)
        assert body_of(await client.response()) == b"me"
    assert told == ["up", "down"]


@BOTH
async def test_a_mounted_app(server: str) -> None:
    async def where(request: Request) -> Response:
        return PlainTextResponse(f"{request.scope['root_path']} {request.url.path} {request.path_params['x']}")

    async def away(request: Request) -> Response:
        return RedirectResponse(request.url_for("where", x="y"))

    inner = Starlette(routes=[Route("/w/{x}", where, name="where"), Route("/away", away)])
    async with served_by(server, app_of(Mount("/llm", inner))) as port, RawClient(port) as client:
        await client.run(get("/llm/w/%C3%BC"))
        assert body_of(await client.response()) == "/llm /llm/w/ü ü".encode()
        await client.run(get("/llm/away"))
        assert b"\r\nlocation: http://a/llm/w/y\r\n" in await client.response()


@BOTH
async def test_errors(server: str) -> None:
    async def teapot(request: Request) -> Response:
        raise HTTPException(418, "short", headers={"x-stout": "yes"})

    async def broken(request: Request) -> Response:
        raise ValueError("not for the eyes of a client")

    async with served_by(server, app_of(Route("/teapot", teapot), Route("/broken", broken))) as port:
        async with RawClient(port) as client:
            await client.run(get("/teapot"))
            got = await client.response()
            assert got.startswith(b"HTTP/1.1 418 I'm a Teapot\r\n")
            assert (b"\r\nx-stout: yes\r\n" in got, body_of(got)) == (True, b"short")
            for path, status in (("/none", b"404"), ("/teapot", b"405")):
                await client.run(post(b"abc", path=path))
                assert (await client.response())[9:12] == status
            await client.run(get("/broken"))
            got = await client.response()
            assert got.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert body_of(got) == b"Internal Server Error"


@BOTH
async def test_a_stream_that_breaks_is_cut(server: str) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError

    async def stream(request: Request) -> Response:
        return StreamingResponse(breaks())

    async with served_by(server, app_of(Route("/", stream))) as port, RawClient(port) as client:
        await client.run(GET)
        assert body_of(await client.rest()) == b"3\r\none\r\n"
