"""One try, under any ASGI server (in its task): what it waits for first, what it makes of an answer, what it holds."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import msgspec
import pytest

from sidecar.clock import now
from sidecar.config import Key, Limits, Model
from sidecar.secret import Secret
from tests.asgi import Answer, ask as asgi
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Pause, RawServer, Script
from tests.faults.stand import Stand, ask, comes_true, provider, standing
from tests.faults.transcripts import CHAT_BODY, CHAT_EVENTS, LAST, WAYS, chunk, head, reply as answer

CHAT = WAYS["chat"]
ROLE = chunk(CHAT_EVENTS[0])
GZIP = b"content-encoding: gzip"
BOTH = Model(targets=("lab/m", "other/m"))
WHOLE = b"".join(CHAT_EVENTS)


async def call(stand: Stand, model: str = "lab/m", *, stream: bool = True, **headers: str) -> Answer:
    """The app, asked as an ASGI server asks it."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await asgi(stand.app, "POST", CHAT.path, sent, msgspec.json.encode(body))


# -- what is held


@pytest.mark.parametrize(
    "first",
    [
        [REQUEST, head() + ROLE, RST],
        [REQUEST, head() + ROLE + chunk(b'data: {"error":{"message":"boom"}}\n\n') + LAST, CLOSE],
        [REQUEST, head() + ROLE + chunk(b"data: [DONE]\n\n") + LAST, CLOSE],
        [REQUEST, head() + ROLE],
        [REQUEST, head(kind=b"text/plain") + ROLE, RST],  # some forget to say that it is a stream
        [REQUEST, answer(b'{"error":{"message":"boom"}}')],
        [REQUEST, head(GZIP) + chunk(gzip.compress(CHAT_EVENTS[0])), RST],
        [REQUEST, head(GZIP) + chunk(b"not gzip at all"), CLOSE],
    ],
    ids=["reset", "error", "empty", "stall", "undeclared", "one body", "gzip", "broken gzip"],
)
async def test_a_stream_is_held_until_its_first_content(first: Script) -> None:
    async with RawServer([REQUEST, CHAT.stream()]) as other:
        async with standing(
            first,
            models={"fast": BOTH},
            more=lambda _: {"other": provider(other)},
            timeouts={"first_byte_seconds": 0.1, "idle_seconds": 0.1},
        ) as stand:
            reply = await call(stand, "fast")
            assert (reply.status, reply.body, reply.get(b"x-sidecar-attempts")) == (200, WHOLE, b"2")
            assert (len(stand.peer.requests), len(other.requests)) == (1, 1)


async def test_of_a_long_body_only_so_much_is_held() -> None:
    """Behind 64 KiB it goes on as it comes: cut then, it has no proper end, and no second answer."""
    long = b'{"x":"' + b"y" * 100_000
    script: Script = [REQUEST, head(framing=b"content-length: 200000", kind=b"application/json") + long, RST]
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(script, models={"fast": BOTH}, more=lambda _: {"other": provider(other)}) as stand:
            reply = await stand.ask(ask(CHAT, stream=False, model="fast"))
            assert (reply.status, reply.ended, len(other.connections)) == (200, False, 0)
            assert long.startswith(reply.body)
        short: Script = [
            REQUEST,
            head(framing=b"content-length: 200000", kind=b"application/json") + long[:60_000],
            RST,
        ]
        async with standing(short, models={"fast": BOTH}, more=lambda _: {"other": provider(other)}) as stand:
            reply = await stand.ask(ask(CHAT, stream=False, model="fast"))
            assert (reply.status, reply.body, len(other.requests)) == (200, CHAT_BODY, 1)


async def test_an_error_of_a_megabyte_is_none_of_a_provider() -> None:
    async with standing([REQUEST, answer(b"x" * 1_100_000, status=b"500 Oh")]) as stand:
        reply = await call(stand)
        assert (reply.status, reply.get(b"x-sidecar-error")) == (502, b"provider_protocol_error")


