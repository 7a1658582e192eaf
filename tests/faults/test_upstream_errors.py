"""A provider's own errors: their status is kept, their body in the same language too, and who may try again is told."""

from __future__ import annotations

import pytest

from tests.faults.peer import REQUEST, Again, RawServer
from tests.faults.stand import KEY, ask, provider, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, JSON, WAYS, Way, head, reply as answer

CHAT = WAYS["chat"]
BODY = b'{ "error" : {"message":"no\\u002e", "type":"x", "code":1.0, "odd":[1e400]} }\n'
STATUSES = [400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529]
BODIES = {
    "openai": BODY,
    "anthropic": b'{"type":"error","error":{"type":"overloaded_error","message":"no."},"request_id":"r"}',
    "flat": b'{"error":"no.","code":"x"}',
    "detail": b'{"detail":[{"msg":"no."}]}',
    "a text": b"no.",
    "html": b"<html>no.</html>",
    "nothing": b"",
    "a list": b"[1,2]",
    "not utf-8": b"\xff\xfe",
    "an object of half": b'{"error":{"message":"no.',
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("name", ["chat", "messages"])
@BOTH
async def test_in_the_same_language_every_byte_passes(name: str, status: int, stream: bool) -> None:
    way = WAYS[name]
    lines = (b"retry-after: 7", b"x-ratelimit-remaining-tokens: 0", b"x-request-id: theirs")
    async with standing([REQUEST, answer(BODY, *lines, status=b"%d Oh" % status)]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        assert (reply.status, reply.body, reply.ended) == (status, BODY, True)
        assert reply.get(b"content-type") == JSON
        assert reply.get(b"retry-after") == b"7"
        assert reply.get(b"x-ratelimit-remaining-tokens") == b"0"
        assert reply.get(b"x-request-id") == b"theirs"
        assert (reply.get(b"x-sidecar-error") or b"").startswith(b"provider_")
        assert reply.get(b"x-should-retry") == (b"false" if status == 402 else None)  # money does not come back
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@EVERY_WAY
async def test_whatever_its_body_is(way: Way, body: bytes) -> None:
    async with standing([REQUEST, answer(body, status=b"503 Busy", kind=b"text/plain")]) as stand:
        reply = await stand.ask(ask(way))
        assert (reply.status, reply.ended) == (503, True)
        if way.same:
            assert reply.body == body
        else:
            assert reply.json["error"]["message"]
            assert (reply.json.get("type") == "error") == (way.path == "/v1/messages")


@pytest.mark.parametrize("name", ["chat from messages", "messages from chat"])
@pytest.mark.parametrize("status", STATUSES)
async def test_in_another_its_status_and_words_are_kept(name: str, status: int) -> None:
    body = BODIES["anthropic"] if name.startswith("chat") else b'{"error":{"message":"no.","type":"x"}}'
    async with standing([REQUEST, answer(body, b"retry-after: 7", status=b"%d Oh" % status)]) as stand:
        reply = await stand.ask(ask(WAYS[name]))
        assert (reply.status, reply.json["error"]["message"]) == (status, "no.")
        assert reply.get(b"retry-after") == b"7"
        assert reply.get(b"content-type") == JSON


@EVERY_WAY
@BOTH
async def test_a_key_that_a_provider_repeats_is_stars(way: Way, stream: bool) -> None:
    key = KEY.encode()
    body = b'{"error":{"message":"bad key %b","type":"x"}}' % key
    async with standing([REQUEST, answer(body, b"x-debug: " + key, status=b"401 No")]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        assert reply.status == 401
        assert key not in reply.body
        assert key not in b"".join(value for _, value in reply.headers)
        assert b"bad key **********" in reply.body


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529, 401, 403, 404, 408])
async def test_the_next_target_is_asked_and_the_last_ones_error_is_told(status: int) -> None:
    async with RawServer([Again((REQUEST, answer(BODY, status=b"503 Busy")))]) as other:
        async with standing(
            [Again((REQUEST, answer(b"{}", status=b"%d Oh" % status)))],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
        ) as stand:
            reply = await stand.ask(ask(CHAT, model="fast"))
            assert (reply.status, reply.body) == (503, BODY)
            assert (reply.get(b"x-sidecar-attempts"), reply.get(b"x-should-retry")) == (b"2", b"false")
            assert (len(stand.peer.requests), len(other.requests)) == (1, 1)
            assert stand.peer.requests[0].partition(b"\r\n\r\n")[2] == other.requests[0].partition(b"\r\n\r\n")[2]
            reply = await stand.ask(ask(CHAT, b"x-sidecar-fallback: off", model="fast"))
            assert (reply.status, reply.body, len(other.requests)) == (status, b"{}", 1)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_request_that_is_at_fault_is_not_sent_to_another(status: int) -> None:
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(
            [REQUEST, answer(BODY, status=b"%d Oh" % status)],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
        ) as stand:
            assert (await stand.ask(ask(CHAT, model="fast"))).status == status
            assert other.connections == []


async def test_an_error_without_end_is_bounded() -> None:
    async with standing(
        [REQUEST, head(status=b"500 Oh"), b"80000\r\n" + b"x" * 0x80000 + b"\r\n" + b"80001\r\n", b"x" * 0x80001]
    ) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_protocol_error")
        await stand.peer.left()
