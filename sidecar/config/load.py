"""Reading the configuration: every fault of the file at once. The only place that reads the environment."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from types import UnionType
from typing import Any, Final, Literal, NoReturn, get_args, get_origin

import msgspec

from sidecar.config.checks import check
from sidecar.config.faults import ConfigError, Fault, dotted, nearest
from sidecar.config.keys import Source, Stamp, loose, read_key, read_place, words, writable
from sidecar.config.locate import Locator, Path, masked
from sidecar.config.stores import FORMS, Place
from sidecar.config.structs import KEY_VARIABLES, KINDS, PLACELESS, Config, File, Key, Provider, Table
from sidecar.config.wanted import kind, wanted

_PROXIES: Final = ("https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
_DEFAULT_FILE: Final = "sidecar.toml"
_MOST_BYTES: Final = 1024 * 1024
_MOST_FAULTS: Final = 100  # that are told of one file
_MOST_NAMES: Final = 5  # of variables, where none is set
_REFERENCE: Final = re.compile(r"""(["'])(?:env:[A-Z][A-Z0-9_]*|file:[\w./-]+|caller)\1""")
_PLAIN_URL: Final = re.compile(
    r"""(["'])(?:[a-z]+://(?:[\w.-]+|\[[\w:.]+\])(?::[0-9]+)?(?:/[^@?\s]*)?|unix:/[^@?\s]*)\1"""
)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration with what there is to say of it."""

    config: Config
    file: str | None  # None: zero-config
    warnings: list[Fault]
    files: dict[str, Stamp | None]  # what was read: the file, and those that keys are in
    sources: dict[str, str]  # dotted path -> "file:line" or "env:NAME", of what is not a default


def load(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file; by default `$SIDECAR_CONFIG`, `./sidecar.toml`, or the environment's provider keys.

    Raises ConfigError, which lists every fault.
    """
    return examine(path, env=env).config


def examine(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] = os.environ) -> Loaded:
    """`load`, with warnings and the source of each value. Raises ConfigError."""
    named = path if path is not None else env.get("SIDECAR_CONFIG") or None
    if named is None and not os.path.lexists(_DEFAULT_FILE):  # a link that leads nowhere is a fault, not an absence
        return _from_environment(env)
    return _Reading(FilePath(named if named is not None else _DEFAULT_FILE), env).run()


