from __future__ import annotations

import gzip
from collections.abc import Callable

import msgspec
import pytest

from sidecar.simulator import Simulator
from sidecar.simulator.answers import Answer
from sidecar.simulator.faults import FAULTS, Playing, split_utf8
from tests.simulator.raw import ANTHROPIC, CHAT, MESSAGES, ask, chunks, connected, post, split, until

STREAM = {**CHAT, "stream": True}
TOKENS = (("x-sim-tokens", "40"),)  # enough for words of two, three and four bytes a character
Heard = Callable[[bytes, list[bytes]], bytes]  # out of head and chunks of the good answer


async def heard(fault: str, value: object, path: str = "/v1/chat/completions") -> tuple[bytes, str]:
    """The first answer of a fresh simulator, which is the same every time."""
    headers = [*TOKENS, *(ANTHROPIC if path == "/v1/messages" else ())]
    if fault:
        headers.append(("x-sim-fault", fault))
    async with Simulator() as simulator:
        return await ask(simulator, post(value, *headers, path=path))


def parts(data: bytes) -> tuple[bytes, list[bytes]]:
    """The head, and the chunks (or the body as one) of a good answer."""
    head, mark, body = data.partition(b"\r\n\r\n")
    return head + mark, chunks(body) if b"transfer-encoding: chunked" in head else [body]


def _events(edit: Callable[[list[bytes]], list[bytes]]) -> Heard:
    """An edit of a stream's events, framed again."""

    def expected(head: bytes, found: list[bytes]) -> bytes:
        payloads = [piece.partition(b"\r\n")[2][:-2] for piece in found[:-1]]
        return head + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in edit(payloads)) + b"0\r\n\r\n"

    return expected


def _lengthened(by: int) -> Heard:
    def expected(head: bytes, found: list[bytes]) -> bytes:
        body = b"".join(piece.partition(b"\r\n")[2][:-2] for piece in found[:-1])
        return head.replace(b"transfer-encoding: chunked", b"content-length: %d" % (len(body) + by)) + body

    return expected


def _pinged(events: list[bytes]) -> list[bytes]:
    return [piece for event in events for piece in (b": ping\n\n", event)]


