"""What the kernel tells of memory, written by hand; and timers, rung by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.memory.cgroups import Bound, bound

MOUNT_V2 = "31 23 0:28 {root} {mount} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate"
MOUNT_V1 = "35 31 0:32 {root} {mount} rw,relatime shared:11 - cgroup cgroup rw,memory"
OTHER_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
NO_LIMIT_V1 = "9223372036854771712"


def mount(pattern: str, mount: object, root: str = "/") -> str:
    return f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{OTHER_V1}\n{pattern.format(root=root, mount=mount)}\n"


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
        return bound(self.proc)


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
