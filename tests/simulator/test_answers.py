from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest

from sidecar.simulator import answers
from sidecar.simulator.answers import Answer
from tests.simulator.raw import CHAT, MESSAGES

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "dry": {"type": "boolean"},
        "names": {"type": "array"},
        "unit": {"enum": ["C", "F"]},
        "maybe": {"type": ["string", "null"]},
        "deep": {"type": "object"},
        "any": True,
    },
}
ARGUMENTS = {
    "city": "Paris",
    "count": 9007199254740993,
    "ratio": 1.5,
    "dry": True,
    "names": [],
    "unit": "C",
    "maybe": "Paris",
    "deep": {},
    "any": {},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("one", "two", "three")]
ANTHROPIC_TOOLS = [{"name": name, "input_schema": SCHEMA} for name in ("one", "two", "three")]


def body(answer: Answer) -> Any:
    assert (answer.status, answer.events) == (200, None)
    return msgspec.json.decode(answer.body)


def chunks(answer: Answer) -> list[Any]:
    assert answer.events is not None
    assert answer.events[-1] == b"data: [DONE]\n\n"
    return [msgspec.json.decode(event[6:]) for event in answer.events[:-1]]


def events(answer: Answer) -> list[Any]:
    assert answer.events is not None
    found = []
    for event in answer.events:
        first, second, *rest = event.split(b"\n")
        assert rest == [b"", b""]
        value = msgspec.json.decode(second.removeprefix(b"data: "))
        assert first == b"event: " + value["type"].encode()
        found.append(value)
    return found


def folded(found: list[Any]) -> dict[int, Any]:
    """The messages that a chat stream adds up to, by choice."""
    messages: dict[int, Any] = {}
    for chunk in found:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message = messages.setdefault(choice["index"], {"content": "", "tool_calls": {}, "finish": None})
            message["content"] += delta.get("content") or ""
            message["finish"] = choice["finish_reason"] or message["finish"]
            for call in delta.get("tool_calls", ()):
                held = message["tool_calls"].setdefault(call["index"], {"arguments": ""})
                held |= {"id": call["id"], "name": call["function"]["name"]} if "id" in call else {}
                held["arguments"] += call["function"]["arguments"]
    return messages


