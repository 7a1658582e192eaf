"""What Anthropic's dialects have in common: errors, usage, ends, the view and the meters."""

from __future__ import annotations

import msgspec
import orjson
import pytest

from sidecar.dialects import anthropic
from sidecar.dialects.neutral import NOTHING, Fault, Stop
from sidecar.errors import BodyInvalid
from sidecar.types import Usage, View
from sidecar.wire import body, sse


@pytest.mark.parametrize(
    ("data", "view"),
    [
        (b'{"model":"m","max_tokens":5}', View(model="m", max_tokens=5, include_usage=True)),
        (b'{"model":"m","stream":true,"max_tokens":null}', View(model="m", stream=True, include_usage=True)),
    ],
)
def test_view(data: bytes, view: View) -> None:
    assert anthropic.read_view(body.envelope(data)) == view


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b"{}", "model"),
        (b'{"model":""}', "model"),
        (b'{"model":"m","stream":1}', "stream"),
        (b'{"model":"m","max_tokens":1.5}', "max_tokens"),
        (b'{"model":"m","MODEL":"other"}', "MODEL"),
        (b'{"model":"m","Stream":true}', "Stream"),
        (b'{"model":"m","MAX_TOKENS":9}', "MAX_TOKENS"),
    ],
)
def test_bad_views_name_the_member(data: bytes, param: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        anthropic.read_view(body.envelope(data))
    assert caught.value.param == param


def test_usage_is_disjoint() -> None:
    raw = msgspec.Raw(
        b'{"input_tokens":1,"cache_creation_input_tokens":20,"cache_read_input_tokens":300,"output_tokens":4,'
        b'"output_tokens_details":{"thinking_tokens":3}}'
    )
    usage = anthropic.read_usage(raw)
    assert usage == Usage(input=321, output=4, cached=300, cache_write=20, reasoning=3)
    assert anthropic.write_usage(usage) == {
        "input_tokens": 1,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 300,
        "output_tokens": 4,
    }
    assert anthropic.write_usage(Usage(input=1, cached=5))["input_tokens"] == 0
    assert anthropic.write_usage(None)["input_tokens"] == 0


@pytest.mark.parametrize(
    "raw", [NOTHING, msgspec.Raw(b"null"), msgspec.Raw(b"[]"), msgspec.Raw(b'{"input_tokens":"x"}')]
)
def test_what_is_no_usage(raw: msgspec.Raw) -> None:
    assert anthropic.read_usage(raw) is None


@pytest.mark.parametrize(
    ("reason", "stop", "back"),
    [
        ("end_turn", "stop", "end_turn"),
        ("pause_turn", "stop", "end_turn"),
        ("max_tokens", "length", "max_tokens"),
        ("model_context_window_exceeded", "length", "max_tokens"),
        ("tool_use", "tool_calls", "tool_use"),
        ("refusal", "content_filter", "refusal"),
        ("compaction", "stop", "end_turn"),
        (None, "stop", "end_turn"),
        ({"odd": 1}, "stop", "end_turn"),
    ],
)
def test_stops(reason: object, stop: Stop, back: str) -> None:
    assert anthropic.stop_of(reason, None, None) == (stop, None, None)
    assert anthropic.write_stop(stop, None, None)["stop_reason"] == back


def test_stop_sequences_and_refusals() -> None:
    assert anthropic.stop_of("stop_sequence", "END", None) == ("stop", "END", None)
    assert anthropic.write_stop("stop", "END", None) == {
        "stop_reason": "stop_sequence",
        "stop_sequence": "END",
        "stop_details": None,
    }
    assert anthropic.stop_of("refusal", None, {"explanation": "no"}) == ("content_filter", None, "no")
    assert anthropic.write_stop("content_filter", None, "no")["stop_details"] == {
        "type": "refusal",
        "category": None,
        "explanation": "no",
    }


@pytest.mark.parametrize(
    ("data", "message", "code"),
    [
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', "m", "overloaded_error"),
        (
            b'{"error":{"type":"rate_limit_error","message":"m","details":{"error_code":"ramp_limit_exceeded"}}}',
            "m",
            "ramp_limit_exceeded",
        ),
        (
            b'{"error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}',
            "prompt is too long: 9 > 8",
            "context_length_exceeded",
        ),
        (b'{"error":"m"}', "m", None),
        (b'{"message":"m"}', "m", None),  # Bedrock
        (b'{"detail":"m"}', "m", None),
        (b'{"error":{"message":5}}', "an error without a message", None),
        (b"Request Entity Too Large", "Request Entity Too Large", None),
        (b"<html>cloudflare</html>", "the provider answered with status 418", None),
        (b"", "the provider answered with status 418", None),
        (b"[1]", "the provider answered with status 418", None),
    ],
)
def test_read_error(data: bytes, message: str, code: str | None) -> None:
    fault = anthropic.read_error(418, data)
    assert (fault.status, fault.message, fault.code) == (418, message, code)


def test_request_id_is_kept() -> None:
    fault = anthropic.read_error(400, b'{"type":"error","error":{"type":"t","message":"m"},"request_id":"req_1"}')
    assert fault.request_id == "req_1"
    assert orjson.loads(anthropic.write_error(fault))["request_id"] == "req_1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (424, "api_error"),
        (429, "rate_limit_error"),
        (498, "overloaded_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_types(status: int, kind: str) -> None:
    fault = Fault(status=status, message="m", type="of another language", code="c", param="p")
    shape = {"type": kind, "message": "m", "code": "c", "param": "p"}
    assert orjson.loads(anthropic.write_error(fault)) == {"type": "error", "error": shape, "request_id": None}
    (event,) = sse.events(anthropic.write_stream_error(fault))
    assert event.name == "error"
    assert orjson.loads(event.data)["error"] == shape


# -- meters

START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
)
DELTA = b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":%d}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def test_usage_of_a_stream_is_cumulative() -> None:
    watching = anthropic.StreamMeter()
    for block in (START, DELTA % 5, DELTA % 12):
        assert watching.feed(block) is block
    assert watching.usage == Usage(input=9, output=12)
    assert not watching.ended
    watching.feed(STOP)
    assert watching.ended
    assert watching.fault is None


def _start(block: bytes) -> bytes:
    return b'{"type":"content_block_start","index":0,"content_block":%b}' % block


def _piece(delta: bytes) -> bytes:
    return b'{"type":"content_block_delta","index":0,"delta":%b}' % delta


@pytest.mark.parametrize(
    "data",
    [
        _start(b'{"type":"text","text":"a"}'),
        _start(b'{"type":"tool_use","id":"t","name":"f","input":{}}'),
        _start(b'{"type":"server_tool_use","id":"t","name":"web_search","input":{}}'),
        _start(b'{"type":"redacted_thinking","data":"AAAA"}'),
        _piece(b'{"type":"text_delta","text":" "}'),
        _piece(rb'{"type":"text_delta","text":"\ud83d"}'),  # half of a pair
        _piece(b'{"type":"thinking_delta","thinking":"a"}'),
        _piece(b'{"type":"signature_delta","signature":"a"}'),
        _piece(b'{"type":"input_json_delta","partial_json":"{"}'),
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"}}',
    ],
)
def test_a_stream_starts_with_content(data: bytes) -> None:
    apart, together = anthropic.StreamMeter(), anthropic.StreamMeter()
    apart.feed(START)
    assert not apart.started
    apart.feed(sse.write(data))
    together.feed(START + b'event: ping\ndata: {"type":"ping"}\n\n' + sse.write(data) + STOP)
    assert apart.started
    assert together.started


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"ping"}',
        _start(b'{"type":"text","text":""}'),
        _start(b'{"type":"text","text":"","citations":[]}'),
        _start(b'{"type":"thinking","thinking":"","signature":""}'),
        _start(b"null"),
        _piece(b'{"type":"text_delta","text":""}'),
        _piece(b'{"type":"input_json_delta","partial_json":""}'),
        b'{"type":"message_delta","delta":{"stop_reason":null,"container":{"id":"c","expires_at":"never"}}}',
        b'{"type":"message_delta","delta":null}',
        b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}',
        b'{"type":"unheard_of","delta":{"text":"a"}}',
        b'{"type":["content_block_delta"],"delta":{"text":"a"}}',
        b'{"type":"message_stop"}',
        b"[]",
        b"{",
        b"[DONE]",
    ],
)
def test_what_comes_before_content_is_no_start(data: bytes) -> None:
    watching = anthropic.StreamMeter()
    watching.feed(START + sse.write(data))
    assert not watching.started


