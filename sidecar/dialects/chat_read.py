"""A Chat Completions request, read to the neutral form.

Source: OpenAI's API reference, chat completions; extensions (`reasoning_content`, `thinking_blocks`, `cache_control`)
as the compatible providers and their clients use them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sidecar.dialects.chat_parts import Content, parts
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
from sidecar.dialects.openai import read_view
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.types import Envelope
from sidecar.wire import body

# Members without a neutral form. They are left out of a translation, which says so. First OpenAI's, then those of the
# compatible providers (OpenRouter, vLLM, llama.cpp, Mistral, Groq, Alibaba), which no other API takes either.
_DROPPED: Final = (
    "audio", "frequency_penalty", "logit_bias", "metadata", "modalities", "moderation", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "seed", "store",
    "top_logprobs", "verbosity", "web_search_options",
    "models", "plugins", "provider", "route", "top_a", "transforms",
    "cache_prompt", "cache_salt", "chat_template_kwargs", "grammar", "guided_choice", "guided_grammar", "guided_json",
    "guided_regex", "ignore_eos", "include_reasoning", "json_schema", "min_p", "min_tokens", "priority",
    "repetition_penalty", "stop_token_ids", "structured_outputs", "typical_p",
    "guardrails", "prompt_mode", "random_seed", "safe_prompt",
    "enable_thinking", "reasoning_format", "thinking_budget",
)  # fmt: skip
# Members without a neutral form whose leaving out would change the answer's shape: why they are refused.
_REFUSED: Final = {
    "functions": "'functions' has no form in the provider's API: send 'tools'",
    "function_call": "'function_call' has no form in the provider's API: send 'tool_choice'",
}
_KNOWN: Final = frozenset(_DROPPED).union(
    ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "stream"),
    ("stream_options", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format", "n"),
    ("user", "safety_identifier", "service_tier", "logprobs", "reasoning", "thinking", *_REFUSED),
)
_EFFORTS: Final = {"disabled": "none", "enabled": "high", "adaptive": "high"}  # where thinking is only turned on or off
_MODES: Final = {"auto": Choice("auto"), "none": Choice("none"), "required": Choice("any"), "any": Choice("any")}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = NOTHING


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[Content] | None = None
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
    parameters: msgspec.Raw = NOTHING
    strict: bool | None = None
    cache_control: msgspec.Raw = NOTHING


class _Tool(msgspec.Struct):
    type: str = "function"
    function: _Declared | None = None
    cache_control: msgspec.Raw = NOTHING


class _Named(msgspec.Struct):
    name: str


class _Allowed(msgspec.Struct):
    mode: str = "auto"
    tools: list[_Choice] = []


class _Choice(msgspec.Struct):
    type: str = "function"
    function: _Named | None = None
    allowed_tools: _Allowed | None = None


class _Schema(msgspec.Struct):
    name: str = "response"
    schema: msgspec.Raw = NOTHING
    strict: bool | None = None
    description: str | None = None


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _Reasoning(msgspec.Struct):
    """OpenRouter's `reasoning`, and the `thinking` of DeepSeek, Z.ai and Anthropic's own compatible endpoint."""

    effort: str | None = None
    max_tokens: int | None = None
    type: str | None = None
    budget_tokens: int | None = None


def read_request(members: Envelope) -> Ask:
    """A chat request in neutral form. Raises BodyInvalid and Unsupported, naming the JSON path."""
    given = {name: raw for name, raw in members.items() if bytes(raw) != b"null"}
    if "messages" not in given:
        raise BodyInvalid("the member 'messages' is missing", param="messages")
    _refuse(given)
    view = read_view(given)
    ask = Ask(
        model=view.model,
        turns=[],
        system=[],
        stream=view.stream,
        include_usage=view.include_usage,
        max_tokens=view.max_tokens,
        temperature=_number(given, "temperature"),
        top_p=_number(given, "top_p"),
        top_k=_number(given, "top_k"),
        tools=[],
        extra={name: raw for name, raw in given.items() if name not in _KNOWN},
        dropped=[name for name in _DROPPED if name in given],
    )
    for index, message in enumerate(body.view(given["messages"], list[_Message], "messages")):
        _read_message(message, index, ask)
    _read_tools(given, ask)
    _read_reasoning(given, ask)
    _read_options(given, ask)
    return ask


def _refuse(given: Envelope) -> None:
    for name, why in _REFUSED.items():
        if name in given:
            raise Unsupported(why, param=name)
    if "n" in given and body.view(given["n"], int, "n") != 1:
        raise Unsupported("this provider gives one answer a request: n must be 1", param="n")
    if "logprobs" in given and body.view(given["logprobs"], bool | int, "logprobs"):
        raise Unsupported("this provider tells no logprobs", param="logprobs")


def _number(given: Envelope, name: str) -> msgspec.Raw | None:
    """The number as it was spelled, once it is known to be one."""
    if name not in given:
        return None
    body.view(given[name], float, name)
    return given[name]


# -- messages


def _read_message(message: _Message, index: int, ask: Ask) -> None:
    path = f"messages[{index}]"
    role = message.role
    if message.name is not None and role != "function":
        ask.dropped.append(f"{path}.name")
    if role in ("system", "developer"):
        texts = [part for part in parts(message.content, path) if isinstance(part, Text)]
        if ask.turns:
            ask.turns.append(Turn("system", list(texts)))
        else:
            ask.system += texts
    elif role == "user":
        ask.turns.append(Turn("user", parts(message.content, path)))
    elif role == "assistant":
        ask.turns.append(Turn("assistant", _assistant(message, index, path)))
    elif role in ("tool", "function"):
        call = message.tool_call_id if role == "tool" else _last_call(ask, message.name, path)
        if not call:
            raise BodyInvalid("a tool message needs a tool_call_id", param=f"{path}.tool_call_id")
        content: list[Text | Image | Document] = [
            part for part in parts(message.content, path) if isinstance(part, Text | Image | Document)
        ]
        ask.turns.append(Turn("user", [ToolResult(call, content)]))
    else:
        raise BodyInvalid(f"unknown role {role!r}", param=f"{path}.role")


def _last_call(ask: Ask, name: str | None, path: str) -> str:
    """The id made up for the function_call that a message of the old role `function` answers."""
    for turn in reversed(ask.turns):
        for part in turn.parts:
            if isinstance(part, ToolUse) and part.name == name:
                return part.id
    raise BodyInvalid("a function message answers no function_call before it", param=f"{path}.name")


def _assistant(message: _Message, position: int, path: str) -> list[Part]:
    found: list[Part] = []
    for index, raw in enumerate(message.thinking_blocks or ()):
        block = body.view(raw, _Block, f"{path}.thinking_blocks[{index}]")
        found.append(
            Redacted(block.data) if block.type == "redacted_thinking" else Thinking(block.thinking, block.signature)
        )
    if not found and (reasoning := message.reasoning_content or message.reasoning):
        found.append(Thinking(reasoning))
    found += parts(message.content, path)
    if message.refusal:
        found.append(Text(message.refusal))
    for index, call in enumerate(message.tool_calls or ()):
        where = f"{path}.tool_calls[{index}]"
        if call.function is None or not call.function.name:
            raise Unsupported("only calls of functions can be translated", param=where)
        arguments = _arguments(call.function.arguments, f"{where}.function.arguments")
        found.append(ToolUse(call.id or f"call_{position}_{index}", call.function.name, arguments))
    if (old := message.function_call) is not None and old.name:
        found.append(ToolUse(f"fc_{position}", old.name, _arguments(old.arguments, f"{path}.function_call.arguments")))
    return found


def _arguments(raw: msgspec.Raw, path: str) -> str:
    """JSON text of an object. Some providers send the object itself, and some an empty string."""
    data = bytes(raw) or b"null"
    text = data.decode() if data.startswith(b"{") else (body.view(data, str | None, path) or "").strip()
    if not text:
        return "{}"
    try:
        body.view(text.encode(), dict[str, msgspec.Raw], path)
    except BodyInvalid:
        raise BodyInvalid("the arguments of a call must be a JSON object", param=path) from None
    return text


# -- tools and options


def _read_tools(given: Envelope, ask: Ask) -> None:
    for index, tool in enumerate(body.view(given.get("tools", b"[]"), list[_Tool], "tools")):
        declared = tool.function
        if declared is None:
            raise Unsupported(
                f"a tool of type {tool.type!r} has no form in the provider's API", param=f"tools[{index}]"
            )
        cache = sent(tool.cache_control) or sent(declared.cache_control)
        ask.tools.append(Tool(declared.name, declared.description, sent(declared.parameters), declared.strict, cache))
    if "tool_choice" in given:
        _read_choice(given["tool_choice"], ask)
    if "parallel_tool_calls" in given:
        ask.parallel = body.view(given["parallel_tool_calls"], bool, "parallel_tool_calls")


def _read_choice(raw: msgspec.Raw, ask: Ask) -> None:
    choice: Any = body.view(raw, str | _Choice, "tool_choice")
    if isinstance(choice, str):
        if choice not in _MODES:
            raise BodyInvalid(f"unknown tool_choice {choice!r}", param="tool_choice")
        ask.choice = _MODES[choice]
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


def _read_options(given: Envelope, ask: Ask) -> None:
    if "stop" in given:
        stop = body.view(given["stop"], str | list[str], "stop")
        ask.stop = [stop] if isinstance(stop, str) else stop
    for name in ("user", "safety_identifier"):  # the latter is the former's successor
        if name in given:
            ask.user = body.view(given[name], str, name)
    if "service_tier" in given:
        ask.service_tier = body.view(given["service_tier"], str, "service_tier")
    if "response_format" in given:
        ask.format = _read_format(given["response_format"])


def _read_reasoning(given: Envelope, ask: Ask) -> None:
    """How much to think, in the first of the words for it that was used."""
    if "reasoning_effort" in given:
        ask.effort = body.view(given["reasoning_effort"], str, "reasoning_effort")
        return
    for name in ("reasoning", "thinking"):
        if name in given and ask.effort is None:
            asked = body.view(given[name], _Reasoning, name)
            ask.budget = asked.budget_tokens or asked.max_tokens
            ask.effort = asked.effort or (_EFFORTS.get(asked.type or "") if ask.budget is None else None)


def _read_format(raw: msgspec.Raw) -> Format | None:
    form = body.view(raw, _Format, "response_format")
    if form.type == "text":
        return None
    if form.type == "json_object":
        return Format()
    if form.type == "json_schema" and form.json_schema is not None:
        schema = form.json_schema
        return Format(sent(schema.schema), schema.name, schema.strict, schema.description)
    raise Unsupported(
        f"a response_format of type {form.type!r} has no form in the provider's API", param="response_format"
    )
