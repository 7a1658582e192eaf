"""M1: CPU per unary chat request (2 KB in, 1 KB out, 64 connections), against a plain reverse proxy, in one run."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from benchmarks import harness

BAR = 0.9  # of Envoy's CPU per request
LUA = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
wrk.headers["accept"] = "application/json"
wrk.headers["user-agent"] = "OpenAI/Python 3"
wrk.body = [[{body}]]
"""


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, seconds = (3, 2) if options.quick else (7, 4)
    names = harness.available()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script, harness.parts(names) as parts:
        script.write(LUA.format(key=harness.KEY, body=harness.body(stream=False).decode()))
        script.flush()
        for name, part in parts.items():
            verify(name, part.port)
        cpu: dict[str, list[float]] = {name: [] for name in names}
        rate: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(rounds + 1):
            for name, part in parts.items():
                before = part.cpu_seconds()
                requests, errors = load(part.port, script.name, seconds)
                if errors:
                    print(f"{name}: {errors} failed requests")
                    return 1
                if number:  # the first round warms up
                    rate[name].append(requests / seconds)
                    if name in cpu:
                        cpu[name].append((part.cpu_seconds() - before) / requests * 1e6)
        rss = {name: part.rss_mb() for name, part in parts.items()}
    rows = [
        {
            "proxy": name,
            "CPU us/request": statistics.median(cpu[name]) if name in cpu else None,
            "of Envoy": harness.median_ratio(cpu, name, "envoy"),
            "requests/s": round(statistics.median(rate[name])),
            "RSS MB": round(rss[name]),
        }
        for name in parts
    ]
    about = f"wrk, 64 connections, {rounds} rounds of {seconds} s; {harness.METHOD}"
    return harness.report("bench_unary", about, rows, harness.bar(cpu, BAR), options.json)


def verify(name: str, port: int) -> None:
    """A wrong answer is not a fast answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        harness.body(stream=False),
        {"content-type": "application/json", "authorization": f"Bearer {harness.KEY}"},
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        data = response.read()
    if b'"finish_reason":"stop"' not in data:
        raise RuntimeError(f"{name} gave a wrong answer: {data[:200]!r}")


def load(port: int, script: str, seconds: int) -> tuple[int, int]:
    """Requests answered, and errors of any kind."""
    done, failed = wrk(f"http://127.0.0.1:{port}/v1/chat/completions", script, seconds)
    return done, sum(failed.values())


def wrk(
    url: str, script: str, seconds: int, *, connections: int = 64, timeout_seconds: int = 2
) -> tuple[int, dict[str, int]]:
    """Answers of any kind, and failures by their class (`wrong` where the script counts these)."""
    _, core = harness.cores()
    program = harness.binary("wrk")
    if program is None:
        raise RuntimeError("wrk is not installed (Debian package wrk)")
    command = ["taskset", "-c", str(core), program, "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += ["--timeout", f"{timeout_seconds}s", "-s", script, url]
    return read(subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(script).parent).stdout)


def read(out: str) -> tuple[int, dict[str, int]]:
    """What wrk printed."""
    done = re.search(r"(\d+) requests in", out)
    failed = {
        "status": re.search(r"Non-2xx or 3xx responses: (\d+)", out),
        **{name: re.search(rf"Socket errors: .*{name} (\d+)", out) for name in ("connect", "read", "write", "timeout")},
        "wrong": re.search(r"Wrong answers: (\d+)", out),
    }
    return int(done[1]) if done else 0, {
        name: int(found[1]) for name, found in failed.items() if found and int(found[1])
    }


if __name__ == "__main__":
    sys.exit(main())
