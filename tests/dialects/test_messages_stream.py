"""Messages streams as state machines, move by move. Whole streams are in tests/transcripts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sidecar.dialects.messages_stream import StreamReader, StreamWriter, message_id
from sidecar.dialects.neutral import (
    Begin,
    Delta,
    Fault,
    Finish,
    RedactedDelta,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
    ToolBegin,
    ToolDelta,
)
from sidecar.types import Usage
from sidecar.wire import sse
from tests.dialects import fold

pytestmark = pytest.mark.usefixtures("_steady")

END = ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"})


def _read(*events: dict[str, Any] | bytes) -> list[Delta]:
    reader = StreamReader()
    data = [event if isinstance(event, bytes) else orjson.dumps(event) for event in events]
    return reader.feed([sse.Event("", each) for each in data]) + reader.finish()


def _start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _delta(index: int, kind: str, **members: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **members}}


def _stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def test_text_in_the_start_is_not_lost() -> None:
    assert _read(_start(0, type="text", text="a"), _delta(0, "text_delta", text="b"), _stop(0), *END) == [
        TextDelta("a"),
        TextDelta("b"),
        Finish("stop"),
    ]


def test_thinking_ends_with_its_signature() -> None:
    assert _read(
        _start(0, type="thinking", thinking="a", signature="whole"),
        _stop(0),
        _start(1, type="thinking", thinking=""),
        _delta(1, "thinking_delta", thinking="b"),
        _stop(1),
        _start(2, type="thinking", thinking="", signature=""),
        _delta(2, "signature_delta", signature="s"),
        _stop(2),
        *END,
    )[:-1] == [ThinkingDelta("a"), SignatureDelta("whole"), ThinkingDelta("b"), SignatureDelta(""), SignatureDelta("s")]


def test_input_in_the_start_and_none_at_all() -> None:
    assert _read(
        _start(0, type="tool_use", id="1", name="f", input={"n": 1.5}),
        _stop(0),
        _start(1, type="tool_use", name="g", input={}),
        _delta(1, "input_json_delta", partial_json=""),
        _stop(1),
        *END,
    )[:-1] == [
        ToolBegin(0, "1", "f"),
        ToolDelta(0, '{"n":1.5}'),
        ToolBegin(1, "toolu_" + "0" * 24, "g"),
        ToolDelta(1, "{}"),
    ]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ping"},
        {"type": "some_new_event", "index": "odd", "delta": 5},
        {"type": ["odd"]},
        {},
        _start(0, type="some_new_block", content=[1]),
        _delta(0, "some_new_delta", text={"odd": 1}) | {"type": "some_new_event"},
        _delta(9, "input_json_delta", partial_json="{"),
        _delta(0, "citations_delta", citation={}),
        _stop(9),
        b"[DONE]",
    ],
)
def test_what_is_unknown_is_passed_over(event: dict[str, Any] | bytes) -> None:
    assert _read(event, *END) == [Finish("stop")]


def test_begin_once_and_usage_over_it() -> None:
    message = {"id": "1", "model": "m", "usage": {"input_tokens": 9, "output_tokens": 1}}
    start = {"type": "message_start", "message": message}
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 7}}
    late = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 8}}
    assert _read(start, start, end, late, {"type": "message_stop"}) == [
        Begin("1", "m", Usage(input=9, output=1)),
        Finish("length", Usage(input=9, output=8)),
    ]


@pytest.mark.parametrize(
    ("events", "status", "code"),
    [
        ([], 502, "provider_cut"),
        ([END[0]], 502, "provider_cut"),
        ([b"{"], 502, "provider_protocol_error"),
        ([_delta(0, "text_delta", text=5)], 502, "provider_protocol_error"),
        ([{"type": "error", "error": {"type": "overloaded_error", "message": "m"}}], 529, "overloaded_error"),
        ([{"type": "error", "error": {"type": "rate_limit_error", "message": "m"}}, *END], 429, "rate_limit_error"),
        ([{"type": "error", "error": {"type": "new_error", "message": "m"}}], 500, "new_error"),
        ([{"type": "error", "error": "m"}], 500, None),
        ([{"type": "error"}], 500, None),
        ([{"error": {"message": "m", "code": 429}}], 429, None),  # of a gateway before the API
        ([{"type": "new", "error": {"message": "m"}}], 502, "provider_cut"),
    ],
)
def test_faults(events: list[Any], status: int, code: str | None) -> None:
    (fault,) = _read(*events)
    assert isinstance(fault, Fault)
    assert (fault.status, fault.code) == (status, code)
    assert fault.message


def _written(*deltas: Delta) -> list[Any]:
    """The content that deltas become, put together again; the order of events is checked on the way."""
    content: list[Any] = fold.messages(StreamWriter().write([Begin("1", "m"), *deltas, Finish("stop")]))["content"]
    return content


def test_one_block_at_a_time() -> None:
    assert _written(
        ToolBegin(0, "a", "f"),
        ToolBegin(1, "b", "g"),
        ToolDelta(1, '{"b":'),
        ToolDelta(0, '{"a":1}'),
        ToolBegin(2, "c", "h"),
        ToolDelta(1, "2}"),
    ) == [
        {"type": "tool_use", "id": "a", "name": "f", "input": '{"a":1}'},
        {"type": "tool_use", "id": "b", "name": "g", "input": '{"b":2}'},
        {"type": "tool_use", "id": "c", "name": "h", "input": "{}"},
    ]


def test_what_comes_between_closes_what_is_open() -> None:
    content = _written(
        ThinkingDelta("t"),
        TextDelta("a"),
        ToolBegin(0, "1", "f"),
        ToolBegin(1, "2", "g"),
        ToolDelta(1, "{}"),
        TextDelta("b"),
        ToolDelta(0, "late"),
        RedactedDelta("d"),
        SignatureDelta("of nothing"),
        ThinkingDelta("u"),
        SignatureDelta("s"),
    )
    told = [block.get("text") or block.get("id") or block.get("data") or block["signature"] for block in content]
    assert told == ["", "a", "1", "2", "b", "d", "of nothing", "s"]
    assert content[0]["thinking"] == "t"


def test_the_end() -> None:
    writer = StreamWriter()
    message = fold.messages(writer.write([Begin("1", "m"), Finish("stop", Usage(input=9, output=2, cached=4), "END")]))
    assert writer.finished
    assert writer.write([TextDelta("late")]) == b""
    assert message["stop_reason"] == "stop_sequence"
    assert message["stop_sequence"] == "END"
    assert message["usage"]["input_tokens"] == 5
    assert message["content"] == []


def test_an_error_is_the_last_word() -> None:
    writer = StreamWriter()
    *_, last = sse.events(
        writer.write([Begin("1", "m"), TextDelta("a"), Fault(status=529, message="no"), Finish("stop")])
    )
    assert last.name == "error"
    assert orjson.loads(last.data)["error"] == {"type": "overloaded_error", "message": "no"}
    assert writer.finished


def test_ids() -> None:
    assert message_id("1") == "msg_1"
    assert message_id("msg_1") == "msg_1"
    assert message_id("") == "msg_" + "0" * 24
