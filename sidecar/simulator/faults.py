"""What can go wrong, by name: each fault turns an answer into the steps that are played on the socket."""

from __future__ import annotations

import enum
import gzip
import http
from collections.abc import Callable
from typing import Final

import msgspec

from sidecar.simulator.answers import Answer, anthropic_error, json_answer, named_event, openai_error
from sidecar.simulator.checks import Refusal
from sidecar.simulator.flavours import broken, flavoured, limit_headers


class Do(enum.Enum):
    """A step that is not bytes."""

    RESET = "reset"  # RST
    CLOSE = "close"  # FIN
    STALL = "stall"  # keep the connection, say nothing more


class Step(msgspec.Struct, frozen=True):
    """After `delay` seconds, write the bytes or do the deed."""

    delay: float
    do: bytes | Do


class Playing(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is to be played."""

    latency: float = 0.0
    gap: float = 0.0  # seconds between events
    argument: int | None = None  # of the fault: `name:argument`
    anthropic: bool = False
    flavour: str = "openai"
    request_id: str = "req_sim"


NEXT_TURN: Final = 1e-6  # a delay that means: not in one write with what comes before


def head(answer: Answer, framing: bytes) -> bytes:
    phrase = http.HTTPStatus(answer.status).phrase if answer.status in http.HTTPStatus._value2member_map_ else "Odd"
    lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
    return f"HTTP/1.1 {answer.status} {phrase}\r\n{lines}".encode() + framing + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(answer: Answer, how: Playing) -> list[Step]:
    """The answer as it should be."""
    if answer.events is None:
        return [Step(how.latency, head(answer, b"content-length: %d\r\n" % len(answer.body)) + answer.body)]
    start = head(answer, b"transfer-encoding: chunked\r\n")
    if how.gap <= 0:
        return [Step(how.latency, start + b"".join(map(chunk, answer.events)) + b"0\r\n\r\n")]
    steps = [Step(how.latency, start + chunk(answer.events[0]))]
    steps += [Step(how.gap, chunk(event)) for event in answer.events[1:]]
    return [*steps, Step(0.0, b"0\r\n\r\n")]


def _first(answer: Answer, how: Playing, default: int = 3) -> tuple[list[Step], int]:
    """The head and the first k events (or bytes of a body), and k."""
    count = default if how.argument is None else how.argument
    if answer.events is None:
        start = head(answer, b"content-length: %d\r\n" % len(answer.body))
        return [Step(how.latency, start + answer.body[:count])], count
    start = head(answer, b"transfer-encoding: chunked\r\n")
    steps = [Step(how.latency, start)]
    return [*steps, *(Step(how.gap, chunk(event)) for event in answer.events[:count])], count


def reset(answer: Answer, how: Playing) -> list[Step]:
    return [Step(how.latency, Do.RESET)]


def close(answer: Answer, how: Playing) -> list[Step]:
    return [Step(how.latency, Do.CLOSE)]


def stall(answer: Answer, how: Playing) -> list[Step]:
    return [Step(0.0, Do.STALL)]


def reset_after(answer: Answer, how: Playing) -> list[Step]:
    return [*_first(answer, how)[0], Step(0.01, Do.RESET)]


def cut_after(answer: Answer, how: Playing) -> list[Step]:
    """FIN in the middle of a chunk."""
    steps, count = _first(answer, how)
    events = answer.events or [answer.body]
    piece = chunk(events[min(count, len(events) - 1)]) if answer.events is not None else b""
    return [*steps, Step(0.0, piece[: len(piece) // 2]), Step(0.01, Do.CLOSE)]


def stall_after(answer: Answer, how: Playing) -> list[Step]:
    return [*_first(answer, how)[0], Step(0.0, Do.STALL)]


def drip(answer: Answer, how: Playing) -> list[Step]:
    """A byte at a time, a millisecond (or the argument; 0 for no wait, but each in a write of its own) apart."""
    gap = max((1 if how.argument is None else how.argument) / 1000, NEXT_TURN)
    data = b"".join(step.do for step in plain(answer, how) if isinstance(step.do, bytes))
    return [Step(how.latency + gap if at == 0 else gap, data[at : at + 1]) for at in range(len(data))]


def split_utf8(answer: Answer, how: Playing) -> list[Step]:
    """Pieces of three bytes, so that writes end inside characters."""
    data = b"".join(step.do for step in plain(answer, how) if isinstance(step.do, bytes))
    return [Step(how.latency if at == 0 else NEXT_TURN, data[at : at + 3]) for at in range(0, len(data), 3)]


def in_stream(answer: Answer, how: Playing) -> list[Step]:
    """An error inside a 200, in the shape of the API."""
    refusal = Refusal(200, "overloaded_error" if how.anthropic else "api_error", "the simulated model broke")
    if answer.events is None:
        refused = anthropic_error(refusal, how.request_id) if how.anthropic else openai_error(refusal)
        return plain(msgspec.structs.replace(answer, body=refused.body), how)
    if how.anthropic:
        error = {"type": refusal.kind, "message": refusal.message}
        events = [named_event({"type": "error", "error": error})]
    else:
        events = broken(how.flavour)
    steps = _first(answer, how)[0]
    return [*steps, Step(how.gap, b"".join(map(chunk, events)) + b"0\r\n\r\n")]


def no_done(answer: Answer, how: Playing) -> list[Step]:
    """A proper HTTP end, but neither [DONE] nor message_stop."""
    if answer.events is None:
        return plain(answer, how)
    return plain(msgspec.structs.replace(answer, events=answer.events[:-1]), how)


def truncated(answer: Answer, how: Playing) -> list[Step]:
    """A proper HTTP end in the middle of an event."""
    events = answer.events or [answer.body]
    half = events[len(events) // 2]
    return plain(msgspec.structs.replace(answer, events=[*events[: len(events) // 2], half[: len(half) // 2]]), how)


def malformed(answer: Answer, how: Playing) -> list[Step]:
    """An event whose data is not JSON."""
    events = list(answer.events or [answer.body])
    return plain(msgspec.structs.replace(answer, events=[*events[:1], b'data: {"id": oops\n\n', *events[1:]]), how)


def crlf(answer: Answer, how: Playing) -> list[Step]:
    events = [event.replace(b"\n", b"\r\n") for event in answer.events or ()]
    return plain(msgspec.structs.replace(answer, events=events), how) if events else plain(answer, how)


def comments(answer: Answer, how: Playing) -> list[Step]:
    ping = named_event({"type": "ping"}) if how.anthropic else b": ping\n\n"
    events = [piece for event in answer.events or () for piece in (ping, event)]
    return plain(msgspec.structs.replace(answer, events=events), how) if events else plain(answer, how)


def _length(answer: Answer, how: Playing, by: int) -> list[Step]:
    data = b"".join(answer.events) if answer.events is not None else answer.body
    start = head(answer, b"content-length: %d\r\n" % (len(data) + by))
    return [Step(how.latency, start + data), Step(0.02, Do.CLOSE)]


def length_long(answer: Answer, how: Playing) -> list[Step]:
    return _length(answer, how, 10)


def length_short(answer: Answer, how: Playing) -> list[Step]:
    return _length(answer, how, -10)


def zipped(answer: Answer, how: Playing) -> list[Step]:
    """gzip, though identity was asked for."""
    headers = [*answer.headers, ("content-encoding", "gzip")]
    data = gzip.compress(b"".join(answer.events) if answer.events is not None else answer.body, mtime=0)
    if answer.events is None:
        return plain(msgspec.structs.replace(answer, headers=headers, body=data), how)
    pieces = [data[at : at + 50] for at in range(0, len(data), 50)]
    return plain(msgspec.structs.replace(answer, headers=headers, events=pieces), how)


def extra(answer: Answer, how: Playing) -> list[Step]:
    """Bytes behind the end of the answer."""
    return [*plain(answer, how), Step(0.0, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")]


def interim(answer: Answer, how: Playing) -> list[Step]:
    return [
        Step(0.0, b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * (2 if how.argument is None else how.argument)),
        *plain(answer, how),
    ]


def redirect(answer: Answer, how: Playing) -> list[Step]:
    moved = Answer(307, [("location", "http://127.0.0.9:1/v1/chat/completions")])
    return plain(moved, how)


def huge_headers(answer: Answer, how: Playing) -> list[Step]:
    return plain(msgspec.structs.replace(answer, headers=[*answer.headers, ("x-huge", "h" * 100_000)]), how)


def injected(answer: Answer, how: Playing) -> list[Step]:
    """A header value with a bare CR in it."""
    return plain(msgspec.structs.replace(answer, headers=[*answer.headers, ("x-bad", "a\rset-cookie: evil=1")]), how)


def _status(status: int, kind: str, code: str | None = None) -> Callable[[Answer, Playing], list[Step]]:
    def refuse(answer: Answer, how: Playing) -> list[Step]:
        refusal = Refusal(status, kind, f"simulated {status}", code=code)
        refused = anthropic_error(refusal, how.request_id) if how.anthropic else openai_error(refusal)
        refused.headers.append(("request-id" if how.anthropic else "x-request-id", how.request_id))
        if status == 429:
            seconds = 1 if how.argument is None else how.argument
            refused.headers += limit_headers(how.flavour, anthropic=how.anthropic, seconds=seconds)
        return plain(refused if how.anthropic else flavoured(refused, how.flavour), how)

    return refuse


def quota(answer: Answer, how: Playing) -> list[Step]:
    """A spent budget that looks like a rate limit, but does not say when to come again."""
    if how.anthropic:
        details = {"error_code": "enforced_spend_limit_reached"}
        error = {"type": "rate_limit_error", "message": "simulated spend limit", "details": details}
        body = {"type": "error", "error": error, "request_id": how.request_id}
        return plain(json_answer(429, body), how)
    refused = openai_error(Refusal(429, "billing_error", "simulated quota"))
    return plain(flavoured(refused, how.flavour), how)


def loading(answer: Answer, how: Playing) -> list[Step]:
    """What llama.cpp answers until it has loaded its model."""
    error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    return plain(json_answer(503, {"error": error}), how)


def html(answer: Answer, how: Playing) -> list[Step]:
    """What a CDN in front of a provider answers."""
    body = b"<html><head><title>502 Bad Gateway</title></head><body>cloud</body></html>"
    return plain(Answer(502, [("content-type", "text/html")], body), how)


FAULTS: Final[dict[str, Callable[[Answer, Playing], list[Step]]]] = {
    "reset": reset,
    "close": close,
    "stall": stall,
    "reset_after": reset_after,
    "cut_after": cut_after,
    "stall_after": stall_after,
    "drip": drip,
    "split_utf8": split_utf8,
    "error_in_stream": in_stream,
    "no_done": no_done,
    "truncated": truncated,
    "malformed": malformed,
    "crlf": crlf,
    "comments": comments,
    "length_long": length_long,
    "length_short": length_short,
    "gzip": zipped,
    "extra": extra,
    "interim": interim,
    "redirect": redirect,
    "huge_headers": huge_headers,
    "injected": injected,
    "html": html,
    "loading": loading,
    "quota": quota,
    "400": _status(400, "invalid_request_error"),
    "401": _status(401, "authentication_error"),
    "402": _status(402, "billing_error"),
    "403": _status(403, "permission_error"),
    "404": _status(404, "not_found_error"),
    "408": _status(408, "timeout_error"),
    "413": _status(413, "request_too_large"),
    "422": _status(422, "invalid_request_error"),
    "429": _status(429, "rate_limit_error"),
    "498": _status(498, "capacity_exceeded", "capacity_exceeded"),
    "500": _status(500, "api_error"),
    "502": _status(502, "api_error"),
    "503": _status(503, "overloaded_error"),
    "504": _status(504, "timeout_error"),
    "529": _status(529, "overloaded_error"),
}
