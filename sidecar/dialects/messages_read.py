"""A Messages request, and the blocks of an answer, read to the neutral form.

Source: Anthropic's API reference, versions 2023-06-01 and 2026-10-21.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sidecar.dialects.anthropic import read_view
from sidecar.dialects.neutral import (
    NOTHING,
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
    sent,
)
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.types import Envelope
from sidecar.wire import body

# Members without a neutral form. They are left out of a translation, which says so.
_DROPPED: Final = (
    "cache_control", "container", "context_management", "diagnostics", "fallbacks", "inference_geo", "mcp_servers",
    "speed", "user_profile_id",
)  # fmt: skip
_KNOWN: Final = frozenset(_DROPPED).union(
    ("model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k"),
    ("tools", "tool_choice", "thinking", "output_config", "metadata", "service_tier"),
)
_TIERS: Final = {"auto": "auto", "standard_only": "default"}


class _Kind(msgspec.Struct):
    type: str


class _Text(msgspec.Struct):
    text: str
    cache_control: msgspec.Raw = NOTHING


class _Source(msgspec.Struct):
    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: str | list[msgspec.Raw] | None = None


class _Sourced(msgspec.Struct):
    """An image or a document."""

    type: str
    source: _Source
    title: str | None = None


class _ToolUse(msgspec.Struct):
    id: str
    name: str
    input: msgspec.Raw = NOTHING


class _ToolResult(msgspec.Struct):
    tool_use_id: str
    content: str | list[msgspec.Raw] | None = None
    is_error: bool | None = None


class _Thinking(msgspec.Struct):
    thinking: str = ""
    signature: str | None = None


class _Redacted(msgspec.Struct):
    data: str


class _SearchResult(msgspec.Struct):
    title: str = ""
    source: str = ""
    content: list[_Text] = []


class _Reference(msgspec.Struct):
    tool_name: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[msgspec.Raw]


class _Tool(msgspec.Struct):
    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = NOTHING
    strict: bool | None = None
    cache_control: msgspec.Raw = NOTHING


class _Choice(msgspec.Struct):
    type: str
    name: str = ""
    disable_parallel_tool_use: bool | None = None


class _Mode(msgspec.Struct):
    type: str
    budget_tokens: int | None = None


class _Format(msgspec.Struct):
    schema: msgspec.Raw = NOTHING


class _Output(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


def read_request(members: Envelope) -> Ask:
    """A Messages request in neutral form. Raises BodyInvalid and Unsupported, naming the JSON path."""
    given = {name: raw for name, raw in members.items() if bytes(raw) != b"null"}
    for name in ("messages", "max_tokens"):
        if name not in given:
            raise BodyInvalid(f"the member {name!r} is missing", param=name)
    view = read_view(given)
    ask = Ask(
        model=view.model,
        turns=[],
        stream=view.stream,
        include_usage=True,
        max_tokens=view.max_tokens,
        temperature=_number(given, "temperature"),
        top_p=_number(given, "top_p"),
        top_k=_number(given, "top_k"),
        stop=body.view(given.get("stop_sequences", b"[]"), list[str], "stop_sequences"),
        tools=[],
        extra={name: raw for name, raw in given.items() if name not in _KNOWN},
        dropped=[name for name in _DROPPED if name in given],
    )
    system: str | list[_Text] = body.view(given.get("system", b"[]"), str | list[_Text], "system")
    blocks = [_Text(system)] if isinstance(system, str) else system
    ask.system = [Text(block.text, sent(block.cache_control)) for block in blocks if block.text]
    for index, message in enumerate(body.view(given["messages"], list[_Message], "messages")):
        ask.turns.append(_read_message(message, f"messages[{index}]", ask.dropped))
    _read_tools(given, ask)
    _read_thinking(given, ask)
    _read_options(given, ask)
    return ask


def _number(given: Envelope, name: str) -> msgspec.Raw | None:
    """The number as it was spelled, once it is known to be one."""
    if name not in given:
        return None
    body.view(given[name], float, name)
    return given[name]


# -- messages


def _read_message(message: _Message, path: str, dropped: list[str]) -> Turn:
    role = message.role
    if role not in ("user", "assistant", "system"):
        raise BodyInvalid(f"unknown role {role!r}", param=f"{path}.role")
    if isinstance(message.content, str):
        return Turn(role, [Text(message.content)])  # type: ignore[arg-type]  # one of the three
    return Turn(role, _read_blocks(message.content, f"{path}.content", dropped))  # type: ignore[arg-type]


def _read_blocks(raws: list[msgspec.Raw], path: str, dropped: list[str]) -> list[Part]:
    parts: list[Part] = []
    for index, raw in enumerate(raws):
        where = f"{path}[{index}]"
        part = read_block(raw, where, dropped)
        if part is None:
            dropped.append(where)
        else:
            parts.append(part)
    return parts


def read_block(raw: msgspec.Raw, path: str, dropped: list[str]) -> Part | None:
    """A content block; None for one that the other dialects have nothing for (a server tool's call, its result)."""
    kind = body.view(raw, _Kind, path).type
    if kind == "text":
        text = body.view(raw, _Text, path)
        return Text(text.text, sent(text.cache_control))
    if kind == "thinking":
        thinking = body.view(raw, _Thinking, path)
        return Thinking(thinking.thinking, thinking.signature or "")
    if kind == "redacted_thinking":
        return Redacted(body.view(raw, _Redacted, path).data)
    if kind == "tool_use":
        return _read_call(raw, path)
    if kind == "tool_result":
        return _read_result(raw, path, dropped)
    if kind in ("image", "document"):
        return _read_source(body.view(raw, _Sourced, path), path)
    if kind == "search_result":
        found = body.view(raw, _SearchResult, path)
        return Text("\n".join(filter(None, [found.title, found.source, *(each.text for each in found.content)])))
    if kind == "tool_reference":
        return Text(body.view(raw, _Reference, path).tool_name)
    return None


def _read_call(raw: msgspec.Raw, path: str) -> ToolUse:
    call = body.view(raw, _ToolUse, path)
    arguments = bytes(sent(call.input) or b"{}")
    if not arguments.startswith(b"{"):
        raise BodyInvalid("the input of a tool_use must be an object", param=f"{path}.input")
    return ToolUse(call.id, call.name, arguments.decode())


def _read_result(raw: msgspec.Raw, path: str, dropped: list[str]) -> ToolResult:
    result = body.view(raw, _ToolResult, path)
    content = result.content or []
    found = [Text(content)] if isinstance(content, str) else _read_blocks(content, f"{path}.content", dropped)
    parts = [part for part in found if isinstance(part, Text | Image | Document)]
    return ToolResult(result.tool_use_id, parts, bool(result.is_error))


def _read_source(block: _Sourced, path: str) -> Image | Document:
    source, title = block.source, block.title or ""
    if block.type == "image":
        if source.type == "file":
            raise Unsupported("an image by file id is its own provider's: send its bytes", param=f"{path}.source")
        return Image(source.media_type or "", source.data or "", source.url or "")
    if source.type == "text":
        return Document(media_type="text/plain", text=source.data or "", title=title)
    if source.type == "content":
        return Document(media_type="text/plain", text=_flat(source, f"{path}.source"), title=title)
    return Document(
        media_type=source.media_type or "application/pdf",
        data=source.data or "",
        url=source.url or "",
        file_id=source.file_id or "",
        title=title,
    )


def _flat(source: _Source, path: str) -> str:
    """A document made of blocks, as long as they are text."""
    if isinstance(source.content, str):
        return source.content
    parts = [read_block(raw, f"{path}.content[{index}]", []) for index, raw in enumerate(source.content or ())]
    texts = [part.text for part in parts if isinstance(part, Text)]
    if len(texts) != len(parts):
        raise Unsupported("a document with images has no form in the provider's API", param=path)
    return "\n\n".join(texts)


# -- tools and options


def _read_tools(given: Envelope, ask: Ask) -> None:
    for index, tool in enumerate(body.view(given.get("tools", b"[]"), list[_Tool], "tools")):
        schema = sent(tool.input_schema)
        if schema is None:  # a server tool: its provider runs it, the others cannot
            ask.dropped.append(f"tools[{index}] ({tool.type or tool.name})")
        else:
            ask.tools.append(Tool(tool.name, tool.description, schema, tool.strict, sent(tool.cache_control)))
    if "tool_choice" in given:
        choice = body.view(given["tool_choice"], _Choice, "tool_choice")
        if choice.type not in ("auto", "any", "none", "tool"):
            raise BodyInvalid(f"unknown tool_choice {choice.type!r}", param="tool_choice.type")
        ask.choice = Choice(choice.type, choice.name)
        if choice.disable_parallel_tool_use is not None:
            ask.parallel = not choice.disable_parallel_tool_use


def _read_thinking(given: Envelope, ask: Ask) -> None:
    output = body.view(given.get("output_config", b"{}"), _Output, "output_config")
    schema = sent(output.format.schema) if output.format is not None else None
    if schema is not None:
        ask.format = Format(schema, strict=True)
    mode = body.view(given["thinking"], _Mode, "thinking") if "thinking" in given else None
    if (
        mode is None or mode.type != "disabled"
    ):  # adaptive thinking without an effort is left to the model, there as here
        ask.effort = output.effort
    if mode is not None and mode.type == "enabled":
        ask.budget = mode.budget_tokens


def _read_options(given: Envelope, ask: Ask) -> None:
    if "metadata" in given:
        ask.user = body.view(given["metadata"], _Metadata, "metadata").user_id
    if "service_tier" in given:
        ask.service_tier = _TIERS.get(body.view(given["service_tier"], str, "service_tier"))
        if ask.service_tier is None:
            ask.dropped.append("service_tier")
