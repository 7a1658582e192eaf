"""What compare.py makes of its figures."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import table
from benchmarks.table import Found


def found(name: str, *us: float, **more: Any) -> Found:
    rounds: list[dict[str, float | None]] = [{"us": each, "rate": 1e6 / each, "core": 1.0} for each in us]
    return Found(name=name, version="1.2", about="a proxy", rounds={"unary": rounds}, **more)


ALL = {
    "direct": found("direct", 10.0, 10.0),
    "sidecar": found("sidecar", 40.0, 50.0, asked={"unary": 100}, start_seconds=[0.2, 0.4], idle_mb=33.0),
    "envoy": found("envoy", 80.0, 50.0, asked={"unary": 90}, failed={"unary": {"status": 2}, "open": {"timeout": 1}}),
    "smg": found("smg", 400.0, 500.0),
    "litellm": Found(name="litellm", version="9", about="keys", note="no such release"),
}


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(100, 0.5, 50), (100, 0.99, 99), (99, 0.99, None), (1000, 0.999, 999), (999, 0.999, None), (1, 0.5, None)],
)
def test_a_percentile_needs_values_beyond_it(count: int, share: float, expected: int | None) -> None:
    assert table.percentile(reversed(range(count)), share) == expected


def test_added_is_more_than_without_a_proxy() -> None:
    ours, direct = {"p50": 3.0, "p99": None, "p90": 1.0}, {"p50": 1.0, "p99": 1.0}
    assert table.added(ours, direct, ("p50", "p90", "p99")) == {"added p50": 2.0, "added p90": None, "added p99": None}


def test_the_ratio_is_of_the_same_round() -> None:
    assert table.ratio(ALL, "sidecar", "envoy") == 0.75  # the median of 0.5 and 1, not of 45 and 65
    assert table.ratio(ALL, "sidecar", "litellm") is None
    assert table.ratio(ALL, "sidecar", "nobody") is None


def test_failures_are_told_by_class() -> None:
    assert ALL["sidecar"].failures() == "0"
    assert ALL["envoy"].failures() == "3 of 90 (status 2, timeout 1)"


def test_a_row_for_each_and_for_the_missing_too() -> None:
    rows = {row["proxy"]: row for row in table.rows(ALL)}
    assert list(rows) == list(ALL)
    assert len({tuple(row) for row in rows.values()}) == 1  # the same columns
    assert rows["sidecar"]["us/request"] == 45.0
    assert rows["sidecar"]["start s"] == pytest.approx(0.3)
    assert rows["direct"]["us/request"] is None  # it is the provider's
    assert rows["direct"]["requests/s"] == 100_000
    assert rows["litellm"]["note"] == "no such release"
    assert {rows["litellm"][column] for column in table.COLUMNS} == {None}


def test_bars_are_checked_and_a_missing_rival_is_a_miss() -> None:
    assert table.checks(ALL) == {
        "sidecar <= 0.3 x smg (0.100)": True,
        "sidecar <= 0.01 x litellm (no such release)": False,
        "no request failed with the sidecar (0)": True,
    }
    slow = {
        "sidecar": found("sidecar", 40.0, asked={"big": 3}, failed={"big": {"wrong": 1}}),
        "smg": found("smg", 80.0),
    }
    assert list(table.checks(slow).values()) == [False, False]


def result() -> dict[str, Any]:
    machine = {"date": "d", "cores": 2, "cpu": "c", "python": "3", "uvloop": "0.23"}
    proxies = msgspec.to_builtins(list(ALL.values()))
    return {"rows": table.rows(ALL), "machine": machine, "about": "Medians.", "proxies": proxies}


def test_the_readme_has_a_line_for_each() -> None:
    text = table.markdown(result())
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| sidecar 1.2 | 45 | 0.75 | 22,500 | - |")
    assert lines[3].endswith("| 33 / - | 0.3 | 0 |")
    assert lines[6].startswith("| litellm 9 | not available: no such release | - |")
    assert "Medians. By `benchmarks/compare.py` on d, 2 cores (c), Python 3, uvloop 0.23." in text
    assert "- litellm 9: keys (no such release)" in text


def test_a_rate_that_the_load_bounds_is_said_to_be_more() -> None:
    bounded = {"sidecar": found("sidecar", 40.0)}
    bounded["sidecar"].rounds["unary"][0]["core"] = 0.5
    assert "| > 25,000 |" in table.markdown({**result(), "rows": table.rows(bounded), "proxies": []})


def test_plots_have_a_bar_for_each_that_has_a_figure() -> None:
    plots = table.plots(ALL)
    cpu = ElementTree.fromstring(plots["cpu"])
    assert len(cpu.findall(".//{*}g")) == 3
    assert len(cpu.findall(".//{*}g/{*}rect")) == 3
    texts = [each.text for each in cpu.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.index("sidecar") < texts.index("envoy") < texts.index("smg")  # the least first
    assert "litellm" not in texts
    assert "nan" not in plots["latency"]
