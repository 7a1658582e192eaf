"""Where each key of a TOML text stands: tomllib tells values only. Linear in a text that tomllib has found valid."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_COMMENT: Final = re.compile(r"#[^\n]*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]\}\n#]*")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'", re.DOTALL
)
_WORD: Final = re.compile(r"[^\s\"'=,:\[\]{}]")


class Locator:
    """One pass over the text; `places` has the offset of every key, and of every element of an array."""

    def __init__(self, text: str) -> None:
        self.places: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._arrays: dict[Path, int] = {}  # arrays of tables: how many elements so far
        self._values: list[tuple[int, int, Path]] = []  # of what is no table and no array: where from, where to, whose
        self._comments: list[int] = []
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]  # of the lines
        self._run()

    def position(self, path: Path) -> tuple[int, int]:
        """(line, column), from 1, of a path or of the nearest thing around it; (1, 1) when there is nothing."""
        while path and path not in self.places:
            path = path[:-1]
        offset = self.places.get(path, 0)
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def literal(self, path: Path) -> str:
        """The value at a path as it is written; of an array or a table, nothing."""
        return next((self._text[start:stop] for start, stop, whose in self._values if whose == path), "")

    def line(self, number: int, shows: Callable[[Path, str], bool]) -> str:
        """A line as it stands, but without its comment, and with stars for the values that `shows` says no to."""
        if not 0 < number <= len(self._starts):
            return ""
        begin = self._starts[number - 1]
        end = self._starts[number] if number < len(self._starts) else len(self._text)
        comment = bisect_right(self._comments, begin - 1)
        if comment < len(self._comments):
            end = min(end, self._comments[comment])
        line = self._text[begin:end]
        first = max(bisect_right(self._values, begin, key=lambda value: value[0]) - 1, 0)
        for start, stop, path in self._values[first:]:
            if start >= end:
                break
            if stop > begin and not shows(path, self._text[start:stop]):
                low, high = max(start - begin, 0), stop - begin
                line = line[:low] + _WORD.sub("*", line[low:high]) + line[high:]
        return line.rstrip().replace("\t", " ")

    def _run(self) -> None:
        table: Path = ()
        while self._blank() < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        double = self._text.startswith("[[", self._at)
        self._at += 2 if double else 1
        self._skip(_SPACE)
        names = self._key()
        self._skip(_SPACE)
        self._at += 2 if double else 1
        path: Path = ()
        for index, (name, offset) in enumerate(names):
            path = (*path, name)
            self.places.setdefault(path, offset)
            last = index + 1 == len(names)
            if last and double:
                self._arrays[path] = self._arrays.get(path, 0) + 1
            if path in self._arrays:  # the current element of an array of tables
                path = (*path, self._arrays[path] - 1)
                self.places.setdefault(path, offset)
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for name, offset in self._key():
            path = (*path, name)
            self.places.setdefault(path, offset)
        self._skip(_SPACE)
        self._at += 1  # the equals sign
        self._value(path)

    def _key(self) -> list[tuple[str, int]]:
        names: list[tuple[str, int]] = []
        while True:
            start = self._at
            names.append((self._name(), start))
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1
            self._skip(_SPACE)

    def _name(self) -> str:
        if self._text.startswith(('"', "'"), self._at):
            quoted = self._match(_STRING)
            return quoted[1:-1] if quoted[0] == "'" or "\\" not in quoted else _unescape(quoted[1:-1])
        return self._match(_BARE)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        opening = self._text[self._at : self._at + 1]
        if opening == "[":
            self._list(path)
        elif opening == "{":
            self._inline(path)
        else:
            start = self._at
            self._match(_STRING if opening in ('"', "'") else _SCALAR)
            self._values.append((start, self._at, path))

    def _list(self, path: Path) -> None:
        self._at += 1
        number = 0
        while True:
            self._blank()
            if self._text.startswith("]", self._at) or self._at >= len(self._text):
                self._at += 1
                return
            self.places.setdefault((*path, number), self._at)
            self._value((*path, number))
            number += 1
            self._blank()
            if self._text.startswith(",", self._at):
                self._at += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        while True:
            self._blank()
            if self._text.startswith("}", self._at) or self._at >= len(self._text):
                self._at += 1
                return
            self._pair(path)
            self._blank()
            if self._text.startswith(",", self._at):
                self._at += 1

    def _blank(self) -> int:
        start = self._at
        self._match(_BLANK)
        self._comments += [match.start() for match in _COMMENT.finditer(self._text, start, self._at)]
        return self._at

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._match(pattern)

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:  # not TOML; tomllib has refused it before
            self._at = len(self._text)
            return ""
        self._at = match.end()
        return match[0]


def masked(line: str, shown: frozenset[str]) -> str:
    """A line that is not TOML, so that nobody knows what in it is a key: only the words of `shown` are."""
    return re.sub(
        r"[^\s\"'=,.:\[\]{}#]+", lambda word: word[0] if word[0] in shown else "*" * len(word[0]), line
    ).rstrip()


def _unescape(text: str) -> str:
    return re.sub(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)", _escape, text)


def _escape(match: re.Match[str]) -> str:
    if code := match[1] or match[2]:
        return chr(int(code, 16))
    return {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}.get(match[3], match[3])