def _halved(events: list[bytes]) -> list[bytes]:
    at = len(events) // 2
    return [*events[:at], events[at][: len(events[at]) // 2]]


BROKEN = (
    b'data: {"error":{"message":"the simulated model broke","type":"server_error","param":null,'
    b'"code":"server_error"}}\n\n'
)
STREAMS: dict[str, tuple[Heard, str]] = {
    # fault -> what is heard, out of head and chunks of the good answer; and how the connection ends
    "": (lambda head, found: head + b"".join(found), "eof"),
    "reset": (lambda head, found: b"", "reset"),
    "close": (lambda head, found: b"", "eof"),
    "reset_after:0": (lambda head, found: head, "reset"),
    "reset_after:4": (lambda head, found: head + b"".join(found[:4]), "reset"),
    "cut_after:2": (lambda head, found: head + b"".join(found[:2]) + found[2][: len(found[2]) // 2], "eof"),
    "cut_after": (lambda head, found: head + b"".join(found[:3]) + found[3][: len(found[3]) // 2], "eof"),
    "drip:0": (lambda head, found: head + b"".join(found), "eof"),
    "split_utf8": (lambda head, found: head + b"".join(found), "eof"),
    "error_in_stream:2": (_events(lambda events: [*events[:2], BROKEN]), "eof"),
    "no_done": (_events(lambda events: events[:-1]), "eof"),
    "truncated": (_events(_halved), "eof"),
    "malformed": (_events(lambda events: [events[0], b'data: {"id": oops\n\n', *events[1:]]), "eof"),
    "crlf": (_events(lambda events: [event.replace(b"\n", b"\r\n") for event in events]), "eof"),
    "comments": (_events(_pinged), "eof"),
    "length_long": (_lengthened(10), "eof"),
    "length_short": (_lengthened(-10), "eof"),
    "extra": (
        lambda head, found: head + b"".join(found) + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        "eof",
    ),
    "interim": (
        lambda head, found: b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 2 + head + b"".join(found),
        "eof",
    ),
    "interim:9": (
        lambda head, found: b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 9 + head + b"".join(found),
        "eof",
    ),
    "huge_headers": (
        lambda head, found: (
            head.replace(b"transfer-encoding", b"x-huge: %b\r\ntransfer-encoding" % (b"h" * 100_000)) + b"".join(found)
        ),
        "eof",
    ),
    "injected": (
        lambda head, found: (
            head.replace(b"transfer-encoding", b"x-bad: a\rset-cookie: evil=1\r\ntransfer-encoding") + b"".join(found)
        ),
        "eof",
    ),
}


@pytest.mark.parametrize("fault", STREAMS)
async def test_a_fault_of_a_stream_to_the_byte(fault: str) -> None:
    good, _ = await heard("", STREAM)
    expected, end = STREAMS[fault]
    assert await heard(fault, STREAM) == (expected(*parts(good)), end)


UNARY: dict[str, tuple[Callable[[bytes, bytes], bytes], str]] = {
    "": (lambda head, body: head + body, "eof"),
    "reset": (lambda head, body: b"", "reset"),
    "close": (lambda head, body: b"", "eof"),
    "reset_after:10": (lambda head, body: head + body[:10], "reset"),
    "cut_after:10": (lambda head, body: head + body[:10], "eof"),
    "drip:0": (lambda head, body: head + body, "eof"),
    "split_utf8": (lambda head, body: head + body, "eof"),
    "no_done": (lambda head, body: head + body, "eof"),
    "crlf": (lambda head, body: head + body, "eof"),
    "comments": (lambda head, body: head + body, "eof"),
    "length_long": (
        lambda head, body: head.replace(b"length: %d" % len(body), b"length: %d" % (len(body) + 10)) + body,
        "eof",
    ),
    "length_short": (
        lambda head, body: head.replace(b"length: %d" % len(body), b"length: %d" % (len(body) - 10)) + body,
        "eof",
    ),
}


@pytest.mark.parametrize("fault", UNARY)
async def test_a_fault_of_a_whole_answer_to_the_byte(fault: str) -> None:
    head, (body,) = parts((await heard("", CHAT))[0])
    expected, end = UNARY[fault]
    assert await heard(fault, CHAT) == (expected(head, body), end)


@pytest.mark.parametrize("value", [CHAT, STREAM])
async def test_gzip_though_nobody_asked_for_it(value: object) -> None:
    good, _ = await heard("", value)
    status, headers, body = split((await heard("gzip", value))[0])
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(body) == split(good)[2]


async def test_a_redirect_that_must_not_be_followed() -> None:
    data, _ = await heard("redirect", CHAT)
    location = b"location: http://127.0.0.9:1/v1/chat/completions\r\n"
    assert data == b"HTTP/1.1 307 Temporary Redirect\r\n" + location + b"content-length: 0\r\n\r\n"


@pytest.mark.parametrize("fault", ["stall", "stall_after:0", "stall_after:2"])
async def test_a_stall_says_no_more_and_keeps_the_connection(fault: str) -> None:
    head, found = parts((await heard("", STREAM))[0])
    expected = b"" if fault == "stall" else head + b"".join(found[: int(fault[-1])])
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(STREAM, *TOKENS, ("x-sim-fault", fault)))
        await until(lambda: bool(simulator.requests))
        await raw.until(lambda: len(raw.data) >= len(expected))
        (peer,) = simulator.connections
        await until(lambda: not peer._steps and peer._timer is None)
        assert (raw.data, raw.end, peer._playing) == (expected, "", True)
        assert simulator.requests[0].finished_at is None


async def test_pieces_are_small_where_that_is_the_fault() -> None:
    for fault, most in (("drip:0", 64), ("drip:1", 64), ("split_utf8", 128)):
        async with Simulator() as simulator, connected(simulator) as raw:
            raw.send(post(CHAT, ("x-sim-tokens", "1"), ("x-sim-fault", fault)))
            await raw.to_end()
        assert len(raw.pieces) >= 10, fault
        assert max(map(len, raw.pieces)) <= most, fault  # one byte, or three; some may be joined on their way


def test_split_cuts_inside_characters() -> None:
    body = msgspec.json.encode({"text": "naïve “quotes” 漢字 🙂 " * 3})
    steps = split_utf8(Answer(200, [], body), Playing())
    pieces = [step.do for step in steps if isinstance(step.do, bytes)]
    assert b"".join(pieces).endswith(body)
    assert all(step.delay > 0 for step in steps[1:])  # each in a write of its own
    assert sum("\ufffd" in piece.decode("utf-8", "replace") for piece in pieces) > 5


# -- errors, in the shape of the API

OPENAI_ERRORS = {
    "400": (400, "invalid_request_error", None),
    "401": (401, "invalid_request_error", "invalid_api_key"),
    "402": (402, "insufficient_quota", "insufficient_quota"),
    "403": (403, "permission_error", None),
    "404": (404, "invalid_request_error", "model_not_found"),
    "408": (408, "timeout_error", None),
    "413": (413, "request_too_large", None),
    "422": (422, "invalid_request_error", None),
    "429": (429, "requests", "rate_limit_exceeded"),
    "429:7": (429, "requests", "rate_limit_exceeded"),
    "498": (498, "capacity_exceeded", "capacity_exceeded"),
    "500": (500, "server_error", None),
    "502": (502, "server_error", None),
    "503": (503, "service_unavailable_error", None),
    "504": (504, "timeout_error", None),
    "529": (529, "service_unavailable_error", None),
}


@pytest.mark.parametrize("value", [CHAT, STREAM])
@pytest.mark.parametrize("fault", OPENAI_ERRORS)
async def test_an_error_of_openai(fault: str, value: object) -> None:
    status, kind, code = OPENAI_ERRORS[fault]
    told, headers, body = split((await heard(fault, value))[0])
    error = {"message": f"simulated {status}", "type": kind, "param": None, "code": code}
    assert (told, msgspec.json.decode(body)) == (status, {"error": error})
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == "req_sim_1"
    assert ("retry-after" in headers) == (status == 429)
    if status == 429:
        seconds = "7" if fault == "429:7" else "1"
        assert headers["retry-after"] == seconds
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert headers["x-ratelimit-reset-requests"] == f"{seconds}s"


ANTHROPIC_ERRORS = {
    "400": "invalid_request_error",
    "401": "authentication_error",
    "402": "billing_error",
    "403": "permission_error",
    "404": "not_found_error",
    "413": "request_too_large",
    "429": "rate_limit_error",
    "500": "api_error",
    "504": "timeout_error",
    "529": "overloaded_error",
}


@pytest.mark.parametrize("fault", ANTHROPIC_ERRORS)
async def test_an_error_of_anthropic(fault: str) -> None:
    told, headers, body = split((await heard(fault, MESSAGES, "/v1/messages"))[0])
    error = {"type": ANTHROPIC_ERRORS[fault], "message": f"simulated {fault}"}
    assert told == int(fault)
    assert msgspec.json.decode(body) == {"type": "error", "error": error, "request_id": "req_sim_1"}
    assert headers["request-id"] == "req_sim_1"
    if told == 429:
        assert headers["retry-after"] == "1"
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert headers["anthropic-ratelimit-requests-reset"] == "2026-01-01T00:00:00Z"


async def test_a_spent_budget_does_not_say_when_to_come_again() -> None:
    status, headers, body = split((await heard("quota", CHAT))[0])
    assert (status, msgspec.json.decode(body)["error"]["code"]) == (429, "insufficient_quota")
    assert "retry-after" not in headers
    status, headers, body = split((await heard("quota", MESSAGES, "/v1/messages"))[0])
    error = msgspec.json.decode(body)["error"]
    assert (status, error["type"], error["details"]) == (
        429,
        "rate_limit_error",
        {"error_code": "enforced_spend_limit_reached"},
    )
    assert "retry-after" not in headers


async def test_a_model_that_is_loading_and_a_gateway_that_speaks_html() -> None:
    status, _, body = split((await heard("loading", CHAT))[0])
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    assert (status, msgspec.json.decode(body)) == (503, {"error": error})
    status, headers, body = split((await heard("html", CHAT))[0])
    assert (status, headers["content-type"]) == (502, "text/html")
    assert body.startswith(b"<html>")


async def test_an_error_inside_a_200_of_openai_without_a_stream() -> None:
    status, _, body = split((await heard("error_in_stream", CHAT))[0])
    error = {"message": "the simulated model broke", "type": "server_error", "param": None, "code": None}
    assert (status, msgspec.json.decode(body)) == (200, {"error": error})


async def test_an_error_inside_a_stream_of_anthropic() -> None:
    value = {**MESSAGES, "stream": True}
    head, found = parts((await heard("", value, "/v1/messages"))[0])
    data, _ = await heard("error_in_stream:3", value, "/v1/messages")
    event = (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
        b'"message":"the simulated model broke"}}\n\n'
    )
    assert data == head + b"".join(found[:3]) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


async def test_anthropic_without_message_stop_and_with_more_pings() -> None:
    value = {**MESSAGES, "stream": True}
    _, found = parts((await heard("", value, "/v1/messages"))[0])
    _, cut = parts((await heard("no_done", value, "/v1/messages"))[0])
    assert cut == [*found[:-2], found[-1]]
    assert b"message_stop" in found[-2]
    pinged = split((await heard("comments", value, "/v1/messages"))[0])[2]
    assert pinged.count(b'event: ping\ndata: {"type":"ping"}\n\n') == len(found) - 1 + 1


def test_no_fault_is_without_a_test() -> None:
    tried = {name.partition(":")[0] for name in (*STREAMS, *OPENAI_ERRORS)}
    tried |= {"gzip", "redirect", "stall", "stall_after", "quota", "loading", "html"}
    assert tried - {""} == set(FAULTS)
