"""Small ASGI apps to be served, a server to serve them, and requests to send."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sidecar.config import Server as Settings
from sidecar.server import Server
from sidecar.types import ASGIApp, Message, Receive, Scope, Send
from tests.faults.ground import nothing_left
from tests.faults.peer import RawClient

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HEAD_200 = {"type": "http.response.start", "status": 200, "headers": []}

_DATE = re.compile(rb"date: [^\r]*\r\n")


def get(path: str, *lines: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n" % path.encode() + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(body: bytes, *lines: bytes, path: str = "/") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def chunked(*pieces: bytes, path: str = "/") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def undated(data: bytes) -> bytes:
    """An answer without the one line that changes by itself."""
    return _DATE.sub(b"", data)


def http(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
    """An app that has no lifespan."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)

    return served


async def body_of(receive: Receive) -> bytes:
    """The whole body of a request. Raises ConnectionError when the client has gone before its end."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        body += message["body"]
        more = message["more_body"]
    return body


async def answer(send: Send, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


class Echo:
    """Answers with the method, the target and the body; remembers each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, bytes]] = []
        self.scopes: list[Scope] = []
        self.gone = 0  # calls whose client left before its body was whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        try:
            body = await body_of(receive)
        except ConnectionError:
            self.gone += 1
            return
        self.calls.append((scope["method"], target, body))
        await answer(send, b"%b %b %b" % (scope["method"].encode(), target, body))


class Waits:
    """Never answers: waits for its client to go, by both ways of being told."""

    def __init__(self, *, says: bytes = b"") -> None:
        self._says = says
        self.began = asyncio.Event()
        self.left = asyncio.Event()  # told by receive()
        self.called_back = asyncio.Event()  # told by the extension

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["extensions"]["sidecar.gone"](self.called_back.set)
        if self._says:
            await send(dict(HEAD_200))
            await send({"type": "http.response.body", "body": self._says, "more_body": True})
        self.began.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


class Notes:
    """What a server told of its peers and of bugs."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []

    def __call__(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]

    @property
    def traces(self) -> str:
        return "\n".join(line["trace"] for line in self.lines if line["event"] == "bug")


class Ground:
    """A running server and the clients that come to it."""

    def __init__(self, server: Server, notes: Notes) -> None:
        self.server = server
        self.notes = notes

    @property
    def port(self) -> int:
        return int(self.server.addresses[0].rpartition(":")[2])

    @property
    def exchanges(self) -> int:
        """How many calls of the app have not ended."""
        return int(repr(self.server).split()[-2])

    def client(self, *, receive_buffer: int | None = None) -> RawClient:
        return RawClient(self.port, receive_buffer=receive_buffer)

    async def ask(self, data: bytes) -> bytes:
        """All that comes for `data` on a connection of its own, until the server closes it; without dates."""
        async with self.client() as client:
            await client.run(data)
            return undated(await client.rest())


@asynccontextmanager
async def serving(app: ASGIApp, **settings: Any) -> AsyncIterator[Ground]:
    """The app served on a port of its own. After the block no task and no socket is left."""
    defaults = {"listen": ("127.0.0.1:0",), "drain_seconds": 0.2, "lame_duck_seconds": 0.0}
    notes = Notes()
    async with nothing_left():
        async with Server(app, Settings(**{**defaults, **settings}), log=notes) as server:
            yield Ground(server, notes)
        assert repr(server) == "<Server 0 connections, 0 idle, 0 exchanges>"


async def until(true: Callable[[], object], seconds: float = 2.0) -> None:
    """Wait until a condition holds, for a time; raises TimeoutError after it."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


def body_part(message: Message) -> bytes:
    return bytes(message.get("body", b""))
