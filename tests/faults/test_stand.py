"""The ground itself: all four ways give a whole answer, streamed and not, and what is left behind is told."""

from __future__ import annotations

import pytest

from tests.faults.peer import GONE, REQUEST, Again
from tests.faults.stand import KEY, ask, comes_true, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, WAYS, Way


@EVERY_WAY
@BOTH
async def test_a_good_answer_in_every_way(way: Way, stream: bool) -> None:
    async with standing([Again((REQUEST, way.stream() if stream else way.whole()))]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        assert (reply.status, reply.ended, reply.rest) == (200, True, b"")
        if way.same:
            assert reply.body == (b"".join(way.theirs.events) if stream else way.theirs.body)
        assert (way.ours.done in reply.body) == stream
        assert " tw\u00f6".encode() in reply.body
        assert KEY.encode() in stand.peer.requests[0]


async def test_an_exchange_under_way_is_told() -> None:
    async with standing([REQUEST, GONE]) as stand:
        async with stand.client() as client:
            client.write(ask(WAYS["chat"]))
            await stand.peer.requested()
            assert not stand.idle()
            with pytest.raises(AssertionError, match="it did not become true: idle"):
                await comes_true(stand.idle, "idle", 0.01)
        await comes_true(stand.idle, "idle")
