"""Reading, checking and showing the configuration. The only place that reads the environment."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Final, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from sidecar.config.faults import ConfigError, Fault, nearest
from sidecar.config.keys import Source, read_key, writable
from sidecar.config.locate import Locator, Path
from sidecar.config.structs import KEY_VARIABLES, KEYLESS, KINDS, Config, Key, Provider, Table

_HEADER: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PROXIES: Final = ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
_DEFAULT_FILE: Final = "sidecar.toml"
_MOST_BYTES: Final = 8 * 1024 * 1024


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with what there is to say of it."""

    config: Config
    file: str | None  # None: zero-config
    warnings: list[Fault]
    sources: dict[str, str]  # dotted path -> "file:line", of what the file sets


def load(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file; without one: `$SIDECAR_CONFIG`, `./sidecar.toml`, or the environment's provider keys.

    Raises ConfigError, which lists every fault.
    """
    return examine(path, env=env).config


def examine(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] = os.environ) -> Loaded:
    """`load`, with warnings and the source of each value. Raises ConfigError."""
    named = path if path is not None else env.get("SIDECAR_CONFIG")
    if named is None and not os.path.exists(_DEFAULT_FILE):
        return _from_environment(env)
    return _Reading(FilePath(named or _DEFAULT_FILE), env).run()


def proxies(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment's proxy variables."""
    return {name: env[name] for name in _PROXIES if env.get(name)}


def _from_environment(env: Mapping[str, str]) -> Loaded:
    found = {
        name: Provider(kind=name, api_key=_read(f"env:{variable}", env))
        for name, variable in KEY_VARIABLES.items()
        if env.get(variable, "").strip() and name != "grok"  # the other name of xai
    }
    if not found:
        names = ", ".join(dict.fromkeys(KEY_VARIABLES.values()))
        message = (
            f"no {_DEFAULT_FILE} here, no $SIDECAR_CONFIG, and no provider's key in the environment; set one of {names}"
        )
        raise ConfigError([Fault(file="", message=message)])
    return Loaded(config=Config(providers=found), file=None, warnings=[], sources={})


def _read(text: str, env: Mapping[str, str]) -> Key | None:
    return read_key(text, Source(env, FilePath(), private=True), of_caller=False, fault=_ignore, warn=_ignore)


def _ignore(message: str) -> None:
    """Nothing is wrong with a variable that is known to be set."""


class _Reading:
    """One reading of one file: collects every fault, and where each stands."""

    def __init__(self, file: FilePath, env: Mapping[str, str]) -> None:
        self._file = file
        self._env = env
        self._faults: list[Fault] = []
        self._warnings: list[Fault] = []
        self._locator = Locator("")
        self._source = Source(env, file.parent, private=False)
        self._raw: dict[str, Any] = {}

    def run(self) -> Loaded:
        text = self._text()
        try:
            self._raw = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self._syntax(text, error)
        self._locator = Locator(text)
        self._inherit()
        config = self._table(Config, self._raw, ())
        if isinstance(config, Config) and not self._faults:
            self._check(config)
        if self._faults or not isinstance(config, Config):
            raise ConfigError(self._faults)
        sources = {
            ".".join(map(str, path)): f"{self._file}:{self._locator.position(path)[0]}" for path in self._locator.places
        }
        return Loaded(config=config, file=str(self._file), warnings=self._warnings, sources=sources)

    # -- the file

    def _text(self) -> str:
        try:
            mode = self._file.stat().st_mode
            if (problem := writable(self._file, mode)) is not None:
                raise ConfigError([Fault(file=str(self._file), message=problem)])
            with self._file.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as error:
            words = (error.strerror or "unknown").lower()
            raise ConfigError([Fault(file=str(self._file), message=f"cannot be read: {words}")]) from None
        if len(data) > _MOST_BYTES:
            raise ConfigError([Fault(file=str(self._file), message="is larger than a configuration can be")])
        self._source = Source(self._env, self._file.parent, private=not mode & 0o077)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise ConfigError([Fault(file=str(self._file), line=line, column=1, message="is not UTF-8")]) from None

    def _syntax(self, text: str, error: Exception) -> None:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        message = str(error)[: match.start()].strip() if match else "the file ends too early, or nests too deep"
        line, column = (int(match[1]), int(match[2])) if match else (text.count("\n") + 1, 1)
        lines = text.split("\n")
        source = _hidden(lines[line - 1]) if 0 < line <= len(lines) else ""
        fault = Fault(
            file=str(self._file), line=line, column=column, message=message[:1].lower() + message[1:], source=source
        )
        raise ConfigError([fault])

    def _fault(self, path: Path, message: str) -> None:
        self._faults.append(self._at(path, message))

    def _warn(self, path: Path, message: str) -> None:
        self._warnings.append(self._at(path, message))

    def _at(self, path: Path, message: str) -> Fault:
        line, column = self._locator.position(path)
        source = _hidden(self._locator.line(line).replace("\t", " "))
        return Fault(file=str(self._file), line=line, column=column, message=message, source=source)

    # -- tables

    def _inherit(self) -> None:
        """[timeouts] and [pool] are defaults of every provider's own, key by key."""
        providers = self._raw.get("providers")
        if not isinstance(providers, dict):
            return
        for shared in ("timeouts", "pool"):
            defaults = self._raw.get(shared)
            for table in providers.values():
                if isinstance(table, dict) and isinstance(defaults, dict) and isinstance(table.get(shared, {}), dict):
                    table[shared] = {**defaults, **table.get(shared, {})}

    def _table(self, cls: type[Table], raw: Any, path: Path) -> Table | None:
        """A table converted, faults told; None when there is no value to be had."""
        if not isinstance(raw, dict):
            self._fault(path, f"{_dotted(path)} must be a table")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in raw.items():
            field = fields.get(name)
            if field is None:
                where = f" in [{_dotted(path)}]" if path else ""
                self._fault((*path, name), f'unknown option "{name}"{where}{nearest(name, fields)}')
                continue
            converted = self._value(field.type, value, (*path, name))
            if converted is not None:
                values[name] = converted
        for name, field in fields.items():
            if field.required and name not in raw:
                self._fault(path, f'[{_dotted(path)}] needs the option "{name}"')
        try:
            return cls(**values)
        except TypeError:  # a required option is missing, which has been told
            return None

    def _value(self, type_: Any, value: Any, path: Path) -> Any:
        key = Key in get_args(type_) or type_ is Key
        if key:
            return self._key(value, path)
        if isinstance(type_, type) and issubclass(type_, Table):
            return self._table(type_, value, path)
        item = get_args(type_)[1] if get_origin(type_) is dict else None
        if isinstance(item, type) and issubclass(item, Table):
            if not isinstance(value, dict):
                self._fault(path, f"{_dotted(path)} must be a table of tables")
                return None
            found = {name: self._table(item, table, (*path, name)) for name, table in value.items()}
            return {name: table for name, table in found.items() if table is not None}
        if path[-1] in ("targets", "listen") and isinstance(value, str):
            value = [value]
        try:
            return msgspec.convert(value, type_, strict=True)
        except msgspec.ValidationError as error:
            message, _, inner = str(error).partition(" - at `$")
            index = re.search(r"\[(\d+)\]", inner)
            where = (*path, int(index[1])) if index else path
            self._fault(where, f"{_dotted(path)}: {message[:1].lower()}{message[1:]}")
            return None

    def _key(self, value: Any, path: Path) -> Key | None:
        if not isinstance(value, str):
            self._fault(path, f"{_dotted(path)}: expected a string that says where the key is: env:NAME or file:/path")
            return None
        return read_key(
            value,
            self._source,
            of_caller=path[0] == "callers",
            fault=lambda message: self._fault(path, f"{_dotted(path)}: {message}"),
            warn=lambda message: self._warn(path, f"{_dotted(path)}: {message}"),
        )

    # -- what no type can say

    def _check(self, config: Config) -> None:
        for name, table in config.providers.items():
            self._provider(name, table, config)
        if not config.providers:
            self._fault((), "no provider is configured: add [providers.openai], or another")
        for name, model in config.models.items():
            self._model(name, model.targets, config)
        digests: dict[bytes | None, str] = {}
        for name, caller in config.callers.items():
            if (other := digests.setdefault(caller.key.digest, name)) != name:
                self._fault(("callers", name, "key"), f"the callers {other} and {name} have the same key")
        self._listeners(config)

    def _provider(self, name: str, table: Provider, config: Config) -> None:
        path: Path = ("providers", name)
        kind = table.kind or name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            self._fault(
                path, f"the provider's name {name!r} may have letters, digits, dots, dashes and underscores only"
            )
        if kind not in KINDS:
            at = (*path, "kind") if table.kind else path
            hint = nearest(kind, KINDS) or '; a provider of your own needs kind = "openai-compatible"'
            self._fault(at, f'no provider is built in by the name "{kind}"{hint}')
            return
        if kind == "openai-compatible" and table.base_url is None:
            self._fault(path, f'[{_dotted(path)}] needs the option "base_url": where it is served, with its /v1')
        for option in ("base_url", "proxy"):
            if (url := getattr(table, option)) and (problem := _url_problem(url, proxy=option == "proxy")):
                self._fault((*path, option), f"{_dotted(path)}.{option}: {problem}")
        for header, value in table.headers.items():
            if not _HEADER.fullmatch(header) or not value.isprintable() or not value.isascii():
                self._fault((*path, "headers", header), f"{header!r} is not a header, or its value is not plain text")
        if not table.tls_verify:
            self._warn(
                (*path, "tls_verify"), f"{_dotted(path)}: TLS is not verified: whoever is in between reads its key"
            )
        if table.api_key is None and kind not in KEYLESS:
            variable = KEY_VARIABLES[kind]
            key = read_key(
                f"env:{variable}",
                self._source,
                of_caller=False,
                fault=lambda message: self._fault(path, message),
                warn=lambda message: self._warn(path, f"{_dotted(path)}: {message}"),
            )
            config.providers[name] = msgspec.structs.replace(table, api_key=key)

    def _model(self, name: str, targets: tuple[str, ...], config: Config) -> None:
        path: Path = ("models", name, "targets")
        if not targets:
            self._fault(path, f"[models.{name}] needs a target, as provider/model")
        for index, target in enumerate(targets):
            provider, slash, model = target.partition("/")
            if slash and model and provider in config.providers:
                continue
            where: Path = (*path, index) if (*path, index) in self._locator.places else path
            if target in config.models:
                self._fault(where, f'the target "{target}" is itself a name of [models]; name a provider/model')
            elif not slash or not model:
                self._fault(where, f'the target "{target}" is not of the form provider/model')
            else:
                hint = nearest(provider, config.providers)
                self._fault(where, f'the target "{target}" names no configured provider{hint}')

    def _listeners(self, config: Config) -> None:
        server = config.server
        if not server.listen:
            self._fault(("server", "listen"), "there is nothing to listen on")
        if (server.tls_cert is None) != (server.tls_key is None):
            self._fault(("server",), "tls_cert and tls_key go together")
        for index, address in enumerate(server.listen):
            path: Path = ("server", "listen", index)
            if (problem := address_problem(address)) or (
                not config.callers and (problem := exposed(address, server.socket_mode))
            ):
                self._fault(path, problem)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _hidden(line: str) -> str:
    """A line to be shown: what may be a key in it is stars."""
    return re.sub(
        r'((?:key|keys|token|secret|password|authorization)"?\s*=\s*)(?!"(?:env|file):)(?:"[^"]*"?|\S+)',
        r'\1"***"',
        line,
        flags=re.IGNORECASE,
    )


def _url_problem(url: str, *, proxy: bool = False) -> str | None:
    if url.startswith("unix:") and not proxy:
        return None if url.startswith("unix:/") else "unix: takes an absolute path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"{_without_user(url)!r} is not a URL"
    if parts.scheme not in (("http",) if proxy else ("http", "https")) or not parts.hostname or port == 0:
        return f"{_without_user(url)!r} is not of the form {'http://host:port' if proxy else 'http(s)://host[:port][/path]'}"
    if (parts.username or parts.password) and not proxy:
        return "a URL must not hold a user or password; use api_key or headers"
    if parts.query or parts.fragment:
        return "a base URL has no query and no fragment"
    return None


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)


