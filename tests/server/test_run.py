"""The server as a process: signals, exit codes, workers and their parent (R13; D30)."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]


class Process:
    """A server process, what it printed so far, and the workers that it told of."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.lines: list[list[str]] = []
        self._rest = b""

    def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        """Read what it prints until a condition holds."""
        deadline = time.monotonic() + seconds
        assert self.popen.stdout is not None
        while not true():
            assert time.monotonic() < deadline, self.lines
            if select.select([self.popen.stdout], [], [], 0.02)[0]:
                self._rest += os.read(self.popen.stdout.fileno(), 65536)
                *lines, self._rest = self._rest.split(b"\n")
                self.lines += [line.decode().split() for line in lines]

    def said(self, word: str) -> list[int]:
        """The pids of those who said it."""
        return [int(line[1]) for line in self.lines if line[0] == word]

    def ready(self, workers: int = 1) -> list[str]:
        """Wait for so many; where they listen."""
        self.until(lambda: len(self.said("ready")) >= workers)
        return next(line[2:] for line in self.lines if line[0] == "ready")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def ends(self, seconds: float = 5.0) -> int:
        """Its exit code; everything it printed is read then."""
        began = time.monotonic()
        code = self.popen.wait(seconds)
        assert time.monotonic() - began < seconds
        assert self.popen.stdout is not None
        os.set_blocking(self.popen.stdout.fileno(), False)
        self.lines += [line.decode().split() for line in (self._rest + (self.popen.stdout.read() or b"")).splitlines()]
        return code

    def errors(self) -> str:
        assert self.popen.stderr is not None
        os.set_blocking(self.popen.stderr.fileno(), False)
        return (self.popen.stderr.read() or b"").decode()


@contextmanager
def process(
    *, fails: str = "", last_seconds: float | None = None, fds: tuple[int, ...] = (), **settings: Any
) -> Iterator[Process]:
    defaults = {"listen": ("127.0.0.1:0",), "lame_duck_seconds": 0.0, "drain_seconds": 5.0}
    wanted = {"settings": {**defaults, **settings}, "fails": fails, "last_seconds": last_seconds}
    command = [sys.executable, "-m", "tests.server.process", msgspec.json.encode(wanted).decode()]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds, start_new_session=True
    ) as popen:
        try:
            yield Process(popen)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)


class Client:
    """A client that waits."""

    def __init__(self, address: str) -> None:
        if address.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            self.sock = socket.create_connection((host, int(port)))
        self.sock.settimeout(5)
        self.got = b""

    def ask(self, path: str, *, close: bool = True) -> Client:
        line = b"Connection: close\r\n" if close else b""
        self.sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path.encode(), line))
        return self

    def until(self, what: bytes) -> Client:
        while what not in self.got:
            data = self.sock.recv(65536)
            assert data, self.got
            self.got += data
        return self

    def rest(self) -> bytes:
        with suppress(ConnectionResetError):
            while data := self.sock.recv(65536):
                self.got += data
        self.sock.close()
        return self.got


def asked(address: str, path: str = "/pid") -> bytes:
    return Client(address).ask(path).rest().partition(b"\r\n\r\n")[2]


def pids(address: str, count: int, *, seconds: float = 5.0) -> set[int]:
    """Ask until so many workers have answered."""
    found: set[int] = set()
    deadline = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found.add(int(asked(address)))
    return found


# -- one process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(place: Path, number: int) -> None:
    with process(listen=("127.0.0.1:0", f"unix:{place}/s")) as served:
        for address in served.ready():
            assert int(asked(address)) == served.popen.pid
        served.signal(number)
        assert served.ends(2) == 0
        assert [line[0] for line in served.lines] == ["ready", "drain", "ended"]
        assert not (place / "s").exists()
        assert served.errors() == ""


