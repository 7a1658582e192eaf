"""Anthropic's Messages: requests and whole answers, to and from the neutral form. Streams are in messages_stream.py.

Source: Anthropic's API reference, versions 2023-06-01 and 2026-10-21. Usage there is disjoint: input, cache reads and cache
writes add up to the prompt.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from sidecar.dialects.anthropic import (
    WireUsage,
    ask_usage,
    meter,
    nothing as local,
    read_error,
    read_view,
    stop_of,
    stop_reason,
    write_error,
    write_stream_error,
    write_usage,
)
from sidecar.dialects.messages_stream import StreamReader, StreamWriter
from sidecar.dialects.neutral import (
    Ask,
    Choice,
    Document,
    Format,
    Image,
    Part,
    Redacted,
    Reply,
    Text,
    Thinking,
    Tool,
    ToolResult,
    ToolUse,
    Turn,
    Written,
)
from sidecar.errors import BodyInvalid, Unsupported, UpstreamProtocol
from sidecar.types import Envelope
from sidecar.wire import body

__all__ = [
    "ask_usage",
    "local",
    "meter",
    "read_error",
    "read_reply",
    "read_request",
    "read_view",
    "stream_reader",
    "stream_writer",
    "write_error",
    "write_reply",
    "write_request",
    "write_stream_error",
]

_DEFAULT_MAX_TOKENS: Final = 4096  # the API demands the member; every model serves this many
_DROPPED: Final = (
    "container", "context_management", "diagnostics", "fallbacks", "inference_geo", "mcp_servers", "speed",
    "user_profile_id", "cache_control",
)  # fmt: skip
_KNOWN: Final = frozenset(_DROPPED).union(
    ("model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k"),
    ("tools", "tool_choice", "thinking", "output_config", "metadata", "service_tier"),
)
# What models refuse, by name (Anthropic's model pages). Sampling is gone from these on; thinking is adaptive from these on.
_NO_SAMPLING: Final = ("claude-*-4-7*", "claude-*-4-8*", "claude-*-5*", "claude-fable-*", "claude-mythos-*")
_ADAPTIVE: Final = ("claude-*-4-6*", *_NO_SAMPLING)
_NO_FORMAT: Final = ("claude-2*", "claude-3*", "claude-opus-4-0*", "claude-sonnet-4-0*", "claude-*-4-2025*")
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 8192}
_TOOL_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: msgspec.Raw | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    cache_control: msgspec.Raw | None = None
    source: _Source | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw | None = None
    tool_use_id: str | None = None
    content: str | list[_Block] | msgspec.Raw | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw]


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw | None = None
    strict: bool | None = None
    cache_control: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw | None = None


class _Output(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


# -- request to neutral


def read_request(members: Envelope) -> Ask:
    """A Messages request in neutral form. Raises BodyInvalid and Unsupported, naming the JSON path."""
    for name in ("messages", "max_tokens"):
        if name not in members:
            raise BodyInvalid(f"the member {name!r} is missing", param=name)
    view = read_view(members)
    ask = Ask(
        model=view.model,
        turns=[],
        system=[],
        stream=view.stream,
        include_usage=True,
        max_tokens=view.max_tokens,
        tools=[],
        extra={name: raw for name, raw in members.items() if name not in _KNOWN},
        dropped=[name for name in _DROPPED if name in members],
    )
    if "system" in members:
        system = body.view(members["system"], str | list[_Block], "system")
        blocks = [_Block("text", text=system)] if isinstance(system, str) else system
        ask.system = [Text(block.text, block.cache_control) for block in blocks if block.text]
    for index, message in enumerate(body.view(members["messages"], list[_Message], "messages")):
        _read_message(message, f"messages[{index}]", ask)
    for name in ("temperature", "top_p", "top_k"):
        if name in members:
            setattr(ask, name, members[name])
    if "stop_sequences" in members:
        ask.stop = body.view(members["stop_sequences"], list[str] | None, "stop_sequences") or []
    _read_tools(members, ask)
    _read_options(members, ask)
    return ask


def _read_message(message: _Message, path: str, ask: Ask) -> None:
    if message.role not in ("user", "assistant", "system"):
        raise BodyInvalid(f"unknown role {message.role!r}", param=f"{path}.role")
    parts: list[Part] = []
    if isinstance(message.content, str):
        parts.append(Text(message.content))
    else:
        for index, raw in enumerate(message.content):
            where = f"{path}.content[{index}]"
            part = _read_block(body.view(raw, _Block, where), where)
            if part is not None:
                parts.append(part)
    ask.turns.append(Turn(message.role, parts))  # type: ignore[arg-type]  # one of the three, checked above


def _read_block(block: _Block, path: str) -> Part | None:
    kind = block.type
    if kind == "text":
        return Text(block.text or "", block.cache_control)
    if kind in ("image", "document"):
        return _read_source(block, path)
    if kind == "tool_use":
        if block.id is None or block.name is None:
            raise BodyInvalid("a tool_use needs an id and a name", param=path)
        return ToolUse(block.id, block.name, bytes(block.input or b"{}").decode())
    if kind == "tool_result":
        if block.tool_use_id is None:
            raise BodyInvalid("a tool_result needs a tool_use_id", param=path)
        return ToolResult(block.tool_use_id, _read_result(block, path), bool(block.is_error))
    if kind == "thinking":
        return Thinking(block.thinking or "", block.signature or "")
    if kind == "redacted_thinking":
        return Redacted(block.data or "")
    if kind == "search_result":
        return Text(bytes(block.content).decode() if isinstance(block.content, msgspec.Raw) else block.title or "")
    return None  # a server tool's call and result, a fallback, a container: the other dialects have none of them


def _read_result(block: _Block, path: str) -> list[Text | Image | Document]:
    content = block.content
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise BodyInvalid("the content of a tool_result must be a string or a list of blocks", param=path)
    found = [_read_block(each, f"{path}.content[{index}]") for index, each in enumerate(content)]
    return [part for part in found if isinstance(part, Text | Image | Document)]


def _read_source(block: _Block, path: str) -> Image | Document:
    source = block.source
    if source is None:
        raise BodyInvalid(f"a block of type {block.type!r} needs a source", param=f"{path}.source")
    if block.type == "image":
        if source.type == "file":
            raise Unsupported("an image by file id is its own provider's", param=f"{path}.source")
        return Image(source.media_type or "", source.data or "", source.url or "")
    if source.type == "text":
        return Document(media_type="text/plain", text=source.data or "", title=block.title or "")
    if source.type == "content":
        raise Unsupported("a document of content blocks has no form in the provider's API", param=f"{path}.source")
    return Document(
        media_type=source.media_type or "application/pdf",
        data=source.data or "",
        url=source.url or "",
        file_id=source.file_id or "",
        title=block.title or "",
    )


def _read_tools(members: Envelope, ask: Ask) -> None:
    for tool in body.view(members.get("tools", msgspec.Raw(b"[]")), list[_Tool], "tools"):
        if tool.input_schema is None:
            ask.dropped.append(f"tools.{tool.name}")  # a server tool: its provider runs it, the others cannot
        else:
            ask.tools.append(Tool(tool.name, tool.description, tool.input_schema, tool.strict, tool.cache_control))
    if "tool_choice" in members:
        choice = body.view(members["tool_choice"], _Choice, "tool_choice")
        if choice.type not in ("auto", "any", "none", "tool"):
            raise BodyInvalid(f"unknown tool_choice {choice.type!r}", param="tool_choice.type")
        ask.choice = Choice(choice.type, choice.name)  # type: ignore[arg-type]  # checked above
        if choice.disable_parallel_tool_use is not None:
            ask.parallel = not choice.disable_parallel_tool_use


def _read_options(members: Envelope, ask: Ask) -> None:
    output = body.view(members.get("output_config", msgspec.Raw(b"{}")), _Output, "output_config")
    if "thinking" in members:
        thinking = body.view(members["thinking"], _Thinking, "thinking")
        ask.budget = thinking.budget_tokens
        if thinking.type == "disabled":
            ask.effort = None
        elif thinking.type == "adaptive":
            ask.effort = output.effort or "high"
    elif output.effort is not None:
        ask.effort = output.effort
    if output.format is not None and output.format.schema is not None:
        ask.format = Format(output.format.schema, strict=True)
    if "metadata" in members:
        user = body.view(members["metadata"], _Metadata | None, "metadata")
        ask.user = user.user_id if user is not None else None
        if ask.user is not None and len(ask.user) > 64:  # agents put long JSON there, which OpenAI's API refuses
            ask.user = ask.user[-64:]
    if "service_tier" in members:
        tier = body.view(members["service_tier"], str, "service_tier")
        ask.service_tier = {"standard_only": "default", "auto": "auto"}.get(tier)


# -- neutral to request


def write_request(ask: Ask, model: str) -> Written:
    """A Messages request out of the neutral form, within the rules of the model's generation."""
    dropped = list(ask.dropped)
    members: dict[str, Any] = {"model": model, "max_tokens": ask.max_tokens or _DEFAULT_MAX_TOKENS}
    system = [_text(text) for text in ask.system if text.text.strip()]
    system += [
        _text(part) for turn in ask.turns if turn.role == "system" for part in turn.parts if isinstance(part, Text)
    ]
    if ask.format is not None and (ask.format.schema is None or _is(model, _NO_FORMAT)):
        system.append({"type": "text", "text": _json_instruction(ask.format)})
    elif ask.format is not None:
        members["output_config"] = {"format": {"type": "json_schema", "schema": _strict(ask.format)}}
    if system:
        members["system"] = system
    members["messages"] = _write_turns(ask.turns)
    if ask.stop:
        members["stop_sequences"] = [stop for stop in ask.stop if stop.strip()]
    if ask.tools:
        members["tools"] = [_write_tool(tool) for tool in ask.tools]
        choice = _write_choice(ask)
        if choice is not None:
            members["tool_choice"] = choice
    forced = ask.choice is not None and ask.choice.mode in ("any", "tool") and bool(ask.tools)
    thinking = _write_thinking(ask, model, members, forced=forced)
    _write_sampling(ask, model, members, dropped, thinking=thinking)
    if ask.user is not None:
        members["metadata"] = {"user_id": ask.user}
    if ask.service_tier in ("auto", "default"):
        members["service_tier"] = "auto" if ask.service_tier == "auto" else "standard_only"
    if ask.stream:
        members["stream"] = True
    written = {name: body.raw(value) for name, value in members.items()}
    return Written({**written, **ask.extra}, tuple(dropped))


