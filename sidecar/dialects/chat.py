"""OpenAI's Chat Completions: requests and whole answers, to and from the neutral form. Streams are in chat_stream.py.

Source: OpenAI's API reference, chat completions; extensions (`reasoning_content`, `thinking_blocks`) as the compatible
providers and clients use them.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sidecar.clock import wall
from sidecar.dialects.chat_stream import StreamReader, StreamWriter, finish_reason, stop_of
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
from sidecar.dialects.openai import (
    WireUsage,
    ask_usage,
    fault_in,
    meter,
    nothing as local,
    read_error,
    read_view,
    write_error,
    write_stream_error,
    write_usage,
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

_DATA_URI: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.\- ]+)*;base64,(.*)", re.DOTALL | re.IGNORECASE)
# Members of a chat request without a neutral form. They are left out of a translation, and the log says so.
_DROPPED: Final = (
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "metadata", "modalities", "moderation",
    "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "seed", "store",
    "verbosity", "web_search_options",
)  # fmt: skip
_KNOWN: Final = frozenset(_DROPPED).union(
    ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "stream"),
    ("stream_options", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format", "n"),
    ("user", "safety_identifier", "service_tier", "logprobs", "top_logprobs"),
)


class _Url(msgspec.Struct):
    url: str


class _File(msgspec.Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | str | None = None
    file: _File | None = None
    cache_control: msgspec.Raw | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw | None = None


class _Call(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    function: _Function | None = None
    custom: msgspec.Raw | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    function_call: _Function | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking_blocks: list[msgspec.Raw] | None = None
    refusal: str | None = None


class _Block(msgspec.Struct):
    """One of `thinking_blocks`: Anthropic's own, carried by clients that know of them."""

    type: str
    thinking: str = ""
    signature: str = ""
    data: str = ""


