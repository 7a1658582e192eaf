"""A Chat Completions request, written out of the neutral form, within what is known of the model by its name.

Source: OpenAI's API reference, chat completions, and the model pages of the compatible providers.
"""

from __future__ import annotations

import hashlib
import itertools
from fnmatch import fnmatchcase
from typing import Any, Final

from sidecar.dialects.neutral import (
    Ask,
    Choice,
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
from sidecar.errors import Unsupported

# What models refuse or need, by name: patterns of the last part of it, in lower case.
_OPENAI_REASONING: Final = ("o1*", "o3*", "o4*", "gpt-5*")
_OPENAI_CHAT: Final = ("gpt-3*", "gpt-4*", "chatgpt-*", "gpt-5*-chat*")  # do not reason, whatever their number
_DEEPSEEK: Final = ("deepseek-*",)
_MISTRAL: Final = ("mistral-*", "ministral-*", "magistral-*", "codestral-*", "devstral-*", "pixtral-*", "voxtral-*")
_NO_TOP_K: Final = (*_OPENAI_REASONING, *_OPENAI_CHAT, *_DEEPSEEK, "grok-*", "sonar*")
_NO_STOP: Final = ("o3*", "o4-mini*", "grok-3-mini*", "grok-4*")
_NO_EFFORT: Final = (*_OPENAI_CHAT, "grok-4", "grok-4-0709", "grok-4-fast*", "grok-4-1-fast*", "grok-code-*")
_REASONING_BACK: Final = (
    *_DEEPSEEK,
    "kimi-*",
    "glm-*",
    "minimax-*",
)  # want their own reasoning back between tool calls
_CLAUDE: Final = ("claude-*",)
_MOST_STOPS: Final = 4
_MOST_USER: Final = 64  # characters of `user`; agents put long JSON there
_RESULT_IMAGE: Final = "[tool result image]"
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MISTRAL_ID: Final = 9


def write_request(ask: Ask, model: str) -> Written:
    """A chat request out of the neutral form. Raises Unsupported for what cannot be said, or left out, there."""
    dropped = list(ask.dropped)
    members: dict[str, Any] = {"model": model, "messages": _write_messages(ask, model)}
    reasoning = _is(model, _OPENAI_REASONING) and not _is(model, _OPENAI_CHAT)
    if ask.max_tokens is not None:
        members["max_completion_tokens" if reasoning else "max_tokens"] = ask.max_tokens
    _write_sampling(ask, model, members, dropped, reasoning=reasoning)
    _write_tools(ask, members, dropped)
    effort = ask.effort or effort_of(ask.budget)
    if effort is not None and _takes_effort(model, effort):
        members["reasoning_effort"] = effort
    elif effort is not None:
        dropped.append("reasoning_effort")
    if ask.format is not None:
        members["response_format"] = _write_format(ask.format, model)
    if ask.user is not None:
        members["user"] = ask.user if len(ask.user) <= _MOST_USER else hashlib.sha256(ask.user.encode()).hexdigest()
    if ask.service_tier is not None:
        members["service_tier"] = ask.service_tier
    if ask.stream:
        members["stream"] = True
        members["stream_options"] = {"include_usage": True}  # the other dialects always tell their usage
    return written(members, ask, dropped)


def _is(model: str, patterns: tuple[str, ...]) -> bool:
    name = model.rpartition("/")[2].lower()
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _takes_effort(model: str, effort: str) -> bool:
    if _is(model, _MISTRAL):
        return effort in ("none", "high")
    return not _is(model, _NO_EFFORT)


def _write_sampling(ask: Ask, model: str, members: dict[str, Any], dropped: list[str], *, reasoning: bool) -> None:
    refused = {"temperature": reasoning, "top_p": reasoning, "top_k": _is(model, _NO_TOP_K)}
    for name, drop in refused.items():
        value = getattr(ask, name)
        if value is not None and drop:
            dropped.append(name)
        elif value is not None:
            members[name] = value
    if ask.stop and _is(model, _NO_STOP):
        dropped.append("stop")
    elif ask.stop:
        members["stop"] = ask.stop[:_MOST_STOPS]
        if len(ask.stop) > _MOST_STOPS:
            dropped.append(f"stop[{_MOST_STOPS}:]")


# -- tools and format


def _may_choose(choice: Choice, tools: list[Tool]) -> bool:
    return bool(tools) and (choice.mode != "tool" or choice.name in {tool.name for tool in tools})


def _write_tools(ask: Ask, members: dict[str, Any], dropped: list[str]) -> None:
    choice = ask.choice
    if choice is not None and choice.mode in ("any", "tool") and not _may_choose(choice, ask.tools):
        dropped.append("tool_choice")
        choice = None
    if not ask.tools:  # a choice among none is refused
        return
    members["tools"] = [_write_tool(tool) for tool in ask.tools]
    if choice is not None:
        members["tool_choice"] = _write_choice(choice)
    if ask.parallel is not None:
        members["parallel_tool_calls"] = ask.parallel


def _write_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.schema if tool.schema is not None else {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _write_choice(choice: Choice) -> Any:
    if choice.mode == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.mode == "any" else choice.mode


def _write_format(form: Format, model: str) -> dict[str, Any]:
    if form.schema is None or _is(model, _DEEPSEEK):
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": form.name, "schema": form.schema, "strict": form.strict is not False}
    if form.description is not None:
        schema["description"] = form.description
    return {"type": "json_schema", "json_schema": schema}


# -- messages


def _write_messages(ask: Ask, model: str) -> list[dict[str, Any]]:
    system = [text.text for text in ask.system]
    if ask.format is not None and ask.format.schema is not None and _is(model, _DEEPSEEK):
        system.append(f"Answer only with JSON that fits this schema: {bytes(ask.format.schema).decode()}")
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": "\n\n".join(system)})
    for role, turns in itertools.groupby(ask.turns, key=lambda turn: turn.role):
        # In a row they are one turn, and its calls and their results must stand together here.
        messages += _write_turn(Turn(role, [part for turn in turns for part in turn.parts]), model)
    return messages


def _write_turn(turn: Turn, model: str) -> list[dict[str, Any]]:
    if turn.role == "assistant":
        return _write_assistant(turn.parts, model)
    if turn.role == "system":
        text = "\n\n".join(part.text for part in turn.parts if isinstance(part, Text))
        return [{"role": "system", "content": text}]
    return _write_user(turn.parts, model)


def _write_user(parts: list[Part], model: str) -> list[dict[str, Any]]:
    """Tool results first, each a message of its own; then the results' images; then what the user says."""
    messages: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, ToolResult):
            text = "".join(piece.text for piece in part.parts if isinstance(piece, Text))
            content = f"Error: {text}" if part.is_error else text
            messages.append({"role": "tool", "tool_call_id": _ident(part.id, model), "content": content})
            for piece in part.parts:
                if not isinstance(piece, Text):
                    shown += [{"type": "text", "text": _RESULT_IMAGE}, _write_part(piece)]
        elif isinstance(part, Text | Image | Document):
            said.append(_write_part(part))
    if told := [*shown, *said]:
        # One string wherever it is nothing but text: every provider takes that, not all of them take parts.
        texts = [part["text"] for part in told if part["type"] == "text"]
        messages.append({"role": "user", "content": "\n\n".join(texts) if len(texts) == len(told) else told})
    return messages


def _write_part(part: Text | Image | Document) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url or f"data:{part.media_type};base64,{part.data}"}}
    if part.text:
        return {"type": "text", "text": part.text}
    if part.url:
        raise Unsupported("a document by URL has no form in the provider's API: send its bytes", param="messages")
    if part.file_id:
        if not part.file_id.startswith("file-"):
            raise Unsupported(
                f"the file {part.file_id!r} is kept by another provider: send its bytes", param="messages"
            )
        return {"type": "file", "file": {"file_id": part.file_id}}
    uri = f"data:{part.media_type};base64,{part.data}"
    return {"type": "file", "file": {"file_data": uri, "filename": part.title or "document.pdf"}}


