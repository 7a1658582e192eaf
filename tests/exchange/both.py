"""A request that its connection has asked before: once with the hot lane, and once without."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sidecar.exchange import lane
from tests.faults.peer import CLOSE, REQUEST, RawClient, Script
from tests.faults.stand import Stand, comes_true, read, standing
from tests.faults.transcripts import WAYS

CHAT = WAYS["chat"]
_VARIES = re.compile(rb"((?:date|x-request-id|request-id|x-sidecar-overhead-us): )[^\r]*\r\n")
_MADE = re.compile(rb'"created":[0-9]{10}')
_TIMES = {"time", "id", "seconds", "first_byte_seconds", "overhead_us"}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How many requests the lane has sent, and how many of them it has delivered."""
    counts = {"sent": 0, "delivered": 0}
    enter, deliver = lane._enter, lane.Lane._deliver

    def entered(*args: Any) -> object:
        found = enter(*args)
        counts["sent"] += found is not None
        return found

    def delivered(*args: Any) -> None:
        counts["delivered"] += 1
        deliver(*args)

    with monkeypatch.context() as patch:
        patch.setattr(lane, "_enter", entered)
        patch.setattr(lane.Lane, "_deliver", delivered)
        yield counts


async def warm(client: RawClient, request: bytes) -> None:
    """Ask twice: the first request of all goes by ASGI, and after the second its head is remembered."""
    for _ in range(2):
        client.write(request)
        await client.response()


async def both_ways(script: Callable[[int], Script], request: bytes, **options: Any) -> list[tuple[bytes, Any]]:
    """What the client is answered the second time, and the log's line of that: with the lane, and without it."""
    found = []
    for hot in (True, False):
        async with standing(script, **options) as stand:
            if not hot:
                stand.server.again = None
            async with asyncio.timeout(8), stand.client() as client:
                await warm(client, request)
                client.write(request)
                answered = await client.response()
            rows = await stand.recorded(3)
            found.append((_MADE.sub(b"", _VARIES.sub(rb"\1\r\n", answered)), {**rows[2], **dict.fromkeys(_TIMES)}))
    return found


def second(*steps: Any) -> Callable[[int], Script]:
    """Two plain answers, then on the same connection these steps; on any other a plain answer."""

    def script(number: int) -> Script:
        return (
            [REQUEST, CHAT.whole(), REQUEST, CHAT.whole(), REQUEST, *steps]
            if number == 0
            else [REQUEST, CHAT.whole(), CLOSE]
        )

    return script


def unframed(answered: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
    """What an answer says, however it is cut into chunks."""
    found = read(answered)
    return found.status, found.headers, found.body, found.ended


async def broken_by(
    owner: type, method: str, status: int, stand: Stand, request: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug there is told once, to the client and in the log, and leaves nothing behind."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with asyncio.timeout(8), stand.client() as client:
        await warm(client, request)
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, broken)
            client.write(request)
            answered = await client.response()
        assert answered.startswith(b"HTTP/1.1 %d" % status)
        assert b"sidecar_internal" in answered
    await comes_true(lambda: [line for line in stand.lines() if line.get("event") == "bug"], "a bug is told of")
    bugs = [line for line in stand.lines() if line.get("event") == "bug"]
    assert len(bugs) == 1
    assert "ZeroDivisionError" in bugs[0]["trace"]
    stand.log[:] = [line for line in stand.log if line.get("event") != "bug"]
    assert stand.idle()
