"""The hot lane: whatever a provider answers, a client sees the same as of the spine, and nothing is left behind.

Each request is sent on a connection that has asked the same before, once with the lane and once without.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from benchmarks import micro
from sidecar.config import Limits, Model
from sidecar.exchange import lane
from sidecar.pool.outbound import Prepared
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Drip, RawClient, Script
from tests.faults.stand import ask, comes_true, read, standing
from tests.faults.transcripts import WAYS, Way, chunk, head, reply

CHAT = WAYS["chat"]
LONG = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"pad":"' + b"x" * 70_000 + b'"}'
_VARIES = re.compile(rb"((?:date|x-request-id|request-id|x-sidecar-overhead-us): )[^\r]*\r\n")
_MADE = re.compile(rb'"created":[0-9]{10}')
_TIMES = {"time", "id", "seconds", "first_byte_seconds", "overhead_us"}

ANSWERS: dict[str, tuple[bytes | object, ...]] = {
    "plain": (CHAT.whole(),),
    "its ids": (reply(CHAT.theirs.body, b"x-request-id: theirs", b"openai-version: 1"),),
    "an id by the other name": (reply(CHAT.theirs.body, b"request-id: theirs"),),
    "both ids": (reply(CHAT.theirs.body, b"x-request-id: a", b"request-id: b"),),
    "headers that stay here": (reply(CHAT.theirs.body, b"set-cookie: a=b", b"server: x", b"x-sidecar-a: b"),),
    "named by connection": (reply(CHAT.theirs.body, b"connection: x-a", b"x-a: b"),),
    "in two pieces": (CHAT.whole()[:-9], Drip(CHAT.whole()[-9:], 0.01, 1)),
    "the head in two pieces": (CHAT.whole()[:9], Drip(CHAT.whole()[9:], 0.01, 1)),
    "closed behind it": (reply(CHAT.theirs.body, b"connection: close"), CLOSE),
    "chunked": (head(kind=b"application/json") + chunk(CHAT.theirs.body) + b"0\r\n\r\n",),
    "long": (reply(LONG),),
    "not JSON": (reply(b"hello", kind=b"text/plain"),),
    "no usage": (reply(b'{"choices":[]}'),),
    "a part of an object": (reply(b'{"choices":['),),
    "empty": (reply(b""),),
    "an error inside": (reply(b'{"error":{"message":"no","code":"rate_limit_exceeded"}}'),),
    "usage and an error inside": (reply(b'{"usage":{"prompt_tokens":1},"error":{"message":"no"}}'),),
    "no content-type": (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(CHAT.theirs.body) + CHAT.theirs.body,),
    "an interim answer before it": (b"HTTP/1.1 103 Early\r\na: b\r\n\r\n" + CHAT.whole(),),
    "bytes behind it": (CHAT.whole() + b"HTTP/1.1 200 OK\r\n\r\n",),
    "201": (reply(CHAT.theirs.body, status=b"201 Created"),),
    "400": (reply(b'{"error":{"message":"no"}}', status=b"400 No"),),
    "429": (reply(b'{"error":{"message":"no"}}', b"retry-after: 9", status=b"429 No"),),
    "500": (reply(b'{"error":{"message":"no"}}', status=b"500 No"),),
    "a redirect": (reply(b"", b"location: /", status=b"307 No"),),
    "reset": (RST,),
    "cut in the head": (CHAT.whole()[:20], CLOSE),
    "cut in the body": (CHAT.whole()[:-2], CLOSE),
    "garbage": (b"SSH-2.0\r\n\r\n",),
    "events that nobody asked for": (CHAT.stream(),),
    "gzip that nobody asked for": (reply(b"\x1f\x8b", b"content-encoding: gzip"),),
}  # fmt: skip


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


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        hot, cold = await both_ways(second(*ANSWERS[name]), ask(CHAT, stream=False))
    assert hot == cold
    assert counts["sent"] == 1
    usual = {"plain", "its ids", "an id by the other name", "both ids", "headers that stay here", "bytes behind it"}
    usual.add("an interim answer before it")
    assert counts["delivered"] == (name in usual)


ROLE, ONE, TWO, STOP, DONE = CHAT.theirs.events
ERROR = b'data: {"error":{"message":"no","code":"rate_limit_exceeded"}}\n\n'
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
    "one body": (CHAT.whole(),),
    "500": (reply(b'{"error":{"message":"no"}}', status=b"500 No"),),
}
BEGUN = (
    *("content at once", "the role first", "the head first", "comments first", "half an event first", "a big one"),
    *("its ids", "cut behind content", "no end", "an error behind content", "garbage behind content"),
)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_the_same_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = [], lane.Lane.go_on

    def counted_go_on(*args: Any) -> None:
        begun.append(1)
        go_on(*args)

    monkeypatch.setattr(lane.Lane, "go_on", counted_go_on)
    hot, cold = await both_ways(second(*STREAMS[name]), ask(CHAT, stream=True))
    assert (unframed(hot[0]), hot[1]) == (unframed(cold[0]), cold[1])
    assert len(begun) == (name in BEGUN)


def unframed(answered: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
    """What an answer says, however it is cut into chunks."""
    found = read(answered)
    return found.status, found.headers, found.body, found.ended


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


@pytest.mark.parametrize("name", ["chat", "messages", "chat from messages", "messages from chat"])
@pytest.mark.parametrize("stream", [True, False])
async def test_each_dialect_is_the_same_both_ways(name: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    way: Way = WAYS[name]
    answer = way.stream() if stream else way.whole()
    with counted(monkeypatch) as counts:
        hot, cold = await both_ways(lambda _: [Again((REQUEST, answer))], ask(way, stream=stream))
    assert hot == cold
    assert counts == {"sent": way.same, "delivered": way.same and not stream}


@pytest.mark.parametrize(
    "members",
    [
        {"model": "lab/"},
        {"model": "nobody/m"},
        {"stream": "yes"},
        {"MODEL": "lab/other"},
        {"models": ["a"]},
        {"n": 3},
        {"max_tokens": 10**9},
        {"pad": "x" * 200_000},
    ],
    ids=str,
)
async def test_a_request_is_the_same_both_ways(members: dict[str, Any]) -> None:
    hot, cold = await both_ways(lambda _: [Again((REQUEST, CHAT.whole()))], ask(CHAT, **{"stream": False, **members}))
    assert hot == cold


async def test_what_the_provider_is_sent_is_the_same() -> None:
    sent: list[list[bytes]] = []
    for hot in (True, False):
        async with standing([Again((REQUEST, CHAT.whole()))]) as stand:
            if not hot:
                stand.server.again = None
            async with stand.client() as client:
                for number in range(3):
                    client.write(ask(CHAT, stream=False, seed=number, big=10**number))
                    await client.response()
            sent.append([each.replace(b":%d" % stand.peer.port, b"") for each in stand.peer.requests])
    assert sent[0] == sent[1]
    assert len(sent[0]) == 3


async def test_its_limits_are_those_of_the_spine() -> None:
    counts = []
    for hot in (True, False):
        options = {"limits": Limits(requests_per_minute=5)}
        async with standing([Again((REQUEST, CHAT.whole()))], options=options) as stand:
            if not hot:
                stand.server.again = None
            async with stand.client() as client:
                statuses = []
                for _ in range(9):
                    client.write(ask(CHAT, stream=False))
                    statuses.append((await client.response())[:12])
            counts.append(statuses)
    assert counts[0] == counts[1]
    assert counts[0].count(b"HTTP/1.1 200") == 5


@pytest.mark.parametrize("hot", [True, False])
async def test_a_client_that_leaves_takes_its_call_with_it(hot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        async with standing(second()) as stand:
            if not hot:
                stand.server.again = None
            async with stand.client() as client:
                await warm(client, ask(CHAT, stream=False))
                client.write(ask(CHAT, stream=False))
                await stand.peer.requested(3)
            await stand.peer.left(1)
            assert [row["status"] for row in await stand.recorded(3)] == [200, 200, 499]
    assert counts["sent"] == hot


async def test_a_server_that_stops_tells_who_waits_in_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        async with standing(second()) as stand:
            async with asyncio.timeout(8), stand.client() as client:
                await warm(client, ask(CHAT, stream=False))
                client.write(ask(CHAT, stream=False))
                await stand.peer.requested(3)
                for work in list(stand.server.work):
                    work.cancel()
                assert (await client.response()).startswith(b"HTTP/1.1 503")
    assert counts["sent"] == 1


async def test_a_connection_that_closes_at_its_next_request_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        hot, cold = await both_ways(second(CLOSE), ask(CHAT, stream=False))
    assert hot == cold
    assert hot[0].startswith(b"HTTP/1.1 200")
    assert counts == {"sent": 1, "delivered": 0}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_in_it_is_told_once_and_leaves_nothing(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    slow = (head() + events(ONE), Drip(events(DONE) + END, 0.02, 1))
    async with standing([Again((REQUEST, *(slow if stream else (CHAT.whole(),))))]) as stand:
        async with asyncio.timeout(8), stand.client() as client:
            for name in ("Hold.feed", "Hold.begin") if stream else ("Lane._deliver",):
                await warm(client, ask(CHAT, stream=stream))
                owner, _, method = name.partition(".")
                with monkeypatch.context() as patch:
                    patch.setattr(getattr(lane, owner), method, broken)
                    client.write(ask(CHAT, stream=stream))
                    assert (await client.response()).startswith(b"HTTP/1.1 500")
        await comes_true(lambda: [line for line in stand.lines() if line.get("event") == "bug"], "a bug is told of")
        stand.log[:] = [line for line in stand.log if line.get("event") != "bug"]
        assert stand.idle()


async def test_another_configuration_is_asked_anew() -> None:
    async with standing([Again((REQUEST, CHAT.whole()))]) as stand:
        async with asyncio.timeout(8), stand.client() as client:
            await warm(client, ask(CHAT, stream=False))
            providers = {**stand.app.config.providers, "other": stand.app.config.providers["lab"]}
            del providers["lab"]
            stand.app.reload(msgspec.structs.replace(stand.app.config, providers=providers))
            client.write(ask(CHAT, stream=False))
            assert (await client.response()).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("hot", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_left_to_the_garbage_collector(stream: bool, hot: bool) -> None:
    """An exchange that ends is gone at once: what goes round in circles would cost more to find than to serve."""
    answer = CHAT.stream() if stream else CHAT.whole()
    async with standing([Again((REQUEST, answer))]) as stand, asyncio.timeout(8), stand.client() as client:
        if not hot:
            stand.server.again = None
        await warm(client, ask(CHAT, stream=stream))
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.write(ask(CHAT, stream=stream))
                await client.response()
            await comes_true(stand.idle, "idle")
            kinds = Counter(type(each).__name__ for each in gc.get_objects())
        finally:
            gc.enable()
        assert max(kinds["Cycle"], kinds["Lane"], kinds["Drive"], kinds["Exchange"], kinds["Attempt"]) < 10


async def test_models_of_one_provider_share_the_head_of_what_goes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for a thousand models in turn pays for one head, and is served in the lane."""
    made, prepare = [], Prepared

    def counted_prepare(outbound: Any) -> Any:
        made.append(outbound.path)
        return prepare(outbound)

    monkeypatch.setattr(lane, "Prepared", counted_prepare)
    bench = micro.Bench(micro.config(models=3, providers=2))
    await bench.start()
    client, pieces = bench.connect(), micro.cases()["unary"].pieces
    for name in ("m0", "m1", "m2", "p1/a", "p1/b") * 3:
        last = await bench.exchange(client, micro.request(stream=False, model=name), pieces)
        assert last.startswith(b"HTTP/1.1 200 ")
    assert made == [b"/v1/chat/completions"] * 2  # one of each provider
    bench.close()
