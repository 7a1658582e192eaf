"""Answers as the client is to see them: the head of a relayed one, and errors in the words of the dialect that was called."""

from __future__ import annotations

import math
from typing import Final

from sidecar.dialects.neutral import Dialect, Fault
from sidecar.errors import SidecarError
from sidecar.types import Headers, Record

JSON: Final = (b"content-type", b"application/json")
PRIVATE: Final = (b"cache-control", b"private, no-store")  # what was made for one key is nobody else's
EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
SPENT: Final = (b"x-should-retry", b"false")  # our tries are spent; the SDKs' own would multiply them
_CACHE_OFF: Final = (b"x-sidecar-cache", b"off")
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


def head(record: Record, headers: Headers) -> Headers:
    """The provider's headers with ours: who answered, at which try, and what the sidecar itself cost."""
    names = [name for name, _ in headers]
    ours: Headers = [
        *headers,
        PRIVATE,
        (b"x-sidecar-provider", record.provider.encode("latin-1", "replace")),
        (b"x-sidecar-model", record.model.encode("latin-1", "replace")),
        (b"x-sidecar-attempts", b"%d" % record.attempts),
        _CACHE_OFF,
        (b"x-sidecar-overhead-us", b"%d" % record.overhead_us),
    ]
    if b"x-request-id" not in names:
        ours.append((b"x-request-id", record.request_id.encode()))
    if b"request-id" not in names:
        ours.append((b"request-id", record.request_id.encode()))
    return ours


def without(headers: Headers, *names: bytes) -> Headers:
    return [pair for pair in headers if pair[0] not in names]


def refusal(error: SidecarError, dialect: Dialect, record: Record) -> tuple[Headers, bytes]:
    """Headers and body of an error of our own."""
    data = dialect.write_error(fault(error, record))
    headers: Headers = [
        JSON,
        PRIVATE,
        (b"content-length", b"%d" % len(data)),
        (b"x-sidecar-error", error.code.encode()),
        (b"x-request-id", record.request_id.encode()),
        (b"request-id", record.request_id.encode()),
    ]
    if record.provider:
        headers.append((b"x-sidecar-provider", record.provider.encode("latin-1", "replace")))
        headers.append((b"x-sidecar-attempts", b"%d" % record.attempts))
    if error.retry_after is not None:
        headers += retry_after(error.retry_after)
    if record.attempts > 1:
        headers.append(SPENT)
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))  # RFC 9110 11.6.1
    return headers, data


def retry_after(seconds: float) -> Headers:
    """Both spellings: whole seconds, rounded up, as RFC 9110 10.2.3 has it, and the exact milliseconds the SDKs prefer."""
    milliseconds = max(1, math.ceil(round(seconds * 1000, 3)))
    return [(b"retry-after", b"%d" % math.ceil(milliseconds / 1000)), (b"retry-after-ms", b"%d" % milliseconds)]


def fault(error: SidecarError, record: Record) -> Fault:
    """An error of ours as the dialects write it."""
    return Fault(
        status=error.status,
        type=error.type,
        code=error.code,
        message=error.message,
        param=error.param,
        request_id=record.request_id,
        retry_after=error.retry_after,
    )
