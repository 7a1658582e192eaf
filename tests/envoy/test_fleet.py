"""A fleet in network namespaces: what fleet.py tests, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.components import require
from tests.envoy.fleet import NAMES

PATH: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where `ip` is, which not everybody's PATH has
ALONE: Final = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
TEST: Final = Path(__file__).with_name("fleet.py")
SECONDS: Final = 90


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The words before a command that give it a network and processes of its own, which end with it."""
    require("ip (Debian: iproute2)", shutil.which("ip", path=PATH))
    for words in ([*ALONE], [*ALONE, "--map-root-user"]):  # as root, or as anyone
        probe = [*words, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]
        if subprocess.run(probe, capture_output=True, check=False, env={"PATH": PATH}).returncode == 0:
            return words
    pytest.skip("network namespaces are not allowed here")


def inner(alone: list[str], folder: Path) -> list[str]:
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--basetemp={folder / 'in'}"]
    return [*alone, sys.executable, "-m", "pytest", *options, str(TEST)]


def links() -> list[str]:
    """Links of the fleet in the network that we are in ourselves."""
    found = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True, env={"PATH": PATH})
    return [name for name in NAMES if name in found.stdout]


def running(folder: Path) -> list[str]:
    """The command lines that speak of a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if str(folder) in words:
            found.append(words)
    return found


def within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.timeout(SECONDS + 10)
def test_promises_hold(alone: list[str], tmp_path: Path) -> None:
    env = {**os.environ, "PATH": PATH}
    done = subprocess.run(inner(alone, tmp_path), capture_output=True, text=True, check=False, env=env, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert within(2, lambda: not running(tmp_path)), running(tmp_path)
    assert not links()


@pytest.mark.timeout(SECONDS)
def test_a_kill_leaves_nothing(alone: list[str], tmp_path: Path) -> None:
    env = {**os.environ, "PATH": PATH}
    with subprocess.Popen(
        inner(alone, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as child:
        try:
            assert within(30, lambda: any("envoy -c" in line for line in running(tmp_path)))
            assert sum("sidecar serve" in line for line in running(tmp_path)) == 3
        finally:
            child.send_signal(signal.SIGKILL)
    assert within(5, lambda: not running(tmp_path)), running(tmp_path)
    assert not links()
