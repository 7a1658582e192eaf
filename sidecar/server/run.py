"""Running a server as a process: the loop, the signals, and several workers under a parent that restarts them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import uvloop

from sidecar.clock import now
from sidecar.config import Server as Settings
from sidecar.server.listen import Log, Server, bind, unbind
from sidecar.types import ASGIApp

_BACKOFF_SECONDS: Final = (0.1, 30.0)
_SETTLED_SECONDS: Final = 30.0  # a worker that lived this long died of something new


class Served(msgspec.Struct, kw_only=True):
    """An app and what it wants to know of its process."""

    app: ASGIApp
    on_ready: Callable[[list[str]], None]
    on_drain: Callable[[], None]
    on_reload: Callable[[], None]
    log: Log | None = None


async def serve(served: Served, settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve until a signal: SIGTERM drains after the lame-duck time, SIGINT at once, a second one does not wait."""
    loop = asyncio.get_running_loop()
    server = Server(served.app, settings, sockets=sockets, log=served.log)
    await server.start()
    stopped: asyncio.Future[float] = loop.create_future()

    def stop(lame_duck_seconds: float) -> None:
        if stopped.done():
            server.hurry()
        else:
            served.on_drain()
            stopped.set_result(lame_duck_seconds)

    loop.add_signal_handler(signal.SIGTERM, stop, settings.lame_duck_seconds)
    loop.add_signal_handler(signal.SIGINT, stop, 0.0)
    loop.add_signal_handler(signal.SIGHUP, served.on_reload)
    gc.collect()
    gc.freeze()  # what exists by now stays: the collector need not look at it again and again
    served.on_ready(server.addresses)
    lame_duck = await stopped
    await server.drain(lame_duck_seconds=lame_duck, drain_seconds=settings.drain_seconds)


def run(make: Callable[[], Served], settings: Settings) -> int:
    """Serve in this process, or in `settings.workers` of its children. Answers the exit code. Raises OSError (addresses)."""
    if settings.workers > 1:
        return Supervisor(make, settings).run()
    return _work(make, settings, _bind_all(settings, reuse_port=False))


def _bind_all(settings: Settings, *, reuse_port: bool) -> list[socket.socket]:
    """All or none: a socket's file must not stay behind because another address could not be had."""
    sockets: list[socket.socket] = []
    try:
        sockets.extend(bind(each, settings, reuse_port=reuse_port) for each in settings.listen)
    except OSError:
        for sock in sockets:
            unbind(sock)
        raise
    return sockets


def _work(make: Callable[[], Served], settings: Settings, sockets: list[socket.socket]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_quietly(serve(make(), settings, sockets)))
    return 0


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await work


class Supervisor:
    """Forks workers before any loop exists, restarts the dead with growing patience, passes signals on.

    TCP listeners are each worker's own by SO_REUSEPORT, so that the kernel spreads connections; other sockets are shared.
    """

    def __init__(self, make: Callable[[], Served], settings: Settings) -> None:
        self._make = make
        self._settings = settings
        self._held: list[socket.socket] = []  # keeps ports and socket files ours while workers come and go
        self._listen: list[str | socket.socket] = []
        self._workers: dict[int, tuple[int, float]] = {}  # pid -> (number, when it began)
        self._failures = [0] * settings.workers
        self._stopping = False

    def run(self) -> int:
        self._held = _bind_all(self._settings, reuse_port=True)
        for address, sock in zip(self._settings.listen, self._held, strict=True):
            tcp = not address.startswith(("unix:", "fd:"))
            host = address.rpartition(":")[0]
            self._listen.append(f"{host}:{sock.getsockname()[1]}" if tcp else sock)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, self._pass_on)
        for number in range(self._settings.workers):
            self._fork(number)
        self._watch()
        for sock in self._held:
            unbind(sock)
        return 0

    def _watch(self) -> None:
        while self._workers:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            number, began = self._workers.pop(pid)
            if self._stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            failures = self._failures[number] = 1 if now() - began > _SETTLED_SECONDS else self._failures[number] + 1
            seconds = min(_BACKOFF_SECONDS[0] * 2 ** (failures - 1), _BACKOFF_SECONDS[1])
            sys.stderr.write(
                f"sidecar: worker {number} (pid {pid}) ended with {code}; another begins in {seconds:g} s\n"
            )
            time.sleep(seconds)
            if not self._stopping:
                self._fork(number)

    def _fork(self, number: int) -> None:
        pid = os.fork()
        if pid:
            self._workers[pid] = (number, now())
            return
        code = 1
        try:
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(each, signal.SIG_DFL)
            sockets = [
                bind(each, self._settings, reuse_port=True) if isinstance(each, str) else each.dup()
                for each in self._listen
            ]
            code = _work(self._make, self._settings, sockets)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _pass_on(self, number: int, frame: Any) -> None:
        if number != signal.SIGHUP:
            self._stopping = True
        for pid in list(self._workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
