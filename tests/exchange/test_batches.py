"""Embeddings out of the cache: a provider is asked for what is new, and every client gets all of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from sidecar.config import Cache
from sidecar.exchange import batches
from tests.exchange.passing import later, said, stats
from tests.faults.peer import FIN, REQUEST, RST, Drip, Pause, Script
from tests.faults.stand import Reply, Stand, comes_true, post, read, standing
from tests.faults.transcripts import JSON, head, reply

HOUR = Cache(ttl_seconds=3600)


def asks(value: Any, *headers: bytes, **members: Any) -> bytes:
    return post("/v1/embeddings", msgspec.json.encode({"model": "lab/m", "input": value, **members}), *headers)


def answers(*texts: str, spelt: bytes = b"0.50", tokens: int = 0) -> bytes:
    """What the provider says of such texts: their length is their embedding, and three tokens each."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":[%d,%b]}' % (index, len(text), spelt)
        for index, text in enumerate(texts)
    )
    total = tokens or 3 * len(texts)
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (total, total)
    return b'{"object":"list","data":[%b],"model":"m-1","usage":%b}' % (data, usage)


def script(*batches: Sequence[str]) -> Script:
    return [step for texts in batches for step in (REQUEST, reply(answers(*texts)))]


def vectors(answer: Reply) -> list[tuple[int, int]]:
    assert b",0.50]" in answer.body  # as the provider spelt it
    return [(datum["index"], datum["embedding"][0]) for datum in answer.json["data"]]


def inputs(stand: Stand) -> list[Any]:
    """What the provider was asked for."""
    return [msgspec.json.decode(request.partition(b"\r\n\r\n")[2])["input"] for request in stand.peer.requests]


