"""What no type can say: names that must exist, URLs, addresses, files, and who could reach or read what."""

from __future__ import annotations

import os
import re
import ssl
from fnmatch import fnmatchcase
from pathlib import Path as FilePath
from typing import Final

import msgspec

from sidecar.config.addresses import address_problem, exposed, secretive, url_problem
from sidecar.config.faults import HEADER, Reading, dotted, nearest
from sidecar.config.keys import read_file, words, writable
from sidecar.config.locate import Path
from sidecar.config.models import check_models, check_tags, named
from sidecar.config.structs import (
    KEY_VARIABLES,
    KEYLESS,
    KINDS,
    LIMITS,
    PLACELESS,
    Config,
    Key,
    Provider,
    Server,
    Table,
)

_SECRET_HEADER: Final = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
_OUR_HEADERS: Final = ("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer",
    "upgrade", "expect", "accept-encoding")  # fmt: skip  # framing, which belongs to who writes the message
_PROVIDER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ORIGIN: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9.\[\]:_-]+"
)  # in lower case, without a path; never "null" or "*"


def check(config: Config, reading: Reading) -> None:
    """Tell the reading every fault that is left. Gives providers without a key the one their variable holds."""
    for name, table in config.providers.items():
        key = _provider(name, table, reading)
        config.providers[name] = msgspec.structs.replace(table, api_key=key)
    if not reading.raw.get("providers"):
        reading.fault(("providers",), "no provider is configured: add [providers.openai], or another")
    check_models(config, reading)
    digests: dict[bytes | None, str] = {}
    for name, caller in config.callers.items():
        named(("callers", name), reading)
        _allowed(("callers", name, "models"), caller.models, reading)
        check_tags(("callers", name, "tags"), caller.tags, config, reading)
        if (other := digests.setdefault(caller.key.digest, name)) != name:
            reading.fault(("callers", name, "key"), f"the callers {other} and {name} have the same key")
    _listeners(config, reading)
    _store(config, reading)
    _cache(config, reading)
    _ordered(("retry",), "base_seconds", "cap_seconds", config.retry, reading)
    _ordered(("breaker",), "open_seconds", "max_open_seconds", config.breaker, reading)
    if config.log.file != "-" and (problem := _unwritable(config.log.file)):
        reading.fault(("log", "file"), f"log.file: {config.log.file} {problem}")


def _cache(config: Config, reading: Reading) -> None:
    """Options of a cache that is off are warned of: they were meant to do something."""
    if config.cache.ttl_seconds or any(model.cache_ttl_seconds for model in config.models.values()):
        return
    for option in ("stale_seconds", "max_bytes", "temperature_max", "replay"):
        if reading.stands(("cache", option)):
            reading.warn(("cache", option), f"cache.{option} does nothing without cache.ttl_seconds, or a model's own")


def _ordered(path: Path, less: str, more: str, table: Table, reading: Reading) -> None:
    """The first of two options is not over the other, where both are there; of one alone the other's default gives."""
    low, high = getattr(table, less), getattr(table, more)
    if low > high and reading.stands((*path, less)) and reading.stands((*path, more)):
        reading.fault((*path, less), f"{dotted(path)}: {less} ({low:g}) is over {more} ({high:g})")


def _unwritable(file: str) -> str | None:
    """Why lines cannot be appended to a file. It is not made: checking changes nothing."""
    if os.path.isdir(file):
        return "is a directory"
    if os.path.lexists(file):
        return None if os.access(file, os.W_OK) else "may not be written"
    folder = os.path.dirname(file) or "."
    return (
        None
        if os.access(folder, os.W_OK | os.X_OK)
        else f"cannot be made: {folder} is not there, or may not be written"
    )


