"""What a serving process keeps of freed memory: counted in page faults, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from sidecar.server.heap import KEPT_BYTES

SCRIPT = """
import resource
from sidecar.server import heap
{first}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(6):
    if number == 2:
        before = faults()
    bodies = [b"x" * {size} for _ in range({count})]
    del bodies
print(faults() - before)
"""


def faults(first: str, *, size: int, count: int) -> int:
    """Of four rounds in which so many bodies are held and let go."""
    script = SCRIPT.format(first=first, size=size, count=count)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_bodies_use_the_pages_of_those_before_them() -> None:
    pages = 4 * 4 * 1_000_000 // 4096
    assert faults("", size=1_000_000, count=4) > pages / 2
    assert faults("assert heap.keep()", size=1_000_000, count=4) < pages / 20


def test_no_more_is_kept_than_was_said() -> None:
    pages = 4 * KEPT_BYTES // 4096
    assert faults("assert heap.keep()", size=KEPT_BYTES // 4, count=6) > pages / 4
