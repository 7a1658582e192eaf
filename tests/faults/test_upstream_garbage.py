"""What a provider may send instead of an answer, and what may stand around one (R1, R2, R6, downwards)."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.peer import CLOSE, FIN, GONE, REQUEST, RST, Act, Again, Expect, Pause, Script, Step
from tests.faults.stand import ask, comes_true, post, standing
from tests.faults.transcripts import BOTH, EVENTS, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply as answer

CHAT = WAYS["chat"]
BODY = CHAT.theirs.body
OK = answer(BODY)

BROKEN = {
    "smtp": b"220 smtp.example ready\r\n",
    "html": b"<html><body>busy</body></html>",
    "nothing of HTTP": bytes(range(256)),
    "http/0.9": b"ok",
    "http/2": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "http/1.2": b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1  OK\r\ncontent-length: 0\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "a status beyond 599": b"HTTP/1.1 999 OK\r\ncontent-length: 0\r\n\r\n",
    "bare LF": OK.replace(b"\r\n", b"\n"),
    "both framings": head(b"content-length: 2") + LAST,
    "both framings, the other way": head(framing=b"content-length: 5") .replace(b"\r\n\r\n", b"\r\ntransfer-encoding: "
        b"chunked\r\n\r\n") + LAST,
    "two lengths": answer(BODY, b"content-length: 1"),
    "a list of lengths": head(framing=b"content-length: 2, 2") + b"{}",
    "a negative length": head(framing=b"content-length: -1"),
    "a length in hex": head(framing=b"content-length: 0x2") + b"{}",
    "a length beyond 64 bits": head(framing=b"content-length: 99999999999999999999") + b"{}",
    "gzip, chunked": head(framing=b"transfer-encoding: gzip, chunked") + LAST,
    "chunked twice": head(framing=b"transfer-encoding: chunked, chunked") + LAST,
    "an unknown coding": head(framing=b"transfer-encoding: x") + b"{}",
    "chunks of HTTP/1.0": (head() + chunk(BODY) + LAST).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 9 + OK,
    "101 headers": answer(BODY, *(b"x-%d: 1" % n for n in range(100))),
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 80_000,
    "a header of 66 000 bytes": answer(BODY, b"x: " + b"a" * 66_000),
    "a folded header": answer(BODY, b"x: a\r\n b"),
    "white space before a colon": answer(BODY, b"x : a"),
}  # fmt: skip
CHUNKS = {
    "no size": b"x\r\n",
    "a negative size": b"-1\r\n",
    "a size of 64 bits": b"ffffffffffffffff\r\n",
    "a bare LF behind the size": b"2\n{}\r\n" + LAST,
    "more than the size": b"2\r\n{}{}\r\n" + LAST,
    "0x": b"0x2\r\n{}\r\n" + LAST,
    "extensions without end": b"2;" + b"x" * 17_000 + b"\r\n{}\r\n" + LAST,
    "extensions in every chunk": b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n{\r\n" * 400 + LAST,
    "a trailer that is none": b"2\r\n{}\r\n0\r\nx\r\n\r\n",
    "trailers without end": b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * 4000 + b"\r\n",
}


@pytest.mark.parametrize("garbage", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_answer(garbage: bytes) -> None:
    async with standing([REQUEST, garbage, GONE]) as stand:
        for stream in (True, False):
            reply = await stand.ask(ask(CHAT, stream=stream))
            assert (reply.status, reply.json["error"]["code"], reply.ended) == (502, "provider_protocol_error", True)
        await stand.peer.left(2)
        assert len(stand.peer.requests) == 2


@EVERY_WAY
async def test_it_is_told_in_the_clients_language(way: Way) -> None:
    async with standing([REQUEST, b"220 ready\r\n", GONE]) as stand:
        reply = await stand.ask(ask(way))
        assert reply.status == 502
        assert (reply.json.get("type") == "error") == (way.path == "/v1/messages")


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
async def test_a_body_that_is_not_framed_as_it_says(chunks: bytes) -> None:
    async with standing([REQUEST, head(kind=JSON), chunks, GONE]) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_protocol_error")
    got = asyncio.Event()
    script: Script = [REQUEST, CHAT.stream(2), Pause(got), chunks, GONE]
    async with standing(script) as stand, stand.client() as client:
        client.write(ask(CHAT, b"connection: close"))
        await client.take_until(b"one")
        got.set()
        rest = await client.rest()
        assert b'"provider_protocol_error"' in rest
        assert b"[DONE]" not in rest


# -- what is an answer all the same, and what becomes of its connection

REUSED = {
    "a length": OK,
    "chunks": head(kind=JSON) + chunk(BODY[:9]) + chunk(BODY[9:]) + LAST,
    "chunks with extensions": head(kind=JSON) + b'%X ; a="b"\r\n%b\r\n000;x\r\n\r\n' % (len(BODY), BODY),
    "trailers": head(kind=JSON) + chunk(BODY) + b"0\r\nx-sum: 1\r\nset-cookie: canary\r\n\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    "chunks of one byte": head(kind=JSON) + b"".join(chunk(BODY[at : at + 1]) for at in range(len(BODY))) + LAST,
    "an empty reason": OK.replace(b"200 OK", b"200 "),
    "HTTP/1.0 that keeps alive": answer(BODY, b"connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
}
CLOSED = {
    "connection: close": answer(BODY, b"connection: close"),
    "HTTP/1.0": OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a byte behind it": OK + b"!",
    "two answers": OK + answer(b'{"canary":1}'),
    "a line behind its last chunk": head(kind=JSON) + chunk(BODY) + LAST + b"\r\n",
    "a body behind no body": head(framing=b"", status=b"204 No Content", kind=JSON) + b"canary",
}


@pytest.mark.parametrize("reply", REUSED.values(), ids=REUSED)
async def test_an_answer_that_ends_at_its_end_leaves_its_connection(reply: bytes) -> None:
    async with standing([Again((REQUEST, reply))]) as stand:
        for _ in range(3):
            got = await stand.ask(ask(CHAT, stream=False))
            assert (got.status, got.body, got.ended) == (200, BODY, True)
            assert got.get(b"x-sum") is got.get(b"set-cookie") is None
        assert len(stand.peer.connections) == 1


@pytest.mark.parametrize("reply", CLOSED.values(), ids=CLOSED)
async def test_one_behind_which_anything_is_odd_does_not(reply: bytes) -> None:
    async with standing([REQUEST, reply, GONE]) as stand:
        for count in (1, 2):
            got = await stand.ask(ask(CHAT, stream=False))
            assert (got.status, got.body) in ((200, BODY), (204, b""))
            assert b"canary" not in got.body + got.rest
            await stand.peer.left(count)
        assert len(stand.peer.connections) == 2


async def test_late_bytes_are_never_the_next_ones_answer() -> None:
    """R10: what one caller's answer leaves behind in a connection is shown to nobody else."""
    late = asyncio.Event()
    first: Script = [REQUEST, OK, Pause(late), answer(b'{"canary":1}'), GONE]
    async with standing(lambda number: first if number == 0 else [Again((REQUEST, OK))]) as stand:
        assert (await stand.ask(ask(CHAT, stream=False))).body == BODY
        late.set()
        for _ in range(5):
            assert (await stand.ask(ask(CHAT, stream=False))).body == BODY
        assert len(stand.peer.connections) == 2