class _Declared(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: msgspec.Raw | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Declared | None = None
    cache_control: msgspec.Raw | None = None


class _Named(msgspec.Struct):
    name: str


class _Allowed(msgspec.Struct):
    mode: str = "auto"
    tools: list[_Choice] = []


class _Choice(msgspec.Struct):
    type: str
    function: _Named | None = None
    allowed_tools: _Allowed | None = None


class _Schema(msgspec.Struct):
    name: str = "response"
    schema: msgspec.Raw | None = None
    strict: bool | None = None
    description: str | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


# -- request to neutral


def read_request(members: Envelope) -> Ask:
    """A chat request in neutral form. Raises BodyInvalid and Unsupported, naming the JSON path."""
    raw_messages = members.get("messages")
    if raw_messages is None:
        raise BodyInvalid("the member 'messages' is missing", param="messages")
    view = read_view(members)
    ask = Ask(
        model=view.model,
        turns=[],
        system=[],
        stream=view.stream,
        include_usage=view.include_usage,
        max_tokens=view.max_tokens,
        stop=_stop(members),
        tools=[],
        extra={name: raw for name, raw in members.items() if name not in _KNOWN},
        dropped=[name for name in _DROPPED if _given(members, name)],
    )
    if _given(members, "n") and body.view(members["n"], int, "n") != 1:
        raise Unsupported("this provider gives one answer a request: n must be 1", param="n")
    if _given(members, "logprobs") and body.view(members["logprobs"], bool, "logprobs"):
        raise Unsupported("this provider tells no logprobs", param="logprobs")
    for name in ("temperature", "top_p", "top_k"):
        if _given(members, name):
            setattr(ask, name, members[name])
    for index, message in enumerate(body.view(raw_messages, list[_Message], "messages")):
        _read_message(message, f"messages[{index}]", ask)
    _read_tools(members, ask)
    _read_options(members, ask)
    return ask


def _given(members: Envelope, name: str) -> bool:
    return name in members and bytes(members[name]) != b"null"


def _stop(members: Envelope) -> list[str]:
    if not _given(members, "stop"):
        return []
    stop = body.view(members["stop"], str | list[str], "stop")
    return [stop] if isinstance(stop, str) else stop


def _read_message(message: _Message, path: str, ask: Ask) -> None:
    role = message.role
    if role in ("system", "developer"):
        texts = [part for part in _parts(message.content, path) if isinstance(part, Text)]
        if ask.turns:
            ask.turns.append(Turn("system", list(texts)))
        else:
            ask.system += texts
    elif role == "user":
        ask.turns.append(Turn("user", _parts(message.content, path)))
    elif role == "assistant":
        ask.turns.append(Turn("assistant", _assistant(message, path)))
    elif role in ("tool", "function"):
        call = message.tool_call_id if role == "tool" else f"fc_{message.name}"
        if call is None:
            raise BodyInvalid("a tool message needs a tool_call_id", param=f"{path}.tool_call_id")
        content: list[Text | Image | Document] = [
            part for part in _parts(message.content, path) if isinstance(part, Text | Image | Document)
        ]
        ask.turns.append(Turn("user", [ToolResult(call, content)]))
    else:
        raise BodyInvalid(f"unknown role {role!r}", param=f"{path}.role")


def _parts(content: str | list[_Part] | None, path: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    return [_part(part, f"{path}.content[{index}]") for index, part in enumerate(content)]


def _part(part: _Part, path: str) -> Part:
    if part.type in ("text", "input_text", "output_text"):
        return Text(part.text or "", part.cache_control)
    if part.type == "refusal":
        return Text(part.refusal or "")
    if part.type == "image_url" and part.image_url is not None:
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        if not url.startswith("data:"):
            return Image(url=url)
        media_type, data = _data_uri(url, f"{path}.image_url.url")
        return Image(media_type="image/jpeg" if media_type == "image/jpg" else media_type, data=data)
    if part.type == "file" and part.file is not None:
        file = part.file
        if file.file_data is not None:
            media_type, data = _data_uri(file.file_data, f"{path}.file.file_data")
            return Document(media_type=media_type, data=data, title=file.filename or "")
        return Document(file_id=file.file_id or "", title=file.filename or "")
    raise Unsupported(f"content of type {part.type!r} has no form in the provider's API", param=path)


def _data_uri(uri: str, path: str) -> tuple[str, str]:
    match = _DATA_URI.fullmatch(uri.strip())
    if match is None:
        raise BodyInvalid("not a base64 data URI", param=path)
    return match[1].lower(), "".join(match[2].split())


def _assistant(message: _Message, path: str) -> list[Part]:
    parts: list[Part] = []
    for raw in message.thinking_blocks or ():
        block = body.view(raw, _Block, f"{path}.thinking_blocks")
        parts.append(
            Redacted(block.data) if block.type == "redacted_thinking" else Thinking(block.thinking, block.signature)
        )
    if not parts and (reasoning := message.reasoning_content or message.reasoning):
        parts.append(Thinking(reasoning))
    parts += _parts(message.content, path)
    if message.refusal:
        parts.append(Text(message.refusal))
    for index, call in enumerate(message.tool_calls or ()):
        where = f"{path}.tool_calls[{index}]"
        if call.function is None or call.function.name is None:
            raise Unsupported("only calls of functions can be translated", param=where)
        arguments = _arguments(call.function.arguments, f"{where}.function.arguments")
        parts.append(ToolUse(call.id or f"call_{index}", call.function.name, arguments))
    if (old := message.function_call) is not None and old.name is not None:
        parts.append(ToolUse(f"fc_{old.name}", old.name, _arguments(old.arguments, f"{path}.function_call.arguments")))
    return parts


def _arguments(raw: msgspec.Raw | None, path: str) -> str:
    """JSON text of an object. Some providers send the object itself, and some an empty string."""
    if raw is None:
        return "{}"
    if raw_bytes := bytes(raw):
        if raw_bytes.startswith(b"{"):
            return raw_bytes.decode()
        if raw_bytes == b"null":
            return "{}"
    text = body.view(raw, str, path).strip()
    if not text:
        return "{}"
    try:
        body.view(text.encode(), dict[str, msgspec.Raw], path)
    except BodyInvalid:
        raise BodyInvalid("the arguments of a call must be a JSON object", param=path) from None
    return text


def _read_tools(members: Envelope, ask: Ask) -> None:
    if _given(members, "tools"):
        for index, tool in enumerate(body.view(members["tools"], list[_Tool], "tools")):
            declared = tool.function
            if declared is None:
                raise Unsupported(
                    f"a tool of type {tool.type!r} has no form in the provider's API", param=f"tools[{index}]"
                )
            ask.tools.append(
                Tool(declared.name, declared.description, declared.parameters, declared.strict, tool.cache_control)
            )
    if _given(members, "tool_choice"):
        _read_choice(body.view(members["tool_choice"], str | _Choice, "tool_choice"), ask)
    if _given(members, "parallel_tool_calls"):
        ask.parallel = body.view(members["parallel_tool_calls"], bool, "parallel_tool_calls")


def _read_choice(choice: str | _Choice, ask: Ask) -> None:
    if isinstance(choice, str):
        modes: dict[str, Choice] = {
            "auto": Choice("auto"),
            "none": Choice("none"),
            "required": Choice("any"),
            "any": Choice("any"),
        }
        if choice not in modes:
            raise BodyInvalid(f"unknown tool_choice {choice!r}", param="tool_choice")
        ask.choice = modes[choice]
    elif choice.allowed_tools is not None:
        names = {each.function.name for each in choice.allowed_tools.tools if each.function is not None}
        ask.tools = [tool for tool in ask.tools if tool.name in names]
        ask.choice = Choice("any" if choice.allowed_tools.mode == "required" else "auto")
    elif choice.function is not None:
        ask.choice = Choice("tool", choice.function.name)
    else:
        raise Unsupported(
            f"a tool_choice of type {choice.type!r} has no form in the provider's API", param="tool_choice"
        )


def _read_options(members: Envelope, ask: Ask) -> None:
    if _given(members, "reasoning_effort"):
        ask.effort = body.view(members["reasoning_effort"], str, "reasoning_effort")
    for name in ("safety_identifier", "user"):
        if _given(members, name):
            ask.user = body.view(members[name], str, name)
    if _given(members, "service_tier"):
        ask.service_tier = body.view(members["service_tier"], str, "service_tier")
    if _given(members, "response_format"):
        form = body.view(members["response_format"], _Format, "response_format")
        if form.type == "json_object":
            ask.format = Format()
        elif form.type == "json_schema" and form.json_schema is not None:
            schema = form.json_schema
            ask.format = Format(schema.schema, schema.name, schema.strict, schema.description)


# -- neutral to request


def write_request(ask: Ask, model: str) -> Written:
    """A chat request out of the neutral form."""
    messages: list[dict[str, Any]] = []
    if ask.system:
        messages.append({"role": "system", "content": "\n\n".join(text.text for text in ask.system)})
    for turn in ask.turns:
        messages += _write_turn(turn)
    members: dict[str, Any] = {"model": model, "messages": messages}
    if ask.max_tokens is not None:
        members["max_tokens"] = ask.max_tokens
    for name in ("temperature", "top_p", "top_k", "user", "service_tier"):
        if (value := getattr(ask, name)) is not None:
            members[name] = value
    if ask.stop:
        members["stop"] = ask.stop[:4]  # more are refused (OpenAI's API reference)
    if ask.tools:
        members["tools"] = [_write_tool(tool) for tool in ask.tools]
    if ask.choice is not None and ask.tools:
        members["tool_choice"] = _write_choice(ask.choice)
    if ask.parallel is not None and ask.tools:
        members["parallel_tool_calls"] = ask.parallel
    if (effort := ask.effort or _effort(ask.budget)) is not None:
        members["reasoning_effort"] = effort
    if ask.format is not None:
        members["response_format"] = _write_format(ask.format)
    if ask.stream:
        members["stream"] = True
        members["stream_options"] = {"include_usage": True}  # the other dialects always tell their usage
    written = {name: body.raw(value) for name, value in members.items()}
    return Written({**written, **ask.extra}, tuple(ask.dropped))


def _effort(budget: int | None) -> str | None:
    if budget is None:
        return None
    return "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"


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


def _write_format(form: Format) -> dict[str, Any]:
    if form.schema is None:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": form.name,
            "schema": form.schema,
            "strict": True if form.strict is None else form.strict,
        },
    }