def address_problem(address: str) -> str | None:
    """Why something is not an address to listen on."""
    if address.startswith("unix:"):
        return None if address.startswith("unix:/") else f"{address!r}: unix: takes an absolute path"
    if address.startswith("fd:"):
        return None if address.removeprefix("fd:").isdigit() else f"{address!r}: fd: takes a number"
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        return f"{address!r} is not an address: host:port, unix:/path or fd:N"
    name = host.removeprefix("[").removesuffix("]")
    if name not in ("", "localhost"):
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return f"{address!r}: listen on an IP address, not on a name"
    return None


def exposed(address: str, socket_mode: int) -> str | None:
    """Why an address must not be listened on without callers' keys: others than this machine's user reach it."""
    if address.startswith("fd:"):
        return None
    if address.startswith("unix:"):
        if socket_mode & 0o002:
            return f"{address}: with socket_mode {socket_mode:04o} anybody may use it; add [callers], or take o-w away"
        return None
    name = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if name == "localhost" or (name and ipaddress.ip_address(name).is_loopback):
        return None
    return (
        f"{address} can be reached from other machines, and no [callers] are configured: anybody could spend your keys"
    )


# -- showing


def schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    return msgspec.json.schema(Config, schema_hook=_schema_hook)


def _schema_hook(type_: type) -> dict[str, Any]:
    return {"type": "string", "description": "env:NAME, file:/path, caller, or (callers) sha256:HEX"}