@pytest.mark.parametrize("name", ["chat", "chat from messages"])
async def test_a_packed_body_is_read_inside(name: str) -> None:
    way = WAYS[name]
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"m"},"error_":1}'
    script: Script = [
        REQUEST,
        answer(gzip.compress(error), GZIP),
        REQUEST,
        answer(gzip.compress(way.theirs.body), GZIP),
    ]
    targets = (way.model, way.model.partition("/")[0] + "/b")
    async with standing(script, models={"fast": Model(targets=targets)}) as stand:
        reply = await call(stand, "fast", stream=False)
        assert (reply.status, reply.get(b"x-sidecar-attempts"), len(stand.peer.requests)) == (200, b"2", 2)
        assert reply.json["choices"][0]["message"]["content"] == "one tw\u00f6"
        assert reply.get(b"content-encoding") is None


# -- what it waits for


async def waits(stand: Stand, count: int = 1) -> None:
    await comes_true(lambda: f" {count} waiting>" in repr(stand.app._limits), "it waits for its turn")


async def test_what_fails_while_a_request_waits_for_its_turn_is_seen() -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, Pause(until), CHAT.whole(), REQUEST, CHAT.whole()]
    async with standing(script, options={"limits": Limits(concurrency=1)}) as stand:
        first = asyncio.ensure_future(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested()
        second = asyncio.ensure_future(call(stand, stream=False))
        await waits(stand)
        breaker = stand.app._spine.places["lab/m"].target.breaker
        breaker._open(now())
        until.set()
        assert (await first).status == 200
        reply = await second
        assert (reply.status, reply.get(b"x-sidecar-error")) == (503, b"provider_unavailable")
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("keys", [1, 2])
async def test_a_key_that_is_refused_while_a_request_waits_is_not_asked(keys: int) -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, Pause(until), CHAT.whole(), REQUEST, CHAT.whole()]
    options: dict[str, Any] = {"limits": Limits(concurrency=1)}
    names = tuple(Key(source="inline", secret=Secret(f"sk-number-{number}")) for number in range(keys))
    async with standing(script, options={**options, "api_keys": names}) as stand:
        first = asyncio.ensure_future(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested()
        second = asyncio.ensure_future(call(stand, stream=False))
        await waits(stand)
        stand.app._spine.places["lab/m"].keys.cool(keys - 1, now() + 60)  # the one it would have been asked with
        until.set()
        assert (await first).status == 200
        reply = await second
        assert reply.status == (200 if keys == 2 else 429)
        assert [b"sk-number-0" in request for request in stand.peer.requests] == [True] * keys


async def test_who_leaves_the_queue_as_the_probe_makes_way() -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, Pause(until), CHAT.whole(), REQUEST, CHAT.whole()]
    async with standing(script, options={"limits": Limits(concurrency=1)}) as stand:
        first = asyncio.ensure_future(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested()
        breaker = stand.app._spine.places["lab/m"].target.breaker
        breaker._open(now() - 2.0)  # its time is over
        async with stand.client() as client:
            client.write(ask(CHAT, stream=False))
            await waits(stand)
            assert breaker.state == "half-open"
        await waits(stand, 0)
        assert breaker.ready(now())
        until.set()
        assert (await first).status == 200
        assert (await call(stand, stream=False)).status == 200
        assert (breaker.state, len(stand.peer.requests)) == ("closed", 2)


async def test_keys_of_a_request_that_waits_in_vain_are_still_in_turn() -> None:
    async with standing([Again((REQUEST, CHAT.whole()))], options={"limits": Limits(concurrency=1)}) as stand:
        for _ in range(3):
            assert (await call(stand, stream=False)).status == 200
        place = stand.app._spine.places["lab/m"]
        assert (place.target.in_flight, place.counter.running, len(stand.peer.requests)) == (0, 0, 3)
