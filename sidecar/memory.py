"""Memory: what this container may have, what it has, and what gives way first.

A process that goes over its container's limit is killed, with all that it has under way. Two things hold it below:

- `Room` counts the bodies of requests that are held, and refuses the one that would be too many before it is read:
  whoever sends can fill memory faster than anybody could look. It is arithmetic, and exact.
- `Watch` looks at the container twice a second, ten times when it fills: all else grows slowly. It tells a level:

      0  normal
      1  shrink   from 80 %: the cache gives way, by half at each look
      2  spare    from 90 %: nothing is cached, idle connections are closed, answers close theirs
      3  shed     from 95 %: new requests are refused, with 503 and a time to come again

  A level ends five points below where it begins, so that it does not flutter. Where this process has less than an
  eighth of the limit, or is not the sidecar's own, the first is the last: the memory is somebody else's, and to refuse
  requests would not free it.

Limits are read where the kernel keeps them: of cgroup v2 `memory.max` and `memory.high` (above which the kernel makes a
process wait, which stops an event loop), of v1 `memory.limit_in_bytes`; of the group itself and of those around it, as
far as they can be seen. Where there is none, shares are taken of what the machine has, and nothing is watched: what
others use of it is not ours to mend.

What the kernel can take back at any time is not used: file pages that nobody has mapped, those of the access log first
of all. (A kubelet counts the active ones, and a log that is written by lines is active: kubernetes/kubernetes#43916.)

The files are the kernel's own and not of any disk: a look costs some ten microseconds, in the loop's own thread, and
only where memory is short is the longer one read, which takes large machines some milliseconds to add up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.errors import BodyTooLarge, Overloaded

PROC: Final = Path("/proc")
MARKS: Final = (0.80, 0.90, 0.95)  # of the limit: shrink, spare, shed
SHRINK, SPARE, SHED = 1, 2, 3
EASE: Final = 0.05  # below its mark a level ends
LOOK_SECONDS: Final = 0.5
SOON_SECONDS: Final = 0.1  # where less than a third is left
_SOON: Final = 0.65
TRIM_SECONDS: Final = 2.0  # between two times that what is free is given back
REST_BYTES: Final = 48 * 1024 * 1024  # of a process that does nothing
OURS: Final = 0.125  # of the limit, that all workers together must have for the higher levels to be of use
COUNTED_BYTES: Final = 4096  # shorter bodies are not counted: connections are, and have these
CONNECTION_BYTES: Final = 32 * 1024  # with a stream, and what was just counted
_PAGE_BYTES: Final = resource.getpagesize()
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


# -- where the kernel keeps it


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
        self._limits = [file for name in _LIMITS[self._kind] if (file := _opened(folder / name)) is not None]
        self._usage = _opened(folder / _USAGE[self._kind])
        self._stat = _opened(folder / "memory.stat")

    def limit(self, most: int) -> int | None:
        """The lowest limit, if there is one below `most`. Raises OSError, ValueError."""
        texts = [_read(file) for file in self._limits]
        if self._kind == _V1 and self._stat is not None:  # tells of the groups around it, which may be out of sight
            texts.append(str(numbers(_read(self._stat)).get("hierarchical_memory_limit", "max")))
        return lowest(texts, most)

    def look(self, most: int) -> Memory | None:
        """Its memory now; None where it has no limit below `most`. Raises OSError, ValueError."""
        limit = lowest(map(_read, self._limits), most) or self.limit(most)
        if limit is None or self._usage is None:
            return None
        used = int(_read(self._usage))
        if used > limit * _SOON and self._stat is not None:
            used = max(used - reclaimable(_read(self._stat), self._kind), 0)
        return Memory(limit, used)

    def close(self) -> None:
        for file in (*self._limits, self._usage, self._stat):
            if file is not None:
                os.close(file)
        self._limits, self._usage, self._stat = [], None, None


def _opened(path: Path) -> int | None:
    """None where there is none: the root of a hierarchy has no limits."""
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return None


def _read(file: int) -> str:
    return os.pread(file, _MOST_BYTES, 0).decode()


def _whole(path: Path) -> str:
    """Of a file that may be given in parts. Raises OSError, and UnicodeDecodeError, which is a ValueError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return b"".join(iter(lambda: os.read(file, _MOST_BYTES), b"")).decode()
    finally:
        os.close(file)