async def test_only_what_is_new_is_asked_for_and_each_is_in_its_place() -> None:
    async with standing(script(["a", "bb"], ["ccc", "dddd"]), cache=HOUR) as stand:
        first = await stand.ask(asks(["a", "bb"]))
        second = await stand.ask(asks(["ccc", "bb", "dddd", "a", "ccc"]))
        third = await stand.ask(asks(["dddd", "a"]))
        assert [said(each) for each in (first, second, third)] == [
            (200, b"miss", None),
            (200, b"miss", None),
            (200, b"hit", b"0"),
        ]
        assert first.body == answers("a", "bb")
        assert vectors(second) == [(0, 3), (1, 2), (2, 4), (3, 1), (4, 3)]
        assert vectors(third) == [(0, 4), (1, 1)]
        assert inputs(stand) == [["a", "bb"], ["ccc", "dddd"]]
        assert {each.json["model"] for each in (first, second, third)} == {"m-1"}
        assert second.json["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
        rows = await stand.recorded(3)
        assert (stats(stand)["entries"], stats(stand)["hit"], stats(stand)["miss"]) == (4, 1, 2)
    assert [row["input_tokens"] for row in rows] == [6, 6, None]
    assert [row["saved_input_tokens"] for row in rows[:2]] == [None, 2 + 4]  # by their lengths, with their quotes
    assert third.json["usage"]["prompt_tokens"] == rows[2]["saved_input_tokens"]


async def test_the_same_batch_again_is_the_same_answer() -> None:
    async with standing(script(["a", "bb", "ccc"]), cache=HOUR) as stand:
        request = asks(["a", "bb", "ccc"])
        assert (await stand.ask(request)).body == (await stand.ask(request)).body == answers("a", "bb", "ccc")
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("other", [{"dimensions": 8}, {"user": "u"}, {"encoding_format": "base64"}, {"model": "lab/n"}])
async def test_what_makes_another_embedding(other: dict[str, Any]) -> None:
    async with standing(script(["a"], ["a"]), cache=HOUR) as stand:
        assert [said(await stand.ask(asks(["a"], **more)))[1] for more in ({}, other, {})] == [b"miss", b"miss", b"hit"]


async def test_a_text_alone_and_in_a_list_and_tokens() -> None:
    async with standing(script(["a"], ["tokens"]), cache=HOUR) as stand:
        got = [await stand.ask(asks(value)) for value in ("a", ["a"], [1, 2], [[1, 2]])]
        assert [said(each)[1] for each in got] == [b"miss", b"hit", b"miss", b"hit"]
        assert inputs(stand) == ["a", [1, 2]]


async def test_a_text_twice_is_asked_for_once() -> None:
    async with standing(script(["a", "bb"]), cache=HOUR) as stand:
        answer = await stand.ask(asks(["a", "bb", "a"]))
        assert vectors(answer) == [(0, 1), (1, 2), (2, 1)]
        assert inputs(stand) == [["a", "bb"]]


async def test_refresh_asks_for_all_and_the_time_to_live(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing(script(["a"], ["a"], ["a"]), cache=HOUR) as stand:
        await stand.ask(asks(["a"]))
        assert said(await stand.ask(asks(["a"], b"x-sidecar-cache: refresh")))[1] == b"miss"
        later(monkeypatch, stand, 3601.0)
        assert said(await stand.ask(asks(["a"])))[1] == b"miss"
        assert len(stand.peer.requests) == 3


@pytest.mark.parametrize("value", [[], [{"text": "a"}], None, [1, "a"]])
async def test_what_is_odd_goes_through_as_it_is(value: Any) -> None:
    async with standing(script(["a"], ["a"]), cache=HOUR) as stand:
        got = [await stand.ask(asks(value)) for _ in range(2)]
        assert [said(each)[1] for each in got] == [b"off"] * 2
        assert {each.body for each in got} == {answers("a")}
        assert inputs(stand) == [value] * 2
        assert stats(stand)["uncached"] == {"odd": 2}


@pytest.mark.parametrize(
    "odd", [answers("a", "b"), answers("a").replace(b'"index":0', b'"index":0,"extra":1'), b'{"data":"?"}', b"{}"]
)
async def test_an_odd_answer_goes_through_and_is_not_kept(odd: bytes) -> None:
    async with standing([REQUEST, reply(odd), REQUEST, reply(odd)], cache=HOUR) as stand:
        assert [(await stand.ask(asks(["a"]))).body for _ in range(2)] == [odd] * 2
        assert (stats(stand)["entries"], stats(stand)["uncached"]) == (0, {"odd": 2})


async def test_an_odd_answer_to_a_part_has_all_asked_for() -> None:
    odd, whole = answers("ccc", "x"), answers("a", "ccc")
    steps: Script = [*script(["a"]), REQUEST, reply(odd), REQUEST, reply(whole)]
    async with standing(steps, cache=HOUR) as stand:
        await stand.ask(asks(["a"]))
        answer = await stand.ask(asks(["a", "ccc"]))
        assert (answer.body, said(answer)[1]) == (whole, b"off")
        assert inputs(stand) == [["a"], ["ccc"], ["a", "ccc"]]
        rows = await stand.recorded(2)
    assert (rows[1]["input_tokens"], rows[1]["attempts"]) == (12, 2)


@pytest.mark.parametrize("known", [True, False])
async def test_a_refusal_goes_through(known: bool) -> None:
    refusal = reply(b'{"error":{"message":"too long"}}', status=b"400 Bad")
    steps: Script = [*(script(["a"]) if known else []), REQUEST, refusal, *script(["bb"])]
    async with standing(steps, cache=HOUR) as stand:
        if known:
            await stand.ask(asks(["a"]))
        answer = await stand.ask(asks(["a", "bb"] if known else ["bb"]))
        assert (answer.status, answer.json["error"]["message"]) == (400, "too long")
        assert stats(stand)["uncached"] == {"failed": 1}
        assert said(await stand.ask(asks(["bb"])))[1] == b"miss"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_cut_is_told_and_nothing_is_kept(known: bool, size: int) -> None:
    """A long one goes on as it comes, so that it is cut for its client too; but not where it is to be put together."""
    cut = head(kind=JSON, framing=b"content-length: 200000") + b'{"data":[' + b" " * size
    steps: Script = [*(script(["a"]) if known else []), REQUEST, cut, Drip(b" ", 0.05, 1), RST]
    async with standing(steps, cache=HOUR) as stand:
        if known:
            await stand.ask(asks(["a"]))
        async with stand.client() as client:
            client.write(asks(["a", "bb"]))
            if known or size < 65536:
                answer = read(await client.response())
                assert (answer.status, answer.ended) == (502, True)
            else:
                await client.until(lambda: client.how)
                assert not read(bytes(client.received)).ended
        await comes_true(lambda: stats(stand)["uncached"], "told")
        assert stats(stand)["entries"] == int(known)


async def test_many_at_once_ask_one_time() -> None:
    go_on = asyncio.Event()
    steps: Script = [*script(["a"]), REQUEST, Pause(go_on), reply(answers("bb"))]
    async with standing(steps, cache=HOUR) as stand, AsyncExitStack() as stack:
        await stand.ask(asks(["a"]))
        clients = [await stack.enter_async_context(stand.client()) for _ in range(5)]
        for client in clients:
            client.write(asks(["a", "bb"]))
        await comes_true(lambda: len(stand.server.work) == 5, "arrived")
        go_on.set()
        got = [read(await client.response()) for client in clients]
        assert [said(each)[1] for each in got] == [b"miss", *[b"coalesced"] * 4]
        assert [vectors(each) for each in got] == [[(0, 1), (1, 2)]] * 5
        assert inputs(stand) == [["a"], ["bb"]]


async def test_what_could_not_be_held_is_asked_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_BYTES", 150)
    async with standing(script(["a"], ["a", *"bcdefghijklm"]), cache=HOUR) as stand:
        await stand.ask(asks(["a"]))
        assert len((await stand.ask(asks(["a", *"bcdefghijklm"]))).json["data"]) == 13
        assert inputs(stand)[1] == ["a", *"bcdefghijklm"]
        assert stats(stand)["uncached"] == {"too_large": 1}


async def test_a_client_that_leaves_takes_the_call_with_it() -> None:
    async with standing([*script(["a"]), REQUEST, Pause(asyncio.Event())], cache=HOUR) as stand:
        await stand.ask(asks(["a"]))
        async with stand.client() as client:
            client.write(asks(["a", "bb"]))
            await stand.peer.requested(2)
            await client.run(FIN)
        await comes_true(lambda: not stand.peer.open, "left")
