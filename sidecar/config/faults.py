"""What is wrong with a configuration: every fault at once, each where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec


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
        caret = " " * (self.column - 1) + "^"
        return f"{self.file}:{self.line}:{self.column}: {self.message}\n    {self.source}\n    {caret}"


class ConfigError(Exception):
    """A configuration that is refused. `faults`: all of them."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean "x"?`, when there is something near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""
