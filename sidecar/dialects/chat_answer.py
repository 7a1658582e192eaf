"""The messages of chat answers, whole or in chunks, read leniently: every provider spells them in its own way."""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec

from sidecar.dialects.neutral import NOTHING, Fault, Redacted, Stop, Thinking
from sidecar.dialects.openai_errors import BROKEN_OFF, fault_of

_STOPS: Final[dict[str, Stop]] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "length": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_string = msgspec.json.Decoder(str)


class Function(msgspec.Struct):
    name: Any = None
    arguments: msgspec.Raw = NOTHING


class Call(msgspec.Struct):
    index: Any = None
    id: Any = None
    function: Function | None = None


class Message(msgspec.Struct):
    """`message` of a whole answer, `delta` of a chunk."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None  # DeepSeek and most others
    reasoning: Any = None  # OpenRouter, Groq, Cerebras, Together, vLLM, Ollama
    reasoning_details: Any = None  # OpenRouter
    thinking_blocks: Any = None  # Anthropic's, from gateways that carry them
    tool_calls: list[Call] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct):
    index: Any = 0
    message: Message | None = None
    delta: Message | None = None
    finish_reason: Any = None
    stop_reason: Any = None  # vLLM: the stop sequence, where it was one
    error: Any = None  # OpenRouter


class Answer(msgspec.Struct):
    """A completion, or a chunk of one."""

    id: Any = None
    model: Any = None
    choices: list[Choice] | None = None
    usage: msgspec.Raw = NOTHING
    x_groq: Any = None


def stop_of(reason: Any, *, calls: bool, refused: bool) -> Stop:
    """Neutral word for a finish_reason; unknown ones are an ordinary end. Some say "stop", or nothing, of calls."""
    stop = _STOPS.get(reason, "stop") if isinstance(reason, str) else "stop"
    if stop == "stop" and (refused or calls):
        return "content_filter" if refused else "tool_calls"
    return stop


def broken_off(choice: Choice) -> Fault | None:
    """The error of an answer that its provider gave up in the middle."""
    if choice.error:
        return fault_of(choice.error)
    if choice.finish_reason in BROKEN_OFF:
        return fault_of(f"the provider broke off its answer: {choice.finish_reason}")
    return None


def string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mint(prefix: str) -> str:
    """An id, for an answer or a call that came without."""
    return prefix + secrets.token_hex(12)


def call_id(value: Any) -> str:
    return "" if value == "null" else string(value)  # Mistral's streams have the word


def text(message: Message) -> str:
    content = message.content
    if isinstance(content, list):
        return "".join(string(part.get("text")) for part in _parts(content) if part.get("type") != "thinking")
    return string(content)


def reasoning(message: Message) -> str:
    """The text of the reasoning, from the first of the places where it may be."""
    told = string(message.reasoning_content) or string(message.reasoning)
    if not told and isinstance(message.content, list):  # Mistral's: {type: thinking, thinking: [{type: text, text}]}
        thoughts = [part.get("thinking") for part in _parts(message.content) if part.get("type") == "thinking"]
        told = "".join(
            thought if isinstance(thought, str) else "".join(string(each.get("text")) for each in _parts(thought))
            for thought in thoughts
        )
    return told or "".join(string(each.get("text")) for each in _parts(message.reasoning_details))


def blocks(message: Message) -> list[Thinking | Redacted]:
    """Anthropic's own blocks, where the answer carries what makes them valid there: signature or ciphertext."""
    found: list[Thinking | Redacted] = []
    for block in _parts(message.thinking_blocks):
        if block.get("type") == "redacted_thinking":
            found.append(Redacted(string(block.get("data"))))
        elif signature := string(block.get("signature")):
            found.append(Thinking(string(block.get("thinking")), signature))
    for detail in _parts(message.reasoning_details) if not found else ():
        if not string(detail.get("format")).startswith("anthropic"):
            continue
        if detail.get("type") == "reasoning.encrypted":
            found.append(Redacted(string(detail.get("data"))))
        elif signature := string(detail.get("signature")):
            found.append(Thinking(string(detail.get("text")), signature))
    return found


def arguments(raw: msgspec.Raw) -> str:
    """JSON text of arguments, or a piece of it. Some providers send the object itself; its bytes are that text."""
    data = bytes(raw)
    if data in (b"", b"null"):
        return ""
    return _string.decode(data) if data.startswith(b'"') else data.decode()


def _parts(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
