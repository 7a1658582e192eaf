"""Errors as OpenAI's dialects word them, and as the compatible providers do, under any status and inside answers."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import Fault, meant
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
    "invalid_argument": 400,  # Google's words, as the status of an error
    "failed_precondition": 400,
    "context_length_exceeded": 400,
    "content_policy_violation": 400,
    "badrequesterror": 400,  # vLLM's
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "payment_required": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "overloaded_error": 503,
    "provider_overloaded": 503,
    "service_unavailable_error": 503,
    "service_unavailable": 503,
    "unavailable": 503,
    "timeout": 504,
    "deadline_exceeded": 504,
}


class _Errors(msgspec.Struct):
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None
    status_code: Any = None


_errors = msgspec.json.Decoder(_Errors)


def read_fault(data: bytes) -> Fault | None:
    """The error that a chunk, or a body under status 200, may be instead of what was asked for."""
    if b'"error"' not in data:
        return None
    try:
        found = _errors.decode(mended(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if found.error:
        return fault_of(found.error, found.status_code, found.code)
    if found.object == "error":  # vLLM before 0.10, Mistral
        return fault_of({"message": found.message, "code": found.code}, found.status_code, None)
    return None


def read_stray(data: bytes) -> Fault | None:
    """The error that a body without choices may be although it has no `error`: a bare `message`, FastAPI's `detail`."""
    value = msgspec.json.decode(data)
    told = next(filter(None, (_text(value.get(name)) for name in ("message", "detail", "msg"))), None)
    if told is None:
        return None
    members = {"message": told, "code": value.get("code"), "type": value.get("type"), "status": value.get("status")}
    return fault_of(members, value.get("status_code"))


def fault_of(error: Any, *outer: Any) -> Fault:
    """An error inside an answer. Its status is the one it names, its type stands for or its message means, else 502."""
    members: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    metadata = members.get("metadata")
    kind = metadata.get("error_type") if isinstance(metadata, dict) else None
    hints = (members.get("code"), members.get("status_code"), *outer, kind, members.get("type"), members.get("status"))
    message = _text(members.get("message")) or "an error without a message"
    named = next((status for hint in hints if (status := _status_of(hint)) is not None), None)
    words = " ".join([message, *(hint for hint in hints if isinstance(hint, str))])
    return Fault(
        status=named or meant(words) or 502,
        message=message,
        code=_text(members.get("code")) or next(filter(None, map(_text, outer)), None) or "provider_error_in_answer",
        param=_text(members.get("param")),
    )


def _status_of(hint: Any) -> int | None:
    if isinstance(hint, str):
        status = int(hint) if len(hint) == 3 and hint.isascii() and hint.isdigit() else 0
        return status if 400 <= status < 600 else _STATUSES.get(hint.lower())
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
