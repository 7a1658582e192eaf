"""Stacks: read as faulthandler writes them, folded, drawn; and told by step."""

from __future__ import annotations

import faulthandler
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import flame, steps
from benchmarks.flame import Box

SPINE = str(steps.PACKAGE / "exchange" / "spine.py")


def test_what_faulthandler_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "samples"
    with file.open("wb") as out:
        faulthandler.dump_traceback(out, all_threads=False)
        faulthandler.dump_traceback(out, all_threads=False)
    first, second = flame.read_samples(file.read_text())
    assert first[0][0] == __file__
    assert first[0][2] == "test_what_faulthandler_writes_is_read"
    assert second[0][1] == first[0][1] + 1
    assert first[1:] == second[1:]


def test_a_broken_sample_is_left_out() -> None:
    head = "Current thread 0x1 (most recent call first):\n"
    text = f'{head}{head}  File "a", line 3 in b\n'
    assert flame.read_samples(text) == [[("a", 3, "b")]]


def test_stacks_are_folded() -> None:
    tree = flame.fold({("a", "b"): 2, ("a",): 1, ("c",): 4}, "all")
    assert tree == Box("all", 7, {"a": Box("a", 3, {"b": Box("b", 2)}), "c": Box("c", 4)})


def test_boxes_are_as_wide_as_their_share_and_stand_on_each_other() -> None:
    svg = flame.draw(flame.fold({("a", "b<c>"): 1, ("a",): 2, ("d",): 1}, "all"), "1 & 2")
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    boxes = {
        box.findtext(f"{space}title"): (float(box.attrib["x"]), float(box.attrib["width"]), float(box.attrib["y"]))
        for box in root.iter(f"{space}rect")
        if "x" in box.attrib  # the ground has none
    }
    assert boxes["all: 100.0%"][:2] == (0, flame.WIDTH)
    assert boxes["a: 75.0%"][:2] == (0, 900)
    assert boxes["b<c>: 25.0%"][:2] == (0, 300)
    assert boxes["d: 25.0%"][:2] == (900, 300)
    tops = [boxes[name][2] for name in ("all: 100.0%", "a: 75.0%", "b<c>: 25.0%")]
    assert tops == [tops[0], tops[0] - flame.ROW, tops[0] - 2 * flame.ROW]
    assert "1 & 2" in [text.text for text in root.iter(f"{space}text")]


def test_what_nobody_could_see_is_not_drawn() -> None:
    svg = flame.draw(flame.fold(Counter({("a",): 10_000, ("b",): 1}), "all"), "")
    assert "<title>a: 100.0%</title>" in svg
    assert "<title>b:" not in svg


def test_every_row_is_of_code_that_is_there() -> None:
    """What benchmarks/steps.py names; where the spine is rewritten, its rows are to follow."""
    assert steps.unfound() == []
    assert {row.step for row in steps.ROWS} <= set(steps.ORDER)


def test_every_step_of_the_spine_has_a_row() -> None:
    assert {row.step for row in steps.ROWS} >= set(steps.ORDER)


def line_of(text: str, file: str = SPINE) -> int:
    lines = Path(file).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("text", "step"), [("asking.timeout", "identify"), ("body.envelope", "decode"), ("counter.enter(", "admit caller")]
)
def test_a_line_of_the_spine_is_in_its_step(text: str, step: str) -> None:
    assert steps.step_of([(SPINE, line_of(text), "_steps"), (SPINE, 1, "_finish")]) == step


def test_what_is_used_everywhere_is_in_the_step_of_who_used_it() -> None:
    used = (str(steps.PACKAGE / "wire" / "body.py"), 10, "envelope")
    assert steps.step_of([used, (SPINE, line_of("body.envelope"), "_steps")]) == "decode"
    assert steps.step_of([used, (str(steps.PACKAGE / "ledger.py"), 1, "drain")]) == "account"
    assert steps.step_of([("/usr/lib/python3/asyncio/runners.py", 1, "run")]) == steps.LOOP
    assert steps.step_of([]) == steps.LOOP
