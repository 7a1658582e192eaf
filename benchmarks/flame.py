"""Samples of stacks, folded and drawn: a flame graph as one SVG that needs nothing else.

A box is a function; above it stands what it called; its width is its share of the samples. The order of boxes side by
side says nothing. Pointing at one shows its name and share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

import msgspec

Stack = tuple[str, ...]  # from the outermost call to the innermost

WIDTH: Final = 1200
ROW: Final = 17  # pixels
LETTER: Final = 6.6  # pixels
NARROWEST: Final = 0.4  # pixels; what is narrower is not drawn
COLOURS: Final = ("#f2b872", "#f0a35e", "#eb8f54", "#f4c98a", "#e9a06c", "#f6d69a")
STYLE: Final = "text{font:11px monospace;pointer-events:none}rect{stroke:#fff;stroke-width:.5}rect:hover{fill:#8ab}"


class Box(msgspec.Struct):
    """A function where it was called from, and how many samples have it there."""

    name: str
    count: int = 0
    above: dict[str, Box] = {}


def fold(stacks: Mapping[Stack, int], root: str) -> Box:
    """The tree of boxes, `root` below all."""
    tree = Box(root)
    for stack, count in stacks.items():
        at = tree
        at.count += count
        for name in stack:
            at = at.above.setdefault(name, Box(name))
            at.count += count
    return tree


def collapsed(stacks: Mapping[Stack, int]) -> str:
    """One line a stack: its names and its count, as other tools read it."""
    return "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(stacks.items()))


def expand(text: str) -> Counter[Stack]:
    """The same, read."""
    stacks: Counter[Stack] = Counter()
    for line in text.splitlines():
        names, _, count = line.rpartition(" ")
        stacks[tuple(names.split(";"))] += int(count)
    return stacks


def depth(box: Box) -> int:
    return 1 + max((depth(each) for each in box.above.values()), default=0)


def draw(tree: Box, title: str) -> str:
    """The SVG."""
    height = (depth(tree) + 3) * ROW
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="6" y="{ROW}">{escape(title)}</text>',
    ]
    out += _boxes(tree, 0.0, height - 2 * ROW, WIDTH / max(tree.count, 1), tree.count)
    return "\n".join([*out, "</svg>", ""])


def _boxes(box: Box, left: float, top: float, scale: float, total: int) -> Iterable[str]:
    width = box.count * scale
    if width < NARROWEST:
        return
    colour = COLOURS[sum(box.name.encode()) % len(COLOURS)]
    about = f"<title>{escape(box.name)}: {box.count / total:.1%}</title>"
    yield f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW}" fill="{colour}">{about}</rect>'
    letters = int((width - 4) / LETTER)
    if letters >= 3:
        name = box.name if len(box.name) <= letters else f"{box.name[: letters - 1]}…"
        yield f'<text x="{left + 3:.1f}" y="{top + ROW - 5}">{escape(name)}</text>'
    for above in sorted(box.above.values(), key=lambda each: each.name):
        yield from _boxes(above, left, top - ROW, scale, total)
        left += above.count * scale


# -- samples ----------------------------------------------------------------------------------------------------------

Frame = tuple[str, int, str]  # file, line, function
FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')


def read_samples(text: str) -> list[list[Frame]]:
    """The stacks that `faulthandler` has written, each from the innermost call to the outermost."""
    samples: list[list[Frame]] = []
    for line in text.splitlines():
        if "(most recent call first)" in line:
            samples.append([])
        elif samples and (match := FRAME.fullmatch(line)):
            samples[-1].append((match[1], int(match[2]), match[3]))
    return [sample for sample in samples if sample]
