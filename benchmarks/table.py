"""What compare.py found, as rows, checks, Markdown for README.md and plots. Pure: figures in, text out."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from benchmarks import svg

BARS: Final = {"tensorzero": 0.3, "smg": 0.3, "litellm": 0.01}  # of their CPU per request, at most
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
FULL_CORE: Final = 0.9  # of a core, below which it was the load that could not keep up
COLUMNS: Final = {  # of the whole table -> scenario and figure
    "us/request": ("unary", "us"),
    "requests/s": ("unary", "rate"),
    "core": ("unary", "core"),
    "open loop, requests/s": ("open", "level"),
    "added p50 ms": ("open", "added p50"),
    "added p90 ms": ("open", "added p90"),
    "added p99 ms": ("open", "added p99"),
    "added p99.9 ms": ("open", "added p99.9"),
    "streams": ("stream", "level"),
    "us/event": ("stream", "us"),
    "added first token p50 ms": ("stream", "added first p50"),
    "added first token p99 ms": ("stream", "added first p99"),
    "between events p99 ms": ("stream", "gap p99"),
    "tiny, requests/s": ("tiny", "level"),
    "tiny, added p50 ms": ("tiny", "added p50"),
    "tiny, added p99 ms": ("tiny", "added p99"),
    "tiny, added p99.9 ms": ("tiny", "added p99.9"),
    "200 KB us/request": ("big", "us"),
    "200 KB requests/s": ("big", "rate"),
}


class Found(msgspec.Struct, kw_only=True):
    """One proxy's figures. `rounds`: a scenario's, in order, and `failed` its failures of `asked` requests by class."""

    name: str
    version: str
    about: str
    note: str = ""  # why it is not there, or no more
    start_seconds: list[float] = []
    idle_mb: float | None = None
    loaded_mb: float | None = None
    rounds: dict[str, list[dict[str, float | None]]] = {}
    asked: dict[str, int] = {}
    failed: dict[str, dict[str, int]] = {}

    def median(self, scenario: str, figure: str) -> float | None:
        """Over the rounds that have the figure; None where none has."""
        values = [value for each in self.rounds.get(scenario, []) if (value := each.get(figure)) is not None]
        return statistics.median(values) if values else None

    def failures(self) -> str:
        """`0`, or how many of how many, by class."""
        by_class: dict[str, int] = {}
        for each in self.failed.values():
            for name, count in each.items():
                by_class[name] = by_class.get(name, 0) + count
        if not any(by_class.values()):
            return "0"
        told = ", ".join(f"{name} {count}" for name, count in sorted(by_class.items()) if count)
        return f"{sum(by_class.values())} of {sum(self.asked.values())} ({told})"


def percentile(values: Iterable[float], share: float) -> float | None:
    """None where there are too few values for it to be more than the largest of them."""
    ordered = sorted(values)
    if len(ordered) * (1 - share) < 1 - 1e-9:
        return None
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def added(
    ours: Mapping[str, float | None], direct: Mapping[str, float | None], names: Iterable[str]
) -> dict[str, float | None]:
    """By how much each figure is more than without a proxy."""
    answer: dict[str, float | None] = {}
    for name in names:
        mine, theirs = ours.get(name), direct.get(name)
        answer[f"added {name}"] = None if mine is None or theirs is None else mine - theirs
    return answer


def ratio(found: dict[str, Found], name: str, base: str) -> float | None:
    """The median over rounds of one's CPU per request over the other's in the same round."""
    if name not in found or base not in found:
        return None
    pairs = zip(found[name].rounds.get("unary", []), found[base].rounds.get("unary", []), strict=False)
    ratios = [ours["us"] / theirs["us"] for ours, theirs in pairs if ours.get("us") and theirs.get("us")]  # type: ignore[operator]
    return statistics.median(ratios) if ratios else None


def rows(found: dict[str, Found]) -> list[dict[str, Any]]:
    """A row a proxy, the missing ones too."""
    return [_row(each, found) for each in found.values()]


def _row(each: Found, found: dict[str, Found]) -> dict[str, Any]:
    figures: dict[str, Any] = {heading: each.median(*where) for heading, where in COLUMNS.items()}
    if each.name == "direct":  # what was counted there is the simulated provider
        figures |= {heading: None for heading, (_, figure) in COLUMNS.items() if figure in ("us", "core", "level")}
    for heading in ("requests/s", "200 KB requests/s"):
        figures[heading] = None if figures[heading] is None else round(figures[heading])
    return {
        "proxy": each.name,
        "version": each.version,
        "of Envoy": None if each.name == "direct" else ratio(found, each.name, "envoy"),
        **figures,
        "MB idle": each.idle_mb,
        "MB loaded": each.loaded_mb,
        "start s": statistics.median(each.start_seconds) if each.start_seconds else None,
        "failed": each.failures() if each.asked else None,
        "note": each.note,
    }


def checks(found: dict[str, Found]) -> dict[str, bool]:
    """The bars against those that were asked for, and that nothing failed with us."""
    answer = {}
    for name, most in BARS.items():
        if name not in found:
            continue
        value = ratio(found, "sidecar", name)
        told = found[name].note or "not measured"
        answer[f"sidecar <= {most} x {name} ({told if value is None else f'{value:.3f}'})"] = (
            value is not None and value <= most
        )
    if "sidecar" in found:
        failures = found["sidecar"].failures()
        answer[f"no request failed with the sidecar ({failures})"] = failures == "0"
    return answer


def plots(found: dict[str, Found]) -> dict[str, str]:
    """SVG by what it is of."""
    cpu = [("unary", "CPU us a request"), ("stream", "CPU us a streamed event")]
    late = [
        ("open", "added p50", "added latency of a request, p50, ms"),
        ("open", "added p99", "added latency of a request, p99, ms"),
        ("stream", "added first p50", "added time to the first token, p50, ms"),
    ]
    memory = {each.name: each.loaded_mb for each in found.values() if each.name != "direct"}
    return {
        "cpu": svg.document(
            [_bars(title, _each(found, scenario, "us")) for scenario, title in cpu] + [_bars("MB after load", memory)]
        ),
        "latency": svg.document([_bars(title, _each(found, scenario, figure)) for scenario, figure, title in late]),
    }


def _each(found: dict[str, Found], scenario: str, figure: str) -> dict[str, float | None]:
    return {each.name: each.median(scenario, figure) for each in found.values() if each.name != "direct"}


def _bars(title: str, values: dict[str, float | None]) -> tuple[int, list[str]]:
    """The least first; what is not above zero cannot be drawn on a logarithmic scale."""
    shown = {name: value for name, value in values.items() if value is not None and value > 0}
    least_first = dict(sorted(shown.items(), key=operator.itemgetter(1)))
    return svg.bars(title, least_first, ours="sidecar", scale="logarithmic; less is better")


README: Final = {  # heading -> the columns that it joins
    "CPU us a request": ("us/request",),
    "of Envoy's": ("of Envoy",),
    "requests/s, one core": ("requests/s",),
    "CPU us an event": ("us/event",),
    "added ms p50 / p99 / p99.9": ("added p50 ms", "added p99 ms", "added p99.9 ms"),
    "tiny, 1 s at most: added ms p50 / p99 / p99.9": (
        "tiny, added p50 ms",
        "tiny, added p99 ms",
        "tiny, added p99.9 ms",
    ),
    "first token, added ms p50 / p99": ("added first token p50 ms", "added first token p99 ms"),
    "between events, p99 ms": ("between events p99 ms",),
    "200 KB, CPU us": ("200 KB us/request",),
    "MB idle / loaded": ("MB idle", "MB loaded"),
    "start s": ("start s",),
    "failed": ("failed",),
}


def markdown(result: dict[str, Any]) -> str:
    """The part of README.md, from what is in compare.json."""
    out = ["| proxy | " + " | ".join(README) + " |", "| --- " * (len(README) + 1) + "|"]
    for row in result["rows"]:
        cells = [" / ".join(_cell(row, column) for column in columns) for columns in README.values()]
        cells = [cell if cell.strip("- /") else "-" for cell in cells]
        if all(cell == "-" for cell in cells):
            cells[0] = f"not available: {row['note']}"
        name = f"{row['proxy']} {row['version']}".strip()
        out.append(f"| {name} | {' | '.join(cells)} |")
    machine = result["machine"]
    where = f"{machine['date']}, {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}"
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("uvloop", "httptools", "msgspec") if name in machine)
    out += ["", f"{result['about']} By `benchmarks/compare.py` on {where}, {libraries}.", ""]
    out += [f"- {each['name']} {each['version']}: {_about(each)}".replace(" :", ":") for each in result["proxies"]]
    out += ["", *(f"![{name}](benchmarks/results/{name}.svg)" for name in ("compare-cpu", "compare-latency"))]
    return "\n".join(out)


def _about(each: dict[str, Any]) -> str:
    levels = {name: rounds[0].get("level") for name, rounds in each["rounds"].items() if rounds}
    words = {"open": "open loop {:.0f} requests/s", "tiny": "tiny ones {:.0f}/s", "stream": "streams at once {:.0f}"}
    told = [words[name].format(level) for name, level in levels.items() if name in words and level]
    about: str = each["about"]
    note = f" ({each['note']})" if each["note"] else ""
    return about + note + (f"; {', '.join(told)}" if told and each["name"] != "direct" else "")


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    bound = column == "requests/s" and row["core"] is not None and row["core"] < FULL_CORE
    sign = "> " if bound else ""
    return f"{sign}{value:,.0f}" if abs(value) >= 100 else f"{sign}{value:.3g}"
