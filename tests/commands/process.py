"""`sidecar` as a process: what it prints, line by line, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

_MOST_LINES = 60


class Process:
    """One running command; its standard error is read by `line`."""

    def __init__(self, words: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(env),
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


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Nothing of ours but where things are."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": root, "PYTHONWARNINGS": "error", **env}


@contextlib.contextmanager
def started(*words: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Process]:
    process = Process(words, env or {}, folder)
    try:
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()


def ran(*words: str, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(env or {}),
        timeout=15,
        check=False,
    )
