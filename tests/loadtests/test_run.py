"""The command: a run of seconds with the real Locust, what is asked before others are put under load, exit codes."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests import run
from tests.components import require

TOP = Path(__file__).parents[2]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "loadtests.run", *words]
    return subprocess.run(
        line, cwd=TOP, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.timeout(60)
def test_a_threshold_that_is_broken_on_purpose_fails_the_run(tmp_path: Path) -> None:
    """The same run holds all the others: it is the threshold that fails it, and nothing else."""
    require("locust", importlib.util.find_spec("locust"))
    limits = tmp_path / "thresholds.toml"
    # An answer needs at least the 30 ms that its provider takes.
    limits.write_text("[smoke]\nlost = 0\nduplicates = 0\nbugs = 0\nrequests = { least = 20 }\nunary_p50_ms = 29.0\n")
    words = ["smoke", "--users", "6", "--seconds", "5", "--thresholds", str(limits)]
    done = command(*words, "--html", str(tmp_path / "page.html"), "--json", str(tmp_path / "page.json"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert [line.split(" | ")[0] for line in done.stdout.splitlines() if "BREACH" in line] == ["| unary_p50_ms"]
    assert done.stdout.endswith("1 breaches\n")
    assert "| lost | 0 | <= 0 | ok |" in done.stdout
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert '"verdict": "1 breaches"' in (tmp_path / "page.json").read_text()


def asked(target: str, yes_load: str | None = None, scenario: str = "steady") -> argparse.Namespace:
    return argparse.Namespace(scenario=scenario, target=target, yes_load=yes_load, users=None, seconds=None)


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:4000", "http://localhost:1/", "https://[::1]:8443", "http://127.9.9.9"]
)
def test_loopback_needs_no_confirmation(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.confirmed(asked(target)) == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "target", ["http://10.0.0.7:4000", "https://llm.test", "http://localhost.test", "http://0.0.0.0:1"]
)
def test_any_other_host_is_confirmed_by_its_name(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    host = target.split("://")[1].split(":")[0]
    for given in (None, "yes", "127.0.0.1"):
        assert run.confirmed(asked(target, given)) == f"not confirmed: --yes-load {host} says that it may be done"
        assert f"!!! {host} IS NOT THIS MACHINE !!!" in capsys.readouterr().out
    assert run.confirmed(asked(target, host)) == ""


@pytest.mark.parametrize("target", ["127.0.0.1:4000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:1/v1"])
def test_a_target_is_an_address_without_a_path(target: str) -> None:
    assert "takes http://host:port" in run.confirmed(asked(target))


def test_all_scenarios_at_once_are_for_our_own_parts() -> None:
    assert run.confirmed(asked("http://127.0.0.1:1", scenario="all")) == "--target: one scenario at a time"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tornado",), "invalid choice: 'tornado'"),
        (("smoke", "--users", "0"), "--users 0: takes 1 or more"),
        (("smoke", "--seconds", "1"), "--seconds 1: takes 5 or more"),
        (("smoke", "--target", "http://192.0.2.1:1"), "not confirmed: --yes-load 192.0.2.1"),
    ],
)
def test_used_wrongly_it_ends_with_two(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", *words])
    monkeypatch.setattr(run, "_interactive", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
