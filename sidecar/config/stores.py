"""Where the store is: the URL of `[store]`, taken apart once. Nobody else sees it whole, for it may hold a password."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from sidecar.config.addresses import MOST_SOCKET_PATH
from sidecar.secret import Secret

FORMS: Final = (
    "memory:, redis://[user:password@]host[:port][/db], rediss:// (TLS), unix:///path.sock[?db=N], "
    "redis+cluster://host:port,host:port or redis+sentinel://host:port,host:port/service[/db]"
)
_SCHEMES: Final[dict[str, tuple[Literal["single", "cluster", "sentinel"], bool]]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}
_PORTS: Final = {"single": 6379, "cluster": 6379, "sentinel": 26379}
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)
_DB: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
_STARS: Final = "**********"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the store is. `source`: what the file says, without a user and password."""

    source: str
    form: Literal["memory", "single", "cluster", "sentinel"] = "memory"
    addresses: tuple[tuple[str, int], ...] = ()  # of one server, of some of a cluster's, or of sentinels
    path: str | None = None  # of a unix socket, instead
    tls: bool = False
    user: str = ""
    password: Secret | None = None
    db: int = 0
    service: str = ""  # the name by which sentinels know it

    def __repr__(self) -> str:
        return f"Place({self.source!r})"


MEMORY: Final = Place(source="memory:")


def place(url: str) -> Place:
    """A store's URL taken apart. Raises ValueError, in words that repeat nothing of it."""
    if url == "memory:":
        return MEMORY
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"not of the form {FORMS}") from None
    if parts.scheme not in _SCHEMES or parts.fragment or (parts.query and parts.scheme != "unix"):
        raise ValueError(f"not of the form {FORMS}")
    form, tls = _SCHEMES[parts.scheme]
    login, at, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    found = Place(
        source=f"{parts.scheme}://{_STARS + at if at else ''}{hosts}{parts.path}",
        form=form,
        tls=tls,
        user=unquote(user),
        password=Secret(unquote(password)) if password else None,
    )
    if parts.scheme == "unix":
        return msgspec.structs.replace(found, path=_path(hosts, parts.path), db=_query_db(parts.query))
    service, db = _behind(form, parts.path)
    return msgspec.structs.replace(found, addresses=_addresses(form, hosts), service=service, db=db)


def _addresses(form: str, hosts: str) -> tuple[tuple[str, int], ...]:
    """Raises ValueError, as those below."""
    found = []
    for host in hosts.split(","):
        match = _ADDRESS.fullmatch(host)
        port = int(match[2] or _PORTS[form]) if match is not None else 0
        if match is None or not 0 < port <= 65535:
            raise ValueError("a host is of the form host[:port], an IPv6 address in brackets")
        found.append((match[1].strip("[]"), port))
    if form == "single" and len(found) > 1:
        raise ValueError("several hosts are those of redis+cluster:// or of redis+sentinel://")
    return tuple(found)


def _path(hosts: str, path: str) -> str:
    if hosts or not path.startswith("/") or path == "/" or "\0" in unquote(path):
        raise ValueError("unix: takes an absolute path: unix:///run/redis.sock")
    if len(unquote(path).encode()) > MOST_SOCKET_PATH:
        raise ValueError(f"the path of a unix socket has at most {MOST_SOCKET_PATH} bytes")
    return unquote(path)


def _query_db(query: str) -> int:
    """Of a unix socket, whose path is all that stands before."""
    if not query:
        return 0
    name, _, number = query.partition("=")
    if name != "db":
        raise ValueError("behind the path of a unix socket there may be ?db=N, and nothing else")
    return _db(number)


def _behind(form: str, path: str) -> tuple[str, int]:
    """The service's name and the database's number, of which some forms have one, or none."""
    first, *more = path.removeprefix("/").split("/")
    if form == "sentinel":
        if not first:
            raise ValueError("sentinels are asked for a service: redis+sentinel://host:port/service")
        return unquote(first), _db("/".join(more)) if more else 0
    if form == "cluster" and first not in ("", "0"):
        raise ValueError("a cluster has one database only, so that no number stands behind it")
    return "", _db("/".join((first, *more))) if first or more else 0


def _db(number: str) -> int:
    if not _DB.fullmatch(number):
        raise ValueError("a database is a number")
    return int(number)