def proxies(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment's proxy variables."""
    return {name: env[name] for name in _PROXIES if env.get(name)}


def _from_environment(env: Mapping[str, str]) -> Loaded:
    faults: list[Fault] = []
    providers: dict[str, Provider] = {}
    sources: dict[str, str] = {}
    kinds = {variable: name for name, variable in reversed(KEY_VARIABLES.items()) if name not in PLACELESS}
    for variable, name in reversed(kinds.items()):  # by a row's first name; its others have the same variable
        if env.get(variable, "").strip():
            providers[name] = Provider(kind=name, api_key=_variable(variable, env, faults))
            sources[f"providers.{name}.kind"] = sources[f"providers.{name}.api_key"] = f"env:{variable}"
    if not providers:
        names = ", ".join([*reversed(kinds)][:_MOST_NAMES])
        message = (
            f"no {_DEFAULT_FILE} here, no $SIDECAR_CONFIG, and no provider's key in the environment; "
            f"set {names} or another's (`sidecar demo` needs none)"
        )
        faults.append(Fault(file="", message=message))
    if faults:
        raise ConfigError(faults)
    return Loaded(config=Config(providers=providers), file=None, warnings=[], files={}, sources=sources)


def _variable(name: str, env: Mapping[str, str], faults: list[Fault]) -> Key | None:
    def tell(message: str) -> None:
        faults.append(Fault(file="", message=message))

    return read_key(f"env:{name}", Source(env, FilePath(), mode=0), of_caller=False, fault=tell, warn=tell)


class _Reading:
    """One reading of one file: collects every fault, and where each stands."""

    def __init__(self, file: FilePath, env: Mapping[str, str]) -> None:
        self.raw: dict[str, Any] = {}
        self.source = Source(env, file, mode=0)
        self.broken: set[Path] = set()  # where there is a fault, so that nothing follows from what was put in its place
        self._file = file
        self._faults: list[Fault] = []
        self._warnings: list[Fault] = []
        self._locator = Locator("")
        self._inherited: dict[Path, Path] = {}  # an option of a provider -> the shared one that it comes from

    def run(self) -> Loaded:
        text = self._text()
        try:
            self.raw = tomllib.loads(text)
            self._locator = Locator(text)
        except RecursionError:
            self._refuse("arrays or tables are nested too deep")
        except ValueError as error:  # TOMLDecodeError, or int() that refuses thousands of digits
            self._syntax(text, error)
        self._inherit()
        config = self._table(Config, self.raw, ())
        assert isinstance(config, Config)  # it requires no option
        check(config, self)
        if self._faults:
            ordered = sorted(self._faults, key=lambda fault: (fault.line, fault.column))
            raise ConfigError(ordered, self.source.files)
        return Loaded(
            config=config,
            file=str(self._file),
            warnings=self._warnings,
            files=self.source.files,
            sources=self._sources(),
        )

    def fault(self, path: Path, message: str) -> None:
        """Refuse the file, for what stands at a path."""
        self.broken.add(path)
        if path in self._inherited:  # told where it stands
            return
        if len(self._faults) < _MOST_FAULTS:
            self._faults.append(self._at(path, message))
        elif len(self._faults) == _MOST_FAULTS:
            self._faults.append(Fault(file=str(self._file), message="and more", line=2**31))

    def warn(self, path: Path, message: str) -> None:
        """Say something of what stands at a path."""
        self._warnings.append(self._at(path, message))

    def stands(self, path: Path) -> bool:
        """Is there something in the file at a path?"""
        return path in self._locator.places

    # -- the file

    def _text(self) -> str:
        file = self._file
        try:
            data, mode = self.source.read(file, _MOST_BYTES + 1, pipes=True)
            folder = loose(file)
        except OSError as error:
            self._refuse(f"cannot be read: {words(error)}")
        if (problem := writable(file, mode)) is not None:
            self._refuse(problem)
        if folder is not None:
            self._warnings.append(Fault(file=str(file), message=folder))
        if len(data) > _MOST_BYTES:
            self._refuse(f"is larger than {_MOST_BYTES} bytes")
        self.source.mode = mode
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            self._refuse("is not UTF-8", line=line, column=error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1)

    def _refuse(self, message: str, *, line: int = 0, column: int = 0, source: str = "") -> NoReturn:
        fault = Fault(file=str(self._file), message=message, line=line, column=column, source=source)
        raise ConfigError([fault], self.source.files) from None

    def _syntax(self, text: str, error: ValueError) -> NoReturn:
        lines = text.split("\n")
        match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
        if match is None:
            self._refuse("a number has too many digits")
        message = str(error)[: match.start()]
        line, column = (int(match[1]), int(match[2])) if match[1] else (len(lines), len(lines[-1]) + 1)
        source = masked(lines[line - 1].replace("\t", " "), _KNOWN) if line <= len(lines) else ""
        self._refuse(f"{message[:1].lower()}{message[1:]}", line=line, column=column, source=source)

    def _at(self, path: Path, message: str) -> Fault:
        line, column = self._locator.position(path)
        source = self._locator.line(line, _shows)
        return Fault(file=str(self._file), line=line, column=column, message=message, source=source)

    def _sources(self) -> dict[str, str]:
        places = {path: path for path in self._locator.places if not isinstance(path[-1], int)} | self._inherited
        return {dotted(path): f"{self._file}:{self._locator.position(at)[0]}" for path, at in places.items()}

    # -- tables

    def _inherit(self) -> None:
        """[timeouts], [pool] and [breaker] are defaults of every provider's own, key by key."""
        providers = self.raw.get("providers")
        for shared in ("timeouts", "pool", "breaker"):
            defaults = self.raw.get(shared)
            if not isinstance(providers, dict) or not isinstance(defaults, dict):
                continue
            for name, table in providers.items():
                own = table.get(shared, {}) if isinstance(table, dict) else None
                if isinstance(own, dict):
                    table[shared] = {**defaults, **own}
                    added = defaults.keys() - own.keys()
                    self._inherited |= {("providers", name, shared, each): (shared, each) for each in added}

    def _table(self, cls: type[Table], raw: Any, path: Path) -> Table | None:
        """A table converted, faults told; None when there is no value to be had."""
        if not isinstance(raw, dict):
            self.fault(path, f"{dotted(path)} must be a table, not {kind(raw)}")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in raw.items():
            here = (*path, name)
            if name not in fields:
                self._unknown(here, fields)
                continue
            converted = self._value(fields[name].type, value, here)
            if converted is not None:
                values[name] = converted
        missing = [name for name, field in fields.items() if field.required and name not in values]
        for name in missing:
            if name not in raw:
                self.fault(path, f'[{dotted(path)}] needs the option "{name}"')
        return None if missing else cls(**values)

    def _unknown(self, path: Path, known: Mapping[str, object]) -> None:
        where = f" in [{dotted(path[:-1])}]" if len(path) > 1 else ""
        hint = nearest(str(path[-1]), known) if len(self._faults) < _MOST_FAULTS else ""
        self.fault(path, f'unknown option "{path[-1]}"{where}{hint}')

    def _value(self, type_: Any, value: Any, path: Path) -> Any:
        if type_ is Any:
            return value
        if type_ is Key or type_ == Key | None:
            return self._key(value, path)
        if type_ is Place:
            return self._place(value, path)
        table = _table_of(type_)
        if table is not None and (table is type_ or isinstance(value, dict)):
            return self._table(table, value, path)
        if get_origin(type_) is dict:
            return self._mapping(get_args(type_)[1], value, path)
        if get_origin(type_) is tuple:
            return self._list(get_args(type_)[0], value, path)
        return self._leaf(type_, value, path)

    def _mapping(self, item: Any, value: Any, path: Path) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            self.fault(path, f"{dotted(path)} must be a table, not {kind(value)}")
            return None
        found = {name: self._value(item, each, (*path, name)) for name, each in value.items()}
        return {name: each for name, each in found.items() if each is not None}

    def _list(self, item: Any, value: Any, path: Path) -> tuple[Any, ...] | None:
        if path[-1] in ("targets", "listen") and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            self.fault(path, f"{dotted(path)} must be an array, not {kind(value)}")
            return None
        found = [self._value(item, each, (*path, index)) for index, each in enumerate(value)]
        return None if None in found else tuple(found)

    def _leaf(self, type_: Any, value: Any, path: Path) -> Any:
        try:
            converted = msgspec.convert(value, type_, strict=True)
        except (msgspec.ValidationError, RecursionError):
            converted = None
        if path == ("server", "socket_mode") and not (converted and self._locator.literal(path).startswith("0o")):
            self.fault(path, "server.socket_mode must be a mode in octal, as 0o660")  # 440 would be 0o670
            return None
        if converted is None or converted != converted:  # not a number, which keeps to any bound
            name = dotted(path[:-1] if isinstance(path[-1], int) else path)
            options = get_args(type_) if get_origin(type_) is Literal else ()
            if options and isinstance(value, str):
                self.fault(path, f'{name} must be {wanted(type_)}, not "{value}"{nearest(value, options)}')
            else:
                self.fault(path, f"{name} must be {wanted(type_)}, not {kind(value)}")
            return None
        if File in (type_, *get_args(type_)) and converted != "-":
            return str(self._file.parent / converted)
        return converted

    def _key(self, value: Any, path: Path) -> Key | None:
        if not isinstance(value, str):
            self.fault(path, f"{dotted(path)} must be a string that says where the key is: env:NAME or file:/path")
            return None
        return self.key(value, path, path)

    def _place(self, value: Any, path: Path) -> Place | None:
        name = dotted(path)
        if not isinstance(value, str):
            self.fault(path, f"{name} must be a string: {FORMS}")
            return None
        return read_place(
            value,
            self.source,
            fault=lambda message: self.fault(path, f"{name}: {message}"),
            warn=lambda message: self.warn(path, f"{name}: {message}"),
        )

    def key(self, text: str, path: Path, named: Path) -> Key | None:
        """A key by what the file says of it, or by what is implied at a path."""
        return read_key(
            text,
            self.source,
            of_caller=path[0] == "callers",
            fault=lambda message: self.fault(path, f"{dotted(named)}: {message}"),
            warn=lambda message: self.warn(path, f"{dotted(named)}: {message}"),
        )


def _table_of(type_: Any) -> type[Table] | None:
    """The table that a type is, or may be."""
    kinds = get_args(type_) if isinstance(type_, UnionType) else (type_,)
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, Table)), None)


