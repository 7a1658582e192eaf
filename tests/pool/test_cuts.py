"""Recorded answers, cut at every position, through the real connection with no socket: always the same answer."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.errors import ProviderError, UpstreamCut
from sidecar.pool.connection import Connection, Phase
from tests.pool.asks import exchanged, fresh, whole

EVENTS = b'data: {"choices":[{"delta":{"content":"h\xc3\xa9"}}]}\n\ndata: [DONE]\n\n'
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1E;x=1\r\n" + EVENTS[:30] + b"\r\n%x\r\n" % len(EVENTS[30:]) + EVENTS[30:] + b"\r\n0\r\nx-trailer: 1\r\n\r\n"
)
FIXED = b"HTTP/1.1 200 OK\r\nContent-Length:  %d \r\nset-cookie: a\r\n\r\n%b" % (len(EVENTS), EVENTS)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + FIXED
ANSWERS = [CHUNKED, FIXED, INTERIM]


async def answered(connection: Connection, pieces: list[bytes]) -> tuple[int, bytes]:
    """The answer that the pieces make, each delivered in a round of the loop of its own."""
    loop = asyncio.get_running_loop()

    async def exchange() -> tuple[int, bytes]:
        answer = await exchanged(connection)
        return answer.status, await whole(answer)

    task = loop.create_task(exchange())
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
        await asyncio.sleep(0)
    return await task


@pytest.mark.parametrize("answer", ANSWERS, ids=["chunked", "fixed", "interim"])
async def test_cut_in_two_at_every_position(answer: bytes) -> None:
    for at in range(1, len(answer)):
        connection, transport, owner = fresh()
        assert await answered(connection, [answer[:at], answer[at:]]) == (200, EVENTS)
        assert (connection.phase, owner.free, owner.gone, transport.closed) == (Phase.IDLE, 1, 0, False)


@pytest.mark.parametrize("answer", ANSWERS, ids=["chunked", "fixed", "interim"])
async def test_byte_by_byte(answer: bytes) -> None:
    connection, _, owner = fresh()
    assert await answered(connection, [answer[at : at + 1] for at in range(len(answer))]) == (200, EVENTS)
    assert owner.free == 1


@pytest.mark.parametrize("answer", ANSWERS, ids=["chunked", "fixed", "interim"])
async def test_ended_at_every_position_it_is_a_cut_and_never_an_answer(answer: bytes) -> None:
    for at in range(len(answer)):
        connection, transport, owner = fresh()
        with pytest.raises(UpstreamCut):
            await _ended(connection, answer[:at])
        assert (connection.phase, owner.free, owner.gone) == (Phase.LOST, 0, 1)
        assert transport.closed


async def _ended(connection: Connection, part: bytes) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(connection.data_received, part) if part else None
    loop.call_soon(connection.eof_received)
    answer = await exchanged(connection)
    await whole(answer)


@pytest.mark.parametrize("answer", ANSWERS, ids=["chunked", "fixed", "interim"])
async def test_a_byte_too_many_at_every_cut_is_never_part_of_an_answer_nor_pooled(answer: bytes) -> None:
    for at in range(1, len(answer)):
        connection, transport, owner = fresh()
        assert await answered(connection, [answer[:at], answer[at:] + b"H"]) == (200, EVENTS)
        assert (connection.phase, owner.free, owner.gone, transport.closed) == (Phase.LOST, 0, 1, True)


@settings(max_examples=200, deadline=None)
@given(cuts=st.lists(st.integers(1, len(CHUNKED) - 1), max_size=12), junk=st.binary(max_size=40))
def test_any_cuts_of_anything_end_in_an_answer_or_an_error_of_the_tree(cuts: list[int], junk: bytes) -> None:
    """Junk put in at the first cut: an answer, or an error that the spine knows; never another exception."""
    edges = [0, *sorted(set(cuts)), len(CHUNKED)]
    pieces = [CHUNKED[start:stop] for start, stop in itertools.pairwise(edges)]
    pieces.insert(1, junk)

    async def run() -> None:
        connection, _, owner = fresh()
        loop = asyncio.get_running_loop()
        for piece in pieces:
            if piece:
                loop.call_soon(connection.data_received, piece)
        loop.call_soon(connection.eof_received)
        try:
            answer = await exchanged(connection)
            body = await whole(answer)
        except ProviderError:
            body = None
        if not junk:
            assert body == EVENTS
        assert owner.free + owner.gone >= 1
        connection.abort()

    asyncio.run(run())
