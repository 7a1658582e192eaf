"""What Anthropic refuses: the shape of a request to Messages, and the order of its turns."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from sidecar.simulator.checks import ToolName, bad, shaped


class _Source(Struct):
    type: Literal["base64", "url", "file", "text", "content"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class _TextBlock(Struct, tag_field="type", tag="text"):
    text: Annotated[str, Meta(min_length=1)]


class _ImageBlock(Struct, tag_field="type", tag="image"):
    source: _Source


class _DocumentBlock(Struct, tag_field="type", tag="document"):
    source: _Source


class _SearchResult(Struct, tag_field="type", tag="search_result"):
    content: list[Any]


class _ToolUse(Struct, tag_field="type", tag="tool_use"):
    id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: ToolName
    input: dict[str, Any]


class _ToolResult(Struct, tag_field="type", tag="tool_result"):
    tool_use_id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: str | list[_TextBlock | _ImageBlock | _DocumentBlock | _SearchResult] | None = None
    is_error: bool | None = None


class _Thinking(Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class _Redacted(Struct, tag_field="type", tag="redacted_thinking"):
    data: str


_Block = _TextBlock | _ImageBlock | _DocumentBlock | _SearchResult | _ToolUse | _ToolResult | _Thinking | _Redacted


class _Turn(Struct):
    role: Literal["user", "assistant"]
    content: str | list[_Block]


class _Schema(Struct):
    type: Literal["object"]


class _MessagesTool(Struct):
    name: ToolName
    type: str | None = None
    input_schema: _Schema | None = None


class _Choice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingOption(Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1024)] | None = None


class Count(Struct):
    """What is read of a request to /v1/messages/count_tokens."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[list[_Turn], Meta(min_length=1, max_length=100_000)]
    system: str | list[_TextBlock] | None = None
    tools: list[_MessagesTool] | None = None
    tool_choice: _Choice | None = None
    thinking: _ThinkingOption | None = None


class Messages(Count, kw_only=True):
    """What is read of a request to /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=0)]
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop_sequences: list[str] | None = None


VERSIONS: Final = ("2023-01-01", "2023-06-01", "2026-10-21")
_FOREIGN: Final = (
    "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens", "n",
    "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format", "seed", "stop", "stream_options",
    "user",
)  # fmt: skip  # OpenAI's, refused as any unknown member would be; others pass, so that tests may send their own


def check_count(request: dict[str, Any]) -> None:
    """Raises Refusal unless Anthropic would take it."""
    shaped(request, Count)
    for name in _FOREIGN:
        if name in request:
            raise bad(f"{name}: Extra inputs are not permitted")
    if request.get("tool_choice") and not request.get("tools"):
        raise bad("tool_choice may only be specified while providing tools")
    for index, tool in enumerate(request.get("tools") or ()):
        if tool.get("type") in (None, "custom") and "input_schema" not in tool:
            raise bad(f"tools.{index}.custom.input_schema: Field required")
    _check_turns(request["messages"])


def check_messages(request: dict[str, Any]) -> None:
    """Raises Refusal unless Anthropic would take it."""
    shaped(request, Messages)
    check_count(request)
    thinking = request.get("thinking") or {}
    if thinking.get("type") == "enabled" and not 1024 <= thinking.get("budget_tokens", 0) < request["max_tokens"]:
        raise bad("`max_tokens` must be greater than `thinking.budget_tokens`")


def check_version(request: dict[str, Any], version: str) -> None:
    """Raises Refusal for what that `anthropic-version` no longer takes."""
    if version == VERSIONS[-1]:
        for name in ("temperature", "top_p", "top_k"):
            if name in request:
                raise bad(f"{name}: not supported in this version of the API")


def _check_turns(messages: list[dict[str, Any]]) -> None:
    """Every tool_use is answered in the very next user turn, results first; turns of one role in a row are one turn."""
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else [{"type": "text"}]
        if turns and turns[-1][0] == message["role"]:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message["role"], list(blocks)))
    if turns[0][0] != "user":
        raise bad("messages: first message must use the user role")
    asked: list[str] = []
    for index, (_, blocks) in enumerate(turns):
        answered = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        if sorted(answered) != sorted(asked):
            missing = sorted(set(asked) ^ set(answered)) or answered
            raise bad(
                f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after,"
                f" or the reverse: {', '.join(missing)}"
            )
        first_other = next((at for at, block in enumerate(blocks) if block["type"] != "tool_result"), len(blocks))
        if first_other < len(answered):
            raise bad(f"messages.{index}: tool_result blocks come first")
        asked = [block["id"] for block in blocks if block["type"] == "tool_use"]
    if asked:
        raise bad(f"messages: `tool_use` ids were found without `tool_result` blocks: {', '.join(asked)}")
