"""What OpenAI's dialects (chat, completions, embeddings) have in common: errors, usage, and the meters that watch for it."""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

import msgspec

from sidecar.dialects.neutral import Fault
from sidecar.errors import BodyInvalid
from sidecar.types import Envelope, Usage, View
from sidecar.wire import body, sse

_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_ENDING: Final = re.compile(rb'\[DONE\]|"finish_reason"\s*:\s*"')
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)")
_TAIL_BYTES: Final = 64 * 1024
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout",
}


class _PromptDetails(msgspec.Struct):
    cached_tokens: float | None = None
    cache_write_tokens: float | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: float | None = None


class WireUsage(msgspec.Struct):
    """`usage` as the compatible providers send it; counts are floats at some of them."""

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: float | None = None  # DeepSeek
    reasoning_tokens: float | None = None  # Perplexity

    def neutral(self) -> Usage:
        prompt, completion = int(self.prompt_tokens or 0), int(self.completion_tokens or 0)
        details = self.prompt_tokens_details or _PromptDetails()
        reasoning = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        reasoning_tokens = int(reasoning or self.reasoning_tokens or 0)
        total = int(self.total_tokens or 0)
        # xAI counts reasoning outside of completion_tokens; its total tells (prompt + completion + reasoning).
        if reasoning_tokens and total == prompt + completion + reasoning_tokens:
            completion += reasoning_tokens
        return Usage(
            input=prompt,
            output=completion,
            cached=int(details.cached_tokens or self.prompt_cache_hit_tokens or 0),
            cache_write=int(details.cache_write_tokens or 0),
            reasoning=reasoning_tokens,
        )


class _Groq(msgspec.Struct):
    usage: WireUsage | None = None


class _Chunk(msgspec.Struct):
    usage: WireUsage | None = None
    choices: list[msgspec.Raw] | None = None
    x_groq: _Groq | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_raw_usage = msgspec.json.Decoder(WireUsage)


def write_usage(usage: Usage) -> dict[str, object]:
    """`usage` as OpenAI sends it."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


# -- view


def read_view(members: Envelope) -> View:
    """Model, stream, usage event, token bound. Raises BodyInvalid naming the member."""
    raw_model = members.get("model")
    if raw_model is None:
        raise BodyInvalid("the member 'model' is missing", param="model")
    model = body.view(raw_model, str, "model")
    if not model:
        raise BodyInvalid("the member 'model' is empty", param="model")
    raw_stream = members.get("stream")
    stream = raw_stream is not None and bool(body.view(raw_stream, bool | None, "stream"))
    include = False
    if stream and (options := members.get("stream_options")) is not None:
        include = bool((body.view(options, _StreamOptions | None, "stream_options") or _StreamOptions()).include_usage)
    limit: int | None = None
    for name in ("max_completion_tokens", "max_tokens"):
        if limit is None and (raw := members.get(name)) is not None:
            limit = body.view(raw, int | None, name)
    return View(model=model, stream=stream, include_usage=include, max_tokens=limit)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


def ask_usage(members: Envelope) -> bool:
    """Add `stream_options.include_usage`, other options kept as they were written."""
    raw = members.get("stream_options")
    options: Envelope = {}
    if raw is not None:
        options = body.view(raw, dict[str, msgspec.Raw] | None, "stream_options") or {}
        if bytes(options.get("include_usage", b"")) == b"true":
            return False
    options["include_usage"] = msgspec.Raw(b"true")
    members["stream_options"] = body.raw(options)
    return True


# -- meters


class StreamMeter:
    """Watches a stream of chunks: finds usage by searching bytes, and decodes only the event that holds it."""

    __slots__ = ("_hide", "_last", "fault", "usage")

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide = hide_usage
        self._last: deque[bytes] = deque(maxlen=8)  # the end may be followed by usage, filters' results and comments
        self.usage: Usage | None = None
        self.fault: str | None = None

    def feed(self, block: bytes) -> bytes:
        self._last.append(block)
        if b'"error"' in block:
            self._look_for_fault(block)
        if b'"usage"' in block and _USAGE.search(block) is not None:
            return self._read_usage(block)
        return block

    @property
    def ended(self) -> bool:
        """[DONE] came; or a finish_reason, behind which some providers leave it out."""
        return any(_ENDING.search(block) for block in self._last)

    def _read_usage(self, block: bytes) -> bytes:
        start = 0
        kept: list[bytes] = []
        for match in _EVENT_END.finditer(block):
            event = block[start : match.end()]
            start = match.end()
            if _USAGE.search(event) is not None and self._is_usage_only(event) and self._hide:
                comments = event[: max(event.find(b"data:"), 0)]
                event = comments
            kept.append(event)
        kept.append(block[start:])
        return block if not self._hide else b"".join(kept)

    def _is_usage_only(self, event: bytes) -> bool:
        for found in sse.events(event):
            try:
                chunk = _chunk.decode(found.data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            usage = chunk.usage or (chunk.x_groq.usage if chunk.x_groq is not None else None)
            if usage is not None:
                self.usage = usage.neutral()
                return chunk.choices == []
        return False

    def _look_for_fault(self, block: bytes) -> None:
        for event in sse.events(block):
            if (message := fault_in(event.data)) is not None:
                self.fault = message


class UnaryMeter:
    """Watches one body. Keeps at most its last 64 KiB: usage stands at the end of long ones."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> bytes:
        self._pieces.append(block)
        self._size += len(block)
        if self._size > 2 * _TAIL_BYTES:
            self._pieces = [b"".join(self._pieces)[-_TAIL_BYTES:]]
            self._size = _TAIL_BYTES
        return block

    @property
    def usage(self) -> Usage | None:
        data = b"".join(self._pieces)
        match = None
        for match in _USAGE.finditer(data):
            pass  # the last: a tool's arguments may have one too, but not behind it
        if match is None:
            return None
        try:
            return _raw_usage.decode(_object_at(data, match.end() - 1)).neutral()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def ended(self) -> bool:
        return True

    @property
    def fault(self) -> str | None:
        return fault_in(b"".join(self._pieces)) if self._size <= _TAIL_BYTES else None