def _type_at(path: Path) -> Any:
    """The type of what stands at a path; None: of what nobody knows."""
    type_: Any = Config
    for part in path:
        if get_origin(type_) is dict:
            type_ = get_args(type_)[1]
        elif get_origin(type_) is tuple:
            type_ = get_args(type_)[0]
        elif (table := _table_of(type_)) is not None:
            type_ = {field.name: field.type for field in msgspec.structs.fields(table)}.get(str(part))
        else:
            return None
    return type_


def _shows(path: Path, literal: str) -> bool:
    """May a value stand in what is told of a fault? A key may not, nor what is not known to be none."""
    type_ = _type_at(path)
    table = get_origin(type_) is dict or (isinstance(type_, type) and issubclass(type_, Table))
    if type_ in (None, Any, Place) or table or Key in (type_, *get_args(type_)) or "headers" in path:
        return _REFERENCE.fullmatch(literal) is not None
    if path[-1] in ("base_url", "proxy"):
        return _PLAIN_URL.fullmatch(literal) is not None
    return "-----BEGIN" not in literal


def _names(table: type[Table]) -> Iterator[str]:
    """The names of every option below a table."""
    for field in msgspec.structs.fields(table):
        yield field.name
        for inner in (field.type, *get_args(field.type)):
            if (below := _table_of(inner)) is not None:
                yield from _names(below)


_KNOWN: Final = frozenset((*_names(Config), *KINDS, "true", "false"))