def test_a_stream_is_finished_in_the_lame_duck_time_and_behind_it(place: Path) -> None:
    with process(lame_duck_seconds=0.4) as served:
        address = served.ready()[0]
        stream = Client(address).ask(f"/stream?{place}/go").until(b"begun")
        idle = Client(address).ask("/pid", close=False).until(b"%d" % served.popen.pid)
        served.signal(signal.SIGTERM)
        served.until(lambda: served.said("drain"))
        assert b"\r\nconnection: close\r\n" in Client(address).ask("/pid", close=False).rest()
        assert idle.rest().count(b"HTTP/1.1") == 1
        with pytest.raises(ConnectionRefusedError):
            Client(address)
        (place / "go").touch()
        assert stream.rest().endswith(b"begun\r\n4\r\ndone\r\n0\r\n\r\n")
        assert served.ends(2) == 0


def test_an_interrupt_has_no_lame_duck_time() -> None:
    with process(lame_duck_seconds=30) as served:
        served.ready()
        served.signal(signal.SIGINT)
        assert served.ends(2) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("lame_duck_seconds", [0, 30])
def test_a_second_signal_does_not_wait(lame_duck_seconds: float, workers: int) -> None:
    with process(lame_duck_seconds=lame_duck_seconds, drain_seconds=30, workers=workers) as served:
        stream = Client(served.ready(workers)[0]).ask("/stream").until(b"begun")
        served.signal(signal.SIGTERM)
        served.until(lambda: len(served.said("drain")) == workers)
        served.signal(signal.SIGTERM)
        assert served.ends(3) == 0
        assert stream.rest().endswith(b"5\r\nerror\r\n0\r\n\r\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_at_the_drain_deadline_a_stream_ends_by_its_error(workers: int) -> None:
    with process(drain_seconds=0.3, workers=workers) as served:
        stream = Client(served.ready(workers)[0]).ask("/stream").until(b"begun")
        served.signal(signal.SIGTERM)
        assert stream.rest().endswith(b"5\r\nerror\r\n0\r\n\r\n")
        assert served.ends(3) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_reloads(workers: int) -> None:
    with process(workers=workers) as served:
        address = served.ready(workers)[0]
        served.signal(signal.SIGHUP)
        served.until(lambda: len(served.said("reload")) == workers)
        assert set(served.said("reload")) == set(served.said("ready")) == pids(address, workers)


def test_an_app_that_cannot_start() -> None:
    with process(fails="no database") as served:
        assert served.ends() == 1
        assert served.errors() == "sidecar: the app did not start: no database\n"
        assert served.lines == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_in_use(workers: int) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        with process(listen=(address,), workers=workers) as served:
            assert served.ends() == 2
            assert served.errors() == f"cannot listen on {address}: address already in use\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_inherited_socket(workers: int) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with process(listen=(f"fd:{sock.fileno()}",), fds=(sock.fileno(),), workers=workers) as served:
            address = served.ready(workers)[0]
            assert address == f"127.0.0.1:{sock.getsockname()[1]}"
            assert int(asked(address)) in served.said("ready")
            served.signal(signal.SIGTERM)
            assert served.ends(3) == 0


# -- workers


def test_workers_share_a_port_and_end_together(place: Path) -> None:
    with process(workers=3, listen=("127.0.0.1:0", f"unix:{place}/s")) as served:
        address, path = served.ready(3)
        assert pids(address, 3) == set(served.said("ready"))
        assert int(asked(path)) in served.said("ready")
        streams = [Client(address).ask(f"/stream?{place}/go").until(b"begun") for _ in range(6)]
        served.signal(signal.SIGTERM)
        served.until(lambda: len(served.said("drain")) == 3)
        (place / "go").touch()
        for stream in streams:
            assert stream.rest().endswith(b"4\r\ndone\r\n0\r\n\r\n")
        assert served.ends(3) == 0
        assert set(served.said("ended")) == set(served.said("ready"))
        assert not (place / "s").exists()
        assert served.errors() == ""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0), (None, 7)])
