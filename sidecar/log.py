"""The log's way out: a thread of its own, so that a stuck pipe never holds up the event loop."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator

_EVERY_SECONDS = 0.1
_LINES = 64  # encoded at a time: about 0.2 ms, in which the loop cannot run
_PAUSE_SECONDS = 0.0005  # in which it can
_MOST_PIECES = 256  # of one writing
_STDERR = 2


class LogWriter:
    """Takes what `drain` gives, so many lines at a time, and writes it, every tenth of a second.

    `file`: a path, or "-" for standard error. It is opened for each writing: one that was moved away (logrotate) is
    begun anew. Lines that found the queue full were dropped and counted by its owner. Raises OSError.
    """

    def __init__(self, drain: Callable[[int], bytes], file: str) -> None:
        self._drain = drain
        self._file = file
        with self._opened():
            pass
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-log", daemon=True)
        self._thread.start()

    def close(self, seconds: float = 1.0) -> None:
        """Write what is left, waiting at most `seconds`: a reader that hangs must not keep the process."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        pieces: list[bytes] = []
        while len(pieces) < _MOST_PIECES and (piece := self._drain(_LINES)):
            pieces.append(piece)
            self._stop.wait(_PAUSE_SECONDS)
        data = b"".join(pieces)
        if not data:
            return
        with (
            contextlib.suppress(OSError),
            self._opened() as fd,
        ):  # nobody reads any more, and nobody is there to be told
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:  # whoever gave us the pipe made it so
                    select.select([], [fd], [], _EVERY_SECONDS)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self._file == "-":
            yield _STDERR
            return
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            raise OSError(error.errno, f"cannot write the log {self._file}: {why}") from None
        try:
            yield fd
        finally:
            os.close(fd)
