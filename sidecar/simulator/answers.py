"""What the simulated provider says: answers of both APIs, computed from the request alone, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any, Final

import msgspec

from sidecar.simulator.checks import Refusal

WORDS: Final = [
    "the", "sidecar", "streams", "every", "token", "as", "it", "comes", "and", "counts", "it", "while", "the", "bytes",
    "go", "by", "so", "that", "nobody", "waits", "for", "what", "is", "already", "there", "even", "when", "the",
    "answer", "is", "long", "naïve", "or", "full", "of", "“quotes”", "and", "漢字", "and", "🙂", "all", "the", "same",
]  # fmt: skip


THOUGHT: Final = ["let", " me", " think"]
DONE: Final = b"data: [DONE]\n\n"


class Said(msgspec.Struct, kw_only=True):
    """What a choice of a chat completion says."""

    text: list[str]
    calls: list[dict[str, Any]]
    thought: list[str]
    reason: str
    usage: dict[str, Any]


class Answer(msgspec.Struct):
    """An answer before it is framed: one body, or the events of a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    events: list[bytes] | None = None


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


def tokens_of_prompt(prompt: Any) -> int:
    """The same of a prompt that may be given as token numbers."""
    if isinstance(prompt, list):
        return sum(1 if isinstance(each, int) else tokens_of_prompt(each) for each in prompt)
    return tokens_in(prompt)


_VALUES: Final[dict[str, Any]] = {
    "string": "Paris",
    "integer": 9007199254740993,  # more than a double holds
    "number": 1.5,
    "boolean": True,
    "array": [],
}


def arguments_for(schema: Any) -> dict[str, Any]:
    """Arguments that fit a tool's schema well enough: a value of its type for each property."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return {name: _value_for(each) for name, each in properties.items()} if isinstance(properties, dict) else {}


def _value_for(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return {}
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _VALUES.get(kind, {}) if isinstance(kind, str) else {}


def data_event(value: Any) -> bytes:
    return b"data: %b\n\n" % encode(value)


def named_event(value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode(value))


def vector(text: str, dimensions: int) -> list[float]:
    """A unit-free vector that depends on the text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return [round(digest[index % 32] / 255 - 0.5, 6) for index in range(dimensions)]


# -- OpenAI


_KINDS: Final = {  # Anthropic's name of an error -> OpenAI's type and code
    "authentication_error": ("invalid_request_error", "invalid_api_key"),
    "not_found_error": ("invalid_request_error", "model_not_found"),
    "rate_limit_error": ("requests", "rate_limit_exceeded"),
    "billing_error": ("insufficient_quota", "insufficient_quota"),
    "api_error": ("server_error", None),
    "overloaded_error": ("service_unavailable_error", None),
}


def openai_error(refusal: Refusal) -> Answer:
    kind, code = _KINDS.get(refusal.kind, (refusal.kind, None))
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code or code}
    return json_answer(refusal.status, {"error": error})


