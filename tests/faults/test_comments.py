"""Comments while a provider is silent, on real sockets: nothing but comments is added, and fail-over is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
import uvicorn

from sidecar.app import Sidecar
from sidecar.config import Config, Model
from tests.faults.ground import nothing_left
from tests.faults.peer import GONE, REQUEST, RST, STOP_READING, Flood, Pause, RawClient, RawServer, Script
from tests.faults.stand import KEY, ONE_TRY, ask, comes_true, provider, read, standing
from tests.faults.transcripts import CHAT, EVERY_WAY, LAST, MESSAGES, WAYS, Way, chunk, head, reply

COMMENT = b": sidecar\n\n"
LAB = WAYS["chat"]
EVERY = 0.06
IN_ANSWER = {
    CHAT: b'data: {"error":{"message":"%b","code":503}}\n\n',
    MESSAGES: b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"%b"}}\n\n',
}


def slow(*targets: str, **options: Any) -> dict[str, Model]:
    return {"slow": Model(targets=targets, **{"keepalive_comment_seconds": EVERY, **options})}


async def _comments(client: RawClient, count: int = 1) -> None:
    """So many more comments, each about as long after the one before as was asked for."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        at = loop.time()
        await client.take_until(COMMENT)
        assert loop.time() - at < EVERY * 2.5


@EVERY_WAY
async def test_before_the_first_content_and_between_later_ones(way: Way) -> None:
    first, later = asyncio.Event(), asyncio.Event()
    events = way.theirs.events
    script: Script = [
        REQUEST,
        Pause(first),
        head() + b"".join(map(chunk, events[:2])),
        Pause(later),
        *map(chunk, events[2:]),
        LAST,
    ]
    models = slow(way.model)
    async with standing(script, models=models) as stand, stand.client() as client:
        loop = asyncio.get_running_loop()
        at = loop.time()
        client.write(ask(way, model="slow"))
        await client.take_until(COMMENT)
        assert EVERY * 0.9 < loop.time() - at < EVERY * 2.5
        await _comments(client, 2)
        first.set()
        await client.take_until(b"one")
        at = loop.time()
        await client.take_until(COMMENT)
        assert EVERY * 0.8 < loop.time() - at < EVERY * 2.5
        later.set()
        await client.take_until(LAST)
        answer = read(bytes(client.received))
        assert len(stand.peer.requests) == 1
        row = (await stand.recorded())[0]
    assert (answer.status, answer.ended) == (200, True)
    assert (answer.get(b"content-type") or b"").startswith(b"text/event-stream")
    assert (answer.get(b"cache-control"), answer.get(b"transfer-encoding")) == (b"private, no-store", b"chunked")
    assert answer.body.count(COMMENT) == 4
    told = answer.body.replace(COMMENT, b"")
    assert way.ours.done in told
    if way.same:
        assert told == b"".join(events)
    assert (row["status"], row["error"]) == (200, "")
    assert row["bytes_out"] == len(told)
    assert row["first_byte_seconds"] >= EVERY * 2.7  # of the answer, not of a comment


@EVERY_WAY
async def test_none_where_the_provider_is_not_silent_for_so_long(way: Way) -> None:
    script: Script = [REQUEST, head(), *map(chunk, way.theirs.events), LAST]
    async with standing(script, models=slow(way.model)) as stand:
        answer = await stand.ask(ask(way, model="slow"))
        assert COMMENT not in answer.body
        assert answer.get(b"x-sidecar-provider") == way.model.partition("/")[0].encode()


async def test_none_by_default_and_none_where_no_stream_is_asked_for() -> None:
    go_on = asyncio.Event()
    async with standing([REQUEST, Pause(go_on), LAB.whole()], models=slow("lab/m")) as stand, stand.client() as client:
        client.write(ask(LAB, model="slow", stream=False))
        async with stand.client() as other:
            other.write(ask(LAB, stream=False))
            await stand.peer.requested(2)
            await asyncio.sleep(EVERY * 2.5)
            assert client.received == other.received == b""
            go_on.set()
            for each in (client, other):
                assert read(await each.response()).body == LAB.theirs.body


