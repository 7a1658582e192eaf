"""An ASGI server that is a function: one request to an app, and what it answered. No sockets, no library."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from sidecar.types import ASGIApp, Headers, Message, Scope


class Answer(msgspec.Struct, kw_only=True):
    status: int
    headers: Headers
    body: bytes

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


async def ask(
    app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None, body: Any = b"", **scope: Any
) -> Answer:
    """Ask an app. `body`: bytes, or what is to be sent as JSON; `scope`: members of the scope to have otherwise."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    heard: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]
    told: list[Message] = []

    async def receive() -> Message:
        if heard:
            return heard.pop()
        await asyncio.get_running_loop().create_future()  # a client that stays
        raise AssertionError

    async def send(message: Message) -> None:
        told.append(message)

    await app(http(method, path, headers, **scope), receive, send)
    assert told[0]["type"] == "http.response.start"
    assert not told[-1].get("more_body", False), "the answer has no end"
    return Answer(
        status=told[0]["status"],
        headers=list(told[0]["headers"]),
        body=b"".join(message.get("body", b"") for message in told[1:]),
    )


def http(method: str, path: str, headers: dict[str, str] | None = None, **scope: Any) -> Scope:
    """The scope of a request that came by a port of this machine."""
    sent = {"host": "127.0.0.1:4000"} | (headers or {})
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 4000),
        "state": {},
    } | scope


class Lifespan:
    """An app's lifespan, step by step: `told` is what it has said, `error` what it raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.told: list[str] = []
        self.error: BaseException | None = None
        self._app = app
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._said: asyncio.Queue[str] = asyncio.Queue()

    async def startup(self) -> None:
        self._task = asyncio.create_task(self._run())
        await self._step("lifespan.startup")

    async def shutdown(self) -> None:
        await self._step("lifespan.shutdown")
        assert self._task is not None
        await self._task

    async def _step(self, kind: str) -> None:
        self._events.put_nowait({"type": kind})
        self.told.append(await self._said.get())

    async def _run(self) -> None:
        async def send(message: Message) -> None:
            self._said.put_nowait(message["type"])

        try:
            await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, self._events.get, send)
        except Exception as error:  # noqa: BLE001  # ASGI: how an app says that it has none
            self.error = error
        self._said.put_nowait("(over)")
