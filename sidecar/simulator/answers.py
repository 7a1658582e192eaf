"""What the simulated provider says: answers of both APIs, computed from the request alone, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any, Final

import msgspec

WORDS: Final = [
    "the",
    "sidecar",
    "streams",
    "every",
    "token",
    "as",
    "it",
    "comes",
    "and",
    "counts",
    "it",
    "while",
    "the",
    "bytes",
    "go",
    "by",
    "so",
    "that",
    "nobody",
    "waits",
    "for",
    "what",
    "is",
    "already",
    "there",
    "even",
    "when",
    "the",
    "answer",
    "is",
    "long",
    "naïve",
    "or",
    "full",
    "of",
    "“quotes”",
    "and",
    "漢字",
    "and",
    "🙂",
    "all",
    "the",
    "same",
]


class Answer(msgspec.Struct):
    """An answer before it is framed: one body, or the events of a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    events: list[bytes] | None = None


class Refusal(Exception):
    """A request that the provider does not take."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def json_answer(status: int, value: Any, *headers: tuple[str, str]) -> Answer:
    return Answer(status, [("content-type", "application/json"), *headers], encode(value))


def words(count: int, offset: int = 0) -> list[str]:
    """`count` tokens of text, the space in front of all but the first."""
    chosen = [WORDS[(offset + index) % len(WORDS)] for index in range(count)]
    return [word if index == 0 else f" {word}" for index, word in enumerate(chosen)]


def tokens_in(value: Any) -> int:
    """A deterministic count: words of every string."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(tokens_in(each) for each in value)
    if isinstance(value, dict):
        return sum(tokens_in(each) for each in value.values())
    return 0


def need(request: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = request.get(name)
    if value is None:
        raise Refusal(400, "invalid_request_error", f"you must provide a {name} parameter", name)
    if not isinstance(value, kind):
        raise Refusal(400, "invalid_request_error", f"invalid type for {name}", name)
    return value


def arguments_for(schema: Any) -> dict[str, Any]:
    """Arguments that fit a tool's schema well enough: a value of its type for each property."""
    values: dict[str, Any] = {
        "string": "Paris",
        "integer": 9007199254740993,
        "number": 1.5,
        "boolean": True,
        "array": [],
    }
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    return {
        name: values.get(each.get("type"), {}) if isinstance(each, dict) else {} for name, each in properties.items()
    }


def data_event(value: Any) -> bytes:
    return b"data: %b\n\n" % encode(value)


def named_event(value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode(value))


def vector(text: str, dimensions: int) -> list[float]:
    """A unit-free vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return [round(digest[index % 32] / 255 - 0.5, 6) for index in range(dimensions)]


# -- OpenAI


def openai_error(refusal: Refusal) -> Answer:
    error = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": None}
    return json_answer(refusal.status, {"error": error})


def openai_usage(prompt: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _calls(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Tool calls to make: up to two, unless they are unwanted, or have been answered already."""
    messages = request["messages"]
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    if request.get("tool_choice") == "none" or last.get("role") == "tool":
        return []
    tools = request.get("tools") or []
    most = 1 if request.get("parallel_tool_calls") is False else 2
    return [
        {
            "id": f"call_{index:09d}",
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "arguments": encode(arguments_for(tool["function"].get("parameters"))).decode(),
            },
        }
        for index, tool in enumerate(tools[:most])
        if tool.get("type") == "function"
    ]


def _check_chat(request: dict[str, Any]) -> None:
    for index, message in enumerate(need(request, "messages", list)):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant", "tool", "function"):
            raise Refusal(400, "invalid_request_error", f"invalid role {role!r}", f"messages[{index}].role")
        if role == "tool" and not message.get("tool_call_id"):
            raise Refusal(400, "invalid_request_error", "tool_call_id is missing", f"messages[{index}].tool_call_id")
        content = message.get("content")
        if role in ("user", "system", "tool") and not isinstance(content, str | list):
            raise Refusal(400, "invalid_request_error", "invalid content", f"messages[{index}].content")


