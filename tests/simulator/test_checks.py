from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from sidecar.simulator import Settings
from sidecar.simulator.checks import (
    Refusal,
    check_chat,
    check_completion,
    check_embedding,
    check_flavour,
    read_object,
)
from sidecar.simulator.provider import ROUTES, Seen, answer_to
from sidecar.simulator.settings import FLAVOURS
from tests.simulator.raw import CHAT

USER = {"role": "user", "content": "hi"}


def called(*ids: str) -> dict[str, Any]:
    calls = [{"id": each, "type": "function", "function": {"name": "f", "arguments": "{}"}} for each in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "4"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 128, "temperature": 2, "top_p": 0.5, "unknown": {"deep": [1]}},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {
            "tools": [{"type": "custom", "custom": {"name": "c"}}],
            "tool_choice": {"type": "custom", "custom": {"name": "c"}},
        },
        {"response_format": {"type": "text"}},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER]},
        {"messages": [USER, called("a", "b"), result("b"), result("a"), USER]},
        {"messages": [USER, {"role": "assistant", "content": "x", "tool_calls": None}, USER]},
        {"messages": [{"role": "function", "name": "f", "content": "x"}, USER]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": ""},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        {"type": "file", "file": {"file_id": "f"}},
                    ],
                }
            ]
        },
    ],
)
def test_a_good_chat_is_taken(extra: dict[str, Any]) -> None:
    check_chat({**CHAT, **extra})


