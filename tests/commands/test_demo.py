"""`sidecar demo`: with no key and no network, a real streamed answer, and an end by itself where no terminal is."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.commands.process import environment, ran


def test_it_streams_one_answer_tells_what_happened_and_ends(tmp_path: Path) -> None:
    done = ran("demo", folder=tmp_path, env={"http_proxy": "http://127.0.0.1:1", "no_proxy": ""})
    assert (done.returncode, done.stderr) == (0, "")
    began, answer, happened = re.split(r"\n\n", done.stdout.rstrip("\n"))
    assert re.fullmatch(
        r"simulated provider at http://127\.0\.0\.1:\d+/v1, sidecar at http://127\.0\.0\.1:\d+/v1", began
    )
    assert len(answer.split()) >= 30
    assert re.fullmatch(
        r"provider openai, model sim-large\n"
        r"tokens: \d+ in, 40 out; time to first token: \d+ ms;"
        r" added by the sidecar before the first byte: \d+ us",
        happened,
    )


def test_where_not_every_character_can_be_shown_it_goes_on(tmp_path: Path) -> None:
    done = ran("demo", folder=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u6f22" in done.stdout


def on_a_terminal(*words: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment({}),
    )
    os.close(theirs)
    return child, ours


def read_until(terminal: int, part: bytes, seconds: float = 10) -> bytes:
    """What it shows, until there is that part, or it ends."""
    shown, until = b"", time.monotonic() + seconds
    while part not in shown and time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
    return shown


def test_on_a_terminal_it_stays_up_until_it_is_interrupted(tmp_path: Path) -> None:
    child, terminal = on_a_terminal(folder=tmp_path)
    try:
        shown = read_until(terminal, b"curl ")
        assert b"still up; try it, Ctrl-C ends it:" in shown
        assert b"export OPENAI_BASE_URL=http://127.0.0.1:" in shown
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
        assert b"Traceback" not in read_until(terminal, b"Traceback", 0.2)
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def test_once_it_does_not(tmp_path: Path) -> None:
    child, terminal = on_a_terminal("--once", folder=tmp_path)
    try:
        assert b"still up" not in read_until(terminal, b"still up")
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
        os.close(terminal)


def test_interrupted_in_the_middle_it_ends_well(tmp_path: Path) -> None:
    child, terminal = on_a_terminal(folder=tmp_path)
    try:
        read_until(terminal, b"sidecar streams")
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
        assert b"Traceback" not in read_until(terminal, b"Traceback", 0.2)
    finally:
        child.kill()
        child.wait()
        os.close(terminal)
