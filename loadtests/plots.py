"""A run as a plot, second by second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from benchmarks import svg
from benchmarks.svg import Points
from loadtests.drive import Drive
from loadtests.judge import percentile
from loadtests.scenario import Row

HEIGHT = 130
COLOURS = {
    "ok": "#2a7",
    "failed": "#c33",
    "sidecar p50": "#36c",
    "sidecar p95": "#09c",
    "direct p95": "#999",
    "MB": "#73b",
}


def of(drive: Drive, seconds: int) -> str:
    """Answers a second, time to the first content, memory: one above the other."""
    panels = [
        ("requests that ended, a second", answers(drive)),
        ("ms to the first content (whole answers: to all of it)", latencies(drive)),
        ("MB of memory", {"MB": [(each.at - drive.started, each.rss_mb) for each in drive.samples]}),
    ]
    return svg.document(
        [
            (HEIGHT, svg.lines(title, lines, COLOURS, high=HEIGHT, last=float(seconds), unit="s"))
            for title, lines in panels
            if any(lines.values())
        ]
    )


def answers(drive: Drive) -> dict[str, Points]:
    lines: dict[str, dict[int, int]] = {"ok": defaultdict(int), "failed": defaultdict(int)}
    for row in drive.rows:
        if not row.direct:
            lines["ok" if row.outcome == "ok" else "failed"][_second(drive, row)] += 1
    return {name: [(at, line[at]) for at in range(max(line) + 1)] if line else [] for name, line in lines.items()}


def latencies(drive: Drive) -> dict[str, Points]:
    ours, theirs = (_by_second(drive, (row for row in drive.rows if row.direct is direct)) for direct in (False, True))
    return {
        "sidecar p50": [(at, percentile(values, 0.5)) for at, values in ours],
        "sidecar p95": [(at, percentile(values, 0.95)) for at, values in ours],
        "direct p95": [(at, percentile(values, 0.95)) for at, values in theirs],
    }


def _second(drive: Drive, row: Row) -> int:
    return max(int(row.began + row.ms / 1000 - drive.started), 0)


def _by_second(drive: Drive, rows: Iterable[Row]) -> list[tuple[int, list[float]]]:
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.first_ms is not None and row.outcome == "ok":
            found[_second(drive, row)].append(row.first_ms)
    return sorted(found.items())