def _is(model: str, patterns: tuple[str, ...]) -> bool:
    name = model.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _json_instruction(form: Format) -> str:
    if form.schema is None:
        return "Answer only with one JSON object, without any other text."
    return f"Answer only with JSON that fits this schema, without any other text: {bytes(form.schema).decode()}"


_UNSUPPORTED_KEYWORDS: Final = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
    "maxItems", "uniqueItems", "$schema",
)  # fmt: skip


def _strict(form: Format) -> Any:
    """The schema as structured outputs want it: closed objects, and none of the keywords that are refused."""
    return _strict_value(body.document(form.schema or b"{}"))


def _strict_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict_value(each) for each in value]
    if not isinstance(value, dict):
        return value
    schema = {name: _strict_value(each) for name, each in value.items() if name not in _UNSUPPORTED_KEYWORDS}
    moved = [f"{name}: {value[name]}" for name in _UNSUPPORTED_KEYWORDS if name in value and name != "$schema"]
    if moved and "type" in schema:
        told = schema.get("description")
        schema["description"] = "; ".join(filter(None, [told if isinstance(told, str) else "", *moved]))
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def _write_turns(turns: list[Turn]) -> list[dict[str, Any]]:
    """Turns merged until roles alternate; every call of a turn answered at the head of the next, or the API refuses."""
    messages: list[dict[str, Any]] = []
    asked: list[str] = []  # calls of the last assistant turn, still without a result
    for turn in turns:
        if turn.role == "system":
            continue
        blocks = [block for part in turn.parts if (block := _write_part(part, turn.role)) is not None]
        results = [block for block in blocks if block["type"] == "tool_result"]
        others = [block for block in blocks if block["type"] != "tool_result"]
        if turn.role == "user" and messages and messages[-1]["role"] == "user":
            last = messages[-1]["content"]
            at = next((i for i, block in enumerate(last) if block["type"] != "tool_result"), len(last))
            last[at:at] = results
            last += others
        elif turn.role == "assistant" and messages and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += others
        elif blocks:
            messages.append({"role": turn.role, "content": results + others})
        asked = _answered(asked, results, messages, turn)
    _answer_missing(messages)
    return messages