@pytest.mark.parametrize(
    "extra", [{}, {"tools": TOOLS}, {"n": 3}, {"max_tokens": 4}, {"response_format": {"type": "json_object"}}]
)
def test_a_folded_stream_equals_the_whole_answer(extra: dict[str, Any]) -> None:
    whole = body(answers.chat({**CHAT, **extra}, 7, 50))
    asked = {**CHAT, **extra, "stream": True, "stream_options": {"include_usage": True}}
    found = chunks(answers.chat(asked, 7, 50))
    assert {chunk["id"] for chunk in found} == {whole["id"]}
    assert {chunk["created"] for chunk in found} == {whole["created"]}
    assert [chunk["usage"] for chunk in found[:-1]] == [None] * (len(found) - 1)
    assert (found[-1]["choices"], found[-1]["usage"]) == ([], whole["usage"])
    messages = folded(found)
    assert sorted(messages) == list(range(extra.get("n", 1)))
    for choice in whole["choices"]:
        message = messages[choice["index"]]
        assert message["finish"] == choice["finish_reason"]
        assert message["content"] == (choice["message"]["content"] or "")
        calls = choice["message"].get("tool_calls", [])
        assert [(call["id"], call["name"], call["arguments"]) for call in message["tool_calls"].values()] == [
            (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls
        ]


def test_without_include_usage_there_is_no_usage_in_a_stream() -> None:
    assert not any("usage" in chunk for chunk in chunks(answers.chat({**CHAT, "stream": True}, 1, 5)))


@pytest.mark.parametrize(
    ("extra", "names"),
    [
        ({}, ["one", "two"]),
        ({"tool_choice": "auto"}, ["one", "two"]),
        ({"tool_choice": "required"}, ["one", "two"]),
        ({"tool_choice": "none"}, []),
        ({"parallel_tool_calls": False}, ["one"]),
        ({"tool_choice": {"type": "function", "function": {"name": "three"}}}, ["three"]),
    ],
)
def test_which_tools_are_called(extra: dict[str, Any], names: list[str]) -> None:
    (choice,) = body(answers.chat({**CHAT, "tools": TOOLS, **extra}, 1, 5))["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == names
    assert choice["finish_reason"] == ("tool_calls" if names else "stop")
    assert all(msgspec.json.decode(call["function"]["arguments"]) == ARGUMENTS for call in calls)
    assert (choice["message"]["content"] is None) == bool(names)


def test_the_answer_to_a_tool_result_is_text() -> None:
    history = [*CHAT["messages"], {"role": "assistant", "content": None}, {"role": "tool", "content": "4"}]
    (choice,) = body(answers.chat({**CHAT, "messages": history, "tools": TOOLS}, 1, 5))["choices"]
    assert choice["message"]["content"]


def test_limits_and_counts() -> None:
    found = body(answers.chat({**CHAT, "max_tokens": 2, "n": 3}, 1, 9))
    assert [choice["finish_reason"] for choice in found["choices"]] == ["length"] * 3
    assert (found["usage"]["completion_tokens"], found["usage"]["total_tokens"]) == (6, 9)
    found = body(answers.chat({**CHAT, "max_completion_tokens": 9}, 1, 9))
    assert found["choices"][0]["finish_reason"] == "stop"
    found = body(answers.chat({**CHAT, "reasoning_effort": "low"}, 1, 9))
    assert found["choices"][0]["message"]["reasoning_content"] == "let me think"
    assert found["usage"]["completion_tokens"] == 12
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_json_is_json() -> None:
    found = body(answers.chat({**CHAT, "response_format": {"type": "json_schema", "json_schema": {}}}, 1, 9))
    assert msgspec.json.decode(found["choices"][0]["message"]["content"]) == {"ok": True}


@pytest.mark.parametrize(
    ("prompt", "n", "choices", "prompt_tokens"),
    [("say it", None, 1, 2), (["a", "b c"], None, 2, 3), ([1, 2, 3], None, 1, 3), ([[1, 2], [3]], 2, 4, 3)],
)
def test_completions_answer_each_prompt_n_times(prompt: Any, n: int | None, choices: int, prompt_tokens: int) -> None:
    asked = {"model": "m", "prompt": prompt, "n": n, "max_tokens": 3}
    found = body(answers.completions(asked, 1, 5))
    assert [choice["index"] for choice in found["choices"]] == list(range(choices))
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    assert found["usage"]["prompt_tokens"] == prompt_tokens
    assert found["usage"]["completion_tokens"] == 3 * choices
    streamed = chunks(answers.completions({**asked, "stream": True, "stream_options": {"include_usage": True}}, 1, 5))
    for index, choice in enumerate(found["choices"]):
        text = [each["text"] for chunk in streamed for each in chunk["choices"] if each["index"] == index]
        assert "".join(text) == choice["text"]
    assert streamed[-1]["usage"] == found["usage"]
    assert {chunk["usage"] is None for chunk in streamed[:-1]} == {True}


def test_embeddings_are_the_same_for_the_same_text_in_either_encoding() -> None:
    found = body(answers.embeddings({"model": "m", "input": ["one", "two", "one"], "dimensions": 4}, 1, 0))
    vectors = [each["embedding"] for each in found["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert [len(vector) for vector in vectors] == [4, 4, 4]
    packed = body(
        answers.embeddings({"model": "m", "input": "one", "dimensions": 4, "encoding_format": "base64"}, 1, 0)
    )
    unpacked = struct.unpack("<4f", base64.b64decode(packed["data"][0]["embedding"]))
    assert unpacked == pytest.approx(vectors[0])
    assert packed["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    one = body(answers.embeddings({"model": "m", "input": [1, 2, 3]}, 1, 0))
    assert (len(one["data"]), len(one["data"][0]["embedding"]), one["usage"]["prompt_tokens"]) == (1, 8, 3)


# -- Anthropic


def test_a_messages_stream_is_the_documented_sequence() -> None:
    asked = {**MESSAGES, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
    found = events(answers.messages(asked, 3, 2))
    assert [event["type"] for event in found] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 1)
    assert found[2]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert [event["delta"] for event in found[3:7]] == [
        {"type": "thinking_delta", "thinking": "let"},
        {"type": "thinking_delta", "thinking": " me"},
        {"type": "thinking_delta", "thinking": " think"},
        {"type": "signature_delta", "signature": "sig-00000003=="},
    ]
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["one", "two"]),
        ({"type": "any"}, ["one", "two"]),
        ({"type": "none"}, []),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["one"]),
        ({"type": "tool", "name": "three"}, ["three"]),
    ],
)
def test_which_tools_are_used(choice: Any, names: list[str]) -> None:
    asked = {**MESSAGES, "tools": ANTHROPIC_TOOLS, "tool_choice": choice}
    found = body(answers.messages(asked, 1, 5))
    assert [block.get("name") for block in found["content"] if block["type"] == "tool_use"] == names
    assert found["stop_reason"] == ("tool_use" if names else "end_turn")
    assert all(block["input"] == ARGUMENTS for block in found["content"] if block["type"] == "tool_use")
    streamed = events(answers.messages({**asked, "stream": True}, 1, 5))
    for index, block in enumerate(found["content"]):
        deltas = [each["delta"] for each in streamed if each.get("index") == index and "delta" in each]
        if block["type"] == "tool_use":
            pieces = "".join(delta["partial_json"] for delta in deltas)
            assert msgspec.json.decode(pieces) == block["input"]
        else:
            assert "".join(delta["text"] for delta in deltas) == block["text"]
    assert streamed[-2]["usage"]["output_tokens"] == found["usage"]["output_tokens"]


def test_a_tool_result_is_answered_with_text_and_server_tools_are_not_called() -> None:
    use = {"type": "tool_use", "id": "t", "name": "one", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "4"}
    history = [*CHAT["messages"], {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    found = body(answers.messages({**MESSAGES, "messages": history, "tools": ANTHROPIC_TOOLS}, 1, 5))
    assert [block["type"] for block in found["content"]] == ["text"]
    server = [{"type": "web_search_20260318", "name": "web_search"}]
    found = body(answers.messages({**MESSAGES, "tools": server}, 1, 5))
    assert [block["type"] for block in found["content"]] == ["text"]


def test_max_tokens_ends_a_message() -> None:
    found = body(answers.messages({**MESSAGES, "max_tokens": 2}, 0, 5))
    assert (found["content"], found["stop_reason"]) == ([{"type": "text", "text": "the sidecar"}], "max_tokens")


def test_count_tokens_counts_the_system_too() -> None:
    asked = {**CHAT, "system": "be brief"}
    assert (
        body(answers.count_tokens(asked, 1, 5))["input_tokens"]
        == body(answers.count_tokens(CHAT, 1, 5))["input_tokens"] + 2
    )
