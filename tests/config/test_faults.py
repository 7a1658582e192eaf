"""Faults as they are shown."""

from __future__ import annotations

from sidecar.config import ConfigError, Fault
from sidecar.config.faults import dotted, nearest


def test_without_a_place_it_is_one_line() -> None:
    assert str(Fault(file="f.toml", message="is wrong")) == "f.toml: is wrong"
    assert str(Fault(file="", message="is wrong")) == "is wrong"


def test_a_long_line_is_shown_around_the_fault() -> None:
    source = "a = [" + "1, " * 100 + "x]"
    place, line, caret = str(Fault(file="f", message="m", line=1, column=306, source=source)).split("\n")
    assert place == "f:1:306: m"
    assert len(line) <= 124
    assert line[caret.index("^")] == source[305] == "x"


def test_a_short_line_is_shown_whole() -> None:
    fault = Fault(file="f", message="m", line=2, column=100, source="x" * 120)
    assert str(fault).split("\n")[1:] == ["    " + "x" * 120, "    " + " " * 99 + "^"]


def test_only_a_near_name_is_suggested() -> None:
    assert nearest("worker", ["workers", "listen"]) == '; did you mean "workers"?'
    assert nearest("zebra", ["workers", "listen"]) == ""


def test_names_are_quoted_where_toml_asks_for_it() -> None:
    assert dotted(("a", "b c", 'd"', 0)) == 'a."b c"."d\\"".0'


def test_an_error_without_files_has_none() -> None:
    assert ConfigError([Fault(file="f", message="m")]).files == {}
