"""What gives way: who is told, what may be kept, and what goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.memory import pressure as pressures
from sidecar.memory.pressure import Pressure
from tests.memory.kernel import Kernel, Loop

MIB = 1024 * 1024


class Stand:
    """A process in a container of 100 MiB, and what it did."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, *, workers: int = 1, guest: bool = False) -> None:
        self.kernel = Kernel(place, "a", machine=1 << 20)
        self.use(10)
        self.moment = 100.0
        self.trims = 0
        monkeypatch.setattr(pressures, "now", lambda: self.moment)
        monkeypatch.setattr(pressures, "trim", self._trim)
        self.pressure = Pressure(workers, guest=guest, proc=self.kernel.proc)
        self.loop = Loop()
        self.levels: list[int] = []
        self.pressure.on_level(self.levels.append)
        self.pressure.watch.start(self.loop)  # type: ignore[arg-type]

    def use(self, mib: int) -> None:
        self.kernel.group("a", most=100 * MIB, used=mib * MIB)

    def go_on(self, mib: int, seconds: float = 1.0) -> None:
        self.use(mib)
        self.moment += seconds
        self.loop.go_on()

    def _trim(self) -> bool:
        self.trims += 1
        return True


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    return Stand(tmp_path, monkeypatch)


def test_whoever_is_to_give_way_is_told(stand: Stand) -> None:
    second: list[int] = []
    stand.pressure.on_level(second.append)
    shedding = []
    for mib in (85, 96, 92, 20, 20):
        stand.go_on(mib)
        shedding.append(stand.pressure.shedding)
    assert stand.levels == second == [1, 3, 0]
    assert shedding == [False, True, True, False, False]


def test_while_a_level_lasts_it_is_told_again_and_what_is_free_is_given_back(stand: Stand) -> None:
    for mib, told, trims in (
        (85, 1, 1),
        (85, 1, 1),
        (85, 2, 2),
        (85, 2, 2),
        (96, 3, 3),
        (20, 4, 3),
        (20, 4, 3),
        (85, 5, 4),
    ):
        stand.go_on(mib)
        assert (len(stand.levels), stand.trims) == (told, trims)


def test_what_can_be_had_again_is_halved_and_then_goes(stand: Stand) -> None:
    assert stand.pressure.give_way(30, 40) == 40
    stand.go_on(85)
    assert (stand.pressure.give_way(30, 40), stand.pressure.give_way(1, 40)) == (15, 0)
    stand.go_on(91)
    assert stand.pressure.give_way(30, 40) == 0
    stand.go_on(20)
    assert stand.pressure.give_way(0, 40) == 40


def test_a_share_is_of_all_workers_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Stand(tmp_path / "two", monkeypatch, workers=2).pressure
    assert two.share(10, 1 << 40) == 5 * MIB
    assert two.share(10, MIB) == MIB
    assert two.room.most == 100 * MIB // 8 // 2 // 2
    nobody_tells = Pressure(1, guest=False, proc=tmp_path)
    assert (nobody_tells.share(10, MIB), nobody_tells.room.most) == (MIB, None)


def test_a_guest_sheds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(tmp_path, monkeypatch, guest=True)
    stand.go_on(97)
    assert (stand.levels, stand.pressure.shedding) == ([1], False)


def test_what_it_tells(stand: Stand) -> None:
    stand.pressure.room.take(1000, 1000)
    stand.go_on(85)
    assert stand.pressure.stats() == {
        "limit_bytes": 100 * MIB,
        "used_bytes": 85 * MIB,
        "level": 1,
        "bodies_bytes": 1000,
        "bodies_most_bytes": 26 * MIB,
        "bodies_refused": 0,
    }
    text = stand.pressure.metrics().decode()
    assert f"# TYPE sidecar_memory_used_bytes gauge\nsidecar_memory_used_bytes {85 * MIB}\n" in text
    assert "# TYPE sidecar_memory_bodies_refused_total counter\nsidecar_memory_bodies_refused_total 0\n" in text
    assert text.endswith("\n")
    assert repr(stand.pressure).startswith("<Pressure <Watch level 1, Memory(limit=104857600,")


def test_without_a_limit_nothing_is_told_of_one(tmp_path: Path) -> None:
    pressure = Pressure(1, guest=False, proc=tmp_path)
    assert pressure.stats()["limit_bytes"] is None
    assert b"limit_bytes" not in pressure.metrics()


TRIMMED = """
from sidecar.memory import pressure
import os
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1048576
kept = [bytearray(60_000) for _ in range(2000)]
some = kept[::50]
full = resident()
del kept
before = resident()
print(full, before, pressure.trim(), resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another allocator than glibc's")
def test_what_the_allocator_keeps_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", TRIMMED], capture_output=True, text=True, check=True, timeout=15)
    full, before, trimmed, after = done.stdout.split()
    assert trimmed == "True"
    assert int(before) > int(full) - 40  # of 115 MB that are free it keeps most, as there is something in use behind
    assert int(after) < int(before) - 50


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert pressures.trim() is False
