from __future__ import annotations

from typing import Any

import pytest

from sidecar.simulator.checks import Refusal
from sidecar.simulator.checks_messages import check_count, check_messages, check_version
from tests.simulator.raw import MESSAGES


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def use(call_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {"a": 1}}


def result(call_id: str, **extra: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, **extra}


TEXT = {"type": "text", "text": "hi"}
ASK = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_tokens": 0, "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"messages": [ASK, assistant(use("a"), use("b")), user(result("b"), result("a", content=[TEXT]), TEXT)]},
        {"messages": [ASK, assistant(use("a"), use("b")), user(result("a", is_error=True)), user(result("b"))]},
        {"messages": [ASK, assistant({"type": "thinking", "thinking": "", "signature": "s"}, TEXT), ASK]},
        {"messages": [ASK, assistant({"type": "redacted_thinking", "data": "d"}, TEXT)]},
        {"messages": [user({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}})]},
        {"tools": [TOOL, {"type": "web_search_20260318", "name": "web_search"}], "tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1025},
        {"thinking": {"type": "adaptive"}, "unknown": 1},
    ],
)
def test_a_good_request_is_taken(extra: dict[str, Any]) -> None:
    check_messages({**MESSAGES, **extra})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"max_tokens": None}, "you must provide a max_tokens parameter"),
        ({"messages": []}, "Expected `array` of length >= 1 - at `$.messages`"),
        ({"messages": [{"role": "system", "content": "x"}]}, "Invalid enum value 'system' - at `$.messages[0].role`"),
        ({"messages": [assistant(TEXT)]}, "messages: first message must use the user role"),
        (
            {"messages": [user({"type": "text", "text": ""})]},
            "Expected `str` of length >= 1 - at `$.messages[0].content[0].text`",
        ),
        ({"messages": [user({"type": "image_url"})]}, "Invalid value 'image_url' - at `$.messages[0].content[0].type`"),
        (
            {"messages": [ASK, assistant(use("a")), ASK]},
            "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after, or the reverse: a",
        ),
        (
            {"messages": [ASK, assistant(use("a"))]},
            "messages: `tool_use` ids were found without `tool_result` blocks: a",
        ),
        (
            {"messages": [ASK, assistant(use("a")), user(result("a"), result("a"))]},
            "messages.2: `tool_use` ids were found without `tool_result` blocks immediately after,"
            " or the reverse: a, a",
        ),
        (
            {"messages": [user(result("z"))]},
            "messages.0: `tool_use` ids were found without `tool_result` blocks immediately after, or the reverse: z",
        ),
        (
            {"messages": [ASK, assistant(use("a")), user(TEXT, result("a"))]},
            "messages.2: tool_result blocks come first",
        ),
        (
            {"messages": [ASK, assistant({"type": "tool_use", "id": "a", "name": "f", "input": "{}"})]},
            "Expected `object`, got `str` - at `$.messages[1].content[0].input`",
        ),
        ({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice may only be specified while providing tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "required"}},
            "Invalid enum value 'required' - at `$.tool_choice.type`",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "`max_tokens` must be greater than `thinking.budget_tokens`",
        ),
        ({"thinking": {"type": "enabled"}}, "`max_tokens` must be greater than `thinking.budget_tokens`"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1}},
            "Expected `int` >= 1024 - at `$.thinking.budget_tokens`",
        ),
        ({"temperature": 1.5}, "Expected `float` <= 1.0 - at `$.temperature`"),
        ({"stop": "x"}, "stop: Extra inputs are not permitted"),
        ({"stream_options": {}}, "stream_options: Extra inputs are not permitted"),
    ],
)
def test_a_bad_request_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_messages({**MESSAGES, **extra})
    assert (caught.value.status, caught.value.kind, caught.value.message) == (400, "invalid_request_error", message)


def test_counting_needs_no_max_tokens() -> None:
    check_count({"model": "m", "messages": [ASK]})
    with pytest.raises(Refusal, match="you must provide a messages parameter"):
        check_count({"model": "m"})


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_the_newest_version_takes_no_sampling(name: str) -> None:
    check_version({**MESSAGES, name: 1}, "2023-06-01")
    check_version(MESSAGES, "2026-10-21")
    with pytest.raises(Refusal, match=f"^{name}: not supported"):
        check_version({**MESSAGES, name: 1}, "2026-10-21")