def chat(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/chat/completions."""
    model = need(request, "model", str)
    _check_chat(request)
    base = {"id": f"chatcmpl-{number:08d}", "created": 1_700_000_000 + number, "model": model}
    prompt = tokens_in(request["messages"])
    calls = _calls(request)
    text = [] if calls else words(count, number)
    if (request.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        text = ['{"ok"', ":true}"]
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    reason = "tool_calls" if calls else "stop"
    if isinstance(limit, int) and len(text) > limit:
        text, reason = text[:limit], "length"
    usage = openai_usage(prompt, len(text) or sum(tokens_in(call) for call in calls))
    choices = range(int(request.get("n") or 1))
    if request.get("stream"):
        return _chat_stream(request, base, text, calls, reason, usage, choices)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text) if text else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    done = [{"index": each, "message": message, "logprobs": None, "finish_reason": reason} for each in choices]
    return json_answer(200, {**base, "object": "chat.completion", "choices": done, "usage": usage})


def _chat_stream(
    request: dict[str, Any],
    base: dict[str, Any],
    text: list[str],
    calls: list[dict[str, Any]],
    reason: str,
    usage: dict[str, Any],
    choices: range,
) -> Answer:
    include = bool((request.get("stream_options") or {}).get("include_usage"))
    events: list[bytes] = []

    def say(delta: dict[str, Any], finish: str | None = None) -> None:
        for index in choices:
            chunk: dict[str, Any] = {**base, "object": "chat.completion.chunk"}
            chunk["choices"] = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
            if include:
                chunk["usage"] = None
            events.append(data_event(chunk))

    say({"role": "assistant", "content": "", "refusal": None})
    for token in text:
        say({"content": token})
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        say({"tool_calls": [{"index": index, **call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
        for at in range(0, len(arguments), 7):
            say({"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 7]}}]})
    say({}, reason)
    if include:
        events.append(data_event({**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return Answer(200, [("content-type", "text/event-stream; charset=utf-8")], events=events)


def completions(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/completions."""
    model = need(request, "model", str)
    prompt = need(request, "prompt", (str, list))
    text = words(count, number)
    base = {"id": f"cmpl-{number:08d}", "object": "text_completion", "created": 1_700_000_000 + number, "model": model}
    usage = openai_usage(tokens_in(prompt), len(text))
    if not request.get("stream"):
        choice = {"text": "".join(text), "index": 0, "logprobs": None, "finish_reason": "stop"}
        return json_answer(200, {**base, "choices": [choice], "usage": usage})
    events = [
        data_event({**base, "choices": [{"text": token, "index": 0, "logprobs": None, "finish_reason": None}]})
        for token in text
    ]
    events.append(
        data_event({**base, "choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]})
    )
    if (request.get("stream_options") or {}).get("include_usage"):
        events.append(data_event({**base, "choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return Answer(200, [("content-type", "text/event-stream; charset=utf-8")], events=events)


def embeddings(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/embeddings."""
    model = need(request, "model", str)
    given = need(request, "input", (str, list))
    inputs = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    data = []
    for index, each in enumerate(inputs):
        found: Any = vector(str(each), int(request.get("dimensions") or 8))
        if request.get("encoding_format") == "base64":
            found = base64.b64encode(struct.pack(f"<{len(found)}f", *found)).decode()
        data.append({"object": "embedding", "index": index, "embedding": found})
    prompt = tokens_in(given)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return json_answer(200, {"object": "list", "data": data, "model": model, "usage": usage})


# -- Anthropic


def anthropic_error(refusal: Refusal) -> Answer:
    return json_answer(
        refusal.status,
        {"type": "error", "error": {"type": refusal.kind, "message": refusal.message}, "request_id": "req_sim"},
    )


def _check_messages(request: dict[str, Any]) -> None:
    asked: list[str] = []
    for index, message in enumerate(need(request, "messages", list)):
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant") or not isinstance(content, str | list):
            raise Refusal(400, "invalid_request_error", f"messages.{index}: invalid role or content")
        blocks = content if isinstance(content, list) else []
        answered = [block["tool_use_id"] for block in blocks if block.get("type") == "tool_result"]
        if set(answered) != set(asked):
            raise Refusal(
                400, "invalid_request_error", f"messages.{index}: tool_use ids without tool_result, or reverse"
            )
        kinds = [block.get("type") == "tool_result" for block in blocks]
        if kinds != sorted(kinds, reverse=True):
            raise Refusal(400, "invalid_request_error", f"messages.{index}: tool_result blocks come first")
        if any(block.get("type") == "text" and not block.get("text") for block in blocks):
            raise Refusal(400, "invalid_request_error", f"messages.{index}: text content blocks must be non-empty")
        asked = [block["id"] for block in blocks if block.get("type") == "tool_use"]


def messages(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/messages."""
    model = need(request, "model", str)
    limit = need(request, "max_tokens", int)
    _check_messages(request)
    content = _blocks(request, number, count)
    reason = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
    if content[-1]["type"] == "text" and count > limit:
        content[-1]["text"], reason = "".join(words(limit, number)), "max_tokens"
    prompt = tokens_in(request["messages"]) + tokens_in(request.get("system"))
    usage = {
        "input_tokens": prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": tokens_in(content),
    }
    base = {"id": f"msg_{number:08d}", "type": "message", "role": "assistant", "model": model}
    if request.get("stream"):
        return _messages_stream(base, content, reason, usage)
    end = {"stop_reason": reason, "stop_sequence": None, "usage": usage}
    return json_answer(200, {**base, "content": content, **end})


def _blocks(request: dict[str, Any], number: int, count: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if (request.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
        blocks.append({"type": "thinking", "thinking": "let me think", "signature": f"sig-{number:08d}=="})
    choice = request.get("tool_choice") or {}
    tools = request.get("tools") or []
    last = request["messages"][-1]["content"] if request["messages"] else ""
    answered = isinstance(last, list) and any(block.get("type") == "tool_result" for block in last)
    if tools and not answered and choice.get("type") != "none":
        most = 1 if choice.get("disable_parallel_tool_use") else 2
        blocks += [
            {
                "type": "tool_use",
                "id": f"toolu_{index:08d}",
                "name": tool["name"],
                "input": arguments_for(tool.get("input_schema")),
            }
            for index, tool in enumerate(tools[:most])
        ]
        return blocks
    return [*blocks, {"type": "text", "text": "".join(words(count, number))}]


def _messages_stream(base: dict[str, Any], content: list[dict[str, Any]], reason: str, usage: dict[str, Any]) -> Answer:
    start = {**base, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}
    events = [named_event({"type": "message_start", "message": start}), named_event({"type": "ping"})]
    for index, block in enumerate(content):
        events += _block_events(index, block)
    delta = {"stop_reason": reason, "stop_sequence": None}
    tail = {"output_tokens": usage["output_tokens"]}
    events.append(named_event({"type": "message_delta", "delta": delta, "usage": tail}))
    events.append(named_event({"type": "message_stop"}))
    return Answer(200, [("content-type", "text/event-stream; charset=utf-8")], events=events)


def _block_events(index: int, block: dict[str, Any]) -> list[bytes]:
    deltas: list[dict[str, Any]]
    if block["type"] == "text":
        empty = {"type": "text", "text": ""}
        pieces = block["text"].split(" ")
        texts = [piece if number == 0 else f" {piece}" for number, piece in enumerate(pieces)]
        deltas = [{"type": "text_delta", "text": text} for text in texts]
    elif block["type"] == "thinking":
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in ("let me", " think")]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    else:
        empty = {**block, "input": {}}
        text = encode(block["input"]).decode()
        deltas = [{"type": "input_json_delta", "partial_json": text[at : at + 7]} for at in range(0, len(text), 7)]
    return [
        named_event({"type": "content_block_start", "index": index, "content_block": empty}),
        *(named_event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        named_event({"type": "content_block_stop", "index": index}),
    ]


def count_tokens(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/messages/count_tokens."""
    need(request, "model", str)
    total = tokens_in(need(request, "messages", list)) + tokens_in(request.get("system"))
    return json_answer(200, {"input_tokens": total})