# -- levels


def level(before: int, share: float) -> int:
    """The level of a share of the limit, after that level."""
    reached = sum(share >= mark for mark in MARKS)
    return max(reached, min(before, sum(share >= mark - EASE for mark in MARKS)))


class Watch:
    """Looks at the container now and then, and calls `act` with the level: when it changes, and at each look above 0.

    It serves one loop at a time, from `start` to `stop`. `workers`: processes like this one in the container.
    """

    def __init__(
        self, bound: Bound, act: Callable[[int], object], *, workers: int = 1, worst: int = SHED, proc: Path = PROC
    ) -> None:
        self._bound = bound
        self._act = act
        self._workers = workers
        self._worst = worst
        self._statm = proc / "self/statm"
        self._files: list[Files] = []
        self._own: int | None = None  # the file of this process
        self._timer: asyncio.TimerHandle | None = None
        self.memory: Memory | None = None  # at the last look; None where nothing is watched
        self.level = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch on this loop from now on; nothing where nothing bounds us."""
        self.stop()
        if self._bound.groups:
            self._files = [Files(group) for group in self._bound.groups]
            self._own = _opened(self._statm)
            self._look(loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for files in self._files:
            files.close()
        self._files = []
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.memory = memory = max(self._all(), key=lambda each: each.share, default=None)
        before, share = self.level, 0.0 if memory is None else memory.share
        self.level = level(before, share)
        if memory is not None and self.level > SHRINK and not self._ours(memory):
            self.level = SHRINK
        self.level = min(self.level, self._worst)
        self._timer = loop.call_later(SOON_SECONDS if share > _SOON else LOOK_SECONDS, self._look, loop)
        if self.level or before:
            self._act(self.level)

    def _all(self) -> Iterator[Memory]:
        for files in self._files:
            with contextlib.suppress(OSError, ValueError):  # the group is not there any more
                if (memory := files.look(self._bound.machine)) is not None:
                    yield memory

    def _ours(self, memory: Memory) -> bool:
        """Is enough of it this process's and its likes' for them to make a difference?"""
        if self._own is None:
            return True
        resident = int(_read(self._own).split()[1]) * _PAGE_BYTES
        return resident * self._workers >= memory.limit * OURS

    def __repr__(self) -> str:
        return f"<Watch level {self.level}, {self.memory}>"


# -- shares


def spare(most: int, workers: int) -> int:
    """Bytes that one of some workers may fill with what it has under way."""
    return max(most - workers * REST_BYTES, most // 8) // workers


def connections(most: int, workers: int) -> int:
    """Clients that a worker has memory for: a quarter of what is to spare, by what one with a stream takes."""
    return max(spare(most, workers) // 4 // CONNECTION_BYTES, 16)


class Room:
    """The bodies of requests that may be held at once, in bytes: half of what a worker has to spare.

    Each counts twice: as it came, and as it goes out where it has to be made anew.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most  # None: as many as come
        self.held = 0
        self.refused = 0

    def take(self, size: int, whole: int) -> None:
        """So many bytes more of a body, which has `whole` so far. Raises Overloaded, or BodyTooLarge for all times."""
        if self.most is not None and 2 * (self.held + size) > self.most:
            self.refused += 1
            if 2 * whole > self.most:
                raise BodyTooLarge(f"the body has {whole} bytes; there is memory for {self.most // 2} here")
            raise Overloaded("too much is under way for the memory that there is; ask again", retry_after=1.0)
        self.held += size

    def give(self, size: int) -> None:
        """Back, once."""
        self.held -= size

    def __repr__(self) -> str:
        return f"<Room {self.held} of {self.most} bytes>"


def trim() -> bool:
    """Give back what glibc keeps for later, which may be half of all: in up to 20 ms, or in 0.2 where it keeps none."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):
        return False