def openai_usage(prompt: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _wanted(tools: list[dict[str, Any]], named: str | None, *, parallel: bool) -> list[dict[str, Any]]:
    """The tools to call: the one that was named, else the first two, or one."""
    if named is not None:
        return [tool for tool in tools if (tool.get("function") or tool).get("name") == named][:1]
    return tools[: 2 if parallel else 1]


def _calls(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Tool calls to make: up to two, unless they are unwanted, or have been answered already."""
    choice = request.get("tool_choice")
    if choice == "none" or request["messages"][-1]["role"] == "tool":
        return []
    tools = [tool for tool in request.get("tools") or () if tool["type"] == "function"]
    named = (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    return [
        {
            "id": f"call_{index:09d}",
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "arguments": encode(arguments_for(tool["function"].get("parameters"))).decode(),
            },
        }
        for index, tool in enumerate(_wanted(tools, named, parallel=request.get("parallel_tool_calls") is not False))
    ]


def chat(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/chat/completions."""
    base = {"id": f"chatcmpl-{number:08d}", "created": 1_700_000_000 + number, "model": request["model"]}
    calls = _calls(request)
    text = [] if calls else words(count, number)
    if (request.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        text = [] if calls else ['{"ok"', ":true}"]
    thought = THOUGHT if request.get("reasoning_effort") not in (None, "none") else []
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    reason = "tool_calls" if calls else "stop"
    if limit is not None and len(text) > limit:
        text, reason = text[:limit], "length"
    choices = range(request.get("n") or 1)
    said = (len(text) or sum(tokens_in(call) for call in calls)) + len(thought)
    usage = openai_usage(tokens_in(request["messages"]), said * len(choices), len(thought) * len(choices))
    said_as = Said(text=text, calls=calls, thought=thought, reason=reason, usage=usage)
    if request.get("stream"):
        return _chat_stream(request, base, said_as, choices)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(text) if text else None, "refusal": None}
    if thought:
        message["reasoning_content"] = "".join(thought)
    if calls:
        message["tool_calls"] = calls
    done = [{"index": each, "message": message, "logprobs": None, "finish_reason": reason} for each in choices]
    return json_answer(200, {**base, "object": "chat.completion", "choices": done, "usage": usage})


def _chat_stream(request: dict[str, Any], base: dict[str, Any], said: Said, choices: range) -> Answer:
    include = bool((request.get("stream_options") or {}).get("include_usage"))
    base = {**base, "object": "chat.completion.chunk"}
    events: list[bytes] = []

    def say(delta: dict[str, Any], finish: str | None = None) -> None:
        for index in choices:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            chunk: dict[str, Any] = {**base, "choices": [choice]}
            if include:
                chunk["usage"] = None
            events.append(data_event(chunk))

    say({"role": "assistant", "content": "", "refusal": None})
    for token in said.thought:
        say({"reasoning_content": token})
    for token in said.text:
        say({"content": token})
    for index, call in enumerate(said.calls):
        arguments = call["function"]["arguments"]
        say({"tool_calls": [{"index": index, **call, "function": {"name": call["function"]["name"], "arguments": ""}}]})
        for at in range(0, len(arguments), 7):
            say({"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + 7]}}]})
    say({}, said.reason)
    if include:
        events.append(data_event({**base, "choices": [], "usage": said.usage}))
    return _event_stream([*events, DONE])


def _event_stream(events: list[bytes]) -> Answer:
    return Answer(200, [("content-type", "text/event-stream; charset=utf-8")], events=events)


def completions(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/completions: the choices of the first prompt, then those of the next."""
    prompt = request["prompt"]
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    choices = range((len(prompt) if several else 1) * (request.get("n") or 1))
    limit = request.get("max_tokens")
    text = words(count if limit is None else min(count, limit), number)
    reason = "stop" if len(text) == count else "length"
    base = {"id": f"cmpl-{number:08d}", "object": "text_completion", "created": 1_700_000_000 + number}
    base["model"] = request["model"]
    usage = openai_usage(tokens_of_prompt(prompt), len(text) * len(choices))

    def choice(index: int, said: str, finish: str | None) -> dict[str, Any]:
        return {"text": said, "index": index, "logprobs": None, "finish_reason": finish}

    if not request.get("stream"):
        return json_answer(
            200, {**base, "choices": [choice(index, "".join(text), reason) for index in choices], "usage": usage}
        )
    include = bool((request.get("stream_options") or {}).get("include_usage"))
    extra = {"usage": None} if include else {}
    said = [*((token, None) for token in text), ("", reason)]
    events = [
        data_event({**base, "choices": [choice(index, token, end)], **extra})
        for token, end in said
        for index in choices
    ]
    if include:
        events.append(data_event({**base, "choices": [], "usage": usage}))
    return _event_stream([*events, DONE])


def embeddings(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/embeddings."""
    given = request["input"]
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    data = []
    for index, each in enumerate(inputs):
        found: Any = vector(str(each), request.get("dimensions") or 8)
        if request.get("encoding_format") == "base64":
            found = base64.b64encode(struct.pack(f"<{len(found)}f", *found)).decode()
        data.append({"object": "embedding", "index": index, "embedding": found})
    prompt = tokens_of_prompt(given)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return json_answer(200, {"object": "list", "data": data, "model": request["model"], "usage": usage})


# -- Anthropic


def anthropic_error(refusal: Refusal, request_id: str) -> Answer:
    error = {"type": refusal.kind, "message": refusal.message}
    return json_answer(refusal.status, {"type": "error", "error": error, "request_id": request_id})


def messages(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/messages."""
    limit = request["max_tokens"]
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
    base = {"id": f"msg_{number:08d}", "type": "message", "role": "assistant", "model": request["model"]}
    if request.get("stream"):
        return _messages_stream(base, content, reason, usage)
    end = {"stop_reason": reason, "stop_sequence": None, "usage": usage}
    return json_answer(200, {**base, "content": content, **end})


def _blocks(request: dict[str, Any], number: int, count: int) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if (request.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
        blocks.append({"type": "thinking", "thinking": "".join(THOUGHT), "signature": f"sig-{number:08d}=="})
    choice = request.get("tool_choice") or {}
    tools = [tool for tool in request.get("tools") or () if "input_schema" in tool]  # the others run on its servers
    last = request["messages"][-1]["content"]
    answered = isinstance(last, list) and any(block["type"] == "tool_result" for block in last)
    if tools and not answered and choice.get("type") != "none":
        wanted = _wanted(tools, choice.get("name"), parallel=not choice.get("disable_parallel_tool_use"))
        blocks += [
            {
                "type": "tool_use",
                "id": f"toolu_{index:08d}",
                "name": tool["name"],
                "input": arguments_for(tool["input_schema"]),
            }
            for index, tool in enumerate(wanted)
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
    return _event_stream(events)


def _block_events(index: int, block: dict[str, Any]) -> list[bytes]:
    deltas: list[dict[str, Any]]
    empty: dict[str, Any]
    if block["type"] == "text":
        empty = {"type": "text", "text": ""}
        pieces = block["text"].split(" ")
        texts = [piece if number == 0 else f" {piece}" for number, piece in enumerate(pieces)]
        deltas = [{"type": "text_delta", "text": text} for text in texts]
    elif block["type"] == "thinking":
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in THOUGHT]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    else:
        empty = block | {"input": {}}
        text = encode(block["input"]).decode()
        deltas = [{"type": "input_json_delta", "partial_json": text[at : at + 7]} for at in range(0, len(text), 7)]
    return [
        named_event({"type": "content_block_start", "index": index, "content_block": empty}),
        *(named_event({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas),
        named_event({"type": "content_block_stop", "index": index}),
    ]


def count_tokens(request: dict[str, Any], number: int, count: int) -> Answer:
    """POST /v1/messages/count_tokens."""
    return json_answer(200, {"input_tokens": tokens_in(request["messages"]) + tokens_in(request.get("system"))})