@EVERY_WAY
@pytest.mark.parametrize("fails", ["refusal", "cut", "in the answer"])
async def test_another_target_is_still_tried_behind_a_comment(way: Way, fails: str) -> None:
    fail = asyncio.Event()
    name = way.model.partition("/")[0]
    ways: dict[str, list[Any]] = {
        "refusal": [reply(b'{"error":{"message":"no","type":"x"}}', status=b"500 Oh")],
        "cut": [head(), RST],
        "in the answer": [head(), chunk(b'data: {"error":{"message":"overloaded","code":503}}\n\n'), LAST],
    }

    def script(number: int) -> Script:
        return [REQUEST, Pause(fail), *ways[fails], *again] if number == 0 else again

    again: list[Any] = [REQUEST, way.stream()]
    models = slow(f"{name}/a", f"{name}/b")
    async with standing(script, models=models) as stand, stand.client() as client:
        client.write(ask(way, model="slow"))
        await client.take_until(COMMENT)
        fail.set()
        await client.take_until(LAST)
        answer = read(bytes(client.received))
        assert (answer.status, answer.ended) == (200, True)
        assert way.ours.done in answer.body
        assert b'"error"' not in answer.body
        assert len(stand.peer.requests) == 2
        assert [(row["status"], row["model"]) for row in await stand.recorded()] == [(200, "b")]


@EVERY_WAY
@pytest.mark.parametrize("fails", ["refusal", "cut", "in the answer", "one body", "silence"])
async def test_an_error_behind_a_comment_is_an_event(way: Way, fails: str) -> None:
    """With a proper end; and a provider that repeats its key does not tell it."""
    fail = asyncio.Event()
    words = b'{"error":{"message":"no such key: %b","type":"x"}}' % KEY.encode()
    ways: dict[str, list[Any]] = {
        "refusal": [reply(words, status=b"401 No")],
        "cut": [RST],
        "in the answer": [head(), chunk(IN_ANSWER[way.theirs] % KEY.encode()), LAST],
        "one body": [way.whole()],
        "silence": [GONE],
    }
    script: Script = [REQUEST, Pause(fail), *ways[fails]]
    seconds = {"first_byte_seconds": EVERY * 2.5} if fails == "silence" else {}
    async with standing(script, models=slow(way.model), timeouts=seconds) as stand, stand.client() as client:
        client.write(ask(way, model="slow"))
        await client.take_until(COMMENT)
        fail.set()
        await client.take_until(LAST)
        answer = read(bytes(client.received))
        assert (answer.status, answer.ended) == (200, True)
        assert way.ours.fault.search(b"\n\n" + answer.body.replace(COMMENT, b""))
        assert way.ours.done not in answer.body
        assert KEY.encode() not in answer.body
        assert len(stand.peer.requests) == 1
        row = (await stand.recorded())[0]
        assert row["error"].startswith("provider_")


@pytest.mark.parametrize("way", [WAYS["chat"], WAYS["messages from chat"]], ids=["chat", "messages"])
async def test_the_official_sdks_pass_over_them_and_raise_what_comes_behind(way: Way) -> None:
    fail, good = asyncio.Event(), asyncio.Event()

    script: Script = [REQUEST, Pause(good), way.stream(), REQUEST, Pause(fail), head(), RST]

    async def text(stand: Any) -> str:
        url = f"http://127.0.0.1:{stand.port}"
        said: Any = [{"role": "user", "content": "hi"}]
        if way.ours is LAB.ours:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=5) as client:
                stream = await client.chat.completions.create(model="slow", messages=said, stream=True)
                return "".join([part.choices[0].delta.content or "" async for part in stream])
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, timeout=5) as claude:
            async with claude.messages.stream(model="slow", messages=said, max_tokens=9) as events:
                return "".join([part async for part in events.text_stream])

    async with standing(script, models=slow(way.model)) as stand:
        loop = asyncio.get_running_loop()
        loop.call_later(EVERY * 1.5, good.set)
        assert await text(stand) == "one twö"
        loop.call_later(EVERY * 1.5, fail.set)
        with pytest.raises((openai.APIError, anthropic.APIStatusError), match="closed the connection"):
            await text(stand)