def _write_assistant(parts: list[Part], model: str) -> list[dict[str, Any]]:
    """One message, or none when nothing is left of it: an empty one is refused by some."""
    texts = [part.text for part in parts if isinstance(part, Text)]
    calls = [part for part in parts if isinstance(part, ToolUse)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    message |= _write_reasoning(parts, model, calls=bool(calls))
    if calls:
        message["tool_calls"] = [write_call(call.name, call.arguments, _ident(call.id, model)) for call in calls]
    return [message] if calls or "".join(texts) or len(message) > 2 else []


def write_call(name: str, arguments: str, ident: str) -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def _write_reasoning(parts: list[Part], model: str, *, calls: bool) -> dict[str, Any]:
    """Reasoning goes back to its maker only: unsigned to those who ask for it, signed to Claude behind a gateway."""
    if _is(model, _CLAUDE):
        details = [
            _write_detail(part, index) for index, part in enumerate(parts) if isinstance(part, Thinking | Redacted)
        ]
        return {"reasoning_details": kept} if (kept := [detail for detail in details if detail]) else {}
    if not _is(model, _REASONING_BACK):
        return {}
    reasoning = "".join(part.text for part in parts if isinstance(part, Thinking) and not part.signature)
    # DeepSeek refuses a history with a call that comes without the member, were it empty.
    return {"reasoning_content": reasoning} if reasoning or (calls and _is(model, _DEEPSEEK)) else {}


def _write_detail(part: Thinking | Redacted, index: int) -> dict[str, Any]:
    """A block of Anthropic's as OpenRouter carries it."""
    own = {"format": "anthropic-claude-v1", "index": index}
    if isinstance(part, Redacted):
        return {"type": "reasoning.encrypted", "data": part.data, **own}
    return {"type": "reasoning.text", "text": part.text, "signature": part.signature, **own} if part.signature else {}


def _ident(call: str, model: str) -> str:
    """A call's id, as it is; but Mistral takes nine letters and digits only, the same on both sides of a call."""
    if not _is(model, _MISTRAL) or (len(call) == _MISTRAL_ID and call.isascii() and call.isalnum()):
        return call
    number = int.from_bytes(hashlib.sha256(call.encode()).digest())
    return "".join(_BASE62[number // 62**place % 62] for place in range(_MISTRAL_ID))
