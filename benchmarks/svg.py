"""Small plots as SVG, by hand. No library, no script, no font but the reader's own."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 620
LEFT: Final = 46  # of the lines' scale
NAMES: Final = 110  # of the bars' names
TOP: Final = 22
BAR: Final = 16
Points = list[tuple[float, float]]


def document(panels: Sequence[tuple[int, list[str]]]) -> str:
    """Panels with their heights, one above the other."""
    out, down = [], 0
    for high, drawn in panels:
        out += [f'<g transform="translate(0,{down})">', *drawn, "</g>"]
        down += high
    size = f'viewBox="0 0 {WIDTH} {down}" width="{WIDTH}" height="{down}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="10">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(out) + "\n</svg>\n"
    )


def lines(
    title: str, drawn: dict[str, Points], colours: dict[str, str], *, high: int, last: float, unit: str
) -> list[str]:
    """Lines from the left edge (0) to `last`, over a scale from 0 to the next nice number."""
    values = [value for points in drawn.values() for _, value in points if math.isfinite(value)]
    top = nice(max(values, default=1.0))
    last = max([last, *(at for points in drawn.values() for at, _ in points)])
    wide, tall = WIDTH - LEFT - 10, high - TOP - 20
    out = [f'<g transform="translate({LEFT},{TOP})">', _text(0, -8, title)]
    for share in (0.0, 0.5, 1.0):
        y = tall * (1 - share)
        out.append(f'<path d="M0 {y:.0f}H{wide}" stroke="#ddd"/>')
        out.append(_text(-4, y + 3, f"{top * share:g}", "end"))
        out.append(_text(wide * share, tall + 13, f"{last * share:.0f} {unit}", "end" if share == 1.0 else "middle"))
    legend = wide
    for name, points in reversed(drawn.items()):
        if not points:
            continue
        path = " ".join(f"{wide * at / last:.0f},{tall * (1 - min(value, top) / top):.0f}" for at, value in few(points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="1.5"/>')
        out.append(_text(legend, -8, name, "end", colours[name]))
        legend -= 7 * len(name) + 6
    return [*out, "</g>"]


def bars(title: str, values: dict[str, float], *, ours: str, scale: str) -> tuple[int, list[str]]:
    """A bar each, on a logarithmic scale, with its number; a panel with its height. `ours` has the other colour."""
    low = 10 ** math.floor(math.log10(min(values.values(), default=1.0) * 0.8))
    high = max(values.values(), default=1.0)
    wide = WIDTH - NAMES - 70
    out = [_text(10, 14, title), _text(WIDTH - 10, 14, scale, "end")]
    for at, (name, value) in enumerate(values.items()):
        y = TOP + at * BAR
        length = wide * math.log(value / low) / math.log(high / low)
        colour = "#2a7" if name == ours else "#9ab"
        out.append(_text(NAMES - 6, y + 10, name, "end"))
        out.append(f'<rect x="{NAMES}" y="{y}" width="{length:.0f}" height="{BAR - 4}" fill="{colour}"/>')
        out.append(_text(NAMES + length + 5, y + 10, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"))
    return TOP + len(values) * BAR + 12, out


def few(points: Points) -> Points:
    """At most some hundred: a night's run is drawn as finely as a minute's."""
    return points[:: max(len(points) // 200, 1)]


def nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 ... above."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-3)))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
