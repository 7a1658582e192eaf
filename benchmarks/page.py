"""The parts of benchmarks/README.md that are made: `python -m benchmarks.page` writes them anew, a test compares."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

HERE: Final = Path(__file__).parent
FILE: Final = HERE / "README.md"
RESULTS: Final = HERE / "results"
BLOCK: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NO_COMMAND: Final = frozenset(("__init__",))


def files() -> str:
    """A row a file, with the first sentence of its docstring."""
    rows = ["| file | |", "| --- | --- |"]
    for file in sorted(HERE.glob("*.py")):
        if file.stem not in NO_COMMAND:
            about = ast.get_docstring(ast.parse(file.read_text())) or ""
            rows.append(f"| `{file.name}` | {' '.join(about.partition(chr(10) * 2)[0].split())} |")
    return "\n".join(rows)


def table(name: str) -> str:
    """The rows of a result, and below them on what and when it was measured."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return f"Not measured yet: `python -m benchmarks.{name}`."
    result = msgspec.json.decode(file.read_bytes())
    rows: list[dict[str, Any]] = result["rows"]
    columns = [column for column in rows[0] if any(row[column] is not None for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([*lines, "", f"`python -m benchmarks.{name}`: {result['about']}.", f"On: {where}."])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "files": files,
    "steps": lambda: table("profile_spine"),
    "scale": lambda: table("bench_scale"),
    "idle": lambda: table("bench_idle"),
    "collector": lambda: table("bench_gc"),
}


def made(text: str) -> str:
    """The page's text with every made part as it should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    FILE.write_text(made(FILE.read_text()))
    sys.stdout.write(f"{FILE.name}: {', '.join(PARTS)}\n")