def _answered(asked: list[str], results: list[dict[str, Any]], messages: list[dict[str, Any]], turn: Turn) -> list[str]:
    """Check that results answer calls; answer which calls are still open."""
    if turn.role == "assistant":
        return [_ident(part.id) for part in turn.parts if isinstance(part, ToolUse)]
    for result in results:
        if result["tool_use_id"] not in asked:
            raise BodyInvalid(
                f"a tool message answers the call {result['tool_use_id']!r}, which the turn before it did not make",
                param="messages",
            )
    return asked


def _answer_missing(messages: list[dict[str, Any]]) -> None:
    """Calls that were never answered (histories get trimmed) are answered with an error."""
    for index, message in enumerate(list(messages)):
        calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        if message["role"] != "assistant" or not calls:
            continue
        after = messages[index + 1] if index + 1 < len(messages) else None
        content = after["content"] if after is not None else []
        given = {block.get("tool_use_id") for block in content if block["type"] == "tool_result"}
        missing = [
            {"type": "tool_result", "tool_use_id": call, "content": "no result", "is_error": True}
            for call in calls
            if call not in given
        ]
        if missing and after is not None:
            content[len(given) : len(given)] = missing


def _write_part(part: Part, role: str) -> dict[str, Any] | None:
    if isinstance(part, Text):
        return _text(part) if part.text.strip() else None  # the API refuses empty text
    if isinstance(part, ToolUse):
        return {
            "type": "tool_use",
            "id": _ident(part.id),
            "name": part.name,
            "input": msgspec.Raw(part.arguments.encode()),
        }
    if isinstance(part, ToolResult):
        content = [block for piece in part.parts if (block := _write_part(piece, role)) is not None]
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _ident(part.id), "content": content}
        return {**result, "is_error": True} if part.is_error else result
    if isinstance(part, Thinking):
        # Without a signature it is another maker's, and would be refused.
        return {"type": "thinking", "thinking": part.text, "signature": part.signature} if part.signature else None
    if isinstance(part, Redacted):
        return {"type": "redacted_thinking", "data": part.data}
    return _write_source(part)


