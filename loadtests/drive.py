"""Locust driven over the parts of a scenario: its events done when they are due, samples taken meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from loadtests.scenario import HERE, Plan, Row, Scenario
from loadtests.stage import KEYS, Stage, get

START_SECONDS = 20.0  # of Locust
GRACE_SECONDS = 45.0  # beyond the run: for the last answers, and for Locust to end
LAST_ANSWERS_SECONDS = 15
SAMPLE_SECONDS = 0.5
MB = 1024 * 1024
SETTLE_SECONDS = 4.0  # in which all that was left must be over, and all places given back


class Sample(msgspec.Struct):
    at: float
    rss_mb: float
    descriptors: int
    cpu_seconds: float
    health_ms: float  # of /livez; endless where it did not answer
    cache_mb: float | None = None  # that the cache holds, by its own count


class Drive(msgspec.Struct, kw_only=True):
    """What a run brought."""

    started: float
    rows: list[Row]
    samples: list[Sample] = []
    upstream: list[dict[str, Any]] = []  # the simulated providers' logs
    status: dict[str, Any] = {}
    log: list[dict[str, Any]] = []  # the sidecar's
    descriptors_grown: int = 0
    provider_cpu_seconds: float = 0.0
    exits: list[int | None] = []
    start_ms: float = 0.0
    reloads: int = 0


def plan(scenario: Scenario, journal: Path, **more: Any) -> Plan:
    return Plan(
        journal=str(journal),
        users=scenario.users,
        seconds=scenario.seconds,
        spawn_per_second=scenario.spawn_per_second,
        stages=scenario.stages,
        **more,
    )


def against_stage(scenario: Scenario) -> Drive:
    """The whole of a scenario, on parts of our own."""
    with Stage(scenario) as stage:
        journal = stage.folder / "journal"
        wanted = plan(
            scenario,
            journal,
            direct=f"http://127.0.0.1:{stage.providers[-1].port}",
            direct_percent=scenario.direct_percent,
            direct_faults=scenario.direct_faults,
            keys=KEYS,
        )
        found = Drive(started=0.0, rows=[])
        began_cpu = [process.cpu_seconds() for process in stage.providers]
        with locust(scenario, f"http://127.0.0.1:{stage.port}", wanted) as process:
            found.started = _started(process, journal)
            _accompany(stage, process, found)
        _settle(stage, found)
        found.rows = rows(journal)
        found.provider_cpu_seconds = sum(process.cpu_seconds() for process in stage.providers) - sum(began_cpu)
        for provider in stage.providers:
            found.upstream += map(msgspec.json.decode, get(provider.port, "/__sim/log", timeout=30).splitlines())
        found.reloads = stage.reloads
        served = stage.sidecars[-1]
        first = min((row.began + row.ms / 1000 for row in found.rows if not row.direct), default=float("inf"))
        found.start_ms = max(first - served.began, 0.0) * 1000 if served.began > found.started else 0.0
        for process_ in stage.sidecars:
            process_.stop()
        found.exits = [each.process.returncode for each in stage.sidecars]
        found.log = list(map(msgspec.json.decode, stage.log.read_bytes().splitlines()))
    return found


def against_target(scenario: Scenario, url: str, wanted: Plan) -> Drive:
    """The clients alone, on an address that somebody else serves."""
    with locust(scenario, url, wanted) as process:
        started = _started(process, Path(wanted.journal))
        process.wait(timeout=scenario.seconds + GRACE_SECONDS)
    return Drive(started=started, rows=rows(Path(wanted.journal)))


@contextlib.contextmanager
def locust(scenario: Scenario, url: str, wanted: Plan) -> Iterator[subprocess.Popen[bytes]]:
    weights = [{"user_class_name": name, "weight": weight} for name, weight in scenario.who.items()]
    command = [sys.executable, "-m", "locust", "-f", f"{HERE / 'locustfile.py'},{HERE / 'shape.py'}", "--headless"]
    command += ["--only-summary", "--host", url, "--stop-timeout", str(LAST_ANSWERS_SECONDS), "--loglevel", "ERROR"]
    command += ["--config-users", msgspec.json.encode(weights).decode(), "--exit-code-on-error", "0", *scenario.who]
    out = Path(wanted.journal + ".out")
    with out.open("wb") as said:
        process = subprocess.Popen(
            command,
            env={**os.environ, "LOAD_PLAN": msgspec.json.encode(wanted).decode()},
            cwd=HERE.parent,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        try:
            yield process
            if process.wait(timeout=GRACE_SECONDS):
                raise RuntimeError(f"locust ended with {process.returncode}: {out.read_text()[-1500:]}")
        finally:
            process.kill()
            process.wait()


def rows(journal: Path) -> list[Row]:
    lines = journal.read_bytes().splitlines()[1:]  # the first tells when it began
    return [msgspec.json.decode(line, type=Row) for line in lines]


def _started(process: subprocess.Popen[bytes], journal: Path) -> float:
    """When Locust began, by its own word."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return float(journal.read_bytes().splitlines()[0])
        time.sleep(0.02)
    raise RuntimeError(f"locust did not start: {Path(str(journal) + '.out').read_text()[-1500:]}")


