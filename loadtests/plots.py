"""Small line plots as SVG, by hand: a run second by second. No library, no script, no font but the reader's own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from loadtests.drive import Drive
from loadtests.judge import percentile
from loadtests.scenario import Row

WIDTH, HEIGHT, LEFT, TOP = 620, 130, 46, 22
COLOURS = {
    "ok": "#2a7",
    "failed": "#c33",
    "sidecar p50": "#36c",
    "sidecar p95": "#09c",
    "direct p95": "#999",
    "MB": "#73b",
}
Points = list[tuple[float, float]]


def of(drive: Drive, seconds: int) -> str:
    """Answers a second, time to the first content, memory: one above the other."""
    panels = [
        ("requests that ended, a second", answers(drive)),
        ("ms to the first content (whole answers: to all of it)", latencies(drive)),
        ("MB of memory", {"MB": [(each.at - drive.started, each.rss_mb) for each in drive.samples]}),
    ]
    shown = [(title, lines) for title, lines in panels if any(lines.values())]
    parts = [_panel(title, lines, seconds, at * HEIGHT) for at, (title, lines) in enumerate(shown)]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT * len(shown)}" width="{WIDTH}" height="{HEIGHT * len(shown)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
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


def _panel(title: str, lines: dict[str, Points], seconds: int, down: int) -> str:
    values = [value for points in lines.values() for _, value in points if math.isfinite(value)]
    top = _nice(max(values, default=1.0))
    last = max([float(seconds), *(at for points in lines.values() for at, _ in points)])
    wide, high = WIDTH - LEFT - 10, HEIGHT - TOP - 20
    out = [f'<g transform="translate({LEFT},{down + TOP})">', f'<text x="0" y="-8" fill="#333">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = high * (1 - share)
        out.append(f'<path d="M0 {y:.0f}H{wide}" stroke="#ddd"/>')
        out.append(f'<text x="-4" y="{y + 3:.0f}" text-anchor="end" fill="#666">{top * share:g}</text>')
    for share in (0.0, 0.5, 1.0):
        anchor = "end" if share == 1.0 else "middle"
        place = f'x="{wide * share:.0f}" y="{high + 13}" text-anchor="{anchor}"'
        out.append(f'<text {place} fill="#666">{last * share:.0f} s</text>')
    legend = wide
    for name, points in reversed(lines.items()):
        if not points:
            continue
        path = " ".join(
            f"{wide * at / last:.0f},{high * (1 - min(value, top) / top):.0f}" for at, value in _few(points)
        )
        out.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>')
        out.append(f'<text x="{legend}" y="-8" text-anchor="end" fill="{COLOURS[name]}">{name}</text>')
        legend -= 7 * len(name) + 6
    return "\n".join([*out, "</g>"])


def _few(points: Points) -> Points:
    """At most some hundred: a night's run is drawn as finely as a minute's."""
    step = max(len(points) // 200, 1)
    return points[::step]


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... above."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-3)))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)
