"""Nothing goes to the client before the first content: whatever fails until then, another target mends unseen.

Behind it there is never a second answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from sidecar.config import Model, Retry
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Drip, Pause, RawServer, Script, Step
from tests.faults.stand import ONE_TRY, Reply, Stand, ask, comes_true, post, provider, read, standing
from tests.faults.transcripts import (
    CHAT_BODY,
    CHAT_EVENTS,
    EVERY_WAY,
    LAST,
    MESSAGES_BODY,
    MESSAGES_EVENTS,
    WAYS,
    Way,
    chunk,
    head,
    reply as answer,
)

CHAT, MESSAGES = WAYS["chat"], WAYS["messages"]
MARK = b"of the first target"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
COMMENT = b": OPENROUTER PROCESSING of the first target\n\n"
START, BLOCK = MESSAGES_EVENTS[0].split(b"\n\n", 1)
# What each language may say before any content, marked where that is possible.
PREAMBLES: dict[str, tuple[bytes, ...]] = {
    "chat": (
        b"",
        CHAT_EVENTS[0].replace(b'"c1"', b'"%b"' % MARK),
        COMMENT,
        CHAT_EVENTS[0].replace(b'"c1"', b'"%b"' % MARK).replace(b'"content":""', b'"content":null'),
    ),
    "messages": (
        b"",
        START.replace(b'"msg_1"', b'"%b"' % MARK) + b"\n\n",
        START.replace(b'"msg_1"', b'"%b"' % MARK) + b"\n\n" + BLOCK + PING,
        PING,
    ),
}
ERRORS = {
    "chat": b'data: {"error":{"message":"of the first target","type":"server_error"}}\n\n',
    "messages": b'event: error\ndata: {"type":"error","error":{"type":"api_error",'
    b'"message":"of the first target"}}\n\n',
}
ENDS = {"chat": b"data: [DONE]\n\n", "messages": MESSAGES_EVENTS[-1]}
FAILURES = ("reset", "fin", "end", "error", "empty", "stall", "garbage")


def spoken(way: Way) -> str:
    return "messages" if way.theirs is MESSAGES.theirs else "chat"


def failing(way: Way, preamble: bytes, how: str) -> Script:
    name = spoken(way)
    sent = head() + (chunk(preamble) if preamble else b"")
    match how:
        case "reset":
            return [REQUEST, sent, RST]
        case "fin":
            return [REQUEST, sent, CLOSE]
        case "end":
            return [REQUEST, sent + LAST, CLOSE]
        case "error":
            return [REQUEST, sent + chunk(ERRORS[name]) + LAST, CLOSE]
        case "empty":
            return [REQUEST, sent + chunk(ENDS[name]) + LAST, CLOSE]
        case "garbage":
            return [REQUEST, sent + b"nonsense\r\n", CLOSE]
    return [REQUEST, sent]


@asynccontextmanager
async def two(
    first: Script, second: Script, way: Way = CHAT, *, patience: float = 0.1, retry: Retry = ONE_TRY, **options: Any
) -> AsyncIterator[tuple[Stand, RawServer]]:
    """The sidecar before two targets of the same language, the model "fast"; `patience`: seconds for each byte."""
    kind = "anthropic" if way.theirs is MESSAGES.theirs else "openai-compatible"
    async with RawServer(second) as other:
        async with standing(
            first,
            models={"fast": Model(targets=(way.model, "other/m"), **options)},
            more=lambda _: {"other": provider(other, kind)},
            timeouts={"first_byte_seconds": patience, "idle_seconds": patience},
            retry=retry,
        ) as stand:
            yield stand, other


def told(reply: Reply) -> bytes:
    return b"".join(name + value for name, value in reply.headers) + reply.body


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("number", range(4))
@EVERY_WAY
async def test_what_fails_before_content_is_mended_unseen(way: Way, number: int, how: str) -> None:
    preamble = PREAMBLES[spoken(way)][number]
    async with two(failing(way, preamble, how), [REQUEST, way.stream()], way) as (stand, other):
        reply = await stand.ask(ask(way, model="fast"))
        assert (reply.status, reply.ended, reply.get(b"x-sidecar-attempts")) == (200, True, b"2")
        assert reply.get(b"x-sidecar-provider") == b"other"
        assert MARK not in told(reply)
        assert b"error" not in reply.body
        assert reply.body.count(b'"one"') == 1
        assert way.ours.done in reply.body
        if way.same:
            assert reply.body == b"".join(way.theirs.events)
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)
        assert stand.peer.requests[0].partition(b"\r\n\r\n")[2].count(b'"stream":true') == 1


@pytest.mark.parametrize("how", ["reset", "fin", "end", "error", "stall", "garbage"])
@EVERY_WAY
async def test_behind_content_there_is_no_second_answer(way: Way, how: str) -> None:
    until = asyncio.Event()
    sent = head() + b"".join(map(chunk, way.theirs.events[:2]))
    request, broken, *rest = failing(way, b"", how)
    assert isinstance(broken, bytes)
    script: Script = [request, sent, Pause(until), broken.removeprefix(head()), *rest]
    async with two(script, [REQUEST, way.stream()], way, retry=Retry()) as (stand, other):
        async with stand.client() as client:
            client.write(ask(way, b"connection: close", model="fast"))
            before = await client.take_until(b'"one"')
            until.set()
            reply = read(before + await client.rest())
        assert (reply.status, reply.ended, reply.get(b"x-sidecar-attempts")) == (200, True, b"1")
        assert reply.body.count(b'"one"') == 1
        assert way.ours.done not in reply.body
        fault = way.ours.fault.search(reply.body)
        assert fault is not None or (way.same and how == "error" and reply.body.endswith(ERRORS[spoken(way)]))
        assert (len(stand.peer.requests), len(other.connections)) == (1, 0)


@pytest.mark.parametrize("event", range(2))
@EVERY_WAY
async def test_the_same_target_is_asked_again_too(way: Way, event: int) -> None:
    preamble = PREAMBLES[spoken(way)][event]

    def script(number: int) -> Script:
        return [REQUEST, way.stream()] if number else failing(way, preamble, "reset")

    async with standing(script, retry=Retry(base_seconds=0.01)) as stand:
        reply = await stand.ask(ask(way))
        assert (reply.status, reply.ended, len(stand.peer.requests)) == (200, True, 2)
        assert MARK not in told(reply)


# -- text completions, which have no roles and are translated into nothing


async def test_completions_are_held_like_all() -> None:
    empty = b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":"","finish_reason":null}]}\n\n'
    said = empty.replace(b'"text":""', b'"text":"one"')
    done = empty.replace(b"null", b'"stop"') + b"data: [DONE]\n\n"
    request = post("/v1/completions", msgspec.json.encode({"model": "fast", "prompt": "hi", "stream": True}))
    good: Script = [REQUEST, head() + chunk(said) + chunk(done) + LAST]
    firsts: tuple[Script, ...] = (
        [REQUEST, head() + chunk(empty), RST],
        [REQUEST, head() + chunk(ERRORS["chat"]) + LAST, CLOSE],
        [REQUEST, head() + chunk(b"data: [DONE]\n\n") + LAST, CLOSE],
        [REQUEST, head() + chunk(empty)],
    )
    for first in firsts:
        async with two(first, good) as (stand, other):
            reply = await stand.ask(request)
            assert (reply.status, reply.body, reply.ended) == (200, said + done, True)
            assert (len(stand.peer.requests), len(other.requests)) == (1, 1)
    async with two([REQUEST, head() + chunk(said), RST], good) as (stand, other):
        reply = await stand.ask(request)
        assert reply.body.startswith(said)
        assert b'"error"' in reply.body
        assert (len(stand.peer.requests), len(other.connections)) == (1, 0)


# -- answers that come whole

BODIES = {
    "chat": b'{"error":{"message":"boom"}}',
    "messages": b'{"type":"error","error":{"type":"api_error","message":"boom"}}',
}


@EVERY_WAY
async def test_an_empty_body_is_no_answer(way: Way) -> None:
    async with two([REQUEST, answer(b"")], [REQUEST, way.whole()], way) as (stand, other):
        reply = await stand.ask(ask(way, stream=False, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-attempts")) == (200, b"2")
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)


@EVERY_WAY
async def test_a_whole_error_under_200_moves_on(way: Way) -> None:
    body = BODIES[spoken(way)]
    async with two([REQUEST, answer(body)], [REQUEST, way.whole()], way) as (stand, other):
        reply = await stand.ask(ask(way, stream=False, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-attempts")) == (200, b"2")
        assert b"boom" not in told(reply)
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{", b'{"choices":[]}'])
@pytest.mark.parametrize("name", ["chat from messages", "messages from chat"])
async def test_what_cannot_be_translated_moves_on(name: str, body: bytes) -> None:
    way = WAYS[name]
    async with two([REQUEST, answer(body)], [REQUEST, way.whole()], way) as (stand, other):
        reply = await stand.ask(ask(way, stream=False, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-attempts")) == (200, b"2")
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)
    async with standing([Again((REQUEST, answer(body)))]) as stand:
        reply = await stand.ask(ask(way, stream=False))
        assert (reply.status, reply.get(b"x-sidecar-error")) == (502, b"provider_protocol_error")


@pytest.mark.parametrize("how", [RST, CLOSE], ids=["reset", "fin"])
@EVERY_WAY
async def test_half_a_body_moves_on(way: Way, how: Step) -> None:
    async with two([REQUEST, way.whole()[:-9], how], [REQUEST, way.whole()], way) as (stand, other):
        reply = await stand.ask(ask(way, stream=False, model="fast"))
        assert (reply.status, reply.body == way.ours.body or not way.same) == (200, True)
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)


async def test_one_body_instead_of_a_stream_moves_on_where_it_would_have_to_be_translated() -> None:
    way = WAYS["chat from messages"]
    async with two([REQUEST, answer(MESSAGES_BODY)], [REQUEST, way.stream()], way) as (stand, other):
        reply = await stand.ask(ask(way, model="fast"))
        assert (reply.status, reply.ended, len(other.requests)) == (200, True, 1)
    async with two([REQUEST, answer(CHAT_BODY)], [REQUEST, CHAT.stream()]) as (stand, other):
        reply = await stand.ask(ask(CHAT, model="fast"))
        assert (reply.status, reply.body, len(other.connections)) == (200, CHAT_BODY, 0)


# -- the bounds of what is held

LONG: Final = 5.0  # seconds: longer than what is measured


@pytest.mark.parametrize("preamble", [b"", CHAT_EVENTS[0], COMMENT], ids=["head", "role", "comment"])
async def test_so_long_and_no_longer(preamble: bytes) -> None:
    """Behind `commit_seconds` the client gets what there is, be it the head alone; from then on it is this answer."""
    until = asyncio.Event()
    script: Script = [REQUEST, head() + (chunk(preamble) if preamble else b""), Pause(until), RST]
    async with two(script, [REQUEST, CHAT.stream()], commit_seconds=0.15, patience=LONG) as (stand, other):
        async with stand.client() as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            client.write(ask(CHAT, model="fast"))
            async with asyncio.timeout(1):
                await client.take_until(b"\r\n\r\n")
            assert 0.14 <= loop.time() - began < 0.4
            if preamble:
                await client.take_until(preamble)
            until.set()
            await client.take_until(b'"error"')
        assert (len(stand.peer.requests), len(other.connections)) == (1, 0)


async def test_so_many_bytes_and_no_more() -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, head(), Drip(chunk(COMMENT), 0.01, 3), Pause(until), RST]
    size = len(COMMENT)
    async with two(script, [REQUEST, CHAT.stream()], commit_bytes=3 * size - 1, patience=LONG) as (stand, other):
        async with stand.client() as client:
            client.write(ask(CHAT, model="fast"))
            await client.take_until(COMMENT * 3)
            until.set()
            await client.take_until(b'"error"')
        assert (len(stand.peer.requests), len(other.connections)) == (1, 0)
    async with two(script, [REQUEST, CHAT.stream()], commit_bytes=3 * size, patience=LONG) as (stand, other):
        reply = await stand.ask(ask(CHAT, model="fast"))
        assert (reply.status, reply.body, len(other.requests)) == (200, b"".join(CHAT_EVENTS), 1)


@pytest.mark.parametrize("bound", [{"commit_bytes": 0}, {"commit_seconds": 0}], ids=["bytes", "seconds"])
async def test_nothing_is_held_where_nothing_may_be(bound: dict[str, Any]) -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, head() + chunk(CHAT_EVENTS[0]), Pause(until), RST]
    async with two(script, [REQUEST, CHAT.stream()], **bound, patience=LONG) as (stand, other):
        async with stand.client() as client:
            client.write(ask(CHAT, model="fast"))
            await client.take_until(CHAT_EVENTS[0])
            until.set()
            await client.take_until(b'"error"')
        assert len(other.connections) == 0


@EVERY_WAY
async def test_content_goes_out_when_it_has_come(way: Way) -> None:
    until = asyncio.Event()
    first, *rest = way.theirs.events
    script: Script = [REQUEST, head() + chunk(first), chunk(rest[0]), Pause(until), *map(chunk, rest[1:]), LAST]
    async with two(script, [], way, patience=LONG) as (stand, other):
        async with stand.client() as client:
            client.write(ask(way, model="fast"))
            async with asyncio.timeout(1):
                await client.take_until(b'"one"')
            until.set()
            await client.take_until(b"0\r\n\r\n")
        assert (len(stand.peer.requests), len(other.connections)) == (1, 0)


async def test_a_client_that_leaves_while_it_is_held_takes_all_with_it() -> None:
    async with two([REQUEST, head() + chunk(CHAT_EVENTS[0])], [], patience=LONG) as (stand, other):
        async with stand.client() as client:
            client.write(ask(CHAT, model="fast"))
            await comes_true(lambda: stand.app._spine.places, "it is asked")
            await stand.peer.requested()
        await stand.peer.left()
        await comes_true(stand.idle, "nothing is left", seconds=0.2)
        assert [row["status"] for row in await stand.recorded()] == [499]
        assert len(other.connections) == 0


async def test_what_all_targets_fail_at_is_told_with_the_status_of_the_last() -> None:
    """A head that was held is no promise: the client sees the error as one, with a status."""
    async with two([REQUEST, head() + chunk(CHAT_EVENTS[0]), RST], [REQUEST, head(), RST]) as (stand, other):
        reply = await stand.ask(ask(CHAT, model="fast"))
        assert (reply.status, reply.get(b"x-sidecar-error"), reply.get(b"x-should-retry")) == (
            502,
            b"provider_cut",
            b"false",
        )
        assert (len(stand.peer.requests), len(other.requests)) == (1, 1)


@EVERY_WAY
async def test_a_part_of_a_body_that_is_framed_well_is_a_cut(way: Way) -> None:
    """Its length is as it says, so that only its JSON tells: a client would choke on it."""
    part = answer(way.theirs.body[:-9])
    async with standing([REQUEST, part]) as stand:
        reply = await stand.ask(ask(way, stream=False))
        code = b"provider_cut" if way.same else b"provider_protocol_error"  # what is translated is read as a whole
        assert (reply.status, reply.get(b"x-sidecar-error")) == (502, code)
        assert len(stand.peer.requests) == 1
    async with standing([REQUEST, part, REQUEST, way.whole()], retry=Retry(attempts=1, base_seconds=0.01)) as stand:
        assert (await stand.ask(ask(way, stream=False))).status == 200
        assert len(stand.peer.requests) == 2
