"""`sidecar config`: the schema, and what is in force with flags over it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from sidecar.cli import main
from sidecar.config import schema
from tests.config.files import written

LOCAL = '[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1/v1"\n'


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == msgspec.json.decode(msgspec.json.encode(schema()))


def test_flags_go_over_the_file_and_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "f.toml", LOCAL + '[server]\nlisten = "127.0.0.1:1"\nworkers = 2\n'))
    assert main(["config", "--effective", "--config", file, "--listen", "unix:/a", "--listen", "[::1]:2"]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["server"]["listen"] == ["unix:/a", "[::1]:2"]
    assert 'listen = ["unix:/a", "[::1]:2"]  # --listen\n' in out
    assert f"workers = 2  # {file}:6\n" in out


def test_faults_of_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = written(tmp_path / "bad.toml", "x = 1\n"), written(tmp_path / "good.toml", LOCAL)
    assert main(["config", "--effective", "--config", str(bad)]) == 2
    assert 'unknown option "x"' in capsys.readouterr().err
    assert main(["config", "--effective", "--config", str(good), "--listen", "0.0.0.0:1"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err
