"""`sidecar explain`: the plan, or why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli import main
from tests.config.files import written

TEXT = """\
[providers.lab]
kind = "openai-compatible"
base_url = "http://127.0.0.1:1/v1"
[models.fast]
targets = ["lab/one", "lab/two"]
"""


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "f.toml", TEXT))
    assert main(["explain", "fast", "--config", file]) == 0
    out = capsys.readouterr().out
    assert out.index("lab/one") < out.index("lab/two")


def test_a_name_that_nobody_knows_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "f.toml", TEXT))
    assert main(["explain", "zebra", "--config", file]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sidecar: the model 'zebra' is not configured")


def test_a_bad_file_is_a_fault_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "fast", "--config", str(tmp_path / "absent")]) == 2
    assert "cannot be read: no such file or directory" in capsys.readouterr().err