def test_a_dead_worker_is_replaced(place: Path, how: int | None, code: int) -> None:
    with process(workers=2, listen=("127.0.0.1:0", f"unix:{place}/s")) as served:
        address, path = served.ready(2)
        if how is None:
            Client(path).ask("/die").rest()
        else:
            os.kill(served.said("ready")[0], how)
        served.until(lambda: len(served.said("ready")) == 3)
        assert served.said("ready")[-1] in pids(address, 2)
        assert int(asked(path)) in served.said("ready")
        assert f") ended with {code}; another begins in 0.1 s\n" in served.errors()
        served.signal(signal.SIGTERM)
        assert served.ends(3) == 0
        assert not (place / "s").exists()


def test_a_worker_that_keeps_dying_is_waited_for_longer_and_longer_and_delays_nothing() -> None:
    with process(workers=2, fails="dies") as served:
        errors = ""
        deadline = time.monotonic() + 8
        while errors.count("in 0.8 s") < 2:
            assert time.monotonic() < deadline, errors
            time.sleep(0.02)
            errors += served.errors()
        for number in (0, 1):
            waits = [line.rpartition(" in ")[2] for line in errors.splitlines() if f"worker {number} " in line]
            assert waits == ["0.1 s", "0.2 s", "0.4 s", "0.8 s"][: len(waits)]
        served.signal(signal.SIGTERM)
        assert served.ends(0.5) == 0


def test_a_worker_that_cannot_be_begun_is_put_off_and_ends_nothing() -> None:
    with process(workers=2) as served:
        address = served.ready(2)[0]
        limits = resource.prlimit(served.popen.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(served.popen.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(served.said("ready")[0], signal.SIGKILL)
        errors = ""
        deadline = time.monotonic() + 8
        while " could not begin: too many open files; another begins in 0.4 s\n" not in errors:
            assert time.monotonic() < deadline, errors
            time.sleep(0.02)
            errors += served.errors()
        assert int(asked(address)) == served.said("ready")[1]
        resource.prlimit(served.popen.pid, resource.RLIMIT_NOFILE, limits)
        served.until(lambda: len(served.said("ready")) == 3)
        served.signal(signal.SIGTERM)
        assert served.ends(3) == 0


def test_a_signal_to_the_whole_group_does_not_hurry(place: Path) -> None:
    with process(workers=2) as served:
        stream = Client(served.ready(2)[0]).ask(f"/stream?{place}/go").until(b"begun")
        os.killpg(served.popen.pid, signal.SIGINT)  # as a terminal does, and a service manager
        served.until(lambda: len(served.said("drain")) == 2)
        time.sleep(0.2)
        (place / "go").touch()
        assert stream.rest().endswith(b"4\r\ndone\r\n0\r\n\r\n")
        assert served.ends(3) == 0
        assert len(served.said("drain")) == 2


def test_workers_end_when_their_parent_is_no_more(place: Path) -> None:
    with process(workers=2) as served:
        stream = Client(served.ready(2)[0]).ask(f"/stream?{place}/go").until(b"begun")
        served.popen.kill()
        served.until(lambda: len(served.said("drain")) == 2)
        (place / "go").touch()
        assert stream.rest().endswith(b"4\r\ndone\r\n0\r\n\r\n")
        served.until(lambda: len(served.said("ended")) == 2)


def test_a_worker_that_does_not_end_is_killed() -> None:
    with process(workers=2, fails="hangs", drain_seconds=0.1, last_seconds=0.3) as served:
        served.until(lambda: len(served.said("hangs")) == 2)
        served.signal(signal.SIGTERM)
        assert served.ends(2) == 1


def test_two_parents_do_not_share_a_port() -> None:
    with process(workers=2) as served:
        address = served.ready(2)[0]
        with process(workers=2, listen=(address,)) as other:
            assert other.ends() == 2
            assert "address already in use" in other.errors()