def _write_source(part: Image | Document) -> dict[str, Any]:
    kind = "image" if isinstance(part, Image) else "document"
    source: dict[str, Any]
    if part.url:
        source = {"type": "url", "url": part.url}
    elif isinstance(part, Document) and part.file_id:
        source = {"type": "file", "file_id": part.file_id}
    elif isinstance(part, Document) and part.text:
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
    else:
        source = {"type": "base64", "media_type": part.media_type, "data": part.data}
    block: dict[str, Any] = {"type": kind, "source": source}
    if isinstance(part, Document) and part.title:
        block["title"] = part.title
    return block


def _text(text: Text) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": text.text}
    return {**block, "cache_control": text.cache} if text.cache is not None else block


def _ident(call: str) -> str:
    """An id the API takes; the same change on both sides keeps calls and results together."""
    return _TOOL_ID.sub("_", call) or "_"


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
    members = body.view(schema, Envelope | None, "tools") if schema is not None else None
    if not members:
        return {"type": "object", "properties": {}}
    members.pop("$schema", None)
    return members if "type" in members else {"type": "object", **members}


def _write_choice(ask: Ask) -> dict[str, Any] | None:
    choice = ask.choice
    single = {"disable_parallel_tool_use": True} if ask.parallel is False else {}
    if choice is None:
        return {"type": "auto", **single} if single else None
    if choice.mode == "none":
        return {"type": "none"}
    return {"type": choice.mode, **({"name": choice.name} if choice.mode == "tool" else {}), **single}