def _write_turn(turn: Turn) -> list[dict[str, Any]]:
    """Tool results first, each a message of its own; then what the user says; images of results go with it."""
    if turn.role == "assistant":
        return [_write_assistant(turn.parts)]
    if turn.role == "system":
        text = "\n\n".join(part.text for part in turn.parts if isinstance(part, Text))
        return [{"role": "system", "content": text}]
    messages: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ToolResult):
            text = "".join(piece.text for piece in part.parts if isinstance(piece, Text))
            messages.append(
                {"role": "tool", "tool_call_id": part.id, "content": f"Error: {text}" if part.is_error else text}
            )
            said += [_write_part(piece) for piece in part.parts if not isinstance(piece, Text)]
        elif isinstance(part, Text | Image | Document):
            said.append(_write_part(part))
    if said:
        plain = all(part["type"] == "text" for part in said)
        content: Any = "".join(part["text"] for part in said) if plain and len(said) == 1 else said
        messages.append({"role": "user", "content": content})
    return messages


def _write_part(part: Text | Image | Document) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url or f"data:{part.media_type};base64,{part.data}"}}
    if part.text:
        return {"type": "text", "text": part.text}
    if part.file_id:
        return {"type": "file", "file": {"file_id": part.file_id}}
    if part.url:
        raise Unsupported("a document by URL has no form in the provider's API", param="messages")
    uri = f"data:{part.media_type};base64,{part.data}"
    return {"type": "file", "file": {"file_data": uri, "filename": part.title or "document.pdf"}}


