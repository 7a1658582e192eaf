"""Messages of chat answers as the providers spell them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from sidecar.dialects import chat_answer
from sidecar.dialects.chat_answer import Choice, Message
from sidecar.dialects.neutral import Redacted, Stop, Thinking


def _message(**members: Any) -> Message:
    return msgspec.json.decode(orjson.dumps(members), type=Message)


@pytest.mark.parametrize(
    ("reason", "calls", "refused", "stop"),
    [
        ("stop", False, False, "stop"),
        ("eos", False, False, "stop"),
        ("length", True, False, "length"),
        ("model_length", False, False, "length"),
        ("tool_calls", True, False, "tool_calls"),
        ("function_call", True, False, "tool_calls"),
        ("stop", True, False, "tool_calls"),
        ("", True, False, "tool_calls"),
        (None, True, False, "tool_calls"),
        ("some_new_reason", True, False, "tool_calls"),
        ("some_new_reason", False, False, "stop"),
        ("content_filter", False, False, "content_filter"),
        ("stop", False, True, "content_filter"),
        (["odd"], False, False, "stop"),
    ],
)
def test_stops(reason: Any, calls: bool, refused: bool, stop: Stop) -> None:
    assert chat_answer.stop_of(reason, calls=calls, refused=refused) == stop


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_broken_off(reason: str) -> None:
    fault = chat_answer.broken_off(Choice(finish_reason=reason))
    assert fault is not None
    assert fault.message == f"the provider broke off its answer: {reason}"
    assert fault.status == 502


def test_error_of_a_choice() -> None:
    fault = chat_answer.broken_off(Choice(error={"code": 429, "message": "slow"}))
    assert fault is not None
    assert (fault.status, fault.message) == (429, "slow")
    assert chat_answer.broken_off(Choice(finish_reason="stop")) is None


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}


@pytest.mark.parametrize(
    ("members", "text", "reasoning"),
    [
        ({"content": "t"}, "t", ""),
        ({"content": None}, "", ""),
        ({"content": {"odd": 1}}, "", ""),
        ({"content": "t", "reasoning_content": "r", "reasoning": "other"}, "t", "r"),
        ({"content": "t", "reasoning": "r"}, "t", "r"),
        ({"content": "t", "reasoning": {"odd": 1}}, "t", ""),
        ({"content": [THOUGHT, {"type": "text", "text": "t"}, {"type": "reference"}, 5]}, "t", "ab"),
        ({"content": [{"type": "thinking", "thinking": "a"}]}, "", "a"),
        ({"reasoning": "r", "reasoning_details": [{"type": "reasoning.text", "text": "r"}]}, "", "r"),
        (
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "r"},
                    {"type": "reasoning.encrypted", "data": "d"},
                ]
            },
            "",
            "r",
        ),
    ],
)
def test_text_and_reasoning(members: dict[str, Any], text: str, reasoning: str) -> None:
    message = _message(**members)
    assert chat_answer.text(message) == text
    assert chat_answer.reasoning(message) == reasoning


@pytest.mark.parametrize(
    ("members", "blocks"),
    [
        ({}, []),
        ({"thinking_blocks": "odd"}, []),
        ({"thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": ""}]}, []),
        (
            {
                "thinking_blocks": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                ]
            },
            [Thinking("t", "s"), Redacted("d")],
        ),
        (
            {
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "t", "signature": "s", "format": "anthropic-claude-v1"}
                ]
            },
            [Thinking("t", "s")],
        ),
        (
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "format": "anthropic-claude-v1"}]},
            [Redacted("d")],
        ),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "d", "format": "openai-responses-v1"}]}, []),
    ],
)
def test_blocks(members: dict[str, Any], blocks: list[Thinking | Redacted]) -> None:
    assert chat_answer.blocks(_message(**members)) == blocks


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"null", ""),
        (b'""', ""),
        (b'"{\\"a\\": 1.0}"', '{"a": 1.0}'),
        (b'{"a": 12345678901234567890123}', '{"a": 12345678901234567890123}'),
        ('{"a":"é"}'.encode(), '{"a":"é"}'),
    ],
)
def test_arguments(raw: bytes, text: str) -> None:
    assert chat_answer.arguments(msgspec.Raw(raw)) == text


def test_ids() -> None:
    assert chat_answer.call_id("null") == ""
    assert chat_answer.call_id("call_1") == "call_1"
    assert chat_answer.call_id(5) == ""
    first, second = chat_answer.mint("call_"), chat_answer.mint("call_")
    assert first != second
    assert len(first) == len("call_") + 24
