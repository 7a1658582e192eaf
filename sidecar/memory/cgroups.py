"""What bounds the memory of this process, where the kernel keeps it: cgroups of both versions.

Of v2 that is `memory.max`, and `memory.high`, above which the kernel makes a process wait, which stops an event loop;
of v1 `memory.limit_in_bytes`; of the group itself and of those around it, as far as they can be seen.

What the kernel can take back at any time is not used: file pages that nobody has mapped, those of the access log first
of all. (A kubelet counts the active ones, and a log that is written by lines is active: kubernetes/kubernetes#43916.)

The files are the kernel's own and not of any disk: a look costs some ten microseconds, in the loop's own thread, and
only where memory is short is the longer one read, which takes large machines some milliseconds to add up.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
SHORT: Final = 0.65  # of a limit, from which on it matters what can be taken back
_UNKNOWN: Final = 1 << 50  # more than there is
_MOST_BYTES: Final = 64 * 1024  # of one of the kernel's files
_V1, _V2 = "cgroup", "cgroup2"
_LIMITS: Final = {_V1: ("memory.limit_in_bytes",), _V2: ("memory.max", "memory.high")}
_USAGE: Final = {_V1: "memory.usage_in_bytes", _V2: "memory.current"}
# What can be taken back, and what of it is in use all the same. In v1 the sums over a group and those in it begin so.
_FILES: Final = {_V1: ("total_inactive_file", "total_active_file"), _V2: ("inactive_file", "active_file")}
_MAPPED: Final = {_V1: "total_mapped_file", _V2: "file_mapped"}
_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces and the like


class Group(NamedTuple):
    """A memory cgroup that this process is in, itself or by one around it."""

    folder: Path
    kind: str  # of its filesystem: cgroup (v1), cgroup2


class Bound(NamedTuple):
    """What bounds the memory of this container, as it was at the start."""

    bytes: int  # the lowest limit, or else what the machine has
    groups: tuple[Group, ...] = ()  # that have a limit
    machine: int = _UNKNOWN  # bytes that there are at all


class Memory(NamedTuple):
    """Of a group, in bytes. `used`: without what the kernel can take back, where that matters."""

    limit: int
    used: int

    @property
    def share(self) -> float:
        return self.used / self.limit


def groups(cgroup: str, mountinfo: str) -> list[Group]:
    """The memory cgroups of a process, its own first, then those around it up to where they are mounted.

    `cgroup`, `mountinfo`: the texts of its files in /proc (cgroups(7), proc_pid_mountinfo(5)). Where a container sees
    only its own part of the tree, paths may be those of the host: then the mount is its group.
    """
    rows = [line.split(":", 2) for line in cgroup.splitlines() if line.count(":") >= 2]
    v1 = [path for _, names, path in rows if "memory" in names.split(",")]
    v2 = [path for number, names, path in rows if number == "0" and not names]
    for kind, paths in ((_V1, v1), (_V2, v2)):
        for path, (root, mounted) in zip(paths, _mounts(mountinfo, kind), strict=False):
            folder = mounted / _below(path, root)
            around = [each for each in folder.parents if each.is_relative_to(mounted)]
            return [Group(each, kind) for each in (folder, *around)]
    return []


def _mounts(mountinfo: str, kind: str) -> Iterator[tuple[str, Path]]:
    """The root inside of its hierarchy, and the folder, of each mount of memory cgroups of a kind."""
    for line in mountinfo.splitlines():
        fields, _, rest = (part.split() for part in line.partition(" - "))
        if len(fields) < 5 or len(rest) < 3 or rest[0] != kind:
            continue
        if kind == _V2 or "memory" in rest[2].split(","):
            yield fields[3], Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))


def _below(path: str, root: str) -> str:
    """A path as seen from a mount's root; nothing where it lies outside of it."""
    inside = path == root or path.startswith(root.rstrip("/") + "/")
    return path[len(root) :].strip("/") if inside and ".." not in path.split("/") else ""


def lowest(texts: Iterable[str], most: int) -> int | None:
    """The least of some limits as the kernel writes them: "max", or a number, which may be more than there is."""
    return min((int(text) for text in texts if text.strip().isdigit() and 0 < int(text) < most), default=None)


def reclaimable(stat: str, kind: str) -> int:
    """Bytes that the kernel can take back at any time, by a memory.stat: of files, and not mapped."""
    found = numbers(stat)
    return max(sum(found.get(name, 0) for name in _FILES[kind]) - found.get(_MAPPED[kind], 0), 0)


def numbers(text: str) -> dict[str, int]:
    """`name 1` or `Name: 1 kB`, a line each."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) * (1024 if row[2:] == ["kB"] else 1) for row in rows if len(row) > 1}


def bound(proc: Path = PROC) -> Bound:
    """What bounds this process. `proc`: where the kernel tells of processes. 0 bytes where nobody tells."""
    machine, found = 0, []
    with contextlib.suppress(OSError, ValueError):
        machine = numbers(_whole(proc / "meminfo")).get("MemTotal", 0)
    with contextlib.suppress(OSError, ValueError):
        found = groups(_whole(proc / "self/cgroup"), _whole(proc / "self/mountinfo"))
    limits: dict[Group, int] = {}
    for group in found:
        files = Files(group)
        with contextlib.suppress(OSError, ValueError):
            if (limit := files.limit(machine or _UNKNOWN)) is not None:
                limits[group] = limit
        files.close()
    return Bound(min(limits.values(), default=machine), tuple(limits), machine or _UNKNOWN)


class Files:
    """The files of a group, kept open: to open one costs twenty times what it costs to read it."""

    def __init__(self, group: Group) -> None:
        folder, self._kind = group
        self._limits = [file for name in _LIMITS[self._kind] if (file := opened(folder / name)) is not None]
        self._usage = opened(folder / _USAGE[self._kind])
        self._stat = opened(folder / "memory.stat")

    def limit(self, most: int) -> int | None:
        """The lowest limit, if there is one below `most`. Raises OSError, ValueError."""
        texts = [read(file) for file in self._limits]
        if self._kind == _V1 and self._stat is not None:  # tells of the groups around it, which may be out of sight
            texts.append(str(numbers(read(self._stat)).get("hierarchical_memory_limit", "max")))
        return lowest(texts, most)

    def look(self, most: int) -> Memory | None:
        """Its memory now; None where it has no limit below `most`. Raises OSError, ValueError."""
        limit = lowest(map(read, self._limits), most) or self.limit(most)
        if limit is None or self._usage is None:
            return None
        used = int(read(self._usage))
        if used > limit * SHORT and self._stat is not None:
            used = max(used - reclaimable(read(self._stat), self._kind), 0)
        return Memory(limit, used)

    def close(self) -> None:
        for file in (*self._limits, self._usage, self._stat):
            if file is not None:
                os.close(file)
        self._limits, self._usage, self._stat = [], None, None


def opened(path: Path) -> int | None:
    """None where there is none: the root of a hierarchy has no limits."""
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return None


def read(file: int) -> str:
    return os.pread(file, _MOST_BYTES, 0).decode()


def _whole(path: Path) -> str:
    """Of a file that may be given in parts. Raises OSError, and UnicodeDecodeError, which is a ValueError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return b"".join(iter(lambda: os.read(file, _MOST_BYTES), b"")).decode()
    finally:
        os.close(file)
