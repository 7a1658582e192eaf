"""The log's way out: a thread of its own, so that a stuck pipe never holds up the event loop."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

_EVERY_SECONDS = 0.1


class LogWriter:
    """Takes what `drain` gives (at most what the bounded queue behind it holds) and writes it, every tenth of a second.

    `file`: a path, or "-" for standard error. Lines that found the queue full were dropped and counted by its owner.
    """

    def __init__(self, drain: Callable[[], bytes], file: str) -> None:
        self._drain = drain
        self._fd = sys.stderr.fileno() if file == "-" else os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
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
        data = self._drain()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:  # nobody reads any more; there is no other place to say so
                return
