"""How other providers depart from OpenAI's form, as their documents have it: edits of an answer, a small function each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from sidecar.simulator.answers import Answer, data_event, encode

Edit = Callable[[Answer], Answer]


def _each(answer: Answer, edit: Callable[[dict[str, Any]], None]) -> Answer:
    """Apply an edit to the body, or to every chunk."""
    if answer.events is None:
        if answer.status == 200:
            value = msgspec.json.decode(answer.body)
            edit(value)
            answer.body = encode(value)
        return answer
    for index, event in enumerate(answer.events):
        if event.startswith(b"data: {"):
            chunk = msgspec.json.decode(event[6:])
            edit(chunk)
            answer.events[index] = data_event(chunk)
    return answer


def _xai(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        if usage := value.get("usage"):  # reasoning is counted beside completion_tokens, not inside
            usage["completion_tokens_details"] = {"reasoning_tokens": 5}
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"] + 5
            usage["num_sources_used"] = 0

    return _each(answer, edit)


def _openrouter(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        value["provider"] = "Simulated"
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
    def edit(value: dict[str, Any]) -> None:
        if usage := value.get("usage"):
            usage["prompt_cache_hit_tokens"] = 0
            usage["prompt_cache_miss_tokens"] = usage["prompt_tokens"]

    answer = _each(answer, edit)
    if answer.events is not None:
        answer.events.insert(1, b": keep-alive\n\n")
    elif answer.status == 200:
        answer.body = b"\n\n" + answer.body
    return answer


def _groq(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        value["x_groq"] = {"id": "req_groq"}
        if usage := value.get("usage"):
            usage["queue_time"] = 0.01

    return _each(answer, edit)


def _perplexity(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        value["citations"] = ["https://example.com"]
        value["usage"] = value.get("usage") or {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "citation_tokens": 0,
        }

    return _each(answer, edit)


def _llamacpp(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        value["timings"] = {"prompt_n": 1, "predicted_n": 16}

    return _each(answer, edit)


def _together(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        for choice in value.get("choices", ()):
            if choice.get("finish_reason") == "stop":
                choice["finish_reason"] = "eos"

    return _each(answer, edit)


def _cerebras(answer: Answer) -> Answer:
    def edit(value: dict[str, Any]) -> None:
        value["time_info"] = {"queue_time": 0.0001, "total_time": 0.01}

    return _each(answer, edit)


def _azure(answer: Answer) -> Answer:
    if answer.events is not None:
        first = {"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
        answer.events.insert(0, data_event(first))
    return answer


def _same(answer: Answer) -> Answer:
    return answer


EDITS: Final[dict[str, Edit]] = {
    "xai": _xai,
    "openrouter": _openrouter,
    "deepseek": _deepseek,
    "groq": _groq,
    "perplexity": _perplexity,
    "llamacpp": _llamacpp,
    "together": _together,
    "cerebras": _cerebras,
    "azure": _azure,
}


def flavoured(answer: Answer, flavour: str) -> Answer:
    """The answer as that provider would give it; errors in that provider's shape."""
    if answer.status >= 400:
        return _error(answer, flavour)
    return EDITS.get(flavour, _same)(answer)


def _error(answer: Answer, flavour: str) -> Answer:
    value = msgspec.json.decode(answer.body)
    error = value.get("error")
    if not isinstance(error, dict) or value.get("type") == "error":
        return answer
    shapes: dict[str, Any] = {
        "xai": {"code": error.get("type"), "error": error["message"]},
        "huggingface": {"error": error["message"]},
        "mistral": {"object": "error", "message": error["message"], "type": error.get("type"), "code": "1000"},
        "openrouter": {"error": {"code": answer.status, "message": error["message"], "metadata": {}}},
        "vllm": {"error": {**error, "code": answer.status}},
    }
    if flavour == "blackbox":
        answer.headers = [("content-type", "text/html")]
        answer.body = b"<html><body><h1>%d</h1>%b</body></html>" % (answer.status, error["message"].encode())
    elif flavour in shapes:
        answer.body = encode(shapes[flavour])
    return answer
