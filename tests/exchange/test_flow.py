"""Streams in the hot lane: the same bytes and the same line in the log as of the spine, however they end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.config import Model, Timeouts
from sidecar.exchange import flow, lane
from sidecar.server.cycle import Cycle
from tests.exchange.both import CHAT, both_ways, broken_by, second, unframed, warm
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Drip, Pause
from tests.faults.stand import ask, read, standing
from tests.faults.transcripts import chunk, head, reply

ROLE, ONE, TWO, STOP, DONE = CHAT.theirs.events
ERROR = b'data: {"error":{"message":"no","code":"rate_limit_exceeded"}}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":22}}\n\n'
NO_USAGE = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":null}\n\n'
BIG = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 70_000 + b'"}}]}\n\n'
END = b"0\r\n\r\n"


def events(*sent: bytes) -> bytes:
    return b"".join(map(chunk, sent))


STREAMS: dict[str, tuple[Any, ...]] = {
    "content at once": (head() + events(ROLE, ONE), Drip(events(TWO, STOP, DONE) + END, 0.01, 1)),
    "the role first": (head() + events(ROLE), Drip(events(ONE), 0.01, 1), Drip(events(TWO, STOP, DONE) + END, 0.01, 1)),
    "the head first": (head(), Drip(events(ROLE, ONE), 0.01, 1), Drip(events(TWO, STOP, DONE) + END, 0.01, 1)),
    "comments first": (
        head() + chunk(b": hi\n\n"),
        Drip(events(ONE), 0.01, 1),
        Drip(events(STOP, DONE) + END, 0.01, 1),
    ),
    "half an event first": (
        head() + chunk(ONE[:9]),
        Drip(chunk(ONE[9:]), 0.01, 1),
        Drip(events(STOP, DONE) + END, 0.01, 1),
    ),
    "a big one": (head() + events(BIG), Drip(events(STOP, DONE) + END, 0.01, 1)),
    "its ids": (head(b"x-request-id: a", b"set-cookie: b") + events(ONE), Drip(events(DONE) + END, 0.01, 1)),
    "cut behind content": (head() + events(ROLE, ONE), Drip(b"5\r\nda", 0.01, 1), CLOSE),
    "no end": (head() + events(ROLE, ONE), Drip(END, 0.01, 1)),
    "an error behind content": (head() + events(ROLE, ONE), Drip(events(ERROR) + END, 0.01, 1)),
    "garbage behind content": (head() + events(ROLE, ONE), Drip(b"zz\r\n", 0.01, 1)),
    "all at once": (head() + events(ROLE, ONE, TWO, STOP, DONE) + END,),
    "an error first": (head() + events(ERROR) + END,),
    "an error behind the role": (head() + events(ROLE), Drip(events(ERROR) + END, 0.01, 1)),
    "cut behind the role": (head() + events(ROLE), Drip(b"5", 0.01, 1), CLOSE),
    "ended behind the role": (head() + events(ROLE), Drip(END, 0.01, 1)),
    "garbage behind the role": (head() + events(ROLE), Drip(b"zz\r\n", 0.01, 1)),
    "reset behind the role": (head() + events(ROLE), Drip(b"5", 0.01, 1), RST),
    "of a length": (reply(ONE + DONE, kind=b"text/event-stream"),),
    "until the end": (head(framing=b"connection: close") + ONE, Drip(DONE, 0.01, 1), CLOSE),
    "named by connection": (head(b"connection: x-a", b"x-a: b") + events(ONE), Drip(events(DONE) + END, 0.01, 1)),
    "its usage": (head() + events(ROLE, ONE), Drip(events(TWO, STOP, USAGE, DONE) + END, 0.01, 1)),
    "its usage each time": (head() + events(ROLE, ONE), Drip(events(*[NO_USAGE] * 20, USAGE, DONE) + END, 0.01, 1)),
    "many at once": (head() + events(ROLE, ONE), Drip(events(*[TWO] * 50), 0.01, 1), Drip(events(DONE) + END, 0.01, 1)),
    "cut anywhere": (
        head() + events(ROLE, ONE),
        *(Drip(each, 0.01, 7) for each in (events(TWO, TWO, STOP, DONE) + END,)),
    ),
    "the last chunk alone": (head() + events(ROLE, ONE, DONE), Drip(END, 0.02, 1)),
    "bytes behind it": (head() + events(ROLE, ONE), Drip(events(DONE) + END + b"HTTP/1.1 200 OK\r\n\r\n", 0.01, 1)),
    "trailers": (head() + events(ROLE, ONE), Drip(events(DONE) + b"0\r\na: b\r\n\r\n", 0.01, 1)),
    "no last event's end": (head() + events(ROLE, ONE), Drip(events(DONE.rstrip()) + END, 0.01, 1)),
    "ended, and half an event": (head() + events(ROLE, ONE), Drip(events(STOP, DONE.rstrip()) + END, 0.01, 1)),
    "one body": (CHAT.whole(),),
    "500": (reply(b'{"error":{"message":"no"}}', status=b"500 No"),),
}
BEGUN = (
    *("content at once", "the role first", "the head first", "comments first", "half an event first", "a big one"),
    *("its ids", "cut behind content", "no end", "an error behind content", "garbage behind content"),
    *("its usage", "its usage each time", "many at once", "cut anywhere", "the last chunk alone", "bytes behind it"),
    *("trailers", "no last event's end", "ended, and half an event"),
)
# For the spine to tell.
LEFT = (
    "cut behind content",
    "no end",
    "an error behind content",
    "garbage behind content",
    "no last event's end",
    "ended, and half an event",
)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_the_same_both_ways(name: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for method in ("begin_stream", "account"):
        _noting(monkeypatch, method, done)
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
    hot, cold = await both_ways(second(*STREAMS[name]), ask(CHAT, stream=True, **usage))
    assert (unframed(hot[0]), hot[1]) == (unframed(cold[0]), cold[1])
    assert done == ["begin_stream"] * (name in BEGUN) + ["account"] * (name in BEGUN and name not in LEFT)


def _noting(monkeypatch: pytest.MonkeyPatch, method: str, done: list[str]) -> None:
    """What the lane does of a stream."""
    its = getattr(lane.Lane, method)

    def noting(*args: Any) -> Any:
        done.append(method)
        return its(*args)

    monkeypatch.setattr(lane.Lane, method, noting)


async def test_a_stream_is_held_for_so_long_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit in (Model(targets=("lab/m",), commit_seconds=0.05), Model(targets=("lab/m",), commit_bytes=10)):
        script = second(head() + events(ROLE), Drip(events(ONE, DONE) + END, 0.3, 1))
        hot, cold = await both_ways(script, ask(CHAT, stream=True, model="own"), models={"own": commit})
        assert (unframed(hot[0]), hot[1]) == (unframed(cold[0]), cold[1])


@pytest.mark.parametrize("began", [True, False])
async def test_a_client_that_leaves_a_stream_takes_its_call_with_it(began: bool) -> None:
    async with standing(second(head() + events(ROLE, *([ONE] if began else [])))) as stand:
        async with stand.client() as client:
            await warm(client, ask(CHAT, stream=True))
            client.write(ask(CHAT, stream=True))
            await stand.peer.requested(3)
            await asyncio.sleep(0.05)
        await stand.peer.left(1)
        assert [row["status"] for row in await stand.recorded(3)] == [200, 200, 499]


async def test_a_slow_reader_of_a_stream_that_began_in_the_lane_is_waited_for() -> None:
    async with standing(second(head() + events(ROLE, ONE), *[chunk(BIG)] * 40, events(DONE) + END)) as stand:
        async with asyncio.timeout(9), stand.client() as client:
            await warm(client, ask(CHAT, stream=True))
            client.write(ask(CHAT, stream=True))
            await stand.peer.requested(3)
            await asyncio.sleep(0.2)
            assert read(await client.response()).body == ROLE + ONE + BIG * 40 + DONE


async def test_a_provider_that_falls_silent_is_waited_for_as_long_as_was_said() -> None:
    options = {"timeouts": Timeouts(idle_seconds=0.2)}
    script = second(head() + events(ROLE, ONE), *[Drip(events(TWO), 0.15, 1)] * 3, Pause(asyncio.Event()))
    hot, cold = await both_ways(script, ask(CHAT, stream=True), options=options)
    assert (unframed(hot[0]), hot[1]) == (unframed(cold[0]), cold[1])
    assert unframed(hot[0])[2].startswith(ROLE + ONE + TWO * 3)
    assert hot[1]["error"] == "provider_timeout"


async def test_a_server_that_stops_tells_who_reads_a_stream() -> None:
    async with standing(second(head() + events(ROLE, ONE), Pause(asyncio.Event()))) as stand:
        async with asyncio.timeout(8), stand.client() as client:
            await warm(client, ask(CHAT, stream=True))
            client.write(ask(CHAT, stream=True))
            await stand.peer.requested(3)
            await asyncio.sleep(0.1)
            for work in list(stand.server.work):
                assert isinstance(work, lane.Lane)
                work.cancel()
            body = read(await client.response()).body
            assert body.startswith(ROLE + ONE)
            assert b"sidecar_draining" in body
        await stand.peer.left(1)


BUGS: tuple[tuple[type, str, int], ...] = (
    *((flow.Flow, "begin", 500), (flow.Flow, "_hold", 500), (lane.Lane, "begin_stream", 500)),
    *((flow.Flow, "_relay", 200), (flow.Flow, "_pass", 200), (Cycle, "end", 200)),
)


@pytest.mark.parametrize(("owner", "method", "status"), BUGS)
async def test_a_bug_in_it_is_told_once_and_leaves_nothing(
    owner: type, method: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (head() + events(ONE), Drip(events(DONE) + END, 0.02, 1))
    async with standing([Again((REQUEST, *slow))]) as stand:
        await broken_by(owner, method, status, stand, ask(CHAT, stream=True), monkeypatch)