def _accompany(stage: Stage, process: subprocess.Popen[bytes], found: Drive) -> None:
    """Do the events when they are due, and look at the sidecar now and then, until Locust has ended."""
    seconds = stage.scenario.seconds
    due = sorted(
        (found.started + at * seconds, number)
        for number, event in enumerate(stage.scenario.events)
        for at in _times(event.at, event.until, event.every_seconds, seconds)
    )
    sample_at = found.started
    until = found.started + seconds + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < until:
        moment = time.monotonic()
        while due and due[0][0] <= moment:
            stage.do(stage.scenario.events[due.pop(0)[1]])
        if moment >= sample_at and stage.sidecars:
            sample_at = moment + SAMPLE_SECONDS
            found.samples.append(_sample(stage))
        time.sleep(0.02)


def _times(at: float, until: float | None, every: float | None, seconds: int) -> list[float]:
    """The shares of the run at which an event is due."""
    if until is None or every is None:
        return [at]
    return [at + number * every / seconds for number in range(int((until - at) * seconds / every))]


def _sample(stage: Stage) -> Sample:
    began = time.monotonic()
    try:
        get(stage.port, "/livez", timeout=2.0)
        took = (time.monotonic() - began) * 1000
    except OSError:
        took = float("inf")
    status = msgspec.json.decode(get(stage.port, "/status")) if "[cache]" in stage.scenario.config else {}
    for process in stage.sidecars:
        process.cpu_at_end = max(process.cpu_at_end, process.cpu_seconds())
    return Sample(
        at=began,
        rss_mb=max(process.rss_mb() for process in stage.sidecars),
        descriptors=stage.sidecars[-1].descriptors(),
        cpu_seconds=sum(process.cpu_at_end for process in stage.sidecars),
        health_ms=took,
        cache_mb=status["cache"]["bytes"] / MB if status else None,
    )


def _settle(stage: Stage, found: Drive) -> None:
    """Wait, for a bounded time, until nothing is under way; then look once more."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        found.status = msgspec.json.decode(get(stage.port, "/status"))
        if not under_way(found.status) or time.monotonic() > until:
            break
        time.sleep(0.1)
    idle = sum(each["idle"] for each in found.status["providers"])
    served = stage.sidecars[-1]
    found.descriptors_grown = served.descriptors() - idle - served.descriptors_at_start
    found.samples.append(_sample(stage))


def under_way(status: dict[str, Any]) -> int:
    """Connections, places in limits and in queues that are taken, as /status tells."""
    busy = sum(each["busy"] + each["dialing"] + each["waiting"] for each in status["providers"])
    places: int = sum(each["running"] + each["waiting"] for each in status["limits"])
    return int(busy) + places
