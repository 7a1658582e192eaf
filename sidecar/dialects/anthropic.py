"""What Anthropic's dialects (messages, count_tokens) have in common: errors, usage, stop reasons, and the meters."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import NOTHING, Fault, Stop, meant, says
from sidecar.errors import BodyInvalid
from sidecar.types import Envelope, Usage, View
from sidecar.wire import body, sse

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    424: "api_error",
    429: "rate_limit_error",
    498: "overloaded_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOPS: Final[dict[str, Stop]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_REASONS: Final[dict[Stop, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# What policy reads, and so in no other spelling; and what else is usual, so that most requests need no closer look.
_READ: Final = frozenset(("model", "stream", "max_tokens"))
_USUAL: Final = _READ.union(
    ("messages", "system", "temperature", "top_p", "top_k", "stop_sequences", "tools", "tool_choice", "thinking"),
    ("metadata", "output_config", "service_tier", "context_management"),
)
_TOO_LONG: Final = "prompt is too long"
_PLAIN_BYTES: Final = 2048


def stop_of(reason: Any, sequence: Any, details: Any) -> tuple[Stop, str | None, str | None]:
    """Why an answer ended, at which stop sequence, how a refusal is explained. Unknown reasons are an ordinary end."""
    stop = _STOPS.get(reason, "stop") if isinstance(reason, str) else "stop"
    told = details.get("explanation") if stop == "content_filter" and isinstance(details, dict) else None
    return stop, sequence if isinstance(sequence, str) else None, told if isinstance(told, str) else None


def write_stop(stop: Stop, sequence: str | None, refusal: str | None) -> dict[str, Any]:
    reason = "stop_sequence" if stop == "stop" and sequence is not None else _REASONS[stop]
    details = {"type": "refusal", "category": None, "explanation": refusal} if stop == "content_filter" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """`usage` of a message. In a stream each is cumulative: members overwrite what came before, nothing is added."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None

    def over(self, before: WireUsage | None) -> WireUsage:
        if before is None:
            return self
        return WireUsage(
            before.input_tokens if self.input_tokens is None else self.input_tokens,
            before.output_tokens if self.output_tokens is None else self.output_tokens,
            before.cache_creation_input_tokens
            if self.cache_creation_input_tokens is None
            else self.cache_creation_input_tokens,
            before.cache_read_input_tokens if self.cache_read_input_tokens is None else self.cache_read_input_tokens,
            self.output_tokens_details or before.output_tokens_details,
        )

    def neutral(self) -> Usage:
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        details = self.output_tokens_details
        return Usage(
            input=(self.input_tokens or 0) + read + written,
            output=self.output_tokens or 0,
            cached=read,
            cache_write=written,
            reasoning=(details.thinking_tokens or 0) if details is not None else 0,
        )


_usage = msgspec.json.Decoder(WireUsage | None)


def wire_usage(raw: msgspec.Raw) -> WireUsage | None:
    """`usage` as it stands in an answer, or nothing when it is none: counts never spoil an answer."""
    try:
        usage: WireUsage | None = _usage.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return usage


def read_usage(raw: msgspec.Raw) -> Usage | None:
    usage = wire_usage(raw)
    return usage.neutral() if usage is not None else None


def write_usage(usage: Usage | None) -> dict[str, int]:
    usage = usage or Usage()
    return {
        "input_tokens": max(usage.input - usage.cached - usage.cache_write, 0),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
    }


# -- view


def read_view(members: Envelope) -> View:
    """Model, stream, token bound. Raises BodyInvalid naming the member."""
    if not _USUAL.issuperset(members):
        body.check_names(members, _READ)
    raw_model = members.get("model")
    if raw_model is None:
        raise BodyInvalid("the member 'model' is missing", param="model")
    model = body.text(raw_model, "model")
    if not model:
        raise BodyInvalid("the member 'model' is empty", param="model")
    raw_stream, raw_limit = members.get("stream"), members.get("max_tokens")
    return View(
        model=model,
        stream=raw_stream is not None and body.flag(raw_stream, "stream"),
        include_usage=True,
        max_tokens=body.view(raw_limit, int | None, "max_tokens") if raw_limit is not None else None,
    )


def ask_usage(members: Envelope) -> bool:
    return False  # always told, and nothing to hide


def choices(members: Envelope) -> int:
    return 1


def nothing(members: Envelope) -> bytes | None:
    return None


# -- meters


class _Message(msgspec.Struct):
    usage: msgspec.Raw = NOTHING


class _Event(msgspec.Struct):
    type: Any = None
    message: _Message | None = None
    usage: msgspec.Raw = NOTHING
    error: Any = None

    @property
    def is_error(self) -> bool:
        """Also in OpenAI's form, of a gateway before the API."""
        return self.type == "error" or (self.type is None and bool(self.error))


_event = msgspec.json.Decoder(_Event)
_any = msgspec.json.Decoder()