def meter(*, stream: bool, hide_usage: bool) -> StreamMeter | UnaryMeter:
    return StreamMeter(hide_usage=hide_usage) if stream else UnaryMeter()


_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)


def _object_at(data: bytes, start: int) -> bytes:
    """The JSON object that opens at `start`, to its closing brace."""
    depth = 0
    for match in _TOKENS.finditer(data, start):
        brace = match[0]
        if brace == b"{":
            depth += 1
        elif brace == b"}":
            depth -= 1
            if depth == 0:
                return data[start : match.end()]
    return b""


# -- errors


class _Errors(msgspec.Struct):
    error: Any = None


_errors = msgspec.json.Decoder(_Errors)


def fault_in(data: bytes) -> str | None:
    """The message of a top-level `error` in a chunk or body, if it has one."""
    if b'"error"' not in data:
        return None
    try:
        error = _errors.decode(data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not error:
        return None
    return _text(error.get("message") if isinstance(error, dict) else error) or "an error without a message"


def read_error(status: int, data: bytes) -> Fault:
    """Any provider's error body: OpenAI's, xAI's flat one, Mistral's and FastAPI's `detail`, plain text, HTML, nothing."""
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    error = value.get("error", value) if isinstance(value, dict) else value
    if isinstance(error, str):
        code = value.get("code") if isinstance(value, dict) else None
        return Fault(status=status, message=error, type=error_type(status), code=_text(code))
    if isinstance(error, dict):
        message = _text(error.get("message")) or _text(error.get("detail")) or _text(error.get("error"))
        return Fault(
            status=status,
            message=message or f"the provider answered with status {status}",
            type=_text(error.get("type")) or error_type(status),
            code=_text(error.get("code")),
            param=_text(error.get("param")),
        )
    return Fault(status=status, message=f"the provider answered with status {status}", type=error_type(status))


def write_error(fault: Fault) -> bytes:
    return body.encode({"error": _shape(fault)})


def write_stream_error(fault: Fault) -> bytes:
    """A data line with a top-level `error`, which the SDKs raise; no [DONE] behind it, for nothing was done."""
    return sse.write(body.encode({"error": _shape(fault)}))


def error_type(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def _shape(fault: Fault) -> dict[str, object]:
    return {
        "message": fault.message,
        "type": fault.type or error_type(fault.status),
        "param": fault.param,
        "code": fault.code,
    }


def _text(value: Any) -> str | None:
    """A member that should be a string; numbers and structures as JSON."""
    if value is None or value == "" or value == []:
        return None
    return value if isinstance(value, str) else body.encode(value).decode()


def nothing(members: Envelope) -> bytes | None:
    """These dialects have no answer that needs no provider."""
    return None
