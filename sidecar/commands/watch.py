"""Seeing that the configuration has changed, on a thread of its own: a slow disk must not hold up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping

from sidecar.config import Stamp, stamp

_EVERY_SECONDS = 1.0

Files = Mapping[str, Stamp | None]
Read = Callable[[], tuple[Callable[[], None], Files]]


class Watch:
    """Looks every second whether a file is another than the one that was read, by whatever way (a link's swap too).

    `read` reads them all again, and answers what is then to be done on the loop, and what it has read. It is called at
    once by `now`, else when a change has been seen twice the same: a file half written is not to be taken for whole.
    """

    def __init__(self, read: Read, files: Files) -> None:
        self._read = read
        self._files = files
        self._last = files  # as seen the last time
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def catch_up(self) -> None:
        """Read again here and now, if there is anything new: a worker may be forked long after its parent has read."""
        if any(stamp(file) != seen for file, seen in self._files.items()):
            then, self._files = self._read()
            self._last = self._files
            then()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.Thread(target=self._run, args=(loop,), name="sidecar-config", daemon=True)
        self._thread.start()

    def now(self) -> None:
        """Read again, changed or not (SIGHUP)."""
        self._wake.set()

    def stop(self) -> None:
        """Do not read any more. Does not wait for a reading that is under way."""
        self._stopped = True
        self._wake.set()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            asked = self._wake.wait(_EVERY_SECONDS)
            self._wake.clear()
            if self._stopped:
                return
            if asked or self._changed():
                then, self._files = self._read()
                self._last = self._files
                with contextlib.suppress(RuntimeError):  # the loop has just ended
                    loop.call_soon_threadsafe(then)

    def _changed(self) -> bool:
        """Is a file another than was read, and the same as a moment ago?"""
        seen = {file: stamp(file) for file in self._files}
        settled = seen == self._last
        self._last = seen
        return settled and seen != self._files
