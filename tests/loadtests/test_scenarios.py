"""The scenarios' files, and what their clients may know."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loadtests import drive, judge, scenario
from tests.components import require

HERE = scenario.HERE
NAMES = scenario.names()
WANTED = {
    *("steady", "spike", "soak", "slow_provider", "brownout", "throttled", "flaky", "failover", "cancel_storm"),
    *("slow_readers", "big_bodies", "cold_start", "reload_storm", "drain", "through_envoy", "smoke"),
    *("cache_hot", "cache_churn", "redis_down"),
}


def test_no_scenario_is_missing() -> None:
    assert set(NAMES) >= WANTED


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_is_whole(name: str) -> None:
    """It reads, its users exist, it has thresholds, and what it does lies within the run."""
    found = scenario.read(name)
    classes = {
        node.name for node in ast.parse((HERE / "locustfile.py").read_text()).body if isinstance(node, ast.ClassDef)
    }
    assert found.who.keys() <= classes
    assert name in tomllib.loads(judge.THRESHOLDS.read_text())
    assert judge.thresholds(name)["lost"] == judge.thresholds(name)["duplicates"] == 0
    assert all(0 <= event.at <= (event.until or 1) <= 1 for event in found.events)
    assert not found.stages or found.stages[-1][0] == 1.0


@pytest.mark.parametrize("file", ["locustfile.py", "client.py", "shape.py", "scenario.py"])
def test_what_locust_loads_knows_nothing_of_the_product(file: str) -> None:
    nodes = list(ast.walk(ast.parse((HERE / file).read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names
    allowed = {"loadtests.scenario", "loadtests.client"}
    assert not [name for name in names if name.split(".")[0] in ("sidecar", "benchmarks", "tests")]
    assert {name for name in names if name.startswith("loadtests")} <= allowed


@pytest.mark.parametrize(
    ("at", "until", "every", "wanted"),
    [(0.5, None, None, [0.5]), (0.1, 0.4, 1.0, [0.1, 0.2, 0.30000000000000004])],
)
def test_when_events_are_due(at: float, until: float | None, every: float | None, wanted: list[float]) -> None:
    assert drive._times(at, until, every, 10) == wanted


JUDGE = """
import zlib
from loadtests.client import Asked, judged
DONE = b'data: {"choices":[],"usage":{}}\\n\\ndata: [DONE]\\n\\n'
HALF = b'data: {"choices":[{"delta":{"content":"a"}}]}\\n\\n'
ERROR = b'data: {"error":{"message":"m"}}\\n\\n'
def of(body, stream=True, promised=None):
    return judged(Asked("k", "", stream=stream), body, promised)
def digest(body):
    return f"{zlib.crc32(body):08x}-{len(body)}"
print([
    of(HALF + DONE), of(HALF + DONE, promised=digest(HALF + DONE)), of(b'{"id":1}', False), of(HALF + ERROR),
    of(HALF), of(HALF + DONE[:-20]), of(HALF + ERROR + DONE), of(HALF + DONE, promised=digest(HALF + HALF + DONE)),
    of(b'{"id":', False), of(b"", False), of(b""), of(b'{"id":1}', False, digest(b'{"id":2}')),
    of(HALF + DONE[:-14], promised=digest(HALF + DONE)),
])
"""


def test_what_a_client_takes_for_whole() -> None:
    """In a process of its own: Locust changes the standard library where it is imported."""
    require("locust", any((Path(path) / "locust").is_dir() for path in sys.path))
    done = subprocess.run(
        [sys.executable, "-c", JUDGE], cwd=HERE.parent, capture_output=True, text=True, timeout=15, check=True
    )
    assert ast.literal_eval(done.stdout) == ["", "", "", "told", *["lost"] * 8, "undone"]
