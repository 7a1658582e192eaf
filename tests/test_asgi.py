"""A client behind an ASGI server: its body within a bound, its answer with a length, and its going."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.asgi import AsgiClient
from sidecar.errors import BodyTooLarge, ClientGone
from sidecar.types import Message


class Wire:
    """What the server says, then silence; and what the client was sent."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.sent: list[Message] = []
        self.more = asyncio.Event()

    async def receive(self) -> Message:
        if not self._messages:
            await self.more.wait()
            return {"type": "http.disconnect"}
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def client(self, **headers: bytes) -> AsgiClient:
        pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        return AsgiClient({"headers": pairs, "query_string": b"a=b"}, self.receive, self.send)


def part(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


async def test_the_body_is_read_whole_and_within_its_bound() -> None:
    client = Wire(part(b"ab", more=True), part(b"c")).client()
    assert (client.body(9), await client.read(3), client.query) == (None, b"abc", b"a=b")
    with pytest.raises(BodyTooLarge):
        await Wire(part(b"ab", more=True), part(b"cd")).client().read(3)
    unread = Wire(part(b"abcd"))
    with pytest.raises(BodyTooLarge):
        await unread.client(content_length=b"4").read(3)
    assert (await unread.receive())["body"] == b"abcd"


async def test_who_leaves_inside_a_body_is_gone() -> None:
    client = Wire(part(b"a", more=True), {"type": "http.disconnect"}).client()
    with pytest.raises(ClientGone):
        await client.read(9)
    assert client.gone


@pytest.mark.parametrize(("status", "more", "length"), [(200, False, True), (200, True, False), (204, False, False)])
async def test_an_answer_of_one_body_has_a_length(status: int, more: bool, length: bool) -> None:
    wire = Wire()
    await wire.client().answer(status, [(b"a", b"1")], b"b: 2\r\nc: 3\r\n", b"xy", more=more)
    start, body = wire.sent
    assert start["headers"][:3] == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert ((b"content-length", b"2") in start["headers"]) is length
    assert (start["status"], body["body"], body["more_body"]) == (status, b"xy", more)


@pytest.mark.parametrize("tells", [False, True], ids=["watched", "told"])
async def test_its_going_cancels_the_exchange_and_not_the_server(tells: bool) -> None:
    wire = Wire(part(b"{}"))
    client = wire.client()
    called: list[Any] = []
    scope = {"extensions": {"sidecar.gone": called.append}} if tells else {}
    ended: list[str] = []

    async def exchange() -> None:
        await client.read(9)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("gone" if client.gone else "stopped")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(client.serve(scope, exchange()))
        for _ in range(5):
            await asyncio.sleep(0)
        if tells:
            called[0]()
        else:
            wire.more.set()
    assert (ended, task.cancelling(), task.cancelled()) == (["gone"], 0, False)
    for leave in called:
        leave()  # too late: nothing
