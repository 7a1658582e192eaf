"""What may be cached, and by what it is found again. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from sidecar.types import Envelope, Headers, Target

DIALECTS: Final = frozenset(("chat", "completions", "embeddings", "messages", "responses"))
# Why a request was not answered from the cache, or its answer not kept: a closed vocabulary, for /status and explain.
REASONS: Final = {
    "asked": "the request says x-sidecar-cache: off",
    "dialect": "answers of this endpoint are not cached",
    "temperature": "its temperature is above temperature_max (without one it counts as 1)",
    "stateful": "the provider is to remember it (store, background, conversation)",
    "failed": "the answer was an error, or the request was refused",
    "cut": "the answer has no proper end, or its client left before it",
    "filtered": "a content filter ended the answer, or the model refused",
    "continued": "the answer was put together from several targets'",
    "encoded": "the answer has a content coding",
    "too_large": "the answer is larger than an eighth of max_bytes, or than 16 MiB",
    "odd": "the answer is not of the shape that its API describes",
}
_STATEFUL: Final = frozenset(("store", "background", "conversation"))
HOTTEST: Final = 2.0  # that any provider takes: a bound that is not under it bounds nothing
_NOTHING: Final = (b"false", b"null")
_FILTERED: Final = re.compile(
    rb'"(?:finish_reason|stop_reason|reason)"\s*:\s*"(?:content_filter|refusal|safety)"', re.IGNORECASE
)  # inside a text the quotes would be escaped
_number = msgspec.json.Decoder(float)
_value = msgspec.json.Decoder(msgspec.Raw)
_sorted = msgspec.json.Encoder(order="sorted")
# Headers of requests that change nothing of an answer: who says it, in which exchange, for whose tracing.
_SILENT: Final = frozenset(
    (
        *(b"accept", b"accept-language", b"accept-charset", b"content-type", b"content-language", b"user-agent"),
        *(b"cache-control", b"pragma", b"priority", b"date", b"origin", b"referer", b"dnt", b"from"),
        *(b"traceparent", b"tracestate", b"baggage", b"b3", b"sentry-trace", b"newrelic", b"uber-trace-id"),
        *(b"x-request-id", b"request-id", b"x-correlation-id", b"x-client-request-id", b"idempotency-key"),
        *(b"x-cloud-trace-context", b"x-amzn-trace-id", b"x-ot-span-context", b"x-title", b"http-referer"),
    )
)
_SILENT_PREFIXES: Final = (b"x-stainless-", b"x-b3-", b"x-envoy-", b"x-datadog-", b"sec-", b"x-client-data")
# Headers of an answer that are of the one exchange that brought it.
_PASSING: Final = frozenset(
    (
        *(b"x-request-id", b"request-id", b"cf-ray", b"age", b"expires", b"etag", b"last-modified", b"server-timing"),
        *(b"retry-after", b"retry-after-ms", b"x-should-retry", b"content-length", b"openai-processing-ms"),
        *(b"traceparent", b"tracestate", b"x-amzn-requestid", b"x-amzn-trace-id", b"x-cache", b"cf-cache-status"),
        *(b"report-to", b"nel", b"apim-request-id", b"x-generation-id", b"keep-alive", b"set-cookie"),
    )
)
_PASSING_PREFIXES: Final = (
    b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit", b"x-envoy-", b"x-sidecar-", b"x-b3-",
)  # fmt: skip


def unfit(dialect: str, members: Envelope, most: float, targets: Iterable[Target]) -> str:
    """Why a request is not to be cached; nothing where it may be. `most`: temperature_max."""
    if dialect not in DIALECTS:
        return "dialect"
    if not _STATEFUL.isdisjoint(members) and any(_says(members.get(name)) for name in _STATEFUL):
        return "stateful"
    if most < HOTTEST and dialect != "embeddings" and temperature(members, targets) > most:
        return "temperature"
    return ""


def temperature(members: Envelope, targets: Iterable[Target]) -> float:
    """The highest that any of the targets is sent: what is set for it, else what the client says."""
    asked = _temperature(members.get("temperature"))
    set_ = [dict(target.params).get("temperature") for target in targets]
    return max((asked if raw is None else _temperature(raw) for raw in set_), default=asked)


def _temperature(raw: msgspec.Raw | None) -> float:
    """1 where there is none, as the APIs have it. Infinite for what is no number."""
    if raw is None or bytes(raw) == b"null":
        return 1.0
    try:
        return _number.decode(raw)
    except msgspec.DecodeError:
        return math.inf


def scope(parts: Iterable[object], headers: Headers, targets: Iterable[Target]) -> bytes:
    """The digest of all but the body that an answer depends on. `parts`: who asks, where, with which query.

    `headers`: those that go up. Of the targets: which they are, and what they are sent besides; so another
    configuration of the same name does not answer for this one.
    """
    told = sorted(pair for pair in headers if pair[0] not in _SILENT and not pair[0].startswith(_SILENT_PREFIXES))
    asked = [
        (
            each.key,
            each.dialect,
            sorted((name, bytes(value)) for name, value in each.params),
            sorted(each.upstream.drop),
            sorted(each.upstream.rename),
            sorted(each.upstream.headers),
        )
        for each in targets
    ]
    return hashlib.sha256(repr((list(parts), told, asked)).encode()).digest()


def key(within: bytes, members: Envelope, *, long: bool) -> bytes:
    """Of a request, by its scope and its members in the order of their names, each value as it was written.

    `long`: it is not copied to be looked at.
    """
    if not long:
        return hashlib.sha256(within + _sorted.encode(members)).digest()
    digest = hashlib.sha256(within)
    for name in sorted(members):
        digest.update(b"%b:%d:" % (name.encode(), len(members[name])))
        digest.update(members[name])
    return digest.digest()


def unkept(headers: Headers, body: bytes, *, stream: bool) -> str:
    """Why a good answer that has come to its end is not kept; nothing where it may be."""
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        return "encoded"
    if not stream and not _whole(body):
        return "odd"
    return "filtered" if _FILTERED.search(body) else ""


def lasting(headers: Headers) -> Headers:
    """What of an answer's headers is of the answer, and not of the exchange that brought it."""
    return [pair for pair in headers if pair[0] not in _PASSING and not pair[0].startswith(_PASSING_PREFIXES)]


def _whole(body: bytes) -> bool:
    """Is it one JSON object from its first byte to its last?"""
    try:
        return bytes(_value.decode(body)).startswith(b"{")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _says(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) not in _NOTHING
