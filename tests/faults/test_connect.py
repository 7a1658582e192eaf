"""A provider that cannot be reached: told in the client's dialect, in time, and not one byte was sent (D12)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.config import Timeouts
from tests.faults.ground import black_hole, closed_port
from tests.faults.peer import REQUEST, Again
from tests.faults.stand import Stand, ask, provider, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, WAYS, Way

UNREACHABLE = "http://255.255.255.255:9/v1"
CHAT = WAYS["chat"]


@asynccontextmanager
async def behind(port: int, **options: Any) -> AsyncIterator[Stand]:
    """The sidecar with providers at a port that the test has chosen."""
    more = {"lab2": provider(port, **options), "claude2": provider(port, "anthropic", **options)}
    async with standing([], more=lambda _: more) as stand:
        yield stand


def _model(way: Way) -> str:
    return way.model.replace("/", "2/")


@EVERY_WAY
@BOTH
async def test_nobody_listens(way: Way, stream: bool) -> None:
    async with behind(port := closed_port()) as stand:
        reply = await stand.ask(ask(way, stream=stream, model=_model(way)))
        assert (reply.status, reply.get(b"x-sidecar-error"), reply.ended) == (502, b"provider_connect_failed", True)
        error = reply.json["error"]
        assert error["code"] == "provider_connect_failed"
        assert error["message"].endswith(f"cannot connect to 127.0.0.1:{port}: connection refused")
        assert (reply.json.get("type") == "error") == (way.path == "/v1/messages")
        assert (await stand.recorded())[0]["attempts"] == 1


@pytest.mark.parametrize("way", [WAYS["chat"], WAYS["chat from messages"]])
async def test_a_black_hole(way: Way) -> None:
    async with black_hole() as port:
        async with behind(port, timeouts=Timeouts(connect_seconds=0.3)) as stand:
            loop = asyncio.get_running_loop()
            began = loop.time()
            reply = await stand.ask(ask(way, model=_model(way)))
            assert 0.28 <= loop.time() - began <= 0.6
            assert (reply.status, reply.json["error"]["code"]) == (504, "provider_timeout")


async def test_no_way_there() -> None:
    async with behind(closed_port(), base_url=UNREACHABLE) as stand:
        reply = await stand.ask(ask(CHAT, model="lab2/m"))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_connect_failed")


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with behind(closed_port(), base_url="http://provider.invalid/v1") as stand:
        reply = await stand.ask(ask(CHAT, model="lab2/m"))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_connect_failed")
        assert "the name provider.invalid does not resolve" in reply.json["error"]["message"]


@EVERY_WAY
@BOTH
async def test_the_next_target_is_asked_then(way: Way, stream: bool) -> None:
    good = [Again((REQUEST, way.stream() if stream else way.whole()))]
    gone = provider(closed_port(), "anthropic" if way.model.startswith("claude") else "openai-compatible")
    async with standing(good, models={"fast": ("gone/m", way.model)}, more=lambda _: {"gone": gone}) as stand:
        reply = await stand.ask(ask(way, stream=stream, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-attempts"), len(stand.peer.requests)) == (200, b"2", 1)
