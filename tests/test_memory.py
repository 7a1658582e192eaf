"""What bounds a container, the levels that follow, and what is counted: on files such as the kernel writes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar import memory
from sidecar.errors import BodyTooLarge, Overloaded
from sidecar.memory import Bound, Group, Memory, Room, Watch

MIB = 1024 * 1024
MOUNT_V2 = "31 23 0:28 {root} {mount} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate"
MOUNT_V1 = "35 31 0:32 {root} {mount} rw,relatime shared:11 - cgroup cgroup rw,memory"
OTHER_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
NO_LIMIT_V1 = "9223372036854771712"


def mount(pattern: str, mount: object, root: str = "/") -> str:
    return f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{OTHER_V1}\n{pattern.format(root=root, mount=mount)}\n"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "wanted"),
    [
        # v2: a container with a namespace of its own; a service; one whose group lies beyond its namespace
        ("0::/", mount(MOUNT_V2, "/sys/fs/cgroup"), ["/sys/fs/cgroup"]),
        (
            "0::/system.slice/sidecar.service",
            mount(MOUNT_V2, "/sys/fs/cgroup"),
            ["/sys/fs/cgroup/system.slice/sidecar.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"],
        ),
        ("0::/../other", mount(MOUNT_V2, "/sys/fs/cgroup"), ["/sys/fs/cgroup"]),
        # v2, bind-mounted: the path is the host's
        ("0::/pod/a/b", mount(MOUNT_V2, "/sys/fs/cgroup", "/pod/a"), ["/sys/fs/cgroup/b", "/sys/fs/cgroup"]),
        ("0::/pod/ab", mount(MOUNT_V2, "/sys/fs/cgroup", "/pod/a"), ["/sys/fs/cgroup"]),
        # v1: the mount is the container's own part of the tree
        (
            "9:memory:/docker/c1\n0::/x",
            mount(MOUNT_V1, "/sys/fs/cgroup/memory", "/docker/c1"),
            ["/sys/fs/cgroup/memory"],
        ),
        ("4:cpu,memory:/a", mount(MOUNT_V1, "/m"), ["/m/a", "/m"]),
        # both: the controller is where memory is mounted
        (
            "4:memory:/a\n0::/b",
            mount(MOUNT_V1, "/m") + MOUNT_V2.format(root="/", mount="/u"),
            ["/m/a", "/m"],
        ),
        ("4:cpu:/a\n0::/b", mount(MOUNT_V2, "/u"), ["/u/b", "/u"]),
        ("0::/", mount(MOUNT_V2, r"/with\040space\134"), ["/with space\\"]),
        ("0::/a:b", mount(MOUNT_V2, "/u"), ["/u/a:b", "/u"]),
        # nothing to be seen
        ("0::/a", mount(MOUNT_V1, "/m"), []),
        ("", "", []),
        ("nonsense", "nonsense - \n- -\n", []),
    ],
)
def test_groups_are_found_where_they_are_mounted(cgroup: str, mountinfo: str, wanted: list[str]) -> None:
    found = memory.groups(cgroup, mountinfo)
    assert [str(each.folder) for each in found] == wanted
    kind = "cgroup" if any("m" in name for name in wanted) and "4:memory" in cgroup else None
    assert kind is None or {each.kind for each in found} == {kind}


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["max\n", "max\n"], None),
        (["1000\n", "max\n"], 1000),
        (["1000\n", "900\n"], 900),
        ([NO_LIMIT_V1], None),
        (["5000"], None),  # more than there is
        (["0"], None),
        (["", "-1", "nan"], None),
    ],
)
def test_a_limit_is_the_lowest_that_there_is(texts: list[str], wanted: int | None) -> None:
    assert memory.lowest(texts, 5000) == wanted


def test_what_can_be_taken_back_is_what_nobody_has_mapped() -> None:
    v2 = "anon 7\nfile 500\ninactive_file 100\nactive_file 40\nfile_mapped 30\nslab_reclaimable 9\n"
    assert memory.reclaimable(v2, "cgroup2") == 110
    v1 = "inactive_file 1\nactive_file 1\ntotal_inactive_file 100\ntotal_active_file 40\ntotal_mapped_file 30\n"
    assert memory.reclaimable(v1, "cgroup") == 110
    assert memory.reclaimable("inactive_file 3\nfile_mapped 9\n", "cgroup2") == 0
    assert memory.reclaimable("", "cgroup2") == 0


# -- a container of files


class Kernel:
    """A folder with what the kernel tells of a process: cgroups of v2, one in the other, or of v1."""

    def __init__(self, place: Path, *names: str, machine: int = 1000, v1: bool = False) -> None:
        self.proc, self._root, self._v1 = place / "proc", place / "group", v1
        (self.proc / "self").mkdir(parents=True)
        folder = "/".join(names)
        (self._root / folder).mkdir(parents=True)
        line = f"4:memory:/{folder}" if v1 else f"0::/{folder}"
        (self.proc / "self/cgroup").write_text(line + "\n")
        (self.proc / "self/mountinfo").write_text(mount(MOUNT_V1 if v1 else MOUNT_V2, self._root))
        (self.proc / "meminfo").write_text(f"MemTotal:     {machine} kB\nMemFree: 5 kB\nHugePages_Total:  0\n")
        self.resident(1 << 20)

    def resident(self, pages: int) -> None:
        (self.proc / "self/statm").write_text(f"{pages * 2} {pages} 3 4 0 5 0\n")

    def group(self, folder: str = "", *, most: object = "max", used: int = 0, **stat: int) -> None:
        place = self._root / folder
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if self._v1 else ("max", "current")
        (place / f"memory.{limit}").write_text(f"{most}\n")
        (place / f"memory.{usage}").write_text(f"{used}\n")
        (place / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))

    @property
    def bound(self) -> Bound:
        return memory.bound(self.proc)


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "pod", "sidecar")
    kernel.group("pod/sidecar", most=300_000)
    kernel.group("pod", most=200_000)  # the root has no files
    assert kernel.bound.bytes == 200_000
    assert [each.folder.name for each in kernel.bound.groups] == ["sidecar", "pod"]
    (tmp_path / "group/pod/sidecar/memory.high").write_text("150000\n")
    assert kernel.bound.bytes == 150_000


def test_without_a_limit_it_is_what_the_machine_has_and_nothing_is_watched(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "a")
    kernel.group("a", most="max")
    assert kernel.bound == Bound(1000 * 1024, (), 1000 * 1024)
    kernel.group("a", most=1000 * 1024)  # a limit that is none
    assert kernel.bound.groups == ()


def test_where_the_kernel_tells_nothing_there_is_nothing(tmp_path: Path) -> None:
    bound = memory.bound(tmp_path)
    assert (bound.bytes, bound.groups) == (0, ())
    Watch(bound, pytest.fail).start(None)  # type: ignore[arg-type]  # no loop is asked for anything


def test_of_v1_a_limit_out_of_sight_counts_too(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, v1=True)
    kernel.group(most=NO_LIMIT_V1, used=400, hierarchical_memory_limit=700_000)
    assert kernel.bound.bytes == 700_000
    kernel.group(most=600_000, used=400, hierarchical_memory_limit=700_000)
    assert kernel.bound.bytes == 600_000
    assert kernel.bound.groups == (Group(tmp_path / "group", "cgroup"),)


# -- levels


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
        found.append(memory.level(found[-1], share))
    assert found[1:] == levels


class Loop:
    """Timers, by hand."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> Any:
        loop = self

        class Handle:
            def cancel(self) -> None:
                loop.timers.clear()

        self.timers.append((seconds, lambda: call(*args)))
        return Handle()

    def go_on(self) -> float:
        """Ring the one timer that there is. Answers how long that was."""
        ((seconds, ring),) = self.timers
        self.timers.clear()
        ring()
        return seconds


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


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
    assert loop.go_on() == memory.LOOK_SECONDS
    kernel.group("a", most=100_000, used=10_000)
    assert loop.go_on() == memory.SOON_SECONDS
    assert loop.go_on() == memory.LOOK_SECONDS


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
    _, _, acts = watched(kernel, worst=memory.SHRINK)
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


