"""Where each key of a TOML text stands: tomllib tells values only. Linear in the text, which tomllib has found valid."""

from __future__ import annotations

import re
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR: Final = re.compile(r"[^,\]\}\n#]*")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'", re.DOTALL
)


class Locator:
    """One pass over the text; `places` has the offset of every key, and of every element of an array."""

    def __init__(self, text: str) -> None:
        self.places: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._arrays: dict[Path, int] = {}  # arrays of tables: how many elements so far
        self._run()

    def position(self, path: Path) -> tuple[int, int]:
        """(line, column), from 1, of a path or of the nearest thing around it; (1, 1) when there is nothing."""
        while path and path not in self.places:
            path = path[:-1]
        offset = self.places.get(path, 0)
        before = self._text[:offset]
        return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1

    def line(self, number: int) -> str:
        lines = self._text.split("\n")
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""

    def _run(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        start = self._at
        double = self._text.startswith("[[", start)
        self._at += 2 if double else 1
        self._skip(_SPACE)
        path: Path = self._element(self._key(), last=not double)
        self._skip(_SPACE)
        self._at += 2 if double else 1
        if double:
            number = self._arrays.get(path, 0)
            self._arrays[path] = number + 1
            path = (*path, number)
        self.places.setdefault(path, start)
        return path

    def _element(self, names: list[str], *, last: bool) -> Path:
        """A header's path, with the current element of each array of tables on the way."""
        path: Path = ()
        for index, name in enumerate(names):
            path = (*path, name)
            if path in self._arrays and (last or index + 1 < len(names)):
                path = (*path, self._arrays[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        start = self._at
        names = self._key()
        for count in range(1, len(names) + 1):
            self.places.setdefault((*table, *names[:count]), start)
        self._skip(_SPACE)
        self._at += 1  # the equals sign
        self._value((*table, *names))

    def _key(self) -> list[str]:
        names = [self._name()]
        while True:
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return names
            self._at += 1
            self._skip(_SPACE)
            names.append(self._name())

    def _name(self) -> str:
        if self._text[self._at] in "\"'":
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
        elif opening in ('"', "'"):
            self._match(_STRING)
        else:
            self._match(_SCALAR)

    def _list(self, path: Path) -> None:
        self._at += 1
        number = 0
        while True:
            self._skip(_BLANK)
            if self._text.startswith("]", self._at) or self._at >= len(self._text):
                self._at += 1
                return
            self.places.setdefault((*path, number), self._at)
            self._value((*path, number))
            number += 1
            self._skip(_BLANK)
            if self._text.startswith(",", self._at):
                self._at += 1

    def _inline(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(_BLANK)
            if self._text.startswith("}", self._at) or self._at >= len(self._text):
                self._at += 1
                return
            self._pair(path)
            self._skip(_BLANK)
            if self._text.startswith(",", self._at):
                self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._match(pattern)
        return self._at

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:  # not TOML; tomllib has refused it before
            self._at = len(self._text)
            return ""
        self._at = match.end()
        return match[0]


def _unescape(text: str) -> str:
    return re.sub(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\(.)", _escape, text)


def _escape(match: re.Match[str]) -> str:
    if code := match[1] or match[2]:
        return chr(int(code, 16))
    return {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b"}.get(match[3], match[3])
