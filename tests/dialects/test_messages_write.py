"""Messages requests, written: the rules of turns and of models. The whole of requests is in tests/golden."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from sidecar.dialects.messages_write import write_call, write_redacted, write_request, write_thinking
from sidecar.dialects.neutral import (
    Ask,
    Choice,
    Document,
    Image,
    Part,
    Redacted,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
    Turn,
)
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.wire import body

HELLO = Turn("user", [Text("hello")])
CALLS = Turn("assistant", [ToolUse("1", "f", "{}"), ToolUse("2", "f", "{}")])


def _write(model: str, *turns: Turn, **members: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    written = write_request(Ask(model="asked", turns=[*turns] or [HELLO], **members), model)
    return orjson.loads(body.rebuild(written.members)), written.dropped


def _turns(*turns: Turn) -> list[tuple[str, list[str]]]:
    """Roles, and for each block its type with what tells it apart."""
    messages = _write("claude-opus-4-7", *turns)[0]["messages"]
    keys = {"text": "text", "tool_use": "id", "tool_result": "tool_use_id"}
    return [(each["role"], [block[keys[block["type"]]] for block in each["content"]]) for each in messages]


def _result(ident: str) -> Turn:
    return Turn("user", [ToolResult(ident, [Text("r")])])


def test_results_are_gathered_at_the_head_of_one_turn() -> None:
    assert _turns(
        HELLO, CALLS, Turn("user", [Text("said")]), _result("2"), _result("1"), Turn("user", [Text("more")])
    ) == [
        ("user", ["hello"]),
        ("assistant", ["1", "2"]),
        ("user", ["2", "1", "said", "more"]),
    ]


def test_calls_of_turns_that_follow_each_other() -> None:
    one, two = Turn("assistant", [ToolUse("1", "f", "{}")]), Turn("assistant", [ToolUse("2", "f", "{}")])
    assert _turns(HELLO, one, two, _result("1"), _result("2"))[1:] == [("assistant", ["1", "2"]), ("user", ["1", "2"])]


def test_missing_results_are_made_up() -> None:
    assert _turns(HELLO, CALLS, _result("2"), Turn("user", [Text("x")]))[2] == ("user", ["2", "1", "x"])
    assert _turns(HELLO, CALLS)[2] == ("user", ["1", "2"])
    made_up = _write("m", HELLO, CALLS)[0]["messages"][2]["content"][0]
    assert made_up == {"type": "tool_result", "tool_use_id": "1", "content": "no result", "is_error": True}


@pytest.mark.parametrize(
    "turns", [[_result("1")], [HELLO, CALLS, _result("1"), Turn("assistant", [Text("a")]), _result("1")]]
)
def test_results_without_a_call(turns: list[Turn]) -> None:
    with pytest.raises(BodyInvalid) as caught:
        _write("m", *turns)
    assert caught.value.param == "messages"


def test_empty_turns() -> None:
    empty = Turn("assistant", [Thinking("unsigned"), Text(" \n")])
    assert _turns(HELLO, empty, Turn("user", [Text("again")])) == [("user", ["hello", "again"])]
    with pytest.raises(BodyInvalid) as caught:
        _write("m", Turn("user", [Text("")]))
    assert caught.value.param == "messages"


def test_ids_are_changed_on_both_sides() -> None:
    call = Turn("assistant", [ToolUse("call:é.1", "f", "{}"), ToolUse("", "f", "{}")])
    assert _turns(HELLO, call, _result("call:é.1"), _result(""))[1:] == [
        ("assistant", ["call___1", "_"]),
        ("user", ["call___1", "_"]),
    ]


@pytest.mark.parametrize(
    "part",
    [Image("image/tiff", "AA"), Document("application/zip", "AA"), Document(file_id="file-1")],
)
def test_parts_that_are_not_taken(part: Part) -> None:
    with pytest.raises(Unsupported) as caught:
        _write("m", Turn("user", [part]))
    assert caught.value.param == "messages"


def test_blocks() -> None:
    assert write_thinking(Thinking("t", "s")) == {"type": "thinking", "thinking": "t", "signature": "s"}
    assert write_redacted(Redacted("d")) == {"type": "redacted_thinking", "data": "d"}
    call = body.encode(write_call(ToolUse("1", "f", '{"n": 12345678901234567890123}')))
    assert call == b'{"type":"tool_use","id":"1","name":"f","input":{"n": 12345678901234567890123}}'
    own = _write("m", Turn("user", [Document(file_id="file_1")]))[0]["messages"][0]["content"][0]
    assert own["source"] == {"type": "file", "file_id": "file_1"}


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "output"),
    [
        ("claude-opus-4-7", "xhigh", {"type": "adaptive", "display": "summarized"}, "xhigh"),
        ("claude-opus-4-6", "xhigh", {"type": "adaptive", "display": "summarized"}, "high"),
        ("claude-opus-4-6", "minimal", {"type": "adaptive", "display": "summarized"}, "low"),
        ("claude-sonnet-5", "none", {"type": "disabled"}, None),
        ("claude-fable-5", "none", {"type": "adaptive", "display": "summarized"}, "low"),
        ("claude-haiku-4-5", "low", {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-haiku-4-5", "medium", {"type": "enabled", "budget_tokens": 2048}, None),
        ("claude-haiku-4-5", "max", {"type": "enabled", "budget_tokens": 8192}, None),
        ("claude-haiku-4-5", "none", None, None),
        ("claude-haiku-4-5", None, None, None),
    ],
)
def test_thinking(model: str, effort: str | None, thinking: dict[str, Any] | None, output: str | None) -> None:
    members, _ = _write(model, effort=effort)
    assert members.get("thinking") == thinking
    assert members.get("output_config", {}).get("effort") == output


def test_budgets_of_the_caller() -> None:
    assert _write("claude-haiku-4-5", budget=3000)[0]["thinking"] == {"type": "enabled", "budget_tokens": 3000}
    assert _write("claude-haiku-4-5", budget=5)[0]["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert _write("claude-opus-4-7", budget=3000)[0]["output_config"] == {"effort": "medium"}


def test_the_user_begins() -> None:
    assert _turns(Turn("assistant", [Text("Hi")]), HELLO) == [
        ("user", ["."]),
        ("assistant", ["Hi"]),
        ("user", ["hello"]),
    ]


def test_thinking_that_would_be_refused() -> None:
    tools = [Tool("f")]
    members, dropped = _write("claude-haiku-4-5", effort="low", tools=tools, choice=Choice("any"))
    assert "thinking" not in members
    assert dropped == ("reasoning_effort",)
    assert "thinking" not in _write("claude-haiku-4-5", HELLO, Turn("assistant", [Text("So")]), effort="low")[0]
    assert "thinking" not in _write("claude-haiku-4-5", HELLO, CALLS, _result("1"), effort="low")[0]
    thought = Turn("assistant", [Thinking("t", "s"), *CALLS.parts])
    assert "thinking" in _write("claude-haiku-4-5", HELLO, thought, _result("1"), effort="low")[0]


def test_the_budget_has_room() -> None:
    assert _write("claude-haiku-4-5", effort="low", max_tokens=1024)[0]["max_tokens"] == 2048
    assert _write("claude-haiku-4-5", effort="low", max_tokens=1025)[0]["max_tokens"] == 1025
    assert _write("claude-haiku-4-5", max_tokens=0)[0]["max_tokens"] == 0


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        (
            "claude-3-7-sonnet",
            {"temperature": b"0.50", "top_p": b"0.9", "top_k": b"5"},
            {"temperature": 0.5, "top_p": 0.9, "top_k": 5},
        ),
        ("claude-sonnet-4-5", {"temperature": b"0.50", "top_p": b"0.9"}, {"temperature": 0.5}),
        ("claude-sonnet-4-5", {"top_p": b"0.9"}, {"top_p": 0.9}),
        ("claude-sonnet-4-5", {"temperature": b"2"}, {"temperature": 1}),
        ("claude-opus-4-8", {"temperature": b"0.5", "top_p": b"0.9", "top_k": b"5"}, {}),
        ("qwen3", {"temperature": b"1.0"}, {"temperature": 1.0}),
    ],
)
def test_sampling(model: str, asked: dict[str, bytes], sent: dict[str, float]) -> None:
    members, dropped = _write(model, **{name: msgspec.Raw(raw) for name, raw in asked.items()})
    assert {name: members[name] for name in asked if name in members} == sent
    assert set(dropped) == set(asked) - set(sent)


def test_sampling_while_thinking() -> None:
    asked = {"temperature": msgspec.Raw(b"1"), "top_p": msgspec.Raw(b"0.95"), "top_k": msgspec.Raw(b"5")}
    members, dropped = _write("claude-3-7-sonnet", effort="low", **asked)
    assert members["top_p"] == 0.95
    assert dropped == ("temperature", "top_k")
    assert _write("claude-3-7-sonnet", effort="low", top_p=msgspec.Raw(b"0.5"))[1] == ("top_p",)


def test_options() -> None:
    members, dropped = _write("m", user="u", service_tier="flex", stop=["\n", "a"], stream=True, choice=Choice("any"))
    assert members["metadata"] == {"user_id": "u"}
    assert members["stop_sequences"] == ["a"]
    assert members["stream"] is True
    assert "tool_choice" not in members
    assert dropped == ("tool_choice", "service_tier")
    assert "stop_sequences" not in _write("m", stop=[" "])[0]
    assert _write("m", service_tier="auto")[0]["service_tier"] == "auto"


@pytest.mark.parametrize(
    ("choice", "parallel", "written"),
    [
        (None, None, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (Choice("any"), False, {"type": "any", "disable_parallel_tool_use": True}),
        (Choice("none"), False, {"type": "none"}),
        (Choice("tool", "f"), True, {"type": "tool", "name": "f"}),
    ],
)
def test_choices(choice: Choice | None, parallel: bool | None, written: dict[str, Any] | None) -> None:
    assert _write("m", tools=[Tool("f")], choice=choice, parallel=parallel)[0].get("tool_choice") == written


def test_markers_of_the_caller_leave_room_for_the_automatic_one() -> None:
    marker = msgspec.Raw(b'{"type":"ephemeral"}')
    turn = Turn("user", [Text(str(number), marker) for number in range(5)])
    content = _write("m", turn, extra={"cache_control": marker})[0]["messages"][0]["content"]
    assert ["cache_control" in block for block in content] == [False, False, True, True, True]
