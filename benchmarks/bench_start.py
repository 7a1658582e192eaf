"""M6 and M5's first half: seconds from start to the first answer, seconds to import, and memory when idle."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks import harness

START_BAR = 0.5  # seconds
IMPORT_BAR = 0.15
RSS_BAR = 45.0  # MB
IMPORT = "import time; t = time.perf_counter(); import sidecar; {names}; print(time.perf_counter() - t)"


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds = 5 if options.quick else 11
    started: list[float] = []
    idle: list[float] = []
    imported: dict[str, list[float]] = {"import sidecar": [], "import sidecar, Sidecar and load": []}
    for number in range(rounds + 1):
        seconds, rss = start()
        lazy, whole = import_seconds("pass"), import_seconds("sidecar.Sidecar, sidecar.load")
        if number:  # the first round compiles and warms the disk's cache
            started.append(seconds)
            idle.append(rss)
            imported["import sidecar"].append(lazy)
            imported["import sidecar, Sidecar and load"].append(whole)
    rows = [
        {"what": "start to first answer", "median": statistics.median(started), "least": min(started), "unit": "s"},
        *(
            {"what": what, "median": statistics.median(each), "least": min(each), "unit": "s"}
            for what, each in imported.items()
        ),
        {"what": "idle RSS", "median": statistics.median(idle), "least": min(idle), "unit": "MB"},
    ]
    first, import_ = statistics.median(started), statistics.median(imported["import sidecar"])
    rss = statistics.median(idle)
    checks = {
        f"start to first answer <= {START_BAR} s ({first:.2f})": first <= START_BAR,
        f"import <= {IMPORT_BAR} s ({import_:.3f})": import_ <= IMPORT_BAR,
        f"idle RSS <= {RSS_BAR:.0f} MB ({rss:.1f})": rss <= RSS_BAR,
    }
    return harness.report("bench_start", f"{rounds} starts, medians", rows, checks, options.json)


def start() -> tuple[float, float]:
    """Seconds from the start of `sidecar serve` to the first answer of /readyz, and MB when idle after one."""
    port = harness.free_port()
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-") as folder:
        file = Path(folder) / "sidecar.toml"
        file.write_text(harness.SIDECAR.format(port=port, upstream=9, log=Path(folder) / "access.log"))
        file.chmod(0o600)
        keys = {"BENCH_PROVIDER_KEY": "sk-bench-provider", "BENCH_CALLER_KEY": harness.KEY}
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "serve", "--config", str(file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **keys},
        )
        try:
            _answer(port)
            seconds = time.perf_counter() - began
            return seconds, harness.rss_mb(process.pid)
        finally:
            process.kill()
            process.wait()


def _answer(port: int) -> None:
    for _ in range(5000):
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer,
        ):
            assert answer.read() == b"ok\n"
            return
        time.sleep(0.002)
    raise RuntimeError("the sidecar did not answer")


def import_seconds(names: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(names=names)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