def _write_assistant(parts: list[Part]) -> dict[str, Any]:
    texts = [part.text for part in parts if isinstance(part, Text)]
    calls = [part for part in parts if isinstance(part, ToolUse)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


# -- whole answers


class _ReplyMessage(_Message):
    role: str = "assistant"


class _ReplyChoice(msgspec.Struct):
    message: _ReplyMessage | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: list[_ReplyChoice] = []
    usage: WireUsage | None = None


_completion = msgspec.json.Decoder(_Completion)


def read_reply(data: bytes) -> Reply:
    """A completion in neutral form. Raises UpstreamProtocol when it is none, or an error inside a 200."""
    if (message := fault_in(data)) is not None:
        raise UpstreamProtocol(f"the provider answered with an error: {message}")
    try:
        completion = _completion.decode(data.lstrip())  # DeepSeek keeps a slow answer alive with empty lines
        found = completion.choices[0].message if completion.choices else None
        if found is None:
            raise UpstreamProtocol("the provider answered without a message")
        parts = _assistant(found, "choices[0].message")
    except (msgspec.DecodeError, UnicodeDecodeError, BodyInvalid, Unsupported):
        raise UpstreamProtocol("the provider's answer is not a chat completion") from None
    calls = any(isinstance(part, ToolUse) for part in parts)
    return Reply(
        id=completion.id or "",
        model=completion.model or "",
        parts=[part for part in parts if not (isinstance(part, Text) and not part.text)],
        stop=stop_of(completion.choices[0].finish_reason, calls=calls),
        usage=completion.usage.neutral() if completion.usage is not None else None,
    )


def write_reply(reply: Reply) -> bytes:
    """A neutral answer as a chat completion."""
    message = _write_assistant(reply.parts)
    blocks = [part for part in reply.parts if isinstance(part, Thinking | Redacted)]
    if blocks:
        message["reasoning_content"] = "".join(part.text for part in blocks if isinstance(part, Thinking))
        message["thinking_blocks"] = [write_block(block) for block in blocks]
    message["refusal"] = reply.refusal
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reply.stop)}
    value: dict[str, Any] = {
        "id": reply.id if reply.id.startswith("chatcmpl-") else f"chatcmpl-{reply.id}",
        "object": "chat.completion",
        "created": int(wall()),
        "model": reply.model,
        "choices": [choice],
    }
    if reply.usage is not None:
        value["usage"] = write_usage(reply.usage)
    return body.encode(value)


def write_block(block: Thinking | Redacted) -> dict[str, str]:
    if isinstance(block, Redacted):
        return {"type": "redacted_thinking", "data": block.data}
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}


def stream_reader() -> StreamReader:
    return StreamReader()


def stream_writer(*, include_usage: bool) -> StreamWriter:
    return StreamWriter(include_usage=include_usage)
