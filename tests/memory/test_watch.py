"""Levels, and when whoever is to give way is told of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from sidecar.memory import watch as watching
from sidecar.memory.cgroups import Bound, Memory
from sidecar.memory.watch import SHRINK, Watch
from tests.memory.kernel import Kernel, Loop, descriptors

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("shares", "levels"),
    [
        ([0.79, 0.80, 0.89, 0.90, 0.949, 0.95, 2.0], [0, 1, 1, 2, 2, 3, 3]),
        ([0.96, 0.91, 0.90, 0.899, 0.85, 0.849, 0.75, 0.749], [3, 3, 3, 2, 2, 1, 1, 0]),
        ([0.96, 0.5, 0.86], [3, 0, 1]),
        ([0.81, 0.76, 0.81, 0.76], [1, 1, 1, 1]),  # it does not flutter
    ],
)
def test_levels_begin_at_their_marks_and_end_below_them(shares: list[float], levels: list[int]) -> None:
    found = [0]
    for share in shares:
        found.append(watching.level(found[-1], share))
    assert found[1:] == levels


def watched(kernel: Kernel, **more: Any) -> tuple[Watch, Loop, list[int]]:
    acts: list[int] = []
    loop = Loop()
    watch = Watch(kernel.bound, acts.append, proc=kernel.proc, **more)
    watch.start(loop)  # type: ignore[arg-type]
    return watch, loop, acts


def test_a_watch_acts_when_a_level_changes_and_while_there_is_one(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=10_000)
    before = descriptors()
    watch, loop, acts = watched(kernel)
    assert (watch.level, watch.memory, acts) == (0, Memory(100_000, 10_000), [])
    for used, level in ((60_000, 0), (81_000, 1), (96_000, 3), (96_000, 3), (91_000, 3), (86_000, 2), (20_000, 0)):
        kernel.group("a", most=100_000, used=used)
        loop.go_on()
        assert watch.level == level
    assert acts == [1, 3, 3, 3, 2, 0]
    loop.go_on()
    assert len(acts) == 6  # nothing changes: nobody is called
    watch.stop()
    assert loop.timers == []
    assert descriptors() == before


def test_it_looks_oftener_where_memory_is_short(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=10_000)
    _, loop, _ = watched(kernel)
    kernel.group("a", most=100_000, used=66_000)
    assert loop.go_on() == watching.LOOK_SECONDS
    kernel.group("a", most=100_000, used=10_000)
    assert loop.go_on() == watching.SOON_SECONDS
    assert loop.go_on() == watching.LOOK_SECONDS


def test_what_can_be_taken_back_is_no_pressure(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=99_000, inactive_file=20_000, active_file=50_000, file_mapped=10_000)
    watch, _, acts = watched(kernel)
    assert (watch.memory, watch.level, acts) == (Memory(100_000, 39_000), 0, [])


def test_the_group_that_is_nearest_to_its_limit_counts(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "pod", "sidecar")
    kernel.group("pod/sidecar", most=100_000, used=50_000)
    kernel.group("pod", most=200_000, used=191_000)
    watch, _, acts = watched(kernel)
    assert (watch.memory, acts) == (Memory(200_000, 191_000), [3])


def test_a_limit_that_is_changed_meanwhile_counts(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=50_000)
    watch, loop, _ = watched(kernel)
    kernel.group("a", most=52_000, used=50_000)
    loop.go_on()
    assert (watch.memory, watch.level) == (Memory(52_000, 50_000), 3)
    kernel.group("a", most="max", used=50_000)
    loop.go_on()
    assert (watch.memory, watch.level) == (None, 0)


def test_a_group_that_cannot_be_read_any_more_sheds_nothing(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=97_000)
    watch, loop, acts = watched(kernel)
    (tmp_path / "group/a/memory.current").write_text("")
    loop.go_on()
    assert (watch.memory, acts) == (None, [3, 0])


def test_memory_of_others_makes_only_the_cache_give_way(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a", machine=1_000_000)
    most = 100 * MIB
    kernel.group("a", most=most, used=97 * MIB)
    page = os.sysconf("SC_PAGE_SIZE")
    eighth = most // 8 // page
    for pages, workers, level in ((eighth, 1, 3), (eighth - 1, 1, 1), (eighth // 2 - 1, 2, 1), (eighth // 2, 2, 3)):
        kernel.resident(pages)
        watch, _, _ = watched(kernel, workers=workers)
        assert watch.level == level
    (kernel.proc / "self/statm").unlink()
    assert watched(kernel)[0].level == 3  # nobody tells: it may be ours


def test_a_guest_only_lets_the_cache_give_way(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=97_000)
    _, _, acts = watched(kernel, worst=SHRINK)
    assert acts == [1]


def test_a_watch_may_begin_again_on_another_loop(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=10_000)
    before = descriptors()
    watch, first, _ = watched(kernel)
    second = Loop()
    watch.start(second)  # type: ignore[arg-type]
    assert (len(first.timers), len(second.timers)) == (0, 1)
    second.go_on()
    watch.stop()
    watch.stop()
    assert descriptors() == before


async def test_it_watches_on_a_real_loop(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most=100_000, used=70_000)
    acted = asyncio.Event()
    watch = Watch(kernel.bound, lambda level: acted.set(), proc=kernel.proc)
    watch.start(asyncio.get_running_loop())
    kernel.group("a", most=100_000, used=82_000)
    async with asyncio.timeout(5):
        await acted.wait()
    watch.stop()


def test_where_nothing_bounds_nothing_is_watched() -> None:
    watch = Watch(Bound(0), lambda level: pytest.fail(str(level)))
    watch.start(None)  # type: ignore[arg-type]  # no loop is asked for anything
    assert (watch.memory, watch.level, repr(watch)) == (None, 0, "<Watch level 0, None>")
