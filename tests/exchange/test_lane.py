"""The hot lane: whatever a provider answers, a client sees the same as of the spine, and nothing is left behind.

Each request is sent on a connection that has asked the same before, once with the lane and once without.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import msgspec
import pytest

from benchmarks import micro
from sidecar.config import Limits
from sidecar.exchange import lane
from sidecar.pool.outbound import Prepared
from tests.exchange.both import CHAT, both_ways, broken_by, counted, second, warm
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Drip
from tests.faults.stand import ask, comes_true, standing
from tests.faults.transcripts import WAYS, Way, chunk, head, reply

LONG = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},"pad":"' + b"x" * 70_000 + b'"}'

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


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        hot, cold = await both_ways(second(*ANSWERS[name]), ask(CHAT, stream=False))
    assert hot == cold
    assert counts["sent"] == 1
    usual = {"plain", "its ids", "an id by the other name", "both ids", "headers that stay here", "bytes behind it"}
    usual.add("an interim answer before it")
    assert counts["delivered"] == (name in usual)


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


async def test_a_bug_in_it_is_told_once_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing([Again((REQUEST, CHAT.whole()))]) as stand:
        await broken_by(lane.Lane, "_deliver", 500, stand, ask(CHAT, stream=False), monkeypatch)


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
