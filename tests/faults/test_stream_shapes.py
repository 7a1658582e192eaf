"""Streams as providers really send them: line ends, marks, cuts inside characters, codings, missing ends."""

from __future__ import annotations

import functools
import gzip
import zlib
from typing import Any

import msgspec
import pytest

from tests.faults.peer import CLOSE, REQUEST
from tests.faults.stand import Reply, ask, standing
from tests.faults.transcripts import BOTH, EVENTS, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply as answer

CHAT = WAYS["chat"]


def _text(way: Way, reply: Reply) -> str:
    """What a client makes of a streamed answer."""
    lines = reply.body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    lines = [line.removeprefix(b"\xef\xbb\xbf") for line in lines]
    data = [
        msgspec.json.decode(line[5:]) for line in lines if line.startswith(b"data:") and line[5:].strip() != b"[DONE]"
    ]
    if way.path == "/v1/messages":
        return "".join(each["delta"].get("text", "") for each in data if each["type"] == "content_block_delta")
    return "".join(each["choices"][0]["delta"].get("content") or "" for each in data if each.get("choices"))


def _shaped(way: Way, shape: str) -> bytes:
    body = b"".join(way.theirs.events)
    match shape:
        case "CRLF":
            return body.replace(b"\n", b"\r\n")
        case "CR":
            return body.replace(b"\n", b"\r")
        case "BOM":
            return b"\xef\xbb\xbf" + body
        case "comments":
            return b": hi\n\n" + body.replace(b"\n\n", b"\n\n: ping\n\n:\n")
        case "ids and retries":
            return b"retry: 5\n\n" + body.replace(b"data:", b"id: 7\nx-other: 1\ndata:")
        case "no space":
            return body.replace(b"data: ", b"data:").replace(b"event: ", b"event:")
        case "no last empty line":
            return body[:-1]
        case "empty lines":
            return b"\n\n" + body.replace(b"\n\n", b"\n\n\n\n")
        case _:
            return body


SHAPES = ["LF", "CRLF", "CR", "BOM", "comments", "ids and retries", "no space", "no last empty line", "empty lines"]


@EVERY_WAY
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_every_shape_in_pieces_of_every_size(way: Way, shape: str, size: int) -> None:
    body = _shaped(way, shape)
    pieces = b"".join(chunk(body[at : at + size]) for at in range(0, len(body), size))
    async with standing([REQUEST, head() + pieces + LAST]) as stand:
        reply = await stand.ask(ask(way))
        assert (reply.status, reply.ended) == (200, True)
        assert _text(way, reply) == "one tw\u00f6"
        assert b'"error"' not in reply.body
        if way.same:
            assert reply.body == body
        else:
            assert way.ours.done in reply.body


@EVERY_WAY
async def test_one_byte_a_segment(way: Way) -> None:
    """Cuts inside UTF-8 and inside line ends, each in a packet of its own."""
    stream = way.stream()
    async with standing([REQUEST, *(stream[at : at + 1] for at in range(len(stream)))]) as stand:
        reply = await stand.ask(ask(way))
        assert (_text(way, reply), reply.ended) == ("one tw\u00f6", True)


@EVERY_WAY
@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_an_end_that_is_missing_is_an_error_and_not_an_end(way: Way, framing: str) -> None:
    events = [*way.theirs.events[:3], b": bye\n\n"]
    body = b"".join(map(chunk, events)) + LAST if framing == "chunks" else b"".join(events)
    async with standing([REQUEST, head(framing=None if framing == "chunks" else b"") + body, CLOSE]) as stand:
        reply = await stand.ask(ask(way))
        assert (reply.status, reply.ended) == (200, True)
        match = way.ours.fault.search(reply.body)
        assert match
        assert msgspec.json.decode(match[1])["error"]["code"].startswith("provider_")
        assert way.ours.done not in reply.body
        assert not way.same or (await stand.recorded())[0]["error"]


@pytest.mark.parametrize("name", ["chat from messages", "messages from chat"])
async def test_an_end_that_is_missing_is_in_the_log(name: str) -> None:
    async with standing([REQUEST, WAYS[name].stream(3) + LAST]) as stand:
        await stand.ask(ask(WAYS[name]))
        assert (await stand.recorded())[0]["error"] == "provider_cut"


@pytest.mark.parametrize("text", ["[DONE]", "data: [DONE]", '"finish_reason":"stop"', "message_stop", '"error":{}'])
@EVERY_WAY
async def test_words_of_the_protocol_in_a_text_are_a_text(way: Way, text: str) -> None:
    """A model may say them: an answer that is cut behind them has not ended, one that holds them is no error."""
    word = msgspec.json.encode(text)[1:-1]
    said = [event.replace(b'"one"', b'"' + word + b'"') for event in way.theirs.events]
    async with standing([REQUEST, head() + b"".join(map(chunk, said)) + LAST]) as stand:
        reply = await stand.ask(ask(way))
        assert _text(way, reply) == text + " tw\u00f6"
        assert not (await stand.recorded())[0]["error"]
    async with standing([REQUEST, head() + b"".join(map(chunk, said[:2])) + LAST]) as stand:
        reply = await stand.ask(ask(way))
        assert way.ours.fault.search(reply.body), reply.body


@EVERY_WAY
async def test_an_empty_stream(way: Way) -> None:
    async with standing([REQUEST, head() + LAST]) as stand:
        reply = await stand.ask(ask(way))
        assert b'"error"' in reply.body
        assert way.ours.done not in reply.body