def effective(loaded: Loaded, flags: Mapping[str, str]) -> str:
    """The configuration in force, a line an option, each with where it comes from; secrets as stars."""
    lines: list[str] = []
    _show(loaded.config, (), loaded.sources, flags, lines)
    return "\n".join(lines)


def _show(
    table: Any, path: tuple[str, ...], sources: Mapping[str, str], flags: Mapping[str, str], out: list[str]
) -> None:
    plain: list[str] = []
    nested: list[tuple[str, Any]] = []
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if isinstance(value, Table):
            nested.append((name, value))
        elif isinstance(value, dict) and value and all(isinstance(each, Table) for each in value.values()):
            nested += [(f"{name}.{key}", each) for key, each in value.items()]
        else:
            dotted = ".".join((*path, name))
            origin = flags.get(dotted) or sources.get(dotted) or "default"
            if isinstance(value, Key) and value.source.startswith("env:") and dotted not in sources:
                origin = value.source
            plain.append(f"{name} = {_shown(value)}  # {origin}")
    if plain:
        out += [f"[{'.'.join(path)}]" if path else "", *plain, ""]
    for name, value in nested:
        _show(value, (*path, *name.split(".", 1)), sources, flags, out)


def _shown(value: Any) -> str:
    if isinstance(value, Key):
        state = "missing" if value.missing else "the caller's own" if value.source == "caller" else "**********"
        return f'"{value.source}" ({state})' if not value.source.startswith("sha256:") else '"sha256:**********"'
    if value is None:
        return "(none)"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_shown(each)}" for key, each in value.items()) + " }" if value else "{}"
    return msgspec.json.encode(value).decode()
