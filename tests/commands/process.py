"""`sidecar` as a process: what it prints, line by line, and how it ends."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_MOST_LINES = 60


class Process:
    """One running command; its standard error is read by `line`."""

    def __init__(
        self, words: tuple[str, ...], folder: Path, env: Mapping[str, str], *, covered: bool, fds: tuple[int, ...]
    ) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(env, covered=covered),
            pass_fds=fds,
        )
        self.told: list[str] = []

    def line(self, part: str) -> str:
        """The next line of standard error that has this part."""
        assert self.child.stderr is not None
        for _ in range(_MOST_LINES):
            line = self.child.stderr.readline()
            self.told.append(line)
            if part in line:
                return line
            if not line:
                break
        raise AssertionError(f"no line with {part!r} in {self.told}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal; the exit code, when it has ended and all that it told is read."""
        self.child.send_signal(number)
        out, err = self.child.communicate(timeout=15)
        self.told += [out, err]
        return self.child.returncode


def environment(env: Mapping[str, str], *, covered: bool = True) -> dict[str, str]:
    """Nothing of ours but where things are, and what coverage asks for, which takes its time at the start."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "VIRTUAL_ENV") or (covered and name.startswith("COVERAGE"))
    }
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": root, "PYTHONWARNINGS": "error", **env}


@contextlib.contextmanager
def started(
    *words: str, folder: Path, env: Mapping[str, str] | None = None, covered: bool = True, fds: tuple[int, ...] = ()
) -> Iterator[Process]:
    process = Process(words, folder, env or {}, covered=covered, fds=fds)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()


def ran(
    *words: str, folder: Path, env: Mapping[str, str] | None = None, covered: bool = True
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(env or {}, covered=covered),
        timeout=15,
        check=False,
    )


def children_seconds() -> float:
    """What the processor has spent on the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
