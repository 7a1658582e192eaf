"""A Messages request, written out of the neutral form, within the rules of the model's generation.

Source: Anthropic's API reference, and its pages on thinking, tool use and structured outputs.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sidecar.dialects import messages_models as models
from sidecar.dialects.messages_schema import strict
from sidecar.dialects.neutral import (
    Ask,
    Document,
    Format,
    Image,
    Part,
    Redacted,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
    Turn,
    Written,
    effort_of,
    written,
)
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.types import Envelope
from sidecar.wire import body

_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 8192}
_LEAST_BUDGET: Final = 1024
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
_IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
_NO_TOOL_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_MOST_CACHE_MARKERS: Final = 4
_LEAST_TOP_P: Final = 0.95  # while a model thinks


def write_request(ask: Ask, model: str) -> Written:
    """A Messages request. Raises BodyInvalid and Unsupported for a history that the API would refuse."""
    dropped = list(ask.dropped)
    most = models.max_tokens(model) if ask.max_tokens is None else ask.max_tokens
    members: dict[str, Any] = {"model": model, "max_tokens": most}
    turns, said = ask.turns, _system(ask)
    if all(turn.role == "system" for turn in turns):  # the API wants a message, so it is said as one
        turns, said = [Turn("user", [*said])], []
    system = [_text(text) for text in said if text.text.strip()]
    if ask.format is not None and (ask.format.schema is None or not models.takes_format(model)):
        system.append({"type": "text", "text": _json_instruction(ask.format)})
    elif ask.format is not None and ask.format.schema is not None:
        members["output_config"] = {"format": {"type": "json_schema", "schema": strict(ask.format.schema)}}
    if system:
        members["system"] = system
    members["messages"] = _write_turns(turns)
    if stops := [stop for stop in ask.stop if stop.strip()]:
        members["stop_sequences"] = stops
    _write_tools(ask, members, dropped)
    thinking = _write_thinking(ask, model, members, dropped)
    _write_sampling(ask, model, members, dropped, thinking=thinking)
    _write_options(ask, members, dropped)
    _limit_cache_markers(members, _MOST_CACHE_MARKERS - ("cache_control" in ask.extra))
    return written(members, ask, dropped)


def _system(ask: Ask) -> list[Text]:
    """What stands at the head, and what was said in the middle: not every model takes that where it stands."""
    later = [part for turn in ask.turns if turn.role == "system" for part in turn.parts if isinstance(part, Text)]
    return [*ask.system, *later]


def _json_instruction(form: Format) -> str:
    if form.schema is None:
        return "Answer only with one JSON object, without any other text."
    return f"Answer only with JSON that fits this schema, without any other text: {bytes(form.schema).decode()}"


# -- turns


def _write_turns(turns: list[Turn]) -> list[dict[str, Any]]:
    """Turns merged until roles alternate; every call of a turn answered at the head of the next, or the API refuses."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        blocks = [block for part in turn.parts if (block := _write_part(part)) is not None]
        if turn.role == "system" or not blocks:
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": turn.role, "content": blocks})
    if not messages:
        raise BodyInvalid("no message has any content that the provider's API takes", param="messages")
    if messages[0]["role"] == "assistant":  # the API wants the user to begin, with whatever little
        messages.insert(0, {"role": "user", "content": [{"type": "text", "text": "."}]})
    if calls := _calls(messages[-1]):  # a history that ends in calls: their answers are missing, as below
        messages.append({"role": "user", "content": [_no_result(call) for call in calls]})
    before: dict[str, Any] = {"role": "user", "content": []}
    for message in messages:
        if message["role"] == "user":
            message["content"] = _answered(_calls(before), message["content"])
        before = message
    _trim_prefill(messages[-1])
    return messages


def _calls(message: dict[str, Any]) -> list[str]:
    return [block["id"] for block in message["content"] if block["type"] == "tool_use"]


