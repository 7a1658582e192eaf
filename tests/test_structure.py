"""The shape of the project: budgets of size, a test file a module, one place that reveals a secret, the top level."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import sidecar

TOP: Final = Path(__file__).parents[1]
PACKAGE: Final = TOP / "sidecar"
FILE_LINES: Final = 400
FUNCTION_LINES: Final = 60
TOP_LEVEL: Final = {
    *("sidecar", "benchmarks", "loadtests", "tests", "envoy"),
    *("pyproject.toml", "requirements.lock", "README.md", "LICENSE", "CHANGELOG.md"),
}
# Exceptions are listed here, and only ever removed: one that no longer applies fails too.
LONG_FILES: Final[set[str]] = set()
WITHOUT_TESTS: Final = {"__main__.py"}  # two lines; tests of the command run it


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path.relative_to(TOP)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports, by their first names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_no_file_is_too_long() -> None:
    folders = ("sidecar", "benchmarks", "loadtests")
    sizes = {path: path.read_text().count("\n") for folder in folders for path in (TOP / folder).rglob("*.py")}
    long = {str(path.relative_to(TOP)) for path, lines in sizes.items() if lines > FILE_LINES}
    assert long == LONG_FILES


def test_no_function_is_too_long() -> None:
    folders = ("sidecar", "benchmarks", "loadtests", "tests")
    found = [each for folder in folders for path in (TOP / folder).rglob("*.py") for each in functions(path)]
    assert len(found) > 100
    assert not [each for each in found if each[1] > FUNCTION_LINES]


def test_every_module_has_its_test_file() -> None:
    """`sidecar/pool/dial.py` has `tests/pool/test_dial.py`."""
    missing = set()
    for path in modules():
        name = path.relative_to(PACKAGE)
        if path.name == "__init__.py" or str(name) in WITHOUT_TESTS:
            continue
        if not (TOP / "tests" / name.parent / f"test_{name.name}").exists():
            missing.add(str(name))
    assert not missing


def test_every_exception_is_still_one() -> None:
    assert not [name for name in LONG_FILES if not (TOP / name).exists()]
    assert not [name for name in WITHOUT_TESTS if not (PACKAGE / name).exists()]
    assert not [name for name in WITHOUT_TESTS if (TOP / "tests" / name).with_name(f"test_{Path(name).name}").exists()]


def test_a_secret_is_revealed_where_it_is_sent_and_nowhere_else() -> None:
    """Where the head of a request to a provider is written, and where a connection to the store begins."""
    calls = [
        str(path.relative_to(PACKAGE))
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "reveal"
    ]
    assert calls == ["pool/outbound.py", "store/wire.py"]


def test_the_top_level_holds_what_it_should() -> None:
    git = shutil.which("git")
    if git is None or not (TOP / ".git").exists():
        pytest.skip("not a clone: git tells what belongs to the project")
    done = subprocess.run([git, "ls-files"], cwd=TOP, capture_output=True, text=True, check=True)
    top = {line.partition("/")[0] for line in done.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL


def test_public_names_are_there() -> None:
    assert all(getattr(sidecar, name) is not None for name in sidecar.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Sidcar'"):
        getattr(sidecar, "Sidcar")  # noqa: B009  # a typo that the type checker would see


def test_the_lock_has_all_that_is_asked_for_and_names_no_host() -> None:
    lock = (TOP / "requirements.lock").read_text()
    assert "://" not in lock
    assert lock.count("--hash=sha256:") > lock.count("==")
    table = tomllib.loads((TOP / "pyproject.toml").read_text())
    groups = [*table["project"]["optional-dependencies"].values(), *table["dependency-groups"].values()]
    wanted = {asked for group in groups for asked in group} | {*table["project"]["dependencies"]}
    names = {re.split(r"[<>=!;\[ ]", asked)[0].lower().replace("_", "-") for asked in wanted}
    assert len(names) > 20
    assert names <= set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE))


def test_the_tests_import_nothing_that_their_extra_lacks() -> None:
    table = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    asked = [*table["dependencies"], *table["optional-dependencies"]["test"]]
    known = {re.split(r"[<>=!;\[ ]", each)[0].lower().replace("-", "_") for each in asked}
    known |= {*sys.stdlib_module_names, "sidecar", "tests", "benchmarks", "loadtests"}
    known |= {"yaml"} if "pyyaml" in known else set()  # what it is imported as
    files = [*(TOP / "tests").rglob("*.py"), *(TOP / "sidecar").rglob("*.py")]
    assert not {(name, file.name) for file in files for name in imported(file) if name not in known}
