"""Containers as the kernel knows them: memory cgroups with a limit. Not every machine lets us make one."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.memory import cgroups

_serial = itertools.count()
_FILES = {  # limit, usage, and the file that counts what was killed
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
    "cgroup2": ("memory.max", "memory.current", "memory.events"),
}


class Container:
    """One that was made: `words(...)` is a command that runs another inside of it, from its first byte of memory on."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._limit, self._usage, self._events = (folder / name for name in _FILES[kind])

    def words(self, *command: str) -> list[str]:
        return ["/bin/sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh", *command]

    @property
    def used(self) -> int:
        return int(self._usage.read_text())

    @property
    def killed(self) -> int:
        """Processes that the kernel has killed for want of memory."""
        return cgroups.numbers(self._events.read_text())["oom_kill"]


@contextlib.contextmanager
def container(most: int) -> Iterator[Container]:
    """Skips the test where none can be made: that takes root, and a memory controller that is ours to divide."""
    made = None
    for group in _places():
        folder = group.folder / f"sidecar-test-{os.getpid()}-{next(_serial)}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            made = Container(folder, group.kind)
            made._limit.write_text(f"{most}\n")
            assert made.killed == 0
            break
        if folder.exists():  # it has no memory controller
            folder.rmdir()
            made = None
    if made is None:
        pytest.skip("no memory cgroup can be made here")
    try:
        yield made
    finally:
        for _ in range(100):  # what was in it may be ending just now
            with contextlib.suppress(OSError):
                made.folder.rmdir()
                break
            time.sleep(0.05)


def _places() -> list[cgroups.Group]:
    """Where one might be made: beside our own group, or around it."""
    texts = [Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()]
    return cgroups.groups(*texts)
