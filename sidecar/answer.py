"""Answers as the client sees them: our lines of a relayed head, and errors in the words of the dialect it called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from sidecar.dialects.neutral import Dialect, Fault
from sidecar.errors import SidecarError
from sidecar.types import Headers, Record, Target
from sidecar.wire.shapes import Shape

JSON: Final = (b"content-type", b"application/json")
PRIVATE: Final = (b"cache-control", b"private, no-store")  # what was made for one key is nobody else's
EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
SPENT: Final = (b"x-should-retry", b"false")  # our tries are spent; the SDKs' own would multiply them
_OURS: Final = b"cache-control: private, no-store\r\nx-sidecar-cache: off\r\n"  # of an answer that no target made
_PROVIDER_CODES: Final = {
    401: "provider_key_rejected",
    402: "provider_quota_exhausted",
    403: "provider_key_rejected",
    429: "provider_rate_limited",
    503: "provider_overloaded",
    529: "provider_overloaded",
}


def provider_code(status: int) -> str:
    """The word of our vocabulary for a provider's own error."""
    return _PROVIDER_CODES.get(status) or ("provider_rejected_request" if status < 500 else "provider_failed")


def lines(record: Record, target: Target | None, index: Mapping[bytes, bytes]) -> bytes:
    """Our header lines of an answer: who answered, at which try, and what the sidecar itself cost.

    `index`: the provider's headers by name. Its request id stays, and is sent by both names that SDKs look for.
    """
    theirs = index.get(b"x-request-id")
    if theirs is None:
        theirs = index.get(b"request-id")
        request_id = record.request_id.encode() if theirs is None else theirs
        ids = b"x-request-id: %b\r\n" % request_id
        if theirs is None:
            ids += b"request-id: %b\r\n" % request_id
    else:
        ids = b"" if b"request-id" in index else b"request-id: %b\r\n" % theirs
    numbers = (record.attempts, record.overhead_us, ids)
    return (
        target.stamp if target is not None else _OURS
    ) + b"x-sidecar-attempts: %d\r\nx-sidecar-overhead-us: %d\r\n%b" % numbers


def ids_of(shape: Shape, values: tuple[bytes, ...], own: str) -> bytes:
    """The same ids as `lines` sends, where the names of the provider's headers are known by their shape."""
    if shape.request_id < 0:
        return b"x-request-id: %b\r\nrequest-id: %b\r\n" % (own.encode(), own.encode())
    if shape.both_ids:
        return b""
    return (b"request-id: %b\r\n" if shape.same_id else b"x-request-id: %b\r\n") % values[shape.request_id]


def without(headers: Headers, *names: bytes) -> Headers:
    return [pair for pair in headers if pair[0] not in names]


def refusal(error: SidecarError, dialect: Dialect, record: Record, *, spent: bool = False) -> tuple[Headers, bytes]:
    """Headers and body of an error of our own."""
    data = dialect.write_error(fault(error, record))
    headers: Headers = [
        JSON,
        PRIVATE,
        (b"x-sidecar-error", error.code.encode()),
        (b"x-request-id", record.request_id.encode()),
        (b"request-id", record.request_id.encode()),
    ]
    if record.provider:
        headers.append((b"x-sidecar-provider", record.provider.encode("latin-1", "replace")))
        headers.append((b"x-sidecar-attempts", b"%d" % record.attempts))
    if error.retry_after is not None:
        headers += retry_after(error.retry_after)
    if spent:
        headers.append(SPENT)
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))  # RFC 9110 11.6.1
    return headers, data


def retry_after(seconds: float) -> Headers:
    """Both spellings: whole seconds, rounded up (RFC 9110 10.2.3), and the exact milliseconds that the SDKs prefer."""
    milliseconds = max(1, math.ceil(round(seconds * 1000, 3)))
    return [(b"retry-after", b"%d" % math.ceil(milliseconds / 1000)), (b"retry-after-ms", b"%d" % milliseconds)]


def fault(error: SidecarError, record: Record) -> Fault:
    """An error of ours as the dialects write it."""
    return Fault(
        status=error.status,
        type=error.type,
        code=error.their_code or error.code,
        message=error.message,
        param=error.param,
        request_id=record.request_id,
        retry_after=error.retry_after,
    )


def model(name: str, *, anthropic: bool) -> dict[str, object]:
    """What GET /v1/models/NAME tells, in OpenAI's shape or in Anthropic's."""
    if anthropic:
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": name.partition("/")[0] if "/" in name else "sidecar",
    }


def models(names: list[str], *, anthropic: bool) -> dict[str, object]:
    """What GET /v1/models tells, in either shape."""
    data = [model(name, anthropic=anthropic) for name in names]
    if anthropic:
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return {"data": data, "has_more": False, **ends}
    return {"object": "list", "data": data}
