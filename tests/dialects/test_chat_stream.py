"""Chat streams as state machines, move by move. Whole streams are in tests/transcripts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sidecar.dialects.chat_stream import StreamReader, StreamWriter, completion_id
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

pytestmark = pytest.mark.usefixtures("_steady")


def _chunk(delta: dict[str, Any] | None = None, reason: Any = None, **members: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "model": "m",
        "choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason}],
        **members,
    }


def _call(
    index: int | None, ident: str | None = None, name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    return _chunk({"tool_calls": [{"index": index, "id": ident, "function": {"name": name, "arguments": arguments}}]})


def _read(*chunks: dict[str, Any] | bytes) -> list[Delta]:
    """What the chunks become, without the Begin."""
    reader = StreamReader()
    events = [sse.Event("", chunk if isinstance(chunk, bytes) else orjson.dumps(chunk)) for chunk in chunks]
    deltas = reader.feed(events) + reader.finish()
    return deltas[1:] if isinstance(deltas[0], Begin) else deltas


def test_begin_waits_for_a_name() -> None:
    reader = StreamReader()
    assert reader.feed([sse.Event("", b'{"id":"","model":"","choices":[],"prompt_filter_results":[]}')]) == []
    assert reader.feed([sse.Event("", orjson.dumps(_chunk({"role": "assistant"})))]) == [Begin("1", "m")]
    assert reader.feed([sse.Event("", b'{"id":"","model":"","choices":[{"delta":{"content":"a"}}]}')]) == [
        TextDelta("a")
    ]


def test_a_call_begins_when_its_name_is_known() -> None:
    assert _read(
        _call(0, "a", None, '{"x"'), _call(0, None, "f", ":1"), _call(0, None, None, "}"), _chunk(reason="tool_calls")
    ) == [
        ToolBegin(0, "a", "f"),
        ToolDelta(0, '{"x":1'),
        ToolDelta(0, "}"),
        Finish("tool_calls"),
    ]


def test_a_repeated_head_is_no_new_call() -> None:
    assert _read(_call(0, "a", "f", "{"), _call(0, "a", "f", "}"), _call(0, None, "f", ""), _chunk(reason="stop")) == [
        ToolBegin(0, "a", "f"),
        ToolDelta(0, "{"),
        ToolDelta(0, "}"),
        Finish("tool_calls"),
    ]


def test_another_id_at_the_same_index_is_another_call() -> None:
    deltas = _read(_call(0, "a", "f", "{}"), _call(0, "b", "g", "{}"), _call(1, "c", "h", "{}"), _chunk(reason="stop"))
    begun = [(delta.index, delta.id) for delta in deltas if isinstance(delta, ToolBegin)]
    assert begun == [(0, "a"), (1, "b"), (2, "c")]


def test_interleaved_calls_stay_apart() -> None:
    deltas = _read(
        _call(1, "b", "g"),
        _call(0, "a", "f"),
        _call(1, None, None, "1"),
        _call(0, None, None, "2"),
        _chunk(reason="stop"),
    )
    assert deltas[:4] == [ToolBegin(0, "b", "g"), ToolBegin(1, "a", "f"), ToolDelta(0, "1"), ToolDelta(1, "2")]


def test_calls_without_index_or_id() -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"big": 1}}},
        {"id": "null", "function": {"name": "g", "arguments": None}},
    ]
    assert _read(_chunk({"tool_calls": calls}), _chunk(reason=""))[:3] == [
        ToolBegin(0, "call_" + "0" * 24, "f"),
        ToolDelta(0, '{"big":1}'),
        ToolBegin(1, "call_" + "0" * 24, "g"),
    ]


def test_function_call_of_old() -> None:
    assert _read(
        _chunk({"function_call": {"name": "f", "arguments": ""}}),
        _chunk({"function_call": {"arguments": "{}"}}),
        _chunk(reason="function_call"),
    ) == [
        ToolBegin(0, "call_" + "0" * 24, "f"),
        ToolDelta(0, "{}"),
        Finish("tool_calls"),
    ]


def test_other_choices_are_not_read() -> None:
    other = {"id": "1", "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]}
    assert _read(_chunk({"content": "a"}), other, _chunk(reason="stop")) == [TextDelta("a"), Finish("stop")]


def test_usage_wherever_it_is() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    counted = Usage(input=3, output=1)
    assert _read(_chunk(reason="stop", usage=usage))[-1] == Finish("stop", counted)
    assert _read(_chunk(reason="stop"), {"choices": [], "usage": usage}, b"[DONE]")[-1] == Finish("stop", counted)
    assert _read(_chunk(reason="stop", x_groq={"usage": usage}))[-1] == Finish("stop", counted)
    assert _read(_chunk(usage={**usage, "prompt_tokens": 9}), _chunk(reason="stop", usage=usage))[-1] == Finish(
        "stop", counted
    )
    assert _read(_chunk(reason="stop", usage={"prompt_tokens": "x"}))[-1] == Finish("stop")


@pytest.mark.parametrize(
    ("chunks", "last"),
    [
        ([_chunk({"content": "a"}), b"[DONE]"], Finish("stop")),
        ([_chunk({"content": "a"}, "length")], Finish("length")),
        ([_chunk(reason="some_new_reason")], Finish("stop")),
        (
            [_chunk(reason="stop", choices=[{"delta": {}, "finish_reason": "stop", "stop_reason": "END"}])],
            Finish("stop", stop_sequence="END"),
        ),
        ([_chunk({"refusal": "no"}), _chunk(reason="stop")], Finish("content_filter", refusal="no")),
        ([_chunk(reason="stop"), _chunk({"content_filter_offsets": {}}), b"[DONE]"], Finish("stop")),
    ],
)
def test_ends(chunks: list[Any], last: Finish) -> None:
    assert _read(*chunks)[-1] == last


@pytest.mark.parametrize(
    ("chunks", "status", "code"),
    [
        ([], 502, "provider_cut"),
        ([b"[DONE]"], 502, "provider_cut"),
        ([_chunk({"content": "a"})], 502, "provider_cut"),
        ([_chunk(), b"not json"], 502, "provider_protocol_error"),
        ([_chunk(), b"[1]"], 502, "provider_protocol_error"),
        ([_chunk({"content": b"\\ud800".decode()}), b'{"choices":{"odd":1}}'], 502, "provider_protocol_error"),
        ([_chunk(), b'{"error":{"code":429,"message":"m"}}', _chunk(reason="stop")], 429, "429"),
        ([_chunk(), b'{"error":"m","code":"busy"}'], 503, "busy"),
        ([_chunk(reason="error")], 502, "provider_error_in_answer"),
        ([_chunk(reason="insufficient_system_resource")], 502, "provider_error_in_answer"),
    ],
)
def test_faults(chunks: list[Any], status: int, code: str) -> None:
    fault = _read(*chunks)[-1]
    assert isinstance(fault, Fault)
    assert (fault.status, fault.code) == (status, code)
    assert fault.message


def _written(*deltas: Delta, include_usage: bool = False) -> list[Any]:
    """The chunks that deltas become, their heads left out."""
    writer = StreamWriter(include_usage=include_usage)
    found = sse.events(writer.write([*deltas]))
    assert writer.finished == any(isinstance(delta, Finish | Fault) for delta in deltas)
    return [event.data if event.data.startswith(b"[") else _short(orjson.loads(event.data)) for event in found]


def _short(chunk: dict[str, Any]) -> Any:
    if "error" in chunk:
        return chunk["error"]["message"]
    if not chunk["choices"]:
        return chunk["usage"]["total_tokens"]
    (choice,) = chunk["choices"]
    return choice["finish_reason"] or choice["delta"]


def test_write() -> None:
    assert _written(
        Begin("1", "m"),
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        SignatureDelta("s"),
        SignatureDelta(""),
        RedactedDelta("d"),
        TextDelta("t"),
        ToolBegin(0, "1", "f"),
        ToolDelta(0, "{}"),
        Finish("tool_calls", refusal="no"),
        TextDelta("late"),
    ) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "a"},
        {"reasoning_content": "b"},
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "ab", "signature": "s"}]},
        {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "d"}]},
        {"content": "t"},
        {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"refusal": "no"},
        "tool_calls",
        b"[DONE]",
    ]


def test_write_usage_only_when_asked() -> None:
    end = Finish("stop", Usage(input=3, output=1))
    assert _written(Begin("1", "m"), end)[1:] == ["stop", b"[DONE]"]
    assert _written(Begin("1", "m"), end, include_usage=True)[1:] == ["stop", 4, b"[DONE]"]
    assert _written(Begin("1", "m", Usage(input=3)), Finish("stop"), include_usage=True)[1:] == ["stop", 3, b"[DONE]"]


def test_an_error_is_the_last_word() -> None:
    assert _written(Begin("1", "m"), TextDelta("a"), Fault(status=500, message="no"))[1:] == [{"content": "a"}, "no"]


def test_ids() -> None:
    assert completion_id("msg_1") == "chatcmpl-msg_1"
    assert completion_id("chatcmpl-1") == "chatcmpl-1"
    assert completion_id("") == "chatcmpl-" + "0" * 24