def test_this_process_has_a_bound() -> None:
    bound = memory.bound()
    assert 16 * MIB < bound.bytes <= bound.machine
    for group in bound.groups:
        found = memory.Files(group)
        now = found.look(bound.machine)
        assert now is not None
        assert 0 < now.used <= now.limit
        found.close()


# -- shares


@pytest.mark.parametrize(
    ("most", "workers", "wanted"),
    [(80, 1, 32), (128, 1, 80), (512, 1, 464), (512, 2, 208), (40, 1, 5), (64, 2, 4)],
)
def test_what_is_to_spare_is_what_no_process_has_at_rest(most: int, workers: int, wanted: int) -> None:
    assert memory.spare(most * MIB, workers) == wanted * MIB


def test_connections_are_bounded_by_memory() -> None:
    assert memory.connections(512 * MIB, 1) == 464 * 8
    assert memory.connections(512 * MIB, 2) == 208 * 8
    assert memory.connections(1 * MIB, 1) == 16


def test_room_is_for_bodies_that_count_twice() -> None:
    room = Room(1000)
    room.take(300, 300)
    room.take(200, 200)
    with pytest.raises(Overloaded) as caught:
        room.take(1, 1)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "sidecar_overloaded", 1.0)
    assert (room.held, room.refused) == (500, 1)  # a refusal takes nothing
    room.give(200)
    room.take(200, 500)
    assert room.held == 500


def test_a_body_that_there_is_never_room_for_is_too_large() -> None:
    room = Room(1000)
    with pytest.raises(BodyTooLarge, match="the body has 501 bytes; there is memory for 500 here"):
        room.take(501, 501)
    room.take(500, 500)
    with pytest.raises(BodyTooLarge):
        room.take(1, 501)  # the end of one that came in pieces
    with pytest.raises(Overloaded):
        room.take(1, 500)
    assert (room.held, room.refused) == (500, 3)


def test_where_nobody_tells_a_bound_there_is_room_for_all() -> None:
    room = Room()
    room.take(1 << 60, 1 << 60)
    assert (room.held, room.refused) == (1 << 60, 0)


# -- the allocator

TRIMMED = """
from sidecar import memory
import os
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1048576
kept = [bytearray(60_000) for _ in range(2000)]
some = kept[::50]
full = resident()
del kept
before = resident()
print(full, before, memory.trim(), resident())
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
    assert memory.trim() is False
