"""Real Redis servers for tests: each of its own, on a free port and a unix socket, with nothing on disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis as redis_py

from sidecar.store.resp import Replies, command
from tests.components import require


def free_port() -> int:
    """Below those that the kernel gives to clients, so that it is still free when the server is started again; and low
    enough for a cluster, whose servers also listen 10 000 above it."""
    for _ in range(100):
        port = random.randrange(12_000, 22_000)
        with socket.socket() as sock, socket.socket() as bus:
            try:
                sock.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class Redis:
    """A server that can be killed, stopped and started again."""

    def __init__(self, folder: Path, *arguments: str, sentinel: bool = False, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.socket = str(folder / "redis.sock")
        self._arguments = arguments
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        binary = shutil.which("redis-server")
        require("redis-server", binary)
        assert binary is not None
        config: tuple[str, ...] = ("--save", "", "--appendonly", "no", "--dir", str(self.folder))
        if self._sentinel:
            file = self.folder / "sentinel.conf"
            file.write_text("")
            config = (str(file), "--sentinel")
        given = (*config, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket)
        arguments = [binary, *(given if not self._sentinel else (given[0], *given[2:], given[1])), *self._arguments]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1000):
            try:
                self.raw(command("PING"))
                return
            except OSError:
                time.sleep(0.005)
        raise RuntimeError("redis-server did not start")

    def ask(self, *parts: str | bytes | int) -> Any:
        """By redis-py: what the code under test has done is seen by another's eyes."""
        with redis_py.Redis(unix_socket_path=self.socket, socket_timeout=5, protocol=2) as client:
            return client.execute_command(*parts)

    def raw(self, data: bytes) -> Any:
        """The reply to bytes as they stand, read by our own reader."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(self.socket)
            sock.sendall(data)
            replies = Replies()
            while not (got := replies.feed(sock.recv(65536))):
                pass
        return got[0]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextmanager
def redis(*arguments: str, sentinel: bool = False) -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = Redis(Path(folder), *arguments, sentinel=sentinel)
        try:
            server.start()
            yield server
        finally:
            server.kill()