async def test_a_client_that_leaves_behind_a_comment() -> None:
    async with standing([REQUEST, GONE], models=slow("lab/m")) as stand, stand.client() as client:
        client.write(ask(LAB, model="slow"))
        await client.take_until(COMMENT)
        await client.run(RST)
        at = asyncio.get_running_loop().time()
        await comes_true(lambda: not stand.peer.open, "left")
        assert stand.peer.connections[0].closed_at - at < 0.05
        assert [(row["status"], row["error"]) for row in await stand.recorded()] == [(499, "caller_gone")]


async def test_who_does_not_take_its_answer_is_sent_no_comments_and_loses_nothing() -> None:
    """Its silence is its own."""
    flood = Flood(chunk(LAB.theirs.events[1] * 40), 400)
    script: Script = [REQUEST, LAB.stream(1), flood, *map(chunk, LAB.theirs.events[2:]), LAST]
    models = slow("lab/m", keepalive_comment_seconds=0.02)
    async with standing(script, models=models) as stand, stand.client(receive_buffer=4096) as client:
        await client.run(ask(LAB, model="slow"), STOP_READING)
        await stand.peer.requested()
        wire, taken = stand.peer.connections[0], -1
        while wire.accepted != taken:
            taken = wire.accepted
            await asyncio.sleep(0.1)
        client.transport.resume_reading()
        await client.take_until(LAST)
        body = read(bytes(client.received)).body
        assert body.count(COMMENT) <= 1
        events = LAB.theirs.events
        assert body.replace(COMMENT, b"") == events[0] + events[1] * 16_000 + b"".join(events[2:])


# -- under another server


@asynccontextmanager
async def _uvicorn(script: Script, way: Way, **options: Any) -> AsyncIterator[tuple[RawServer, RawClient]]:
    async with nothing_left(), RawServer(script) as raw:
        providers = {"lab": provider(raw), "claude": provider(raw, "anthropic")}
        config = Config(providers=providers, models=slow(way.model, **options), retry=ONE_TRY)
        server = uvicorn.Server(uvicorn.Config(Sidecar(config), port=0, log_level="critical", ws="none"))
        serving = asyncio.get_running_loop().create_task(server.serve())
        await comes_true(lambda: server.started, "started", 5.0)
        try:
            async with RawClient(server.servers[0].sockets[0].getsockname()[1]) as client:
                yield raw, client
        finally:
            server.should_exit = True
            await serving


@EVERY_WAY
@pytest.mark.parametrize("coalesce", [False, True])
async def test_under_uvicorn_too(way: Way, coalesce: bool) -> None:
    first, later = asyncio.Event(), asyncio.Event()
    events = way.theirs.events
    script: Script = [REQUEST, Pause(first), way.stream(2), Pause(later), *map(chunk, events[2:]), LAST]
    async with _uvicorn(script, way, coalesce=coalesce) as (raw, client):
        client.write(ask(way, model="slow"))
        await _comments(client, 2)
        first.set()
        await client.take_until(b"one")
        await _comments(client)
        later.set()
        await client.take_until(LAST)
        answer = read(bytes(client.received))
        assert answer.ended
        assert way.ours.done in answer.body
        assert answer.body.count(COMMENT) == 3
        if way.same:
            assert answer.body.replace(COMMENT, b"") == b"".join(events)
        assert len(raw.requests) == 1


@EVERY_WAY
async def test_an_error_behind_a_comment_under_uvicorn(way: Way) -> None:
    fail = asyncio.Event()
    async with _uvicorn([REQUEST, Pause(fail), RST], way) as (raw, client):
        client.write(ask(way, model="slow"))
        await _comments(client)
        fail.set()
        await client.take_until(LAST)
        answer = read(bytes(client.received))
        assert answer.ended
        assert way.ours.fault.search(b"\n\n" + answer.body.replace(COMMENT, b""))
        assert len(raw.requests) == 1


async def test_a_client_that_leaves_behind_a_comment_under_uvicorn() -> None:
    async with _uvicorn([REQUEST, GONE], LAB) as (raw, client):
        client.write(ask(LAB, model="slow"))
        await _comments(client)
        client.reset()
        at = asyncio.get_running_loop().time()
        await comes_true(lambda: not raw.open, "left")
        assert raw.connections[0].closed_at - at < 0.05
