"""The log's way out: whole lines, to a file or a pipe, and a reader that hangs holds nobody up."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import log
from sidecar.log import LogWriter


class Lines:
    """A queue with lines in it, as the ledger has one."""

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)

    def drain(self, most: int) -> bytes:
        lines, self.lines = self.lines[:most], self.lines[most:]
        return b"".join(lines)


@contextlib.contextmanager
def stderr_to(fd: int) -> Iterator[None]:
    """Standard error is something else for a while."""
    kept = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_what_is_queued_is_in_the_file_when_it_is_closed(tmp_path: Path) -> None:
    lines = Lines(b"one\n")
    writer = LogWriter(lines.drain, str(tmp_path / "log"))
    lines.lines.append(b"two\n")
    writer.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o137 == 0


def test_it_is_written_while_it_runs_and_begun_anew_when_moved(tmp_path: Path) -> None:
    lines, file, moved = Lines(), tmp_path / "log", tmp_path / "log.1"
    writer = LogWriter(lines.drain, str(file))
    lines.lines.append(b"one\n")
    for _ in range(200):
        if file.stat().st_size:
            break
        time.sleep(0.01)
    file.rename(moved)
    lines.lines.append(b"two\n")
    writer.close()
    assert (moved.read_bytes(), file.read_bytes()) == (b"one\n", b"two\n")


def test_lines_are_taken_a_few_at_a_time_so_that_the_loop_can_run_between(tmp_path: Path) -> None:
    asked: list[int] = []

    class Counted(Lines):
        def drain(self, most: int) -> bytes:
            asked.append(most)
            return super().drain(most)

    wanted = [b"%d\n" % number for number in range(10_000)]
    LogWriter(Counted(*wanted).drain, str(tmp_path / "log")).close(5)
    assert (tmp_path / "log").read_bytes() == b"".join(wanted)
    assert max(asked) <= 100
    assert len(asked) >= 100


def test_it_appends(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"before\n")
    LogWriter(Lines(b"after\n").drain, str(tmp_path / "log")).close()
    assert (tmp_path / "log").read_bytes() == b"before\nafter\n"


@pytest.mark.parametrize(("name", "why"), [("no/log", "no such file or directory"), (".", "is a directory")])
def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str, why: str) -> None:
    path = tmp_path / name
    with pytest.raises(OSError, match=f"cannot write the log {path}: {why}"):
        LogWriter(Lines().drain, str(path))


def test_standard_error_is_a_dash() -> None:
    reader, writer = os.pipe()
    with stderr_to(writer):
        LogWriter(Lines(b"line\n").drain, "-").close()
    os.close(writer)
    assert os.read(reader, 100) == b"line\n"
    os.close(reader)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_hangs_holds_up_the_close_for_its_time_only(blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with stderr_to(writer):
        log_writer = LogWriter(Lines(b"x" * 1_000_000).drain, "-")
        began = time.monotonic()
        log_writer.close(0.2)
        assert time.monotonic() - began < 1.0
        assert log_writer._thread.is_alive()
        taken = 0
        while taken < 1_000_000:  # it reads again, and every byte is there
            taken += len(os.read(reader, 65536))
        log_writer.close(5)
        assert not log_writer._thread.is_alive()
    os.close(writer)
    os.close(reader)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with stderr_to(writer):
        lines = Lines(b"one\n")
        log_writer = LogWriter(lines.drain, "-")
        lines.lines.append(b"two\n")
        log_writer.close()
    os.close(writer)
    assert lines.lines == []
    assert not log_writer._thread.is_alive()


def test_it_does_not_keep_the_process() -> None:
    writer = LogWriter(Lines().drain, os.devnull)
    assert writer._thread.daemon
    assert writer._thread in threading.enumerate()
    writer.close()
    assert log._EVERY_SECONDS <= 0.1
