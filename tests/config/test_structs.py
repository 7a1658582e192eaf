"""The tables: each number is bounded and kept to its bounds, each table is closed, nothing can be changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from sidecar import providers
from sidecar.config import KEY_VARIABLES, Config, Provider
from sidecar.config.structs import KEYLESS, KINDS, Table
from tests.config.files import OPENAI, config, messages, refused

NAMED = {"providers": "openai", "models": "fast", "callers": "web"}
NEEDED = {"models.fast": 'targets = "openai/m"\n', "callers.web": 'key = "env:OPENAI_API_KEY"\n'}


def options(table: type[Table], path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each option of a table and of those below it: the table's dotted path, its name, its type."""
    for field in msgspec.structs.fields(table):
        inner = [each for each in (field.type, *get_args(field.type)) if isinstance(each, type)]
        below = next((each for each in inner if issubclass(each, Table)), None)
        if below is None:
            yield path, field.name, field.type
        else:
            name = f"{field.name}.{NAMED[field.name]}" if field.name in NAMED else field.name
            yield from options(below, f"{path}.{name}" if path else name)


def numbers() -> Iterator[tuple[str, str, float, bool]]:
    """Each bound of each number: the table, the option, a value at it or beside it, whether it is to be taken."""
    for path, name, type_ in options(Config):
        info: Any = inspect.type_info(type_)
        for each in info.types if isinstance(info, inspect.UnionType) else (info,):
            if isinstance(each, inspect.IntType | inspect.FloatType) and name != "socket_mode":
                step = 1 if isinstance(each, inspect.IntType) else 0.001
                assert each.le is not None, (path, name)
                assert (each.ge is None) != (each.gt is None), (path, name)
                yield from ((path, name, each.le, True), (path, name, each.le + step, False))
                yield path, name, each.ge if each.ge is not None else step, True
                yield path, name, each.ge - step if each.ge is not None else 0, False


def text(path: str, line: str) -> str:
    head = "" if path.startswith("providers.openai") else OPENAI
    return f"{head}[{path}]\n{NEEDED.get(path, '')}{line}\n"


@pytest.mark.parametrize(("path", "name", "value", "taken"), list(numbers()))
def test_every_number_is_bounded(tmp_path: Path, path: str, name: str, value: float, taken: bool) -> None:
    if taken:
        found: Any = config(tmp_path, text(path, f"{name} = {value}"))
        for part in path.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert getattr(found, name) == value
    else:
        (message,) = messages(refused(tmp_path, text(path, f"{name} = {value}")))
        assert message.startswith(f"{path}.{name} must be a ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "true", '"1"', "[1]", "{}", "1979-05-27", "9" * 4000])
def test_what_is_no_number_is_none(tmp_path: Path, value: str) -> None:
    (message,) = messages(refused(tmp_path, text("timeouts", f"idle_seconds = {value}")))
    assert message.startswith("timeouts.idle_seconds must be a number over 0 and at most 86400, not ")
    assert len(message) < 120


@pytest.mark.parametrize("path", sorted({path for path, _, _ in options(Config)}))
def test_every_table_is_closed(tmp_path: Path, path: str) -> None:
    assert messages(refused(tmp_path, text(path, "zzz = 1"))) == [f'unknown option "zzz" in [{path}]']


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().server.workers = 2  # type: ignore[misc]


def test_every_built_in_provider_has_a_variable_or_needs_no_key() -> None:
    assert set(KINDS) == set(providers.ROWS)
    assert not set(KEY_VARIABLES) & set(KEYLESS)


def test_headers_and_parts_of_urls_are_not_in_the_repr() -> None:
    shown = repr(Provider(base_url="https://h/v1?key=k-1", headers={"x-a": "k-2"}, proxy="http://u:k-3@h:1"))
    assert "k-" not in shown
    assert "https://h/v1?key=**********" in shown
