"""Chat requests, written: what models take by their names. The whole of requests is in tests/golden."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from sidecar.dialects.chat_write import write_call, write_request
from sidecar.dialects.neutral import Ask, Choice, Document, Format, Text, Thinking, Tool, ToolResult, ToolUse, Turn
from sidecar.errors import Unsupported
from sidecar.wire import body

HELLO = Turn("user", [Text("hello")])


def _write(model: str, *turns: Turn, **members: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    written = write_request(Ask(model="asked", turns=[*turns] or [HELLO], **members), model)
    return orjson.loads(body.rebuild(written.members)), written.dropped


def _messages(model: str, *turns: Turn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = _write(model, *turns)[0]["messages"]
    return messages


@pytest.mark.parametrize(
    ("model", "member"),
    [
        ("gpt-4o", "max_tokens"),
        ("gpt-5", "max_completion_tokens"),
        ("openai/o3-mini", "max_completion_tokens"),
        ("gpt-5-chat-latest", "max_tokens"),
        ("gpt-oss-120b", "max_tokens"),
        ("grok-4", "max_tokens"),
    ],
)
def test_max_tokens(model: str, member: str) -> None:
    assert _write(model, max_tokens=5)[0][member] == 5


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("gpt-5-mini", set()),
        ("gpt-4o", {"temperature", "top_p", "stop"}),
        ("o3", set()),
        ("grok-4", {"temperature", "top_p"}),
        ("meta-llama/Llama-3.3-70B", {"temperature", "top_p", "top_k", "stop"}),
    ],
)
def test_sampling(model: str, sent: set[str]) -> None:
    one = msgspec.Raw(b"1")
    members, dropped = _write(model, temperature=one, top_p=one, top_k=one, stop=["a"])
    asked = {"temperature", "top_p", "top_k", "stop"}
    sent = sent | {"stop"} if model == "gpt-5-mini" else sent
    assert asked & set(members) == sent
    assert set(dropped) == asked - sent


@pytest.mark.parametrize(
    ("model", "asked", "effort"),
    [
        ("gpt-5", {"effort": "minimal"}, "minimal"),
        ("gpt-5", {"budget": 1024}, "low"),
        ("gpt-5", {"budget": 8192}, "medium"),
        ("gpt-5", {"budget": 8193}, "high"),
        ("gpt-4o", {"effort": "low"}, None),
        ("grok-4", {"effort": "low"}, None),
        ("grok-3-mini", {"effort": "low"}, "low"),
        ("mistral-medium", {"effort": "high"}, "high"),
        ("mistral-medium", {"effort": "low"}, None),
    ],
)
def test_effort(model: str, asked: dict[str, Any], effort: str | None) -> None:
    members, dropped = _write(model, **asked)
    assert members.get("reasoning_effort") == effort
    assert dropped == (() if effort else ("reasoning_effort",))


def test_user() -> None:
    assert _write("m", user="u" * 64)[0]["user"] == "u" * 64
    hashed = _write("m", user="u" * 65)[0]["user"]
    assert len(hashed) == 64
    assert hashed == _write("m", user="u" * 65)[0]["user"] != _write("m", user="v" * 65)[0]["user"]


def test_choice_of_tools() -> None:
    tool = Tool("a")
    members, dropped = _write("m", choice=Choice("any"), parallel=False)
    assert "tool_choice" not in members
    assert dropped == ("tool_choice",)
    assert _write("m", choice=Choice("auto"))[1] == ()
    members = _write("m", tools=[tool], choice=Choice("tool", "a"), parallel=False)[0]
    assert members["tool_choice"] == {"type": "function", "function": {"name": "a"}}
    assert members["parallel_tool_calls"] is False
    assert members["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    members, dropped = _write("m", tools=[tool], choice=Choice("tool", "a server's"))
    assert "tool_choice" not in members
    assert dropped == ("tool_choice",)


def test_format() -> None:
    schema = msgspec.Raw(b'{"type":"object"}')
    form = _write("m", format=Format(schema, description="d", strict=False))[0]["response_format"]
    assert form["json_schema"] == {
        "name": "response",
        "schema": {"type": "object"},
        "strict": False,
        "description": "d",
    }
    assert _write("m", format=Format())[0]["response_format"] == {"type": "json_object"}


def test_reasoning_goes_back_to_its_maker_only() -> None:
    turn = Turn("assistant", [Thinking("own"), Thinking("signed", "s"), Text("a")])
    assert _messages("deepseek-chat", turn)[0]["reasoning_content"] == "own"
    assert _messages("moonshotai/Kimi-K2-Thinking", turn)[0]["reasoning_content"] == "own"
    assert set(_messages("gpt-4o", turn)[0]) == {"role", "content"}
    assert _messages("anthropic/claude-opus-4.6", turn)[0]["reasoning_details"][0]["signature"] == "s"


def test_nothing_left_of_a_message() -> None:
    assert _messages("gpt-4o", HELLO, Turn("assistant", [Thinking("t")]), Turn("user", [])) == [
        {"role": "user", "content": "hello"}
    ]


def test_ids_of_mistral() -> None:
    calls = Turn("assistant", [ToolUse("toolu_01", "f", "{}"), ToolUse("toolu_02", "f", "{}")])
    results = Turn("user", [ToolResult("toolu_02", []), ToolResult("toolu_01", [])])
    first, *answers = _messages("mistralai/Mistral-Small", calls, results)
    ids = [call["id"] for call in first["tool_calls"]]
    assert all(len(ident) == 9 and ident.isalnum() for ident in ids)
    assert len(set(ids)) == 2
    assert [answer["tool_call_id"] for answer in answers] == ids[::-1]


@pytest.mark.parametrize("part", [Document(url="https://example.com/a.pdf"), Document(file_id="file_0")])
def test_documents_without_a_form(part: Document) -> None:
    with pytest.raises(Unsupported) as caught:
        _messages("gpt-4o", Turn("user", [part]))
    assert caught.value.param == "messages"


def test_documents_by_their_own_id() -> None:
    (message,) = _messages("gpt-4o", Turn("user", [Document(file_id="file-1")]))
    assert message["content"] == [{"type": "file", "file": {"file_id": "file-1"}}]


def test_write_call() -> None:
    assert write_call("f", "{}", "1") == {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
