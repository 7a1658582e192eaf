"""One scenario: a simulated provider and a sidecar are started, Locust drives them, thresholds judge what came.

    python -m loadtests.run smoke

Exit code 0: all thresholds hold; 1: one does not, or the load could not be driven; 2: no such scenario, or no Locust.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import harness

HERE = Path(__file__).parent
GRACE_SECONDS = 30.0  # beyond a scenario's own, for Locust to start and end
SETTLE_SECONDS = 3.0  # in which the last streams that were left must be over
AT_LEAST = ("requests", "streams")


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    users: int
    spawn_per_second: float
    seconds: int
    simulate: list[str]


def main() -> int:
    names = sorted(path.stem for path in (HERE / "scenarios").glob("*.toml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", choices=names)
    name = parser.parse_args().scenario
    if importlib.util.find_spec("locust") is None:
        print("locust is not installed: pip install '.[load]'")
        return 2
    scenario = msgspec.toml.decode((HERE / "scenarios" / f"{name}.toml").read_bytes(), type=Scenario)
    thresholds = tomllib.loads((HERE / "thresholds.toml").read_text())[name]
    print(f"{name}: {scenario.users} users for {scenario.seconds} s")
    try:
        with harness.parts(["sidecar"], simulate=scenario.simulate, pin=False) as parts:
            stats = drive(parts["sidecar"].port, scenario)
            found = judge_by(stats, parts["sidecar"])
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"{name}: could not be run: {error}")
        return 1
    return verdict(found, thresholds)


def drive(port: int, scenario: Scenario) -> list[dict[str, Any]]:
    """Locust's rows of the whole run."""
    with tempfile.TemporaryDirectory(prefix="sidecar-load-") as folder:
        file = Path(folder) / "stats"
        command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        command += ["--host", f"http://127.0.0.1:{port}", "-u", str(scenario.users), "-t", f"{scenario.seconds}s"]
        command += ["-r", str(scenario.spawn_per_second), "--stop-timeout", "5", "--json-file", str(file)]
        done = subprocess.run(
            command,
            env={**os.environ, "LOAD_KEY": harness.KEY},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=scenario.seconds + GRACE_SECONDS,
            check=False,
        )
        written = next(Path(folder).glob("stats*"), None)
        if written is None:
            raise RuntimeError(f"locust ended with {done.returncode} and told nothing: {done.stderr[-1000:]}")
        print(done.stdout[-1500:] if done.returncode else "", end="")
        rows: list[dict[str, Any]] = msgspec.json.decode(written.read_bytes())
        return rows


def judge_by(stats: list[dict[str, Any]], sidecar: harness.Part) -> dict[str, float]:
    """What the thresholds are about, as the clients and the sidecar itself saw it."""
    rows = {row["name"]: row for row in stats}
    left = count(rows, "left")
    busy, told = settled(sidecar.port, left)
    return {
        "failures": sum(row["num_failures"] for row in stats),
        "requests": count(rows, "unary"),
        "streams": count(rows, "stream"),
        "unary_p95": percentile(rows, "unary", 0.95),
        "ttft_p95": percentile(rows, "ttft", 0.95),
        "itl_p95": percentile(rows, "itl", 0.95),
        "left_untold": max(0, left - told),
        "busy_at_end": busy,
        "rss_mb": sidecar.rss_mb(),
    }


def settled(port: int, left: int) -> tuple[int, int]:
    """Connections to the provider that are still busy, and clients whose leaving was noticed, once both stand still."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        status = msgspec.json.decode(get(port, "/status"))
        busy = sum(each["busy"] for each in status["providers"])
        metrics = get(port, "/metrics").decode()
        gone = re.findall(r'^sidecar_requests_total\{.*error="caller_gone".*\} (\d+)$', metrics, re.MULTILINE)
        told = sum(map(int, gone))
        if (not busy and told >= left) or time.monotonic() > deadline:
            return busy, told
        time.sleep(0.1)


def get(port: int, path: str) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"authorization": f"Bearer {harness.KEY}"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        data: bytes = answer.read()
        return data


def count(rows: dict[str, dict[str, Any]], name: str) -> int:
    return int(rows[name]["num_requests"]) if name in rows else 0


def percentile(rows: dict[str, dict[str, Any]], name: str, share: float) -> float:
    """In milliseconds, of all requests of a row; endless where there were none."""
    times = sorted((float(took), number) for took, number in rows.get(name, {}).get("response_times", {}).items())
    wanted = share * sum(number for _, number in times)
    seen = 0
    for took, number in times:
        seen += number
        if seen >= wanted:
            return took
    return float("inf")


def verdict(found: dict[str, float], thresholds: dict[str, float]) -> int:
    """Print each figure beside its threshold. Answers the exit code."""
    if found.keys() != thresholds.keys():
        print(f"thresholds.toml and what is measured differ: {sorted(found.keys() ^ thresholds.keys())}")
        return 1
    print("| what | measured | threshold | |\n| --- | --- | --- | --- |")
    breaches = 0
    for name, value in found.items():
        limit = thresholds[name]
        holds = value >= limit if name in AT_LEAST else value <= limit
        breaches += not holds
        sign = ">=" if name in AT_LEAST else "<="
        print(f"| {name} | {value:g} | {sign} {limit:g} | {'ok' if holds else 'BREACH'} |")
    print(f"{breaches} breaches" if breaches else "all thresholds hold")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
