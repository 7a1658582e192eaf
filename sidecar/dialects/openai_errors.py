"""Errors as OpenAI's dialects word them, and as the compatible providers do, under any status and inside answers."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sidecar.dialects.neutral import Fault
from sidecar.wire import body, sse

_PLAIN_BYTES: Final = 2048
_TITLE: Final = re.compile(r"<title>([^<]*)</title>", re.IGNORECASE)
_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    408: "timeout",
    409: "conflict_error",
    424: "server_error",
    429: "rate_limit_error",
    498: "server_error",
    504: "timeout",
}
# Reasons to finish that are none: OpenRouter's and Mistral's, vLLM's, DeepSeek's.
BROKEN_OFF: Final = ("error", "abort", "insufficient_system_resource")
# What an error inside an answer calls itself, as the status that it would have had.
_STATUSES: Final = {
    "invalid_request_error": 400,
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
    "authentication_error": 401,
    "payment_required": 402,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 503,
    "provider_overloaded": 503,
    "service_unavailable_error": 503,
    "timeout": 504,
}


class _Errors(msgspec.Struct):
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None
    status_code: Any = None


_errors = msgspec.json.Decoder(_Errors)


def fault_in(data: bytes) -> str | None:
    """The message of a top-level `error` in a chunk or body, if it has one."""
    fault = read_fault(data)
    return fault.message if fault is not None else None


def read_fault(data: bytes) -> Fault | None:
    """The error that a chunk, or a body under status 200, may be instead of what was asked for."""
    if b'"error"' not in data:
        return None
    try:
        found = _errors.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.error:
        return fault_of(found.error, found.status_code, found.code)
    if found.object == "error":  # vLLM before 0.10, Mistral
        return fault_of({"message": found.message, "code": found.code}, found.status_code, None)
    return None


def fault_of(error: Any, *outer: Any) -> Fault:
    """An error inside an answer. Its status is the one it names, or its type stands for; else the provider failed."""
    members: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    metadata = members.get("metadata")
    kind = metadata.get("error_type") if isinstance(metadata, dict) else None
    hints = (members.get("code"), members.get("status_code"), *outer, kind, members.get("type"))
    return Fault(
        status=next((status for hint in hints if (status := _status_of(hint)) is not None), 502),
        message=_text(members.get("message")) or "an error without a message",
        code=_text(members.get("code")) or next(filter(None, map(_text, outer)), None) or "provider_error_in_answer",
        param=_text(members.get("param")),
    )


def _status_of(hint: Any) -> int | None:
    if isinstance(hint, str):
        status = int(hint) if len(hint) == 3 and hint.isascii() and hint.isdigit() else 0
        return status if 400 <= status < 600 else _STATUSES.get(hint)
    return hint if isinstance(hint, int) and 400 <= hint < 600 else None


def read_error(status: int, data: bytes) -> Fault:
    """Any provider's error body: OpenAI's, xAI's flat one, `detail` of FastAPI's, plain text, HTML, nothing."""
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _plain(data)
    if isinstance(value, list) and value:  # Google's compatible API puts its error into a list
        value = value[0]
    error = value.get("error") or value if isinstance(value, dict) else value
    members: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    outer: dict[str, Any] = value if isinstance(value, dict) else {}
    message = next(filter(None, (_text(members.get(name)) for name in ("message", "detail", "error", "errors"))), None)
    return Fault(
        status=status,
        message=message or f"the provider answered with status {status}",
        type=_text(members.get("type")) or "",
        code=_text(members.get("code")) or _text(outer.get("code")),
        param=_text(members.get("param")),
    )


def _plain(data: bytes) -> str:
    """What a proxy on the way has to say: its text, or the title of its page."""
    text = data[:_PLAIN_BYTES].decode("utf-8", "replace").strip()
    if not text.startswith("<"):
        return text
    title = _TITLE.search(text)
    return title[1].strip() if title is not None else ""


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
