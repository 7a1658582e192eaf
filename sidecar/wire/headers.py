"""Which headers pass, in either direction: deny-lists, so that what they do not name passes (RFC 9110 7.6.1)."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
CREDENTIALS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")  # where a caller's key may stand
_FORWARDING = (b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip")
_UPWARD: Final = HOP_BY_HOP.union(
    CREDENTIALS,
    _FORWARDING,
    (b"x-auth-token", b"x-access-token", b"x-amz-security-token", b"ocp-apim-subscription-key"),
    (b"cookie", b"cookie2", b"x-cluster-client-ip", b"x-envoy-external-address"),
    (
        b"host",
        b"expect",
        b"content-length",
        b"accept-encoding",
    ),  # ours to write: the body is rebuilt, the answer unpacked
    (
        b"content-md5",
        b"digest",
        b"content-digest",
        b"repr-digest",
    ),  # of the client's bytes, which are not the ones sent
)
_DOWNWARD: Final = HOP_BY_HOP.union(
    (b"set-cookie", b"set-cookie2", b"server", b"alt-svc", b"clear-site-data", b"via"),
    (b"content-length", b"date", b"cache-control"),  # ours to write
    (b"access-control-allow-origin", b"access-control-allow-credentials"),  # who may read us is not a provider's to say
)
_UPWARD_PREFIXES: Final = (b"x-sidecar-", b"x-forwarded-", b"proxy-")
_DIALECT_PREFIXES: Final = (*_UPWARD_PREFIXES, b"anthropic-", b"openai-", b"x-goog-")


class Verdicts(dict[bytes, bool]):
    """Whether a header passes, by its name; remembered, since the same few names come again and again."""

    def __init__(self, names: frozenset[bytes], prefixes: tuple[bytes, ...]) -> None:
        self._names = names
        self._prefixes = prefixes

    def __missing__(self, name: bytes) -> bool:
        passes = name not in self._names and not name.startswith(self._prefixes)
        if len(self) < _MOST_REMEMBERED:
            self[name] = passes
        return passes


_MOST_REMEMBERED: Final = 1024
_UP: Final = Verdicts(_UPWARD, _UPWARD_PREFIXES)
_UP_TRANSLATED: Final = Verdicts(_UPWARD, _DIALECT_PREFIXES)
_DOWN: Final = Verdicts(_DOWNWARD, (b"x-sidecar-", b"proxy-"))


def upward(headers: Headers, *, translated: bool = False) -> Headers:
    """What of a client's headers goes on to the provider; those of the client's API only to a provider of that API."""
    passes = _UP_TRANSLATED if translated else _UP
    return _without_named([pair for pair in headers if passes[pair[0]]], headers)


def passes_downward(name: bytes) -> bool:
    """Does a provider's header of this name (in lower case) go on, unless its Connection header names it?"""
    return _DOWN[name]


def downward(headers: Headers, index: Container[bytes]) -> Headers:
    """What of a provider's headers goes on to the client. `index`: their names."""
    kept = [pair for pair in headers if _DOWN[pair[0]]]
    return _without_named(kept, headers) if b"connection" in index else kept


def get(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


def _without_named(kept: Headers, headers: Headers) -> Headers:
    """Drop what a Connection header names: it is for this hop alone."""
    tokens: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            tokens.update(token.strip() for token in value.lower().split(b","))
    return [pair for pair in kept if pair[0] not in tokens]
