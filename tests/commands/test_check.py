"""`sidecar check`: what it tells, where, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli import main
from tests.config.files import CANARY, written

LOCAL = '[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1/v1"\n'


def test_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "good.toml", LOCAL + '[models]\nfast.targets = "lab/m"\n')
    assert main(["check", str(file), "--strict"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{file}: ok (1 provider, 1 model, 0 callers, 0 warnings)\n", "")


def test_every_fault_of_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "bad.toml", LOCAL + f'api_key = "env:{CANARY}"\nbase = "x"\n')
    assert main(["check", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"{file}:4:1: providers.lab.api_key: what stands behind env: is not the name of an environment variable\n"
        f'    api_key = "***:{"*" * 16}"\n'
        "    ^\n"
        f'{file}:5:1: unknown option "base" in [providers.lab]; did you mean "base_url"?\n'
        '    base = "*"\n'
        "    ^\n"
        "2 faults\n"
    )


def test_a_warning_is_a_fault_when_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = written(tmp_path / "key", CANARY, 0o644)
    file = written(tmp_path / "warned.toml", LOCAL + 'api_key = "file:key"\n')
    assert main(["check", str(file)]) == 0
    captured = capsys.readouterr()
    warning = f"warning: {file}:4:1: providers.lab.api_key: the key file {key} has mode 0644, so others may read it"
    assert captured.err.startswith(warning)
    assert captured.out.endswith("1 warning)\n")
    assert main(["check", "--strict", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(warning)
    assert captured.err.endswith("sidecar: 1 warning, and --strict was asked for\n")
    assert captured.out == ""


def test_a_file_that_others_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "open.toml", LOCAL, 0o666)
    assert main(["check", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"{file}: {file} has mode 0666, so others may change it: chmod go-w {file}\n1 fault\n"
    )


def test_without_a_file_it_checks_what_serve_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "sidecar.toml", LOCAL)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("sidecar.toml: ok")
