"""Running a server as a process: the loop, the signals, and several workers under a parent that restarts them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import uvloop

from sidecar.clock import now
from sidecar.config import Server as Settings
from sidecar.server import heap
from sidecar.server.lifespan import SHUTDOWN_SECONDS, AppFailed
from sidecar.server.listen import LAST_WORDS_SECONDS, Log, Server
from sidecar.server.sockets import bind, bind_all, unbind
from sidecar.types import ASGIApp

_BACKOFF_SECONDS: Final = (0.1, 30.0)
_SETTLED_SECONDS: Final = 30.0  # a worker that lived this long died of something new
_LAST_SECONDS: Final = 2 * LAST_WORDS_SECONDS + SHUTDOWN_SECONDS + 2.0  # of a worker that has drained, to end
_HURRY: Final = 0  # what a parent says to its workers: this, or the number of a signal
_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_SIGNALS: Final = (*_STOPS, signal.SIGHUP, signal.SIGCHLD)


class Served(msgspec.Struct, kw_only=True):
    """An app and what it wants to know of its process."""

    app: ASGIApp
    on_ready: Callable[[list[str]], None]
    on_drain: Callable[[], None]
    on_reload: Callable[[], None]
    log: Log | None = None


async def serve(served: Served, settings: Settings, sockets: list[socket.socket], *, orders: int | None = None) -> None:
    """Serve until a signal: SIGTERM drains after the lame-duck time, SIGINT at once, a second one does not wait.

    `orders`: of a worker, the pipe by which its parent passes signals on; when it ends, the parent is no more. A signal
    sent to the worker itself never hurries it: terminals and service managers send theirs to parent and workers alike.
    """
    loop = asyncio.get_running_loop()
    server = Server(served.app, settings, sockets=sockets, log=served.log)
    await server.start()
    stopped: asyncio.Future[float] = loop.create_future()

    def stop(lame_duck_seconds: float) -> None:
        if not stopped.done():
            served.on_drain()
            stopped.set_result(lame_duck_seconds)
        elif orders is None:
            server.hurry()

    def obey(pipe: int) -> None:
        said = os.read(pipe, 64)
        if not said:
            loop.remove_reader(pipe)
            stop(settings.lame_duck_seconds)
        for order in said:
            does[order]()

    does: dict[int, Callable[[], None]] = {
        signal.SIGTERM: lambda: stop(settings.lame_duck_seconds),
        signal.SIGINT: lambda: stop(0.0),
        signal.SIGHUP: served.on_reload,
        _HURRY: server.hurry,
    }
    for each in (*_STOPS, signal.SIGHUP):
        loop.add_signal_handler(each, does[each])
    if orders is not None:
        loop.add_reader(orders, obey, orders)
    calm_collector()
    served.on_ready(server.addresses)
    lame_duck = await stopped
    await server.drain(lame_duck_seconds=lame_duck, drain_seconds=settings.drain_seconds)


def calm_collector() -> None:
    """Let the garbage collector look seldom, at few objects at a time, and never at what exists by now, which stays.

    Requests leave no cycles: collections are set off by what connections and open streams add. With few objects in
    each, none takes long; all of them are looked through hardly ever (benchmarks/bench_gc.py).
    """
    gc.collect()
    gc.set_threshold(5_000, 1, 10_000)
    gc.freeze()


def run(make: Callable[[], Served], settings: Settings) -> int:
    """Serve in this process, or in `settings.workers` children of it. Answers the exit code.

    Raises OSError when an address cannot be had.
    """
    if settings.workers > 1:
        return Supervisor(make, settings).run()
    return _work(make, settings, bind_all(settings))


def _work(
    make: Callable[[], Served], settings: Settings, sockets: list[socket.socket], *, orders: int | None = None
) -> int:
    heap.keep()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_quietly(serve(make(), settings, sockets, orders=orders)))
        except AppFailed as error:
            sys.stderr.write(f"sidecar: {error}\n")
            return 1
    return 0


async def _quietly(work: Awaitable[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await work


class _Worker(msgspec.Struct):
    """A child process, as its parent knows it."""

    number: int
    began: float
    orders: int  # our end of the pipe to it


class Supervisor:
    """Forks workers before any loop exists, restarts the dead with growing patience, passes signals on.

    TCP listeners are each worker's own by SO_REUSEPORT, so that the kernel spreads connections; others are shared.
    Signals are blocked and taken one by one, so that none comes between two steps.
    """

    def __init__(self, make: Callable[[], Served], settings: Settings) -> None:
        self._make = make
        self._settings = settings
        self._held: list[socket.socket] = []  # keeps ports and socket files ours while workers come and go
        self._listen: list[str | socket.socket] = []
        self._workers: dict[int, _Worker] = {}  # by pid
        self._due: dict[int, float] = {}  # number of a dead worker -> when another begins
        self._failures = [0] * settings.workers
        self._stop_by: float | None = None  # once told to stop: when workers that have not ended are killed
        self._code = 0

    def run(self) -> int:
        self._bind()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for number in range(self._settings.workers):
                self._fork(number, mask)
            while self._workers or self._due:
                told = signal.sigtimedwait(_SIGNALS, self._patience())
                if told is not None and told.si_signo != signal.SIGCHLD:
                    self._pass_on(told.si_signo)
                self._reap()
                self._begin_due(mask)
                self._kill_late()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for sock in self._held:
                unbind(sock)
        return self._code

    def _bind(self) -> None:
        for address in self._settings.listen:
            if _is_tcp(address):  # by SO_REUSEPORT alone we would share the port with another sidecar and not know
                bind(address, self._settings).close()
        self._held = bind_all(self._settings, reuse_port=True)
        for address, sock in zip(self._settings.listen, self._held, strict=True):
            host = address.rpartition(":")[0]
            self._listen.append(f"{host}:{sock.getsockname()[1]}" if _is_tcp(address) else sock)

    def _patience(self) -> float:
        whens = [*self._due.values(), *([] if self._stop_by is None else [self._stop_by])]
        return max(min(whens) - now(), 0.0) if whens else 60.0

    def _pass_on(self, number: int) -> None:
        order = number
        if number in _STOPS:
            seconds = _LAST_SECONDS
            if self._stop_by is None:
                seconds += self._settings.lame_duck_seconds + self._settings.drain_seconds
            else:
                order = _HURRY
            self._stop_by = now() + seconds
            self._due.clear()
        for worker in self._workers.values():
            with contextlib.suppress(OSError):  # it has just died, or hangs and has many orders unread
                os.write(worker.orders, bytes((order,)))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:  # as process 1 of a container we inherit orphans too
                os.close(worker.orders)
                self._ended(worker, pid, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, pid: int, code: int) -> None:
        if self._stop_by is not None:
            if code not in (0, *(-each for each in _STOPS)):
                self._code = 1
            return
        if now() - worker.began > _SETTLED_SECONDS:
            self._failures[worker.number] = 0
        self._put_off(worker.number, f"(pid {pid}) ended with {code}")

    def _put_off(self, number: int, why: str) -> None:
        failures = self._failures[number] = self._failures[number] + 1
        seconds = min(_BACKOFF_SECONDS[0] * 2 ** min(failures - 1, 20), _BACKOFF_SECONDS[1])
        self._due[number] = now() + seconds
        sys.stderr.write(f"sidecar: worker {number} {why}; another begins in {seconds:g} s\n")
        sys.stderr.flush()

    def _begin_due(self, mask: set[int | signal.Signals]) -> None:
        for number in [number for number, when in self._due.items() if when <= now()]:
            del self._due[number]
            try:
                self._fork(number, mask)
            except OSError as error:  # no descriptor, no memory, no process: the others serve on meanwhile
                self._put_off(number, f"could not begin: {(error.strerror or str(error)).lower()}")

    def _kill_late(self) -> None:
        if self._stop_by is not None and now() >= self._stop_by:
            for pid in self._workers:
                os.kill(pid, signal.SIGKILL)
            self._stop_by = now() + 1.0  # the kernel's to do; not to be asked in a tight loop

    def _fork(self, number: int, mask: set[int | signal.Signals]) -> None:
        orders, ours = os.pipe()
        os.set_blocking(ours, False)
        try:
            pid = os.fork()
        except OSError:
            os.close(orders)
            os.close(ours)
            raise
        if pid:
            os.close(orders)
            self._workers[pid] = _Worker(number, now(), ours)
            return
        code = 1
        try:
            for each in (ours, *(worker.orders for worker in self._workers.values())):
                os.close(each)  # or it would not end with the parent
            for stop in _STOPS:
                signal.signal(stop, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sockets = [
                bind(each, self._settings, reuse_port=True) if isinstance(each, str) else each.dup()
                for each in self._listen
            ]
            code = _work(self._make, self._settings, sockets, orders=orders)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)


def _is_tcp(address: str) -> bool:
    return not address.startswith(("unix:", "fd:"))
