"""Chat requests, read: what is refused names its place, what is left out is told, what is unknown passes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sidecar.dialects.chat_read import read_request
from sidecar.dialects.neutral import Ask, Choice, Format, Redacted, Text, Thinking, ToolResult, ToolUse
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.wire import body

USER = {"role": "user", "content": "a"}


def _read(*messages: dict[str, Any], **members: Any) -> Ask:
    return read_request(body.envelope(orjson.dumps({"model": "m", "messages": messages or [USER], **members})))


def _call(arguments: Any, ident: str | None = "1") -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": ident, "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0]"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "c"}}}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_refused(members: dict[str, Any], param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        _read(**members)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("messages", "members", "param"),
    [
        ([{"role": "robot"}], {}, "messages[0].role"),
        ([USER, {"role": "tool", "content": "x"}], {}, "messages[1].tool_call_id"),
        ([{"role": "function", "name": "f", "content": "x"}], {}, "messages[0].name"),
        ([_call("{")], {}, "messages[0].tool_calls[0].function.arguments"),
        ([_call("[]")], {}, "messages[0].tool_calls[0].function.arguments"),
        ([_call(5)], {}, "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "user", "content": [{"type": 1}]}], {}, "messages[0].content[0].type"),
        ([{"role": "assistant", "thinking_blocks": [{}]}], {}, "messages[0].thinking_blocks[0]"),
        ([USER], {"tool_choice": "some"}, "tool_choice"),
        ([USER], {"temperature": "hot"}, "temperature"),
        ([USER], {"stop": 5}, "stop"),
        ([USER], {"tools": {}}, "tools"),
        ([USER], {"n": "1"}, "n"),
    ],
)
def test_invalid(messages: list[dict[str, Any]], members: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        _read(*messages, **members)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)


def test_messages_must_be_there() -> None:
    for data in (b'{"model":"m"}', b'{"model":"m","messages":null}'):
        with pytest.raises(BodyInvalid) as caught:
            read_request(body.envelope(data))
        assert caught.value.param == "messages"


def test_what_is_left_out_is_told_and_what_is_unknown_passes() -> None:
    ask = _read({**USER, "name": "ann"}, seed=1, store=None, metadata={}, new_member=[1], n=1, logprobs=False)
    assert ask.dropped == ["metadata", "seed", "messages[0].name"]
    assert set(ask.extra) == {"new_member"}


def test_members_of_other_providers_are_no_unknown_ones() -> None:
    ask = _read(min_p=0.1, provider={"order": ["a"]}, chat_template_kwargs={}, reasoning={"effort": "low"})
    assert ask.dropped == ["provider", "chat_template_kwargs", "min_p"]
    assert ask.extra == {}
    assert ask.effort == "low"
    assert _read(reasoning={"max_tokens": 5}, reasoning_effort="high").effort == "high"


@pytest.mark.parametrize(
    ("members", "effort", "budget"),
    [
        ({"reasoning_effort": "low", "thinking": {"type": "disabled"}}, "low", None),
        ({"reasoning": {"max_tokens": 5}}, None, 5),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, None, 2000),
        ({"thinking": {"type": "enabled"}}, "high", None),
        ({"thinking": {"type": "disabled"}}, "none", None),
        ({"thinking": {"clear_thinking": True}}, None, None),
    ],
)
def test_reasoning(members: dict[str, Any], effort: str | None, budget: int | None) -> None:
    ask = _read(**members)
    assert (ask.effort, ask.budget) == (effort, budget)
    assert ask.extra == {}


def test_numbers_keep_their_spelling() -> None:
    data = b'{"model":"m","messages":[],"temperature":0.70,"top_p":1e0,"top_k":5,"max_tokens":null}'
    ask = read_request(body.envelope(data))
    assert [bytes(raw) for raw in (ask.temperature, ask.top_p, ask.top_k) if raw is not None] == [b"0.70", b"1e0", b"5"]
    assert ask.max_tokens is None


def test_systems_stand_where_they_stood() -> None:
    ask = _read(
        {"role": "developer", "content": "a"},
        {"role": "system", "content": "b"},
        USER,
        {"role": "system", "content": "c"},
    )
    assert ask.system == [Text("a"), Text("b")]
    assert [turn.role for turn in ask.turns] == ["user", "system"]


def test_reasoning_of_the_assistant() -> None:
    blocks = [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]
    ask = _read({"role": "assistant", "content": "a", "reasoning_content": "r", "thinking_blocks": blocks})
    assert ask.turns[0].parts == [Thinking("t", "s"), Redacted("d"), Text("a")]
    assert _read({"role": "assistant", "content": "a", "reasoning": "r"}).turns[0].parts == [Thinking("r"), Text("a")]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"a": 12345678901234567890123}', '{"a": 12345678901234567890123}'),
        ({"a": 1.5}, '{"a":1.5}'),
        ("", "{}"),
        (None, "{}"),
        (" {} \n", "{}"),
    ],
)
def test_arguments(arguments: Any, read: str) -> None:
    assert _read(_call(arguments)).turns[0].parts == [ToolUse("1", "f", read)]


def test_calls_without_ids_are_told_apart() -> None:
    ask = _read(_call("{}", None), _call("{}", None))
    assert [part.id for turn in ask.turns for part in turn.parts if isinstance(part, ToolUse)] == [
        "call_0_0",
        "call_1_0",
    ]


def test_functions_of_old() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    ask = _read(call, {"role": "function", "name": "f", "content": "x"})
    assert ask.turns[0].parts == [ToolUse("fc_0", "f", "{}")]
    assert ask.turns[1].parts == [ToolResult("fc_0", [Text("x")])]


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        ("auto", Choice("auto")),
        ("none", Choice("none")),
        ("required", Choice("any")),
        ("any", Choice("any")),  # Mistral
        ({"type": "function", "function": {"name": "a"}}, Choice("tool", "a")),
        ({"function": {"name": "a"}}, Choice("tool", "a")),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, Choice("auto")),
    ],
)
def test_choices(choice: Any, read: Choice) -> None:
    assert _read(tool_choice=choice).choice == read


def test_options() -> None:
    ask = _read(
        user="u", safety_identifier="s", reasoning_effort="low", service_tier="flex", stop="a", parallel_tool_calls=True
    )
    assert (ask.user, ask.effort, ask.service_tier, ask.stop, ask.parallel) == ("s", "low", "flex", ["a"], True)
    assert _read(response_format={"type": "json_object"}).format == Format()
    assert _read(response_format={"type": "text"}).format is None
