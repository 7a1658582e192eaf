"""M8: CPU per unary chat request that is answered from the cache, against a plain reverse proxy, in one run."""

from __future__ import annotations

import statistics
import sys
import tempfile
import urllib.request

from benchmarks import bench_unary, harness

BAR = 0.6  # of Envoy's CPU per request that it passes on
CONFIG = harness.SIDECAR + "[cache]\nttl_seconds = 3600\n"


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, seconds = (3, 2) if options.quick else (7, 4)
    names = harness.available()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script, harness.parts(names, config=CONFIG) as parts:
        script.write(bench_unary.LUA.format(key=harness.KEY, body=harness.body(stream=False).decode()))
        script.flush()
        for name, part in parts.items():
            bench_unary.verify(name, part.port)
        if (told := cached(parts["sidecar"].port)) != "hit":
            raise RuntimeError(f"the second answer is no hit, but {told}")
        cpu: dict[str, list[float]] = {name: [] for name in names}
        rate: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(rounds + 1):
            for name, part in parts.items():
                before = part.cpu_seconds()
                requests, errors = bench_unary.load(part.port, script.name, seconds)
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
            "proxy": "sidecar, from its cache" if name == "sidecar" else name,
            "CPU us/request": statistics.median(cpu[name]) if name in cpu else None,
            "of Envoy": harness.median_ratio(cpu, name, "envoy"),
            "requests/s": round(statistics.median(rate[name])),
            "RSS MB": round(rss[name]),
        }
        for name in parts
    ]
    about = f"wrk, 64 connections, {rounds} rounds of {seconds} s; the others pass on; {harness.METHOD}"
    return harness.report("bench_cache", about, rows, harness.bar(cpu, BAR), options.json)


def cached(port: int) -> str:
    """What the sidecar says of the cache."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        harness.body(stream=False),
        {"content-type": "application/json", "authorization": f"Bearer {harness.KEY}"},
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        return str(response.headers["x-sidecar-cache"])


if __name__ == "__main__":
    sys.exit(main())
