"""Messages requests, read: what is refused names its place, what is left out is told, what is unknown passes."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from sidecar.dialects.messages_read import read_block, read_request
from sidecar.dialects.neutral import Ask, Choice, Document, Image, Part, Redacted, Text, Thinking, ToolResult, ToolUse
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.wire import body

USER = {"role": "user", "content": "a"}


def _read(*messages: dict[str, Any], **members: Any) -> Ask:
    request = {"model": "m", "max_tokens": 5, "messages": messages or [USER], **members}
    return read_request(body.envelope(orjson.dumps(request)))


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "text", "text": "a", "citations": [{}]}, Text("a")),
        ({"type": "thinking", "thinking": "é\u2028", "signature": "s"}, Thinking("é\u2028", "s")),
        ({"type": "thinking", "thinking": "", "signature": None}, Thinking("")),
        ({"type": "redacted_thinking", "data": "d"}, Redacted("d")),
        ({"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1.5}}, ToolUse("1", "f", '{"a":1.5}')),
        ({"type": "tool_use", "id": "1", "name": "f", "input": None}, ToolUse("1", "f", "{}")),
        ({"type": "tool_result", "tool_use_id": "1"}, ToolResult("1", [])),
        (
            {"type": "tool_result", "tool_use_id": "1", "content": "a", "is_error": True},
            ToolResult("1", [Text("a")], is_error=True),
        ),
        (
            {
                "type": "tool_result",
                "tool_use_id": "1",
                "content": [{"type": "tool_reference", "tool_name": "t"}, {"type": "new"}],
            },
            ToolResult("1", [Text("t")]),
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
            Image("image/png", "AA"),
        ),
        ({"type": "image", "source": {"type": "url", "url": "u"}}, Image(url="u")),
        (
            {"type": "document", "source": {"type": "file", "file_id": "f"}, "title": None},
            Document("application/pdf", file_id="f"),
        ),
        (
            {"type": "document", "source": {"type": "text", "data": "a"}, "title": "t"},
            Document("text/plain", text="a", title="t"),
        ),
        ({"type": "document", "source": {"type": "content", "content": "a"}}, Document("text/plain", text="a")),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "a"}]},
            Text("t\ns\na"),
        ),
        ({"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}, None),
        ({"type": "web_search_tool_result", "content": {"type": "web_search_tool_result_error"}}, None),
        ({"type": "fallback", "source": 5}, None),
    ],
)
def test_blocks(block: dict[str, Any], part: Part | None) -> None:
    assert read_block(msgspec.Raw(orjson.dumps(block)), "p", []) == part


@pytest.mark.parametrize(
    ("block", "error", "param"),
    [
        ({}, BodyInvalid, "p"),
        ({"type": "text"}, BodyInvalid, "p"),
        ({"type": "tool_use", "id": "1"}, BodyInvalid, "p"),
        ({"type": "tool_use", "id": "1", "name": "f", "input": "{}"}, BodyInvalid, "p.input"),
        ({"type": "tool_result", "content": "a"}, BodyInvalid, "p"),
        ({"type": "tool_result", "tool_use_id": "1", "content": [{}]}, BodyInvalid, "p.content[0]"),
        ({"type": "image"}, BodyInvalid, "p"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, Unsupported, "p.source"),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]},
            },
            Unsupported,
            "p.source",
        ),
    ],
)
def test_bad_blocks(block: dict[str, Any], error: type[Exception], param: str) -> None:
    with pytest.raises(error) as caught:
        read_block(msgspec.Raw(orjson.dumps(block)), "p", [])
    assert getattr(caught.value, "param", None) == param


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": None}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"system": 5}, "system"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {}}, "thinking"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop_sequences": "a"}, "stop_sequences"),
    ],
)
def test_invalid(members: dict[str, Any], param: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        _read(**members)
    assert caught.value.param == param


def test_what_is_left_out_is_told_and_what_is_unknown_passes() -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "server_tool_use"}]}
    ask = _read(message, container="c", speed=None, new_member=1, tools=[{"type": "bash_20250124", "name": "bash"}])
    assert ask.dropped == ["container", "messages[0].content[1]", "tools[0] (bash_20250124)"]
    assert set(ask.extra) == {"new_member"}
    assert ask.tools == []


@pytest.mark.parametrize(
    ("members", "effort", "budget"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, None, 9),
        ({"thinking": {"type": "adaptive"}}, None, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max", None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, None, None),
        ({"output_config": {"effort": "low"}}, "low", None),
        ({}, None, None),
    ],
)
def test_thinking(members: dict[str, Any], effort: str | None, budget: int | None) -> None:
    ask = _read(**members)
    assert (ask.effort, ask.budget) == (effort, budget)


def test_options() -> None:
    ask = _read(
        system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": ""}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        stop_sequences=["a"],
        stream=True,
    )
    assert [text.text for text in ask.system] == ["s"]
    assert ask.system[0].cache is not None
    assert (ask.choice, ask.parallel) == (Choice("auto"), False)
    assert (ask.user, ask.service_tier, ask.stop, ask.stream, ask.include_usage) == ("u", "default", ["a"], True, True)
    assert _read(system="s").system == [Text("s")]
    assert _read(service_tier="new").service_tier is None
    assert _read(service_tier="new").dropped == ["service_tier"]
