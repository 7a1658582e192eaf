"""What a web browser may do here: a page of anybody's can make it send requests to this machine's loopback. Pure.

A listener that asks for no key refuses what a browser could have been made to send: a page's `Origin`, a `Host` that is
not this machine's (a name of the page's own that leads here: DNS rebinding), a body that is not JSON, which no browser
asks leave for. Origins that `[server] allow_origins` names are given it, in the words of the Fetch standard (CORS).
"""

from __future__ import annotations

import ipaddress
from typing import Final

from sidecar.errors import MediaTypeUnsupported, OriginForbidden, SidecarError
from sidecar.types import Headers, Message, Send
from sidecar.wire import headers as rules

_LOOPBACK: Final = frozenset(("", "localhost", "127.0.0.1", "[::1]"))  # as the Host header has them; browsers send one
_METHODS: Final = (b"access-control-allow-methods", b"GET, HEAD, POST")
_MAX_AGE: Final = (b"access-control-max-age", b"600")
_EXPOSED: Final = (b"access-control-expose-headers", b"*")
_VARY: Final = (b"vary", b"origin")


def refusal(headers: Headers, *, allowed: tuple[str, ...], tcp: bool, hot: bool) -> SidecarError | None:
    """Why a request may be a page's and not a program's. `tcp`: it came by a port; `hot`: a provider is to have it."""
    origin = rules.get(headers, b"origin")
    if origin is not None and origin.decode("latin-1") not in allowed:
        return OriginForbidden("a web page may not use this sidecar unless [server] allow_origins names its origin")
    if tcp and not _is_loopback(host := (rules.get(headers, b"host") or b"").decode("latin-1").lower()):
        return OriginForbidden(f"the Host {host!r} is not this machine's loopback")
    if hot and not _is_json(rules.get(headers, b"content-type")):
        return MediaTypeUnsupported("the body must be declared as JSON: send 'content-type: application/json'")
    return None


def leave(headers: Headers, allowed: tuple[str, ...]) -> bytes | None:
    """The origin of an allowed page, to be told that it may read the answer."""
    origin = rules.get(headers, b"origin")
    return origin if origin is not None and origin.decode("latin-1") in allowed else None


def is_preflight(method: str, headers: Headers) -> bool:
    return method == "OPTIONS" and rules.get(headers, b"access-control-request-method") is not None


async def answer_preflight(send: Send, headers: Headers, origin: bytes) -> None:
    """What a browser asks before it sends a page's request."""
    asked = rules.get(headers, b"access-control-request-headers")
    told: Headers = [(b"access-control-allow-origin", origin), _METHODS, _MAX_AGE, _VARY]
    if asked is not None:
        told.append((b"access-control-allow-headers", asked))
    if rules.get(headers, b"access-control-request-private-network") == b"true":
        told.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": told})
    await send({"type": "http.response.body", "body": b""})


def sharing(send: Send, origin: bytes) -> Send:
    """A send that lets an allowed page read the answer."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            shared: Headers = [*message["headers"], (b"access-control-allow-origin", origin), _EXPOSED, _VARY]
            message = {**message, "headers": shared}
        await send(message)

    return tell


def _is_loopback(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name = host
    elif not port.isdigit() and port:
        return False
    if name in _LOOPBACK or name.endswith(".localhost"):  # RFC 6761 6.3: nobody can own such a name
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback  # not "127.example.com"
    except ValueError:
        return False


def _is_json(kind: bytes | None) -> bool:
    media = (kind or b"").partition(b";")[0].strip().lower()
    return media == b"application/json" or (media.startswith(b"application/") and media.endswith(b"+json"))