def _provider(name: str, table: Provider, reading: Reading) -> Key | None:
    path: Path = ("providers", name)
    kind = table.kind or name
    if not _PROVIDER.fullmatch(name):
        reading.fault(path, f"the provider's name {name!r} may have letters, digits, dots, dashes and underscores only")
    _urls(path, table, reading)
    _headers(path, table, reading)
    _ordered((*path, "breaker"), "open_seconds", "max_open_seconds", table.breaker, reading)
    for index, tag in enumerate(table.tags):
        named((*path, "tags", index), reading, tag)
    _readable((*path, "tls_ca"), table.tls_ca, reading, secret=False)
    if not table.tls_verify:
        reading.warn((*path, "tls_verify"), f"{dotted(path)}: TLS is not verified: whoever is in between reads its key")
    if (*path, "kind") in reading.broken:
        return table.api_key
    if kind not in KINDS:
        at = (*path, "kind") if table.kind else path
        own = '; one of your own needs kind = "openai-compatible"'
        reading.fault(at, f'no provider is built in by the name "{kind}"{own}{nearest(kind, KINDS)}')
        return table.api_key
    if kind in PLACELESS and not reading.stands((*path, "base_url")):
        reading.fault(path, f'[{dotted(path)}] needs the option "base_url": where it is served, with its /v1')
    if reading.stands((*path, "api_keys")):
        _keys(path, table, reading)
    elif table.api_key is None and kind not in KEYLESS and (*path, "api_key") not in reading.broken:
        return reading.key(f"env:{KEY_VARIABLES[kind]}", path, path)
    return table.api_key


def _keys(path: Path, table: Provider, reading: Reading) -> None:
    """Several keys stand instead of the one, and take turns: so none is the caller's."""
    here = (*path, "api_keys")
    if reading.stands((*path, "api_key")):
        reading.fault(here, f"[{dotted(path)}] has both api_key and api_keys: take one of them")
    if not table.api_keys and not any(each[: len(here)] == here for each in reading.broken):
        reading.fault(here, f"{dotted(here)}: needs a key, as env:NAME or file:/path")
    seen: set[str | bytes] = set()
    for index, key in enumerate(table.api_keys):
        if key.source == "caller":
            reading.fault((*here, index), f'{dotted(here)}: "caller" is for api_key: it cannot take turns with others')
        same = key.source if key.secret is None else key.secret.digest()
        if same in seen:
            reading.warn((*here, index), f"{dotted(here)}: this key stands there already")
        seen.add(same)


def _urls(path: Path, table: Provider, reading: Reading) -> None:
    for option, url in (("base_url", table.base_url), ("proxy", table.proxy)):
        if url is None:
            continue
        here = (*path, option)
        if problem := url_problem(url, proxy=option == "proxy"):
            reading.fault(here, f"{dotted(here)}: {problem}")
        elif secretive(url) and (problem := reading.source.public()):
            reading.fault(here, f"{dotted(here)}: a password or key stands in the file, and {problem}")


def _headers(path: Path, table: Provider, reading: Reading) -> None:
    for header, value in table.headers.items():
        here = (*path, "headers", header)
        if not HEADER.fullmatch(header) or not value.isprintable() or not value.isascii():
            reading.fault(here, f"{header!r} is not a header, or its value is not plain text")
        elif header.lower() in _OUR_HEADERS:
            reading.fault(here, f"the header {header!r} is written by the sidecar itself")
        elif _SECRET_HEADER.search(header) and (problem := reading.source.public()):
            reading.fault(here, f"{dotted(here)}: a key stands in the file, and {problem}")


def _allowed(path: Path, patterns: tuple[str, ...], reading: Reading) -> None:
    """Names a caller may ask for (`*` and `?` as in file names). One that can match nothing is a slip of the pen."""
    providers, models = (reading.raw.get(table) for table in ("providers", "models"))
    known = list(models) if isinstance(models, dict) else []
    for index, pattern in enumerate(patterns):
        provider, slash, _ = pattern.partition("/")
        open_ended = any(mark in (provider if slash else pattern) for mark in "*?[")
        if open_ended or any(_may_match(pattern, name) for name in known):
            continue
        if slash and isinstance(providers, dict) and provider not in providers:
            hint = nearest(provider, providers) or nearest(pattern, known)
            reading.fault((*path, index), f'"{pattern}" names no configured provider and no name of [models]{hint}')
        elif not slash and (hint := nearest(pattern, known)):  # else it may be a bare name that a provider knows
            reading.warn((*path, index), f'"{pattern}" is no name of [models]{hint}')


