"""How a run is told: a table for the terminal, a page of HTML, and what is kept for loadtests/README.md."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import harness
from loadtests.judge import Line
from loadtests.scenario import HERE, Scenario, read

RESULTS = HERE / "results"
README = HERE / "README.md"
MARK = re.compile(r"(<!-- made: results -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = """<!doctype html><meta charset="utf-8"><title>load: {name}</title>
<style>body{{font:14px sans-serif;max-width:60em;margin:2em auto}}td,th{{padding:2px 10px;text-align:left}}
.BREACH{{color:#c33;font-weight:bold}}tr:nth-child(even){{background:#f4f4f4}}</style>
<h1>{name}: {verdict}</h1><p>{told}</p><p>{where}</p>{plot}
<table><tr><th>what<th>measured<th>threshold<th></tr>{rows}</table>
"""


class Result(msgspec.Struct, kw_only=True):
    """What is kept of a run."""

    name: str
    told: str
    machine: dict[str, Any]
    lines: list[Line]

    @property
    def breaches(self) -> list[Line]:
        return [line for line in self.lines if not line.holds]

    @property
    def verdict(self) -> str:
        return f"{len(self.breaches)} breaches" if self.breaches else "all thresholds hold"


def result(name: str, scenario: Scenario, lines: list[Line]) -> Result:
    return Result(name=name, told=scenario.told(), machine=harness.machine(), lines=lines)


def table(found: Result) -> str:
    """For the terminal: what is judged first."""
    out = ["| what | measured | threshold | |", "| --- | --- | --- | --- |"]
    out += [f"| {line.name} | {shown(line.value)} | {line.limit} | {mark(line)} |" for line in found.lines]
    return "\n".join([*out, found.verdict])


def mark(line: Line) -> str:
    return "" if not line.limit else "ok" if line.holds else "BREACH"


def shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def page(found: Result, plot: str) -> str:
    rows = "".join(
        f"<tr class='{word}'><td>{line.name}<td>{shown(line.value)}<td>{html.escape(line.limit)}<td>{word}</tr>"
        for line, word in zip(found.lines, map(mark, found.lines), strict=True)
    )
    where = ", ".join(f"{key} {value}" for key, value in found.machine.items())
    fields = {"name": found.name, "verdict": found.verdict, "told": html.escape(found.told), "where": where}
    return PAGE.format(**fields, plot=plot, rows=rows)


def as_json(found: Result) -> bytes:
    lines = [
        {"name": line.name, "value": round(line.value, 4) if math.isfinite(line.value) else str(line.value),
         "threshold": line.limit, "holds": line.holds}
        for line in found.lines
    ]  # fmt: skip
    about = {"name": found.name, "told": found.told, "verdict": found.verdict, "machine": found.machine}
    return msgspec.json.format(msgspec.json.encode({**about, "lines": lines}), indent=1) + b"\n"


def keep(found: Result, plot: str) -> None:
    """Into results/, and the tables of README.md from all that is there."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{found.name}.json").write_bytes(as_json(found))
    (RESULTS / f"{found.name}.svg").write_text(plot)
    README.write_text(MARK.sub(lambda match: match[1] + tables(RESULTS) + match[2], README.read_text()))


SHOWN = (
    "requests", "failed_percent", "own_p50_ms", "own_p95_ms", "itl_p95_ratio", "lost", "duplicates",
    "cpu_ms", "rss_mb",
)  # fmt: skip


def tables(folder: Path) -> str:
    """What is kept, as Markdown: one table of all, then each scenario with its breaches and its plot."""
    kept = [msgspec.json.decode(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    out = ["| scenario | " + " | ".join(SHOWN) + " | verdict | date |", "| --- " * (len(SHOWN) + 3) + "|"]
    for each in kept:
        values = {line["name"]: line["value"] for line in each["lines"]}
        cells = " | ".join(_cell(values.get(name)) for name in SHOWN)
        out.append(f"| [{each['name']}](#{each['name']}) | {cells} | {each['verdict']} | {each['machine']['date']} |")
    for each in kept:
        where = f"{each['machine']['date']}, {each['machine']['cores']} cores, Python {each['machine']['python']}"
        out += ["", f"### {each['name']}", "", f"{each['told']} ({where})", ""]
        out += ["| judged | measured | threshold | |", "| --- | --- | --- | --- |"]
        out += [
            f"| {line['name']} | {_cell(line['value'])} | {line['threshold']} | {_word(line)} |"
            for line in each["lines"]
            if line["threshold"]
        ]
        out += ["", f"![{each['name']}](results/{each['name']}.svg)"]
    return "\n".join(out) + "\n"


def _word(line: dict[str, Any]) -> str:
    return "ok" if line["holds"] else "**BREACH**"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float | int) else str(value)


def listing() -> str:
    """The scenarios that there are, for --help."""
    return "\n".join(
        f"  {path.stem:14} {read(path.stem).told()}" for path in sorted((HERE / "scenarios").glob("*.toml"))
    )