def _answered(calls: list[str], content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results first, one for each call: those that histories have lost are answered with an error."""
    results = [block for block in content if block["type"] == "tool_result"]
    given = [result["tool_use_id"] for result in results]
    if strangers := [ident for ident in given if ident not in calls]:
        raise BodyInvalid(
            f"a tool message answers the call {strangers[0]!r}, which the turn before it did not make", param="messages"
        )
    results += [_no_result(call) for call in calls if call not in given]
    return results + [block for block in content if block["type"] != "tool_result"]


def _no_result(call: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call, "content": "no result", "is_error": True}


def _trim_prefill(last: dict[str, Any]) -> None:
    """The start of the answer may not end in white space."""
    if last["role"] == "assistant" and last["content"][-1]["type"] == "text":
        last["content"][-1]["text"] = last["content"][-1]["text"].rstrip()


def _write_part(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Text):
        return _text(part) if part.text.strip() else None  # the API refuses empty text
    if isinstance(part, ToolUse):
        return write_call(part)
    if isinstance(part, ToolResult):
        content = [block for piece in part.parts if (block := _write_part(piece)) is not None]
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _ident(part.id), "content": content}
        return {**result, "is_error": True} if part.is_error else result
    if isinstance(part, Thinking):  # without a signature it is another maker's, and would be refused
        return write_thinking(part) if part.signature else None
    if isinstance(part, Redacted):
        return write_redacted(part)
    return _write_image(part) if isinstance(part, Image) else _write_document(part)


def write_call(part: ToolUse) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": _ident(part.id),
        "name": part.name,
        "input": msgspec.Raw(part.arguments.encode()),  # as it was written: no number goes through a float
    }


def write_thinking(part: Thinking) -> dict[str, Any]:
    return {"type": "thinking", "thinking": part.text, "signature": part.signature}


def write_redacted(part: Redacted) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": part.data}


def _write_image(part: Image) -> dict[str, Any]:
    if part.url:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    if part.media_type not in _IMAGES:
        raise Unsupported(f"an image of type {part.media_type!r} is not taken by the provider's API", param="messages")
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}


def _write_document(part: Document) -> dict[str, Any]:
    source: dict[str, Any]
    if part.url:
        source = {"type": "url", "url": part.url}
    elif part.file_id:
        if not part.file_id.startswith("file_"):
            raise Unsupported(
                f"the file {part.file_id!r} is kept by another provider: send its bytes", param="messages"
            )
        source = {"type": "file", "file_id": part.file_id}
    elif part.text:
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
    elif part.media_type == "application/pdf":
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    else:
        raise Unsupported(f"a file of type {part.media_type!r} is not taken by the provider's API", param="messages")
    block: dict[str, Any] = {"type": "document", "source": source}
    return {**block, "title": part.title} if part.title else block


def _text(text: Text) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": text.text}
    return {**block, "cache_control": text.cache} if text.cache is not None else block


def _ident(call: str) -> str:
    """An id the API takes; the same change on both sides keeps calls and results together."""
    return _NO_TOOL_ID.sub("_", call) or "_"


# -- tools and options


def _write_tools(ask: Ask, members: dict[str, Any], dropped: list[str]) -> None:
    if not ask.tools:  # a choice among none is refused
        if ask.choice is not None and ask.choice.mode in ("any", "tool"):
            dropped.append("tool_choice")
        return
    members["tools"] = [_write_tool(tool) for tool in ask.tools]
    single = {"disable_parallel_tool_use": True} if ask.parallel is False else {}
    choice = ask.choice
    if choice is None:
        if single:
            members["tool_choice"] = {"type": "auto", **single}
    elif choice.mode == "none":
        members["tool_choice"] = {"type": "none"}
    else:
        named = {"name": choice.name} if choice.mode == "tool" else {}
        members["tool_choice"] = {"type": choice.mode, **named, **single}


def _write_tool(tool: Tool) -> dict[str, Any]:
    written: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        written["description"] = tool.description
    written["input_schema"] = _schema(tool.schema)
    if tool.strict is not None:
        written["strict"] = tool.strict
    if tool.cache is not None:
        written["cache_control"] = tool.cache
    return written


def _schema(schema: msgspec.Raw | None) -> Any:
    """As it was written where it names its type; otherwise with type object, which the API demands."""
    members: Envelope | None = body.view(schema, dict[str, msgspec.Raw], "tools") if schema is not None else None
    if not members:
        return {"type": "object", "properties": {}}
    members.pop("$schema", None)
    return members if "type" in members else {"type": "object", **members}


def _write_thinking(ask: Ask, model: str, members: dict[str, Any], dropped: list[str]) -> bool:
    """Whether the model is asked to think. Newer ones decide how long, older ones are given a budget."""
    effort = ask.effort or effort_of(ask.budget)
    if effort is None:
        return False
    if models.adaptive(model):
        return _write_adaptive(effort, model, members)
    forced = ask.choice is not None and ask.choice.mode in ("any", "tool") and bool(ask.tools)
    if effort == "none":
        return False
    if forced or not _may_think(members["messages"]):
        dropped.append("reasoning_effort")
        return False
    budget = max(ask.budget or 0, _LEAST_BUDGET) if ask.effort is None else _BUDGETS.get(effort, _BUDGETS["medium"])
    members["thinking"] = {"type": "enabled", "budget_tokens": budget}
    if members["max_tokens"] <= budget:
        members["max_tokens"] += budget
    return True


def _write_adaptive(effort: str, model: str, members: dict[str, Any]) -> bool:
    if effort == "none" and not models.always_thinks(model):
        members["thinking"] = {"type": "disabled"}
        return False
    members["thinking"] = {"type": "adaptive", "display": "summarized"}
    level = effort if effort in _EFFORTS else "low"  # none, minimal
    if level == "xhigh" and not models.takes_effort_xhigh(model):
        level = "high"
    members["output_config"] = {**members.get("output_config", {}), "effort": level}
    return True


def _may_think(messages: list[dict[str, Any]]) -> bool:
    """A budget of thinking is refused with a prefilled answer, and in a run of tool calls that began without it."""
    if messages[-1]["role"] == "assistant":
        return False
    if len(messages) == 1 or messages[-1]["content"][0]["type"] != "tool_result":
        return True
    return str(messages[-2]["content"][0]["type"]).endswith("thinking")


def _write_sampling(ask: Ask, model: str, members: dict[str, Any], dropped: list[str], *, thinking: bool) -> None:
    given = {name: raw for name in ("temperature", "top_p", "top_k") if (raw := getattr(ask, name)) is not None}
    for name, raw in given.items():
        value = body.view(raw, float, name)
        refused = name != "top_p" or value < _LEAST_TOP_P if thinking else False
        doubled = name == "top_p" and "temperature" in members and models.one_of_temperature_and_top_p(model)
        if refused or doubled or not models.takes_sampling(model):
            dropped.append(name)
        elif name == "temperature" and value > 1:
            members[name] = 1
        else:
            members[name] = raw


def _write_options(ask: Ask, members: dict[str, Any], dropped: list[str]) -> None:
    if ask.user is not None:
        members["metadata"] = {"user_id": ask.user}
    if ask.service_tier in _TIERS:
        members["service_tier"] = _TIERS[ask.service_tier]
    elif ask.service_tier is not None:
        dropped.append("service_tier")
    if ask.stream:
        members["stream"] = True


def _limit_cache_markers(members: dict[str, Any], most: int) -> None:
    """The last ones stay: they reach furthest. Order of the prompt: tools, system, messages."""
    blocks: list[dict[str, Any]] = [*members.get("tools", ()), *members.get("system", ())]
    for message in members["messages"]:
        for block in message["content"]:
            inner = block.get("content")
            blocks += inner if isinstance(inner, list) else ()
            blocks.append(block)
    marked = [block for block in blocks if "cache_control" in block]
    for block in marked[: max(len(marked) - most, 0)]:
        del block["cache_control"]