def _may_match(pattern: str, name: str) -> bool:
    """Might a caller's pattern match a name of [models], or one that a name with a `*` stands for?"""
    prefix, star, _ = name.partition("*")
    if not star:
        return pattern == name or fnmatchcase(name, pattern)
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return literal.startswith(prefix) or (literal != pattern and prefix.startswith(literal))


def _listeners(config: Config, reading: Reading) -> None:
    server = config.server
    path: Path = ("server", "listen")
    if not server.listen:
        reading.fault(path, "server.listen: there is nothing to listen on")
    _certificate(server, reading)
    for index, origin in enumerate(server.allow_origins):
        if not _ORIGIN.fullmatch(origin):
            message = f"server.allow_origins: {origin!r} is not an origin as browsers send it: https://host[:port]"
            reading.fault(("server", "allow_origins", index), message)
    for index, address in enumerate(server.listen):
        problem = address_problem(address)
        if address in server.listen[:index] and not address.endswith(":0"):  # port 0 is another each time
            problem = f"{address!r} is listened on already"
        if problem is None and not reading.raw.get("callers"):
            problem = exposed(address, server.socket_mode)
        if problem is not None:
            reading.fault((*path, index), problem)


def _store(config: Config, reading: Reading) -> None:
    store = config.store
    _readable(("store", "tls_ca"), store.tls_ca, reading, secret=False)
    if store.tls_ca is not None and not store.url.tls:
        reading.fault(("store", "tls_ca"), "store.tls_ca is for a store that is asked over TLS: rediss://")
    if (warning := unshared(config)) is not None:
        reading.warn(("server", "workers"), f"server.workers: {warning}")


def unshared(config: Config) -> str | None:
    """What it means, where each of several workers counts by itself what was meant for all of them."""
    workers = config.server.workers
    tables = (*config.callers.values(), *config.models.values(), *(each.limits for each in config.providers.values()))
    limited = any(getattr(table, name, None) is not None for table in tables for name in LIMITS)
    if config.store.url.form != "memory" or workers == 1 or not limited:
        return None
    return (
        f"each of {workers} workers counts the limits by itself, so that up to {workers} times as much is let in; "
        'to count together, say [store] url = "redis://..."'
    )


def _certificate(server: Server, reading: Reading) -> None:
    for option in ("tls_cert", "tls_key"):
        _readable(("server", option), getattr(server, option), reading, secret=option == "tls_key")
    if reading.stands(("server", "tls_cert")) != reading.stands(("server", "tls_key")):
        reading.fault(("server",), "tls_cert and tls_key go together")
    if server.tls_cert is None or server.tls_key is None or any(path[0] == "server" for path in reading.broken):
        return
    try:  # a key with a password would ask for it on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.tls_cert, server.tls_key, password=str)
    except OSError as error:  # ssl.SSLError is one
        why = getattr(error, "reason", None)
        mismatch = why == "KEY_VALUES_MISMATCH"
        problem = "is not the certificate's" if mismatch else "or the certificate is not PEM, or it has a password"
        reading.fault(("server", "tls_key"), f"server.tls_key: the key {problem}")


def _readable(path: Path, file: str | None, reading: Reading, *, secret: bool) -> None:
    """A file of certificates, or of the key of one, is there and is not for others to change."""
    if file is None:
        return
    if "\n" in file:  # the very key, maybe, so that it is not repeated
        reading.fault(path, f"{dotted(path)} takes the path of a PEM file, not what is in it")
        return
    try:
        mode = read_file(FilePath(file), 1)[1].st_mode
    except OSError as error:
        reading.fault(path, f"{dotted(path)}: {file} cannot be read: {words(error)}")
        return
    if (problem := writable(FilePath(file), mode)) is not None:
        reading.fault(path, f"{dotted(path)}: {problem}")
    elif path[-1] == "tls_ca":
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except OSError:  # ssl.SSLError is one
            reading.fault(path, f"{dotted(path)}: {file} holds no certificate in PEM form")
    elif secret and mode & 0o044:
        reading.warn(
            path, f"{dotted(path)}: {file} has mode {mode & 0o777:04o}, so others may read it: chmod 600 {file}"
        )