@EVERY_WAY
async def test_an_event_of_more_than_8_mib(way: Way) -> None:
    flood = [chunk(b"x" * 1_000_000)] * 9
    async with standing([REQUEST, way.stream(2), chunk(b"data: "), *flood]) as stand:
        reply = await stand.ask(ask(way))
        assert reply.ended
        match = way.ours.fault.search(reply.body)
        assert match
        assert msgspec.json.decode(match[1])["error"]["code"] == "provider_protocol_error"
        await stand.peer.left()


async def test_a_long_event_within_the_bound_passes() -> None:
    event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 7_000_000)
    async with standing([REQUEST, head() + chunk(event) + chunk(b"data: [DONE]\n\n") + LAST]) as stand:
        reply = await stand.ask(ask(CHAT))
        assert reply.body == event + b"data: [DONE]\n\n"


# -- errors inside a 200

FAULTS = {
    "chat": b'data: {"error":{"message":"overloaded, canary","type":"server_error","code":503}}\n\n',
    "messages": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"canary"}}\n\n',
}


@EVERY_WAY
@pytest.mark.parametrize("before", [0, 2])
async def test_an_error_event_reaches_the_client_once_and_is_the_end(way: Way, before: int) -> None:
    fault = FAULTS["chat" if way.theirs is CHAT.theirs else "messages"]
    body = b"".join(map(chunk, (*way.theirs.events[:before], fault))) + LAST
    async with standing([REQUEST, head() + body]) as stand:
        reply = await stand.ask(ask(way))
        assert reply.ended
        assert way.ours.done not in reply.body
        if reply.status == 200:
            assert reply.body.count(b'"error":') == 1
        assert b"canary" in reply.body
        if way.same and reply.status == 200:
            assert reply.body == b"".join(way.theirs.events[:before]) + fault
        assert (await stand.recorded())[0]["error"]


# -- content codings nobody asked for


def _coded(data: bytes, coding: str) -> bytes:
    return gzip.compress(data) if coding == "gzip" else zlib.compress(data)


@EVERY_WAY
@BOTH
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("accepts", [None, b"accept-encoding: gzip, deflate"])
async def test_a_coded_answer(way: Way, stream: bool, coding: str, accepts: bytes | None) -> None:
    plain = b"".join(way.theirs.events) if stream else way.theirs.body
    coded = _coded(plain, coding)
    script = head(b"content-encoding: " + coding.encode(), kind=EVENTS if stream else JSON)
    script += chunk(coded[:40]) + chunk(coded[40:]) + LAST
    async with standing([REQUEST, script]) as stand:
        # Usage is asked for: otherwise ours is taken out, and the bytes are not the provider's any more.
        reply = await stand.ask(ask(way, *filter(None, [accepts]), stream=stream, **_usage(way)))
        assert (reply.status, reply.ended) == (200, True)
        body = reply.body
        if reply.get(b"content-encoding") is not None:
            assert accepts is not None
            assert body == coded
            body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body)
        assert not way.same or body == plain
        assert stand.peer.requests[0].count(b"accept-encoding: identity") == 1


@BOTH
async def test_a_coding_that_is_none(stream: bool) -> None:
    plain = b"".join(CHAT.theirs.events) if stream else CHAT.theirs.body
    kind = EVENTS if stream else JSON
    async with standing([REQUEST, head(b"content-encoding: identity", kind=kind) + chunk(plain) + LAST]) as stand:
        assert (await stand.ask(ask(CHAT, stream=stream))).body == plain


async def test_a_coded_stream_that_is_cut_is_cut_for_the_client_too() -> None:
    coded = gzip.compress(b"".join(CHAT.theirs.events))
    async with standing([REQUEST, head(b"content-encoding: gzip") + chunk(coded[:-9]), CLOSE]) as stand:
        reply = await stand.ask(ask(CHAT, b"accept-encoding: gzip", **_usage(CHAT)))
        assert not reply.ended


async def test_the_type_of_a_stream_has_no_case() -> None:
    async with standing([REQUEST, head(kind=b"Text/Event-Stream") + chunk(CHAT.theirs.events[1]) + LAST]) as stand:
        assert b'"provider_cut"' in (await stand.ask(ask(CHAT))).body


def _usage(way: Way) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if way.path != "/v1/messages" else {}


@EVERY_WAY
@BOTH
async def test_a_coding_that_cannot_be_read_is_an_error(way: Way, stream: bool) -> None:
    for coding, data in ((b"br", b"\x0b\x02\x80"), (b"gzip", b"not gzip at all")):
        kind = EVENTS if stream else JSON
        async with standing([REQUEST, head(b"content-encoding: " + coding, kind=kind) + chunk(data) + LAST]) as stand:
            reply = await stand.ask(ask(way, stream=stream))
            assert (reply.status, reply.json["error"]["code"]) == (502, "provider_protocol_error")


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(b"data: " + bytes(40_000_000), 9)


@EVERY_WAY
@BOTH
async def test_a_bomb_is_refused(way: Way, stream: bool) -> None:
    bomb = _bomb()
    lines = (b"content-encoding: gzip",)
    script = head(*lines) + chunk(bomb) + LAST if stream else answer(bomb, *lines)
    async with standing([REQUEST, script]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_protocol_error")


@BOTH
async def test_a_coded_answer_that_is_cut_off_inside_its_coding(stream: bool) -> None:
    """Its framing says that it is whole; its coding, that it is not."""
    plain = b"".join(CHAT.theirs.events) if stream else CHAT.theirs.body
    coded = gzip.compress(plain)[:-12]
    async with standing(
        [REQUEST, head(b"content-encoding: gzip", kind=EVENTS if stream else JSON) + chunk(coded) + LAST]
    ) as stand:
        reply = await stand.ask(ask(CHAT, stream=stream))
        assert reply.status == 502 or b'"error"' in reply.body
