"""The command line: help with examples, suggestions, exit codes, and a start that loads only what it needs."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sidecar
from sidecar.cli import COMMANDS, Parser, main
from tests.commands.process import children_seconds, environment, ran

SECONDS = 0.5


@pytest.mark.parametrize("words", ["--help", "-h", "help"])
def test_help_names_every_command_and_an_example(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert "example: sidecar demo" in out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_with_an_example_of_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: sidecar {command}" in out
    assert f"example: sidecar {command} " in out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_example_is_taken_by_its_command(command: str) -> None:
    words = shlex.split(COMMANDS[command][1])
    assert words[:2] == ["sidecar", command]
    parser = Parser(command)
    importlib.import_module("sidecar.cli")._ARGUMENTS[command](parser)
    parser.parse_args(words[2:])


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_its_module(command: str) -> None:
    assert callable(importlib.import_module(f"sidecar.commands.{command}").run)


def test_without_a_command_it_serves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "x", "--help"]) == 0
    assert "usage: sidecar serve" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sidecar {sidecar.__version__}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("serv", "sidecar: no command 'serv'; did you mean \"serve\"?\n"),
        ("zebra", "sidecar: no command 'zebra'\n"),
        ("serve --lisen x", 'unrecognized arguments: --lisen x; did you mean "--listen"?'),
        ("--confg=x", 'unrecognized arguments: --confg=x; did you mean "--config"?'),
        ("check --stric", 'unrecognized arguments: --stric; did you mean "--strict"?'),
        ("serve --conf x", 'unrecognized arguments: --conf x; did you mean "--config"?'),  # no abbreviations
        ("demo now", "unrecognized arguments: now\n"),
        ("serve my.toml", 'unrecognized arguments: my.toml; did you mean "--config my.toml"?'),
        ("my.toml", "no command 'my.toml'; did you mean \"serve --config my.toml\"?"),
        ("explain m --dialect mesages", '; did you mean "messages"?'),
        ("explain", "the following arguments are required: MODEL"),
        ("config", "one of the arguments --schema --effective is required"),
        ("config --schema --effective", "not allowed with argument"),
        ("serve --workers two", "argument --workers: invalid int value: 'two'"),
    ],
)
def test_usage_errors_are_told_with_what_was_meant(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_an_interrupt_before_anything_is_up_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sidecar.commands.check.run", interrupted)
    assert main(["check"]) == 130


def test_a_reader_that_has_seen_enough_is_no_traceback(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "config", "--schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment({}),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(15) == 1
        assert child.stderr.read() == b""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_lead_nowhere(tmp_path: Path, closed: str) -> None:
    code = (
        "import os, stat, sys; from sidecar.cli import main; code = main(['check', 'absent']);"
        " sys.exit(code + 40 * all(os.fstat(fd) for fd in (0, 1, 2)))"
    )
    words = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    assert subprocess.run(words, cwd=tmp_path, env=environment({}), check=False, timeout=15).returncode == 42


@pytest.mark.parametrize("statement", ["import sidecar", "import sidecar.cli"])
def test_importing_loads_nothing_that_is_slow(tmp_path: Path, statement: str) -> None:
    slow = "('asyncio', 'httpx', 'uvloop', 'starlette', 'msgspec', 'ssl', 'sidecar.app')"
    code = f"import sys; {statement}; print([each for each in {slow} if each in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment({}, covered=False),
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("command", "unneeded"), [("check", "sidecar.app"), ("serve", "httpx"), ("serve", "sidecar.simulator")]
)
def test_a_command_loads_only_what_it_needs(tmp_path: Path, command: str, unneeded: str) -> None:
    code = f"import sys, sidecar.commands.{command}; print({unneeded!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment({}, covered=False),
        check=True,
    )
    assert done.stdout == "False\n"


def test_it_starts_in_time(tmp_path: Path) -> None:
    """By the processor's time, since others may be using the machine."""
    before = children_seconds()
    assert ran("--help", folder=tmp_path, covered=False).returncode == 0
    assert children_seconds() - before < SECONDS / 2


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = ran("--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sidecar {sidecar.__version__}\n", "")