@EVERY_WAY
@BOTH
@pytest.mark.parametrize("ending", [FIN, CLOSE])
async def test_a_body_that_ends_with_its_connection(way: Way, stream: bool, ending: Act) -> None:
    body = b"".join(way.theirs.events) if stream else way.theirs.body
    kind = EVENTS if stream else JSON
    async with standing([REQUEST, head(framing=b"", kind=kind) + body[:99], body[99:], ending]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        assert (reply.status, reply.ended) == (200, True)
        assert (way.ours.done in reply.body) == stream
        assert not way.same or reply.body == body


@EVERY_WAY
@pytest.mark.parametrize("ending", [FIN, CLOSE])
async def test_a_stream_that_ends_so_too_early_has_no_false_end(way: Way, ending: Act) -> None:
    """Nothing of HTTP says that it was cut: only its own language does."""
    body = b"".join(way.theirs.events[:3])
    for part in (body, body[:-20], body[:-1]):
        async with standing([REQUEST, head(framing=b"") + part, ending]) as stand:
            reply = await stand.ask(ask(way))
            assert reply.status in (200, 502)
            assert b'"error"' in reply.body
            assert way.ours.done not in reply.body


@pytest.mark.parametrize("status", [b"204 No Content", b"205 Reset", b"200 OK"])
async def test_an_answer_without_a_body(status: bytes) -> None:
    framing = b"" if status.startswith(b"204") else b"content-length: 0"
    async with standing([Again((REQUEST, head(status=status, framing=framing, kind=JSON)))]) as stand:
        for _ in range(2):
            reply = await stand.ask(ask(CHAT, stream=False))
            assert (reply.status, reply.body, reply.ended) == (int(status[:3]), b"", True)
        assert len(stand.peer.connections) == 1


@BOTH
async def test_an_answer_before_the_request_is_all_sent(stream: bool) -> None:
    """The provider refuses while we still send: its words are passed on, its connection is not used again."""
    early = answer(b'{"error":{"message":"too large"}}', status=b"413 Too Large")
    script: list[Step] = [Expect(b"\r\n\r\n"), early, Pause(asyncio.Event())]
    body = b'{"model":"lab/m","stream":%b,"x":"%b"}' % (b"true" if stream else b"false", b"x" * 20_000_000)
    async with standing(script) as stand:
        reply = await stand.ask(post(CHAT.path, body))
        assert (reply.status, reply.body) == (413, b'{"error":{"message":"too large"}}')
        await comes_true(lambda: stand.app.pool.stats()[0]["idle"] == 0, "closed")


# -- connections that were closed while they were idle (stale)


@EVERY_WAY
@BOTH
@pytest.mark.parametrize("ending", [FIN, CLOSE, RST])
async def test_a_stale_connection_is_replaced_at_once(way: Way, stream: bool, ending: Act) -> None:
    """Exactly two requests reach the provider: the one that nobody served, and the same again on a fresh connection."""
    good = way.stream() if stream else way.whole()

    def script(number: int) -> Script:
        return [REQUEST, good, REQUEST, ending] if number == 0 else [Again((REQUEST, good))]

    async with standing(script) as stand:
        for _ in range(2):
            reply = await stand.ask(ask(way, stream=stream))
            assert (reply.status, reply.ended, reply.get(b"x-sidecar-attempts")) == (200, True, b"1")
        assert len(stand.peer.requests) == 3
        assert stand.peer.requests[1] == stand.peer.requests[2]


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_never_after_one_byte_of_an_answer(part: bytes) -> None:
    async with standing([REQUEST, OK, REQUEST, part, CLOSE]) as stand:
        assert (await stand.ask(ask(CHAT, stream=False))).status == 200
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_cut")
        assert (len(stand.peer.requests), len(stand.peer.connections)) == (2, 1)


@pytest.mark.parametrize("ending", [FIN, CLOSE, RST])
async def test_never_on_a_fresh_one_nor_twice(ending: Act) -> None:
    async with standing(lambda number: [REQUEST, OK, REQUEST, ending] if number == 0 else [REQUEST, ending]) as stand:
        assert (await stand.ask(ask(CHAT, stream=False))).status == 200
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_cut")
        assert len(stand.peer.requests) == 3
