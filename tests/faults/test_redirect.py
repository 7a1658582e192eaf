"""A redirect is never followed: the provider's key would go where the configuration did not send it (D24)."""

from __future__ import annotations

import pytest

from tests.faults.peer import REQUEST, RawServer
from tests.faults.stand import KEY, ask, provider, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, WAYS, Way, reply as answer


@EVERY_WAY
@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_place_it_names_sees_nothing(way: Way, stream: bool, status: int) -> None:
    async with RawServer([REQUEST, way.whole()]) as trap:
        location = b"location: http://127.0.0.1:%d/v1/canary" % trap.port
        async with standing([REQUEST, answer(b"moved", location, status=b"%d Moved" % status)]) as stand:
            reply = await stand.ask(ask(way, stream=stream))
            assert (reply.status, reply.json["error"]["code"]) == (502, "provider_redirect")
            assert reply.get(b"location") is None
            assert b"canary" not in reply.body
            assert KEY.encode() not in reply.body
            assert len(stand.peer.requests) == 1
        assert trap.connections == []


@pytest.mark.parametrize("status", [300, 304, 305, 306, 399])
async def test_nor_is_any_other_of_its_kind(status: int) -> None:
    way = WAYS["chat"]
    body = b"" if status == 304 else b"x"
    async with standing([REQUEST, answer(body, b"location: /v2", status=b"%d Else" % status)]) as stand:
        reply = await stand.ask(ask(way))
        assert (reply.status, reply.json["error"]["code"], reply.get(b"location")) == (502, "provider_redirect", None)


async def test_the_next_target_is_asked_after_it() -> None:
    """It is a failure like any other: never followed, and no reason to leave the client without an answer."""
    way = WAYS["chat"]
    async with RawServer([REQUEST, way.stream()]) as other:
        async with standing(
            [REQUEST, answer(b"", b"location: /v2", status=b"307 Moved")],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
        ) as stand:
            assert (await stand.ask(ask(way, model="fast"))).status == 200
        assert len(other.requests) == 1
