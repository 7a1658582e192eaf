"""What is wrong with a configuration: every fault at once, each where it stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

from sidecar.config.keys import Source, Stamp
from sidecar.config.locate import Path
from sidecar.config.structs import Key

_MOST_SHOWN: Final = 120  # characters of a line
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
HEADER: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a name of one


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault (or warning). `line` and `column` count from 1; 0 when it is not in the file."""

    file: str
    message: str
    line: int = 0
    column: int = 0
    source: str = ""  # the line as it stands in the file, its secrets as stars

    def __str__(self) -> str:
        if not self.line:
            return f"{self.file}: {self.message}" if self.file else self.message
        place = f"{self.file}:{self.line}:{self.column}: {self.message}"
        if not self.source:
            return place
        before = max(self.column - _MOST_SHOWN // 2, 0) if len(self.source) > _MOST_SHOWN else 0
        caret = " " * (self.column - 1 - before) + "^"
        return f"{place}\n    {self.source[before : before + _MOST_SHOWN]}\n    {caret}"


class ConfigError(Exception):
    """A configuration that is refused. `faults`: all of them; `files`: what was read, so that a mend can be seen."""

    def __init__(self, faults: list[Fault], files: Mapping[str, Stamp | None] | None = None) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults
        self.files = files or {}


class Reading(Protocol):
    """The reading whose result is checked."""

    raw: dict[str, object]
    source: Source
    broken: set[Path]

    def fault(self, path: Path, message: str) -> None: ...
    def warn(self, path: Path, message: str) -> None: ...
    def stands(self, path: Path) -> bool: ...
    def key(self, text: str, path: Path, named: Path) -> Key | None: ...


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean "x"?`, when there is something near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def dotted(path: Iterable[str | int]) -> str:
    """A path as TOML writes it: names that are not bare are quoted."""
    return ".".join(_name(str(part)) for part in path)


def _name(text: str) -> str:
    return text if _BARE.fullmatch(text) else msgspec.json.encode(text).decode()
