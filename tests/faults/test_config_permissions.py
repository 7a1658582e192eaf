"""Files that others may write, and secrets that others may read: exit 2, one line that says how to mend it (D27)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CANARY = "sk-canary-of-the-file"
INLINE = f'[providers.openai]\napi_key = "{CANARY}"\n'
FILED = '[providers.openai]\napi_key = "file:key"\n'
ENV = '[providers.openai]\napi_key = "env:SOME_KEY"\n'


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "SOME_KEY": CANARY, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )


def write(folder: Path, text: str, mode: int, *, key: int | None = None) -> Path:
    file = folder / "sidecar.toml"
    file.write_text(text)
    file.chmod(mode)
    if key is not None:
        (folder / "key").write_text(CANARY)
        (folder / "key").chmod(key)
    return file


@pytest.mark.parametrize(
    ("text", "mode", "key", "words"),
    [
        pytest.param(ENV, 0o620, None, ("sidecar.toml has mode 0620", "chmod go-w"), id="the group may write it"),
        pytest.param(ENV, 0o602, None, ("sidecar.toml has mode 0602", "chmod go-w"), id="others may write it"),
        pytest.param(INLINE, 0o640, None, ("has mode 0640", "chmod 600"), id="the group may read a key in it"),
        pytest.param(INLINE, 0o604, None, ("has mode 0604", "chmod 600"), id="others may read a key in it"),
        pytest.param(FILED, 0o600, 0o660, ("key has mode 0660", "chmod go-w"), id="a key file others may write"),
        pytest.param(
            '[server]\nlisten = ["0.0.0.0:0"]\n' + ENV, 0o600, None, ("callers",), id="open to all, without callers"
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_it_does_not_start(
    tmp_path: Path, command: str, text: str, mode: int, key: int | None, words: tuple[str, ...]
) -> None:
    write(tmp_path, text, mode, key=key)
    done = run(tmp_path, command)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_file_that_others_may_read_is_a_warning_and_a_fault_where_asked(tmp_path: Path) -> None:
    """A Kubernetes Secret is a file of mode 0644."""
    write(tmp_path, FILED, 0o600, key=0o644)
    done = run(tmp_path, "check")
    assert (done.returncode, "key has mode 0644" in done.stderr) == (0, True)
    strict = run(tmp_path, "check", "--strict")
    assert strict.returncode == 2
    assert CANARY not in done.stdout + done.stderr + strict.stdout + strict.stderr


def test_what_is_private_starts_without_a_word(tmp_path: Path) -> None:
    for text, mode, key in ((INLINE, 0o600, None), (FILED, 0o644, 0o600), (ENV, 0o644, None)):
        write(tmp_path, text, mode, key=key)
        done = run(tmp_path, "check", "--strict")
        assert (done.returncode, done.stderr) == (0, "")


def test_no_flag_opens_what_the_file_keeps_closed(tmp_path: Path) -> None:
    write(tmp_path, ENV, 0o600)
    done = run(tmp_path, "serve", "--listen", "0.0.0.0:0")
    assert done.returncode == 2
    assert "callers" in done.stderr
