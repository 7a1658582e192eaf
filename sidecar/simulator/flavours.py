"""How other providers depart from OpenAI's form, as their documents have it: small edits of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from sidecar.simulator.answers import DONE, Answer, data_event, encode

Value = dict[str, Any]
Edit = Callable[[Answer], Answer]

# Where the text of reasoning stands in a message or delta; None = the provider does not show it.
REASONING: Final[dict[str, str | None]] = {
    "openai": None, "azure": None, "perplexity": None, "blackbox": None, "groq": "reasoning", "together": "reasoning",
    "cerebras": "reasoning", "ollama": "reasoning", "vllm": "reasoning", "openrouter": "reasoning", "mistral": "list",
}  # fmt: skip  # every other: reasoning_content


def _each(answer: Answer, edit: Callable[[Value], None]) -> Answer:
    """Apply an edit to the completion, or to every chunk of it."""
    if answer.events is None:
        value = msgspec.json.decode(answer.body)
        if "choices" in value:
            edit(value)
            answer.body = encode(value)
        return answer
    for index, event in enumerate(answer.events):
        if event.startswith(b"data: {"):
            chunk = msgspec.json.decode(event[6:])
            edit(chunk)
            answer.events[index] = data_event(chunk)
    return answer


def _choices(value: Value) -> list[tuple[Value, Value]]:
    """Each choice of a completion or chunk with its message or delta."""
    return [(choice, choice.get("message") or choice.get("delta") or {}) for choice in value["choices"]]


def _xai(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        for choice, _ in _choices(value):
            if choice.get("finish_reason") == "tool_calls":
                choice["finish_reason"] = ""
        if usage := value.get("usage"):  # reasoning is counted beside completion_tokens, not inside
            thought = usage["completion_tokens_details"]["reasoning_tokens"]
            usage["completion_tokens"] -= thought
            usage["completion_tokens_details"] = {"reasoning_tokens": thought or 5}
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"] + (thought or 5)
            usage["num_sources_used"] = 0

    return _each(answer, edit)


def _openrouter(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        value["provider"] = "Simulated"
        for choice, _ in _choices(value):
            choice["native_finish_reason"] = choice["finish_reason"]
        if usage := value.get("usage"):
            usage["cost"] = 0.00012

    if answer.events is not None:
        answer.events[:0] = [b": OPENROUTER PROCESSING\n\n"] * 2
        if not any(b'"usage":{' in event for event in answer.events):  # it tells usage always
            usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
            answer.events.insert(-1, data_event({"id": "gen-1", "choices": [], "usage": usage}))
    answer.headers.append(("x-generation-id", "gen-sim"))
    return _each(answer, edit)


def _deepseek(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        if usage := value.get("usage"):
            usage["prompt_cache_hit_tokens"] = usage["prompt_tokens"] // 2
            usage["prompt_cache_miss_tokens"] = usage["prompt_tokens"] - usage["prompt_cache_hit_tokens"]

    answer = _each(answer, edit)
    if answer.events is not None:
        answer.events.insert(1, b": keep-alive\n\n")
    else:
        answer.body = b"\n\n" + answer.body
    return answer


def _groq(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        value["x_groq"] = {"id": "req_groq"}
        if usage := value.get("usage"):
            usage["queue_time"] = 0.01
            value["x_groq"]["usage"] = dict(usage)

    return _each(answer, edit)


def _mistral(answer: Answer) -> Answer:
    """Short ids of calls, which come whole, and lists of content where there is thinking."""

    def edit(value: Value) -> None:
        for _, said in _choices(value):
            for call in said.get("tool_calls") or ():
                if "id" in call:
                    call["id"] = call["id"].replace("call_", "")
            if thought := said.pop("reasoning_content", None):
                parts: list[Value] = [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}]
                text = [{"type": "text", "text": said["content"]}] if said.get("content") else []
                said["content"] = [*parts, *text]

    return _each(answer, edit)


def _perplexity(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        value["citations"] = ["https://example.com"]
        value["usage"] = value.get("usage") or {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "citation_tokens": 0,
        }

    return _each(answer, edit)


def _llamacpp(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        value["timings"] = {"prompt_n": 1, "predicted_n": 16}

    return _each(answer, edit)


def _together(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        for choice, _ in _choices(value):
            if choice.get("finish_reason") == "stop":
                choice["finish_reason"] = "eos"

    return _each(answer, edit)


def _cerebras(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        value["time_info"] = {"queue_time": 0.0001, "total_time": 0.01}

    return _each(answer, edit)


def _vllm(answer: Answer) -> Answer:
    def edit(value: Value) -> None:
        for choice, _ in _choices(value):
            choice["stop_reason"] = None

    return _each(answer, edit)


def _azure(answer: Answer) -> Answer:
    if answer.events is not None:
        first = {"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
        answer.events.insert(0, data_event(first))
    return answer


EDITS: Final[dict[str, Edit]] = {
    "xai": _xai,
    "openrouter": _openrouter,
    "deepseek": _deepseek,
    "groq": _groq,
    "mistral": _mistral,
    "perplexity": _perplexity,
    "llamacpp": _llamacpp,
    "together": _together,
    "cerebras": _cerebras,
    "vllm": _vllm,
    "azure": _azure,
}


def flavoured(answer: Answer, flavour: str) -> Answer:
    """OpenAI's answer as that provider would give it; errors in that provider's shape."""
    if answer.status >= 400:
        return _error(answer, flavour)
    name = REASONING.get(flavour, "reasoning_content")
    thinks = any(b"reasoning_content" in piece for piece in answer.events or (answer.body,))
    if thinks and name not in ("reasoning_content", "list"):
        answer = _each(answer, lambda value: _rename_reasoning(value, name))
    return EDITS[flavour](answer) if flavour in EDITS else answer


def _rename_reasoning(value: Value, name: str | None) -> None:
    for _, said in _choices(value):
        thought = said.pop("reasoning_content", None)
        if thought is not None and name is not None:
            said[name] = thought


def _error(answer: Answer, flavour: str) -> Answer:
    error = msgspec.json.decode(answer.body)["error"]
    if flavour == "blackbox":
        answer.headers = [pair for pair in answer.headers if pair[0] != "content-type"]
        answer.headers.append(("content-type", "text/html"))
        answer.body = b"<html><body><h1>%d</h1>%b</body></html>" % (answer.status, error["message"].encode())
        return answer
    answer.body = encode(error_body(error, answer.status, flavour))
    return answer


def error_body(error: Value, status: int, flavour: str) -> Value:
    """An error of OpenAI's in the shape of another."""
    message, kind = error["message"], error["type"]
    if flavour == "mistral" and status == 422:
        return {"detail": [{"loc": ["body", error.get("param")], "msg": message, "type": "extra_forbidden"}]}
    shapes: dict[str, Value] = {
        "xai": {"code": kind, "error": message},
        "huggingface": {"error": message},
        "mistral": {"object": "error", "message": message, "type": kind, "param": None, "code": "1000"},
        "openrouter": {"error": {"code": status, "message": message, "metadata": {}}},
        "perplexity": {"error": {"message": message, "type": kind, "code": status}},
        "vllm": {"error": {**error, "code": status}},
        "llamacpp": {"error": {"code": status, "message": message, "type": kind}},
        "cerebras": {"message": message, "type": kind, "param": error.get("param"), "code": error.get("code")},
    }
    return shapes.get(flavour, {"error": error})


