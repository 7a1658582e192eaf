"""README.md tells the truth: its tables are the code's, its steps the spine's, its examples run."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from sidecar.cli import COMMANDS
from sidecar.config import load
from sidecar.config.structs import Table
from sidecar.exchange import STEPS
from tests import readme

TEXT: Final = readme.FILE.read_text()


def section(title: str) -> str:
    """What stands below a heading, up to the next of its kind."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_made_parts_are_as_the_code_has_them() -> None:
    assert {match[2] for match in readme.BLOCK.finditer(TEXT)} == readme.PARTS.keys()
    assert readme.made(TEXT) == TEXT, "run: python -m tests.readme"


def test_every_option_is_told_of_and_no_other() -> None:
    tables = {table.__name__: table for table in Table.__subclasses__() if table.__name__ != "Config"}
    nested = {"timeouts", "pool", "limits", "breaker"}
    names = {f"{name}.{field}" for name, table in tables.items() for field in table.__struct_fields__}
    assert tables.keys() == readme.TABLES.keys()
    assert readme.ABOUT.keys() == {name for name in names if name.partition(".")[2] not in nested}


def test_the_life_of_a_request_has_the_spines_steps() -> None:
    assert tuple(re.findall(r"^\d+\. \*\*(.+?)\*\*", section("Life of a request"), re.MULTILINE)) == STEPS


def test_every_command_is_told_of() -> None:
    assert set(re.findall(r"^\| `sidecar (\w+)", TEXT, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("number", range(len(blocks("toml"))))
def test_configurations_are_taken_as_they_stand(number: int, tmp_path: Path) -> None:
    text = blocks("toml")[number]
    assert tomllib.loads(text)
    file = tmp_path / "sidecar.toml"
    file.write_text(text)
    file.chmod(0o600)
    keys = dict.fromkeys(re.findall(r'"env:(\w+)"', text), "sk-of-the-readme-0123456789")
    assert load(file, env=keys).providers


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_is_python(number: int) -> None:
    imported = [node for node in ast.walk(ast.parse(blocks("python")[number])) if isinstance(node, ast.ImportFrom)]
    assert [node for node in imported if node.module == "sidecar"]


def test_the_two_marked_commands_stand_behind_their_marks() -> None:
    for mark, command in (("run", "sidecar demo"), ("test", "pytest")):
        assert TEXT.count(f"<!-- {mark} -->") == 1
        behind = re.search(r"^```\w*\n(.*?)^```", TEXT.partition(f"<!-- {mark} -->")[2], re.MULTILINE | re.DOTALL)
        assert behind is not None
        assert command in behind[1]


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`((?:benchmarks|loadtests|envoy|tests|sidecar)/[\w./*-]+)`", TEXT))
    assert len(named) > 5
    assert not [name for name in named if not list(readme.TOP.glob(name))]
