"""What is kept of runs, and how it is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import svg
from loadtests import plots, report
from loadtests.drive import Drive, Sample
from loadtests.judge import Line
from loadtests.scenario import Row

LINES = [
    Line("lost", 1.0, most=0),
    Line("requests", 12.0, least=5),
    Line("itl_p95_ms", math.nan),
    Line("p", math.inf, most=2),
]


def result(lines: list[Line]) -> report.Result:
    return report.Result(name="flaky", told="<all>", machine={"cores": 2, "python": "3", "date": "d"}, lines=lines)


def test_the_table_says_what_is_breached() -> None:
    assert report.table(result(LINES)) == (
        "| what | measured | threshold | |\n| --- | --- | --- | --- |\n| lost | 1 | <= 0 | BREACH |\n"
        "| requests | 12 | >= 5 | ok |\n| itl_p95_ms | - |  |  |\n| p | inf | <= 2 | BREACH |\n2 breaches"
    )
    assert report.table(result(LINES[1:2])).endswith("all thresholds hold")


def test_the_page_has_plot_and_verdict() -> None:
    page = report.page(result(LINES), "<svg/>")
    assert "<h1>flaky: 2 breaches</h1><p>&lt;all&gt;</p>" in page
    assert "<svg/>" in page
    assert page.count("class='BREACH'") == 2


def test_what_is_kept_can_be_read_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- made: results -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", readme)
    report.keep(result(LINES), "<svg/>")
    kept = msgspec.json.decode((tmp_path / "results" / "flaky.json").read_bytes())
    assert kept["lines"][0] == {"name": "lost", "value": 1.0, "threshold": "<= 0", "holds": False}
    assert kept["lines"][3]["value"] == "inf"
    text = readme.read_text()
    assert text.startswith("before\n<!-- made: results -->\n| scenario |")
    assert "| lost | 1 | <= 0 | **BREACH** |" in text
    assert text.endswith("![flaky](results/flaky.svg)\n<!-- end -->\nafter\n")


def test_the_readme_has_what_is_kept() -> None:
    found = report.MARK.search(report.README.read_text())
    assert found is not None
    assert found[0] == f"{found[1]}{report.tables(report.RESULTS)}{found[2]}"
    assert all((report.RESULTS / f"{path.stem}.svg").exists() for path in report.RESULTS.glob("*.json"))


def test_a_plot_is_drawn_of_whatever_came() -> None:
    row = Row(kind="stream", direct=False, key="k", began=1.0, ms=50.0, first_ms=20.0)
    sample = Sample(at=2.0, rss_mb=40.0, descriptors=9, cpu_seconds=0.1, health_ms=math.inf)
    rows = [row, msgspec.structs.replace(row, began=3.0, outcome="cut"), msgspec.structs.replace(row, direct=True)]
    full = plots.of(Drive(started=1.0, rows=rows, samples=[sample]), 5)
    assert len(ElementTree.fromstring(full).findall("{*}g")) == 3
    assert "nan" not in full
    assert "inf" not in full
    assert not ElementTree.fromstring(plots.of(Drive(started=1.0, rows=[]), 5)).findall("{*}g")


def test_long_runs_make_no_larger_plots() -> None:
    points = [(float(at), 1.0) for at in range(1800)]
    assert len(svg.few(points)) <= 250
