"""Addresses: what may be listened on, who can reach it, and where a provider may be."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from typing import Final
from urllib.parse import urlsplit

_NUMBER: Final = re.compile(r"[0-9]{1,9}")
MOST_SOCKET_PATH: Final = 107  # bytes; what the kernel takes
_STARS: Final = "**********"
_USER: Final = re.compile(r"^([A-Za-z0-9+.-]*:?//|).*@", re.DOTALL)


def address_problem(address: str) -> str | None:
    """Why something is not an address to listen on."""
    if address.startswith("unix:"):
        return _socket_problem(address.removeprefix("unix:"), address)
    if address.startswith("fd:"):
        return None if _NUMBER.fullmatch(address.removeprefix("fd:")) else f"{address!r}: fd: takes a number"
    host, colon, port = address.rpartition(":")
    if not colon or not _NUMBER.fullmatch(port) or int(port) > 65535:
        return f"{address!r} is not an address: host:port, unix:/path or fd:N"
    name = _unbracketed(host)
    if ":" in host and name == host:
        return f"{address!r}: an IPv6 address stands in brackets: [::1]:4000"
    if name not in ("", "localhost"):
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return f"{address!r}: listen on an IP address, not on a name"
    return None


def exposed(address: str, socket_mode: int) -> str | None:
    """Why an address must not be listened on without callers' keys: others than this machine's user reach it."""
    if address.startswith("fd:"):
        return _exposed_descriptor(address)
    if address.startswith("unix:"):
        return _exposed_mode(address, socket_mode)
    return _exposed_host(address, _unbracketed(address.rpartition(":")[0]))


def url_problem(url: str, *, proxy: bool = False) -> str | None:
    """Why something is not the base URL of a provider, or not one of a proxy. It is not repeated: it may be a key."""
    form = "http://host:port" if proxy else "http(s)://host[:port][/path]"
    if not url.isascii() or not url.isprintable() or " " in url:
        return f"a URL has no spaces and no characters beyond ASCII; it is of the form {form}"
    if url.startswith("unix:") and not proxy:
        path, colon, base = url.removeprefix("unix:").partition(":")
        if colon and not base.startswith("/"):
            return "not of the form unix:/path.sock or unix:/path.sock:/v1"
        return _socket_problem(path, url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"not a URL of the form {form}"
    if parts.scheme not in (("http",) if proxy else ("http", "https")) or not parts.hostname or port == 0:
        return f"not of the form {form}"
    if "@" in parts.netloc and not proxy:
        return "a URL must not hold a user or password; use api_key or headers"
    if "#" in url or (proxy and "?" in url):
        return "a base URL has no fragment, and a proxy's no query"
    return None


def secretive(url: str) -> bool:
    """May a URL (a good one) hold a secret: a password, or a query's value that is not known to be none?"""
    parts = urlsplit(url)
    return "@" in parts.netloc or _shown_query(parts.query) != parts.query


def shown_url(url: str) -> str:
    """A URL to be shown, stars for a user with password (even of a URL that is none) and for a query's values."""
    place, mark, query = url.partition("?")
    return _USER.sub(f"\\1{_STARS}@", place) + mark + _shown_query(query)


def _shown_query(query: str) -> str:
    """`api-version`, which Azure asks for, is no secret; what else may stand there is not known."""
    return "&".join(map(_shown_pair, query.split("&")))


def _shown_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not pair or name == "api-version" or (equals and not value):
        return pair
    return f"{name}={_STARS}" if equals else _STARS


def _unbracketed(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _socket_problem(path: str, address: str) -> str | None:
    if not path.startswith("/") or "\0" in path:
        return f"{address!r}: unix: takes an absolute path"
    if len(path.encode()) > MOST_SOCKET_PATH:
        return f"{address!r}: the path of a unix socket has at most {MOST_SOCKET_PATH} bytes"
    return None


def _exposed_mode(address: str, mode: int) -> str | None:
    if mode & 0o002:
        return f"{address}: with socket_mode {mode:04o} anybody may use it; add [callers], or take o-w away"
    return None


def _exposed_host(address: str, host: str) -> str | None:
    if host == "localhost" or (host and ipaddress.ip_address(host).is_loopback):
        return None
    return (
        f"{address} can be reached from other machines, and no [callers] are configured: anybody could spend your keys"
    )


def _exposed_descriptor(address: str) -> str | None:
    """An inherited socket is judged by what it is bound to; where there is none (yet), binding will say so."""
    try:
        sock = socket.socket(fileno=os.dup(int(address.removeprefix("fd:"))))
    except OSError:
        return None
    with sock:
        name = sock.getsockname()
        if sock.family != socket.AF_UNIX:
            return _exposed_host(f"{address} ({name[0]}:{name[1]})", name[0])
    try:
        return _exposed_mode(f"{address} (unix:{name})", stat.S_IMODE(os.stat(name).st_mode))
    except OSError:  # it has no name, so nobody but its heirs reaches it
        return None