@pytest.mark.parametrize(
    ("extra", "message", "param"),
    [
        ({"model": None}, "you must provide a model parameter", "model"),
        ({"messages": None}, "you must provide a messages parameter", "messages"),
        ({"messages": []}, "Expected `array` of length >= 1 - at `$.messages`", "messages"),
        ({"messages": ["hi"]}, "Expected `object`, got `str` - at `$.messages[0]`", "messages[0]"),
        ({"messages": [{"role": "bot"}]}, "Invalid value 'bot' - at `$.messages[0].role`", "messages[0].role"),
        (
            {"messages": [{"role": "user"}]},
            "Object missing required field `content` - at `$.messages[0]`",
            "messages[0]",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "Expected `str | array`, got `null` - at `$.messages[0].content`",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "Object missing required field `url` - at `$.messages[0].content[0].image_url`",
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "tool", "content": "4"}]},
            "Object missing required field `tool_call_id` - at `$.messages[0]`",
            "messages[0]",
        ),
        (
            {"messages": [USER, result("a")]},
            "messages with role 'tool' must answer a preceding message with 'tool_calls'",
            "messages[1].role",
        ),
        (
            {"messages": [USER, called("a"), result("a"), result("a")]},
            "messages with role 'tool' must answer a preceding message with 'tool_calls'",
            "messages[3].role",
        ),
        ({"messages": [USER, called("b", "a"), USER]}, "these tool_call_ids have no answer: a, b", "messages[2]"),
        ({"messages": [USER, called("a")]}, "these tool_call_ids have no answer: a", "messages"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            "an assistant message needs content or tool_calls",
            "messages[0].content",
        ),
        ({"n": 0}, "Expected `int` >= 1 - at `$.n`", "n"),
        ({"stream": "yes"}, "Expected `bool | null`, got `str` - at `$.stream`", "stream"),
        ({"max_tokens": 0}, "Expected `int` >= 1 - at `$.max_tokens`", "max_tokens"),
        ({"temperature": 3}, "Expected `float` <= 2.0 - at `$.temperature`", "temperature"),
        (
            {"stream_options": {"include_usage": True}},
            "the 'stream_options' parameter is only allowed when 'stream' is enabled",
            "stream_options",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
            "Expected `str` matching regex '^[a-zA-Z0-9_-]{1,64}$' - at `$.tools[0].function.name`",
            "tools[0].function.name",
        ),
        (
            {"response_format": {"type": "xml"}},
            "Invalid enum value 'xml' - at `$.response_format.type`",
            "response_format.type",
        ),
    ],
)
def test_a_bad_chat_is_refused(extra: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_chat({**CHAT, **extra})
    refusal = caught.value
    assert (refusal.status, refusal.kind, refusal.message, refusal.param) == (
        400,
        "invalid_request_error",
        message,
        param,
    )


@pytest.mark.parametrize("prompt", ["", "a", ["a"], [1, 2], [[1], [2]]])
def test_prompts_that_are_taken(prompt: Any) -> None:
    check_completion({"model": "m", "prompt": prompt})


@pytest.mark.parametrize("value", ["a", ["a", "b"], [1, 2], [[1], [2]]])
def test_inputs_that_are_taken(value: Any) -> None:
    check_embedding({"model": "m", "input": value, "dimensions": 2, "encoding_format": "float"})


@pytest.mark.parametrize(
    ("check", "request_", "param"),
    [
        (check_completion, {"model": "m"}, "prompt"),
        (check_completion, {"model": "m", "prompt": []}, "prompt"),
        (check_completion, {"model": "m", "prompt": "a", "stream_options": {}}, "stream_options"),
        (check_embedding, {"model": "m"}, "input"),
        (check_embedding, {"model": "m", "input": ""}, "input"),
        (check_embedding, {"model": "m", "input": "a", "dimensions": 0}, "dimensions"),
        (check_embedding, {"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_bad_prompts_and_inputs_are_refused(check: Any, request_: dict[str, Any], param: str) -> None:
    with pytest.raises(Refusal) as caught:
        check(request_)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("flavour", "extra", "status"),
    [
        ("mistral", {"max_completion_tokens": 1}, 422),
        ("mistral", {"seed": 1}, 422),
        ("mistral", {"user": "u"}, 422),
        ("mistral", {"messages": [called("call_1")]}, 400),
        ("mistral", {"messages": [result("call_1")]}, 400),
        ("groq", {"n": 2}, 400),
        ("groq", {"logit_bias": {}}, 400),
        ("cerebras", {"n": 2}, 400),
        ("cerebras", {"frequency_penalty": 1}, 422),
    ],
)
def test_what_one_provider_refuses_though_openai_takes_it(flavour: str, extra: dict[str, Any], status: int) -> None:
    check_flavour({**CHAT, **extra}, "openai")
    with pytest.raises(Refusal) as caught:
        check_flavour({**CHAT, **extra}, flavour)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a":"\xff"}', b"[" * 5000 + b"]" * 5000, b"[]", b"1", b'"x"', b"null"]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match=r"^the body is not (JSON|an object)$"):
        read_object(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = st.sampled_from(
    [
        "model", "messages", "prompt", "input", "stream", "stream_options", "n", "max_tokens", "tools", "tool_choice",
        "parallel_tool_calls", "response_format", "reasoning_effort", "dimensions", "encoding_format", "system",
        "thinking",
    ]
)  # fmt: skip
_PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "tool_use", "tool_result", "thinking", "x"])},
    optional={"text": _JSON, "id": _JSON, "tool_use_id": _JSON, "input": _JSON, "name": _JSON, "content": _JSON},
)
_TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
        optional={"content": st.text(max_size=3) | st.lists(_PARTS, max_size=2) | _JSON, "tool_calls": _JSON},
    ),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(sorted(ROUTES)),
    flavour=st.sampled_from(FLAVOURS),
    changes=st.dictionaries(_MEMBERS, _JSON, max_size=4),
    turns=st.none() | _TURNS,
)
@example(path="/completions", flavour="mistral", changes={"messages": True}, turns=None)
@example(path="/chat/completions", flavour="mistral", changes={}, turns=[{**USER, "tool_calls": True}])
def test_whatever_is_sent_gets_an_answer(path: str, flavour: str, changes: dict[str, Any], turns: Any) -> None:
    asked = {"model": "m", "messages": [USER], "max_tokens": 9, "prompt": "p", "input": "i", **changes}
    if turns is not None:
        asked["messages"] = turns
    headers = [("content-type", "application/json"), ("anthropic-version", "2023-06-01")]
    body = msgspec.json.encode(asked)
    seen = Seen(number=1, method="POST", path=path, headers=headers, body=body, began=0.0)
    answer = answer_to(seen, Settings(), tokens=2, flavour=flavour)
    assert answer.status in (200, 400, 422)
    if answer.events is None and flavour != "blackbox":
        assert isinstance(msgspec.json.decode(answer.body.strip()), dict)