def has_content(data: bytes) -> bool:
    """Whether an event holds the first of an answer: a block or a delta that says anything, or why the answer stops."""
    if not data.startswith((b"{", b" ", b"\t")):  # as [DONE]: there may be thousands, and each is looked at
        return False
    try:
        event = _any.decode(mended(data))
        if not isinstance(event, dict):
            return False
        kind, delta = event.get("type"), event.get("delta")
        if kind == "message_delta":
            return isinstance(delta, dict) and says(delta.get("stop_reason"))
        return kind in ("content_block_start", "content_block_delta") and (
            says(event.get("content_block")) or says(delta)
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


class StreamMeter:
    """Watches a stream: usage stands in message_start and message_delta, the end is message_stop."""

    __slots__ = ("_usage", "ended", "fault", "started")

    def __init__(self) -> None:
        self._usage: WireUsage | None = None
        self.started = False
        self.ended = False
        self.fault: Fault | None = None

    def start(self) -> None:
        self.started = True

    @property
    def closed(self) -> bool:
        """message_stop came."""
        return self.ended

    @property
    def usage(self) -> Usage | None:
        return self._usage.neutral() if self._usage is not None else None

    def feed(self, block: bytes) -> bytes:
        if not self.started and b"{" in block:  # until then each event is decoded
            self.started = any(has_content(event.data) for event in sse.events(block))
        if b'"usage"' in block or b'"message_stop"' in block or b'"error"' in block:
            for event in sse.events(block):
                self._read(event.data)
        return block

    def passes(self, block: bytes) -> bool:
        of_note = block.find(b'"usage"') & block.find(b'"message_stop"') & block.find(b'"error"')
        return of_note < 0  # -1 where there is none of them

    def _read(self, data: bytes) -> None:
        try:
            event = _event.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        usage = wire_usage(event.message.usage if event.message is not None else event.usage)
        if usage is not None:
            self._usage = usage.over(self._usage)
        if event.type == "message_stop":
            self.ended = True
        elif event.is_error:
            self.fault = fault_in_answer(event.error)


class UnaryMeter:
    """Watches one body, whole: the API bounds answers to some hundred KiB."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> bytes:
        if self._size < sse.MAX_EVENT_BYTES:
            self._pieces.append(block)
            self._size += len(block)
        return block

    def passes(self, block: bytes) -> bool:
        return False

    @property
    def usage(self) -> Usage | None:
        event = self._event()
        return read_usage(event.usage) if event is not None else None

    def start(self) -> None:
        """It has."""

    @property
    def started(self) -> bool:
        return self._size > 0

    @property
    def ended(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return False

    @property
    def fault(self) -> Fault | None:
        event = self._event()
        return fault_in_answer(event.error) if event is not None and event.is_error else None

    def _event(self) -> _Event | None:
        try:
            return _event.decode(b"".join(self._pieces))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def measure(data: bytes) -> tuple[Usage | None, Fault | None]:
    """A whole body, at once: its usage, and the error that it may be instead of an answer."""
    try:
        event = _event.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, None
    return read_usage(event.usage), fault_in_answer(event.error) if event.is_error else None


def meter(*, stream: bool, hide_usage: bool, choices: int = 1) -> StreamMeter | UnaryMeter:
    return StreamMeter() if stream else UnaryMeter()


# -- errors


def _message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else "an error without a message"


def read_error(status: int, data: bytes) -> Fault:
    """An error body; behind proxies and gateways it may be anything."""
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = data[:_PLAIN_BYTES].decode("utf-8", "replace").strip()
        if value.startswith("<"):  # a page of Cloudflare's
            value = None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        ident = value.get("request_id")
        return fault_of(status, error, ident if isinstance(ident, str) else None)
    told = error or (value.get("message") or value.get("detail") if isinstance(value, dict) else value)
    message = told if isinstance(told, str) else ""
    return Fault(status=status, message=message or f"the provider answered with status {status}")


def fault_of(status: int, error: Any, request_id: str | None = None) -> Fault:
    """An `error` object: its code is the finer one of `details` where there is one, else its type."""
    members: dict[str, Any] = error if isinstance(error, dict) else {}
    details = members.get("details")
    finer = details.get("error_code") if isinstance(details, dict) else None
    code = next((each for each in (finer, members.get("type")) if isinstance(each, str)), None)
    message = _message(error)
    if message.startswith(_TOO_LONG):
        code = "context_length_exceeded"  # the word that clients of other APIs look for
    return Fault(status=status, message=message, code=code, request_id=request_id)


def fault_in_answer(error: Any) -> Fault:
    """An error inside an answer. Its status is the one that its type stands for or it names or means, else 500."""
    members: dict[str, Any] = error if isinstance(error, dict) else {}
    kind, code = members.get("type"), members.get("code")
    status = STATUSES.get(kind) if isinstance(kind, str) else None
    if status is None and isinstance(code, int) and 400 <= code < 600:
        status = code
    return fault_of(status or meant(_message(error)) or 500, error)


def write_error(fault: Fault) -> bytes:
    return body.encode(_shape(fault))


def write_stream_error(fault: Fault) -> bytes:
    return sse.write(body.encode(_shape(fault)), "error")


def error_type(status: int) -> str:
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _shape(fault: Fault) -> dict[str, object]:
    error: dict[str, object] = {"type": error_type(fault.status), "message": fault.message}
    if fault.code is not None:
        error["code"] = fault.code
    if fault.param is not None:
        error["param"] = fault.param
    return {"type": "error", "error": error, "request_id": fault.request_id}
