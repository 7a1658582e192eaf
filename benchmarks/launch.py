"""`sidecar` as it is, but watched, or with another garbage collector.

Samples are taken by `faulthandler` from a signal that comes every so much CPU time of the process (ITIMER_PROF): they
cost little, they say where the process is at that moment, even inside a C function or behind a system call, and no
other process has to stop it.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import signal
import sys
from pathlib import Path
from typing import Any, Final

from sidecar import cli

EVERY_SECONDS: Final = 0.001  # of CPU time; the kernel's clock may tick more seldom
COLLECTORS: Final = ("ours", "default", "frozen", "thresholds", "off")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", metavar="FILE", help="write the stacks there")
    parser.add_argument("--collector", choices=COLLECTORS, default="ours", help="instead of the server's own settings")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of sidecar")
    options = parser.parse_args()
    run: Any = importlib.import_module("sidecar.server.run")
    collect = run.calm_collector

    def begin() -> None:
        """Once the server is ready."""
        set_collector(options.collector, collect)
        if options.samples:
            watch(options.samples)

    run.calm_collector = begin
    return cli.main(options.command)


def set_collector(name: str, ours: Any) -> None:
    """As the server does; as Python does; only with what exists frozen; only seldom; never."""
    if name in ("ours", "thresholds"):
        ours()
    if name == "thresholds":
        gc.unfreeze()
    if name == "frozen":
        gc.collect()
        gc.freeze()
    if name == "off":
        gc.disable()


def watch(file: str) -> None:
    """Write a stack for each millisecond of CPU time."""
    out = Path(file).open("wb", buffering=0)  # noqa: SIM115  # as long as the process
    faulthandler.register(signal.SIGPROF, file=out, all_threads=False)
    signal.setitimer(signal.ITIMER_PROF, EVERY_SECONDS, EVERY_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
