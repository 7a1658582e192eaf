"""A client behind any ASGI server, as the spine sees clients (types.Client); and the watch for its going."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

import anyio

from sidecar.drive import Lazy
from sidecar.errors import BodyTooLarge, ClientGone
from sidecar.types import Headers, Hold, Message, Receive, Scope, Send, freely


class AsgiClient:
    """See types.Client. `gone`: it has left; the exchange is then cancelled wherever it waits."""

    __slots__ = ("_read", "_receive", "_send", "gone", "headers", "index", "notes", "query", "stay")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: Headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        self.index = dict(self.headers)
        self.query: bytes = scope.get("query_string", b"")
        self.notes: dict[str, Any] = {}
        self.gone = False
        self.stay = False
        self._receive = receive
        self._send = send
        self._read = anyio.Event()

    async def serve(self, scope: Scope, exchange: Coroutine[Any, Any, object]) -> None:
        """Run the exchange in this task; cancel it the moment the client goes."""
        task = asyncio.current_task()
        assert task is not None
        over = False

        def leave() -> None:
            if not self.gone and not over:
                self.gone = True
                if not self.stay:
                    task.cancel()

        async def run() -> None:
            nonlocal over
            await exchange
            over = True
            if self.gone and task.cancelling():
                task.uncancel()

        when_gone = (scope.get("extensions") or {}).get("sidecar.gone")
        if when_gone is not None:  # our own server tells, and costs no task
            when_gone(leave)
            await run()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, leave)
                await run()
                tasks.cancel_scope.cancel()

    async def _watch(self, leave: Any) -> None:
        """The one outstanding `receive()` of an exchange whose body has been read."""
        await self._read.wait()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            leave()

    def body(self, most: int) -> bytes | None:
        """Nothing is here before it is asked for."""
        return None

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        """As Client.read. BodyTooLarge is raised with the body unread, where its length is declared."""
        declared = self.index.get(b"content-length")
        if declared is not None and declared.isdigit():
            if int(declared) > most:
                raise BodyTooLarge(f"the body has {int(declared)} bytes; at most {most} are taken")
            hold(int(declared))
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                self.gone = True
                raise ClientGone("the client left before its request had ended")
            data: bytes = message.get("body", b"")
            size += len(data)
            if size > most:
                raise BodyTooLarge(f"the body has more than the {most} bytes that are taken")
            hold(size)
            pieces.append(data)
            if not message.get("more_body"):
                self._read.set()
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> None:
        """The head, with the first bytes of the body."""
        if self.gone:
            return
        sent = headers + [(name, value) for name, _, value in (line.partition(b": ") for line in lines.splitlines())]
        if not more and status not in (204, 304):
            sent.append((b"content-length", b"%d" % len(data)))
        start: Message = {"type": "http.response.start", "status": status, "headers": sent}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def pipe(self) -> None:
        return None

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The next bytes."""
        if self.gone:
            return None
        return Lazy(lambda: self._send({"type": "http.response.body", "body": data, "more_body": more}))
