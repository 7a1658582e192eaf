"""Limits are found in what the kernel tells, in all the ways in which it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.memory import cgroups
from sidecar.memory.cgroups import Bound, Files, Group
from tests.memory.kernel import MOUNT_V1, MOUNT_V2, NO_LIMIT_V1, Kernel, mount

MIB = 1024 * 1024


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
    found = cgroups.groups(cgroup, mountinfo)
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
    assert cgroups.lowest(texts, 5000) == wanted


def test_what_can_be_taken_back_is_what_nobody_has_mapped() -> None:
    v2 = "anon 7\nfile 500\ninactive_file 100\nactive_file 40\nfile_mapped 30\nslab_reclaimable 9\n"
    assert cgroups.reclaimable(v2, "cgroup2") == 110
    v1 = "inactive_file 1\nactive_file 1\ntotal_inactive_file 100\ntotal_active_file 40\ntotal_mapped_file 30\n"
    assert cgroups.reclaimable(v1, "cgroup") == 110
    assert cgroups.reclaimable("inactive_file 3\nfile_mapped 9\n", "cgroup2") == 0
    assert cgroups.reclaimable("", "cgroup2") == 0


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
    bound = cgroups.bound(tmp_path)
    assert (bound.bytes, bound.groups) == (0, ())


def test_of_v1_a_limit_out_of_sight_counts_too(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, v1=True)
    kernel.group(most=NO_LIMIT_V1, used=400, hierarchical_memory_limit=700_000)
    assert kernel.bound.bytes == 700_000
    kernel.group(most=600_000, used=400, hierarchical_memory_limit=700_000)
    assert kernel.bound.bytes == 600_000
    assert kernel.bound.groups == (Group(tmp_path / "group", "cgroup"),)


def test_this_process_has_a_bound() -> None:
    bound = cgroups.bound()
    assert 16 * MIB < bound.bytes <= bound.machine
    for group in bound.groups:
        found = Files(group)
        now = found.look(bound.machine)
        assert now is not None
        assert 0 < now.used <= now.limit
        found.close()
