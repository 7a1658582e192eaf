"""benchmarks/README.md: its made parts are as they should be, and it names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import page

TEXT = page.FILE.read_text()


def test_every_part_is_made_and_up_to_date() -> None:
    assert {name for _, name, _ in page.BLOCK.findall(TEXT)} == set(page.PARTS)
    assert page.made(TEXT) == TEXT, "python -m benchmarks.page"


def test_what_it_names_is_there() -> None:
    named = re.findall(r"python -m benchmarks\.(\w+)", TEXT)
    assert {"profile_spine", "bench_scale", "bench_idle", "bench_gc", "guard", "page"} <= set(named)
    assert [name for name in named if not (page.HERE / f"{name}.py").exists()] == []


def test_a_result_is_a_table_without_empty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.table("bench_x") == "Not measured yet: `python -m benchmarks.bench_x`."
    result = {
        "about": "so many rounds",
        "machine": {"cores": 2},
        "rows": [{"a": "x", "b": 1234.56, "c": None, "d": 1}, {"a": "y", "b": 0.12345, "c": None, "d": None}],
    }
    (tmp_path / "bench_x.json").write_bytes(msgspec.json.encode(result))
    assert page.table("bench_x").splitlines() == [
        "| a | b | d |",
        "| --- | --- | --- |",
        "| x | 1235 | 1 |",
        "| y | 0.123 |  |",
        "",
        "`python -m benchmarks.bench_x`: so many rounds.",
        "On: cores 2.",
    ]