def test_fault_of_a_stream() -> None:
    watching = anthropic.StreamMeter()
    watching.feed(
        START + b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n'
    )
    assert watching.fault == Fault(status=529, message="no", code="overloaded_error")
    assert not watching.ended


def test_fault_of_a_stream_in_the_form_of_a_gateway() -> None:
    watching = anthropic.StreamMeter()
    watching.feed(START + b'data: {"error":{"message":"no","code":429}}\n\n')
    assert watching.fault == Fault(status=429, message="no")
    watching = anthropic.StreamMeter()
    watching.feed(b'data: {"type":"new","error":{"message":"of a tool"}}\n\n')
    assert watching.fault is None


def test_content_that_speaks_of_usage_is_none() -> None:
    watching = anthropic.StreamMeter()
    watching.feed(b'data: {"type":"content_block_delta","delta":{"text":"\\"usage\\" \\"message_stop\\""}}\n\n')
    watching.feed(b'data: {"usage" "error"\n\n')
    assert (watching.usage, watching.ended, watching.fault) == (None, False, None)


def test_body() -> None:
    watching = anthropic.UnaryMeter()
    assert not watching.started
    data = b'{"type":"message","content":[],"usage":{"input_tokens":9,"output_tokens":1}}'
    for at in range(0, len(data), 10):
        watching.feed(data[at : at + 10])
    assert watching.usage == Usage(input=9, output=1)
    assert watching.started
    assert watching.ended
    assert watching.fault is None


def test_body_that_is_an_error_or_nothing() -> None:
    watching = anthropic.UnaryMeter()
    watching.feed(b'{"type":"error","error":{"message":"no"}}')
    assert (watching.usage, watching.fault) == (None, Fault(status=500, message="no"))
    watching.feed(b"}")
    assert (watching.usage, watching.fault) == (None, None)


def test_meter() -> None:
    assert isinstance(anthropic.meter(stream=True, hide_usage=True), anthropic.StreamMeter)
    assert isinstance(anthropic.meter(stream=False, hide_usage=True), anthropic.UnaryMeter)
    assert anthropic.ask_usage({}) is False
    assert anthropic.nothing({}) is None