def _write_thinking(ask: Ask, model: str, members: dict[str, Any], *, forced: bool) -> bool:
    """Whether the model is asked to think. Newer ones decide how long, older ones are given a budget."""
    effort = ask.effort
    if effort is None or (effort == "none" and not _is(model, _ADAPTIVE)):
        return False
    if _is(model, _ADAPTIVE):
        if effort == "none":
            members["thinking"] = {"type": "disabled"}
            return False
        members["thinking"] = {"type": "adaptive", "display": "summarized"}
        level = "low" if effort == "minimal" else effort
        members["output_config"] = {**members.get("output_config", {}), "effort": level}
        return True
    if forced:  # a forced tool and a thinking budget exclude each other
        return False
    budget = _BUDGETS.get(effort, 2048)
    members["thinking"] = {"type": "enabled", "budget_tokens": budget}
    if members["max_tokens"] <= budget:
        members["max_tokens"] += budget
    return True


def _write_sampling(ask: Ask, model: str, members: dict[str, Any], dropped: list[str], *, thinking: bool) -> None:
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(ask, name)
        if value is None:
            continue
        if _is(model, _NO_SAMPLING) or (thinking and name != "top_p"):
            dropped.append(name)
        elif name == "temperature" and body.view(value, float, name) > 1:
            members[name] = 1
        else:
            members[name] = value


# -- whole answers


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Answer(msgspec.Struct):
    type: str
    id: str
    model: str
    content: list[_Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None
    usage: WireUsage | None = None


_answer = msgspec.json.Decoder(_Answer)


def read_reply(data: bytes) -> Reply:
    """A message in neutral form. Raises UpstreamProtocol when it is none."""
    try:
        answer = _answer.decode(data)
        parts = [part for block in answer.content if (part := _read_block(block, "content")) is not None]
    except (msgspec.DecodeError, UnicodeDecodeError, BodyInvalid, Unsupported):
        raise UpstreamProtocol("the provider's answer is not a message") from None
    stop = stop_of(answer.stop_reason)
    refusal = answer.stop_details.explanation if answer.stop_details is not None else None
    return Reply(
        id=answer.id,
        model=answer.model,
        parts=parts,
        stop=stop,
        stop_sequence=answer.stop_sequence,
        refusal=refusal if stop == "content_filter" else None,
        usage=answer.usage.neutral() if answer.usage is not None else None,
    )


def write_reply(reply: Reply) -> bytes:
    """A neutral answer as a message."""
    return body.encode(
        {
            "id": reply.id if reply.id.startswith("msg_") else f"msg_{reply.id}",
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [_write_answer_part(part) for part in reply.parts],
            "stop_reason": stop_reason(reply.stop),
            "stop_sequence": reply.stop_sequence,
            "usage": write_usage(reply.usage),
        }
    )


def _write_answer_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Thinking):
        return {"type": "thinking", "thinking": part.text, "signature": part.signature}
    if isinstance(part, Text):
        return {"type": "text", "text": part.text, "citations": None}
    block = _write_part(part, "assistant")
    assert block is not None
    return block


def stream_reader() -> StreamReader:
    return StreamReader()


def stream_writer(*, include_usage: bool) -> StreamWriter:
    return StreamWriter()