def broken(flavour: str) -> list[bytes]:
    """The events with which that provider ends a stream that went wrong."""
    error = {"message": "the simulated model broke", "type": "server_error", "param": None, "code": "server_error"}
    if flavour == "openrouter":
        metadata = {"error_type": "provider_unavailable"}
        choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error", "native_finish_reason": None}
        value = {**error_body({**error, "code": 502}, 502, flavour), "id": "gen-1", "object": "chat.completion.chunk"}
        value["error"]["metadata"] = metadata
        return [data_event({**value, "provider": "Simulated", "choices": [choice]})]
    if flavour == "groq":
        return [b"event: error\n" + data_event({"error": {**error, "status_code": 500}})]
    if flavour == "cerebras":
        return [data_event({"error": error, "status_code": 500})]
    if flavour == "vllm":
        return [data_event({"error": {**error, "code": 500}}), DONE]
    if flavour in ("xai", "huggingface"):
        return [data_event(error_body(error, 500, flavour))]
    return [data_event({"error": error})]


# Names of the headers that tell what is left: limit, remaining, reset of requests, and the same of tokens.
_SIX: Final = tuple(
    f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
LIMITS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("openai", "azure", "groq", "together", "fireworks"), _SIX),
    "xai": tuple(name for name in _SIX if "reset" not in name),
    "cerebras": tuple(name.replace("requests", "requests-day").replace("tokens", "tokens-minute") for name in _SIX),
    "mistral": ("x-ratelimit-remaining",),
}

SPENT: Final[dict[str, tuple[str, ...]]] = {
    "openrouter": ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
}


_LIMIT: Final = 30_000  # requests a minute: so many that whoever goes by it is not held back in front of a simulation


def limit_headers(flavour: str, *, anthropic: bool, seconds: int | None = None) -> list[tuple[str, str]]:
    """What is left, in the form of that provider; nothing, for so many seconds, when these are given."""
    left = 0 if seconds is not None else _LIMIT - 1
    again = seconds or 1
    if anthropic:
        headers = [
            ("anthropic-ratelimit-requests-limit", str(_LIMIT)),
            ("anthropic-ratelimit-requests-remaining", str(left)),
            ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:00Z"),
        ]
    else:
        names = LIMITS.get(flavour, ())
        if seconds is not None:
            names = SPENT.get(flavour, names)
        reset = {"cerebras": f"{again}.0", "openrouter": f"{1_767_225_600_000 + again * 1000}"}.get(
            flavour, f"{again}s"
        )
        headers = [(name, _limit_value(name, left, reset)) for name in names]
    return [("retry-after", str(seconds)), *headers] if seconds is not None else headers


def _limit_value(name: str, left: int, reset: str) -> str:
    if "reset" in name:
        return reset
    many = 1000 if "tokens" in name else 1
    return str((left if "remaining" in name else _LIMIT) * many)
