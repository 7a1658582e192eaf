"""envoy/systemd: the units are good, and the service takes the socket as systemd hands it over."""

from __future__ import annotations

import configparser
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.config import Server as Settings
from tests.commands.process import environment
from tests.components import require
from tests.config.files import written
from tests.envoy.stand import FOLDER

UNITS: Final = FOLDER / "systemd"
PYTHON: Final = "/opt/sidecar/bin/python"
READY: Final = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
MOST_EXPOSED: Final = 15  # tenths, of the ten that `systemd-analyze security` gives to a service without bounds
# As systemd does: the socket is descriptor 3, and the environment says so.
HAND_OVER: Final = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="sidecar.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keep the case of names
    parser.read_string((UNITS / name).read_text())
    return parser


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    require("systemd-analyze (Debian systemd)", analyze)
    assert analyze is not None
    for path in UNITS.iterdir():
        text = path.read_text().replace(PYTHON, sys.executable)
        (tmp_path / path.name).write_text(
            text.replace("User=sidecar", "User=root").replace("Group=sidecar", "Group=root")
        )
    names = [str(tmp_path / name) for name in ("sidecar.socket", "sidecar.service")]
    done = subprocess.run([analyze, "verify", "--man=no", *names], capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "sidecar" in line]
    assert not ours
    judge = [analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(UNITS / "sidecar.service")]
    judged = subprocess.run(judge, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-200:]


def test_a_drain_ends_before_systemd_kills() -> None:
    service, defaults = unit("sidecar.service")["Service"], Settings()
    assert float(service["TimeoutStopSec"]) >= defaults.lame_duck_seconds + defaults.drain_seconds + 5
    assert service["KillMode"] == "mixed"
    assert unit("sidecar.socket")["Socket"]["SocketMode"] == f"{defaults.socket_mode:04o}"


@contextlib.contextmanager
def serving(listening: socket.socket, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The service's own command, but for where Python and the configuration are."""
    command = unit("sidecar.service")["Service"]["ExecStart"].replace(PYTHON, sys.executable)
    words = shlex.split(command.replace("/etc/sidecar/", f"{folder}/"))
    process = subprocess.Popen(
        [sys.executable, "-c", HAND_OVER, str(listening.fileno()), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment({}, covered=False),
        pass_fds=(listening.fileno(),),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def visitor(path: Path) -> socket.socket:
    """Who connects and asks, and waits for whoever answers."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(path))
    client.sendall(READY)
    return client


def answer(client: socket.socket) -> bytes:
    with client:
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_service_takes_the_socket_over_and_a_restart_refuses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.sock"
    written(
        tmp_path / "sidecar.toml",
        '[server]\nlame_duck_seconds = 0\n[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1"\n',
    )
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        os.chmod(path, int(unit("sidecar.socket")["Socket"]["SocketMode"], 8))
        listening.listen(int(unit("sidecar.socket")["Socket"]["Backlog"]))
        for _ in range(2):
            waiting = visitor(path)  # who comes before it runs, as the first one or in a restart
            with serving(listening, tmp_path) as process:
                assert answer(waiting).startswith(b"HTTP/1.1 200 ")
                assert answer(visitor(path)).startswith(b"HTTP/1.1 200 ")
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=10) == 0
            assert path.is_socket()  # systemd's, so not removed


def test_systemds_own_tool_starts_it_at_the_first_visit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-socket-activate")
    require("systemd-socket-activate (Debian systemd)", tool)
    assert tool is not None
    path = tmp_path / "sidecar.sock"
    table = '[server]\nlame_duck_seconds = 0\nsocket_mode = 0o666\n[callers.web]\nkey = "sha256:%s"\n' % ("0" * 64)
    written(tmp_path / "sidecar.toml", f'{table}[providers.lab]\nkind = "ollama"\n')
    command = unit("sidecar.service")["Service"]["ExecStart"].replace(PYTHON, sys.executable)
    words = shlex.split(command.replace("/etc/sidecar/", f"{tmp_path}/"))
    process = subprocess.Popen([tool, "-l", str(path), *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
        assert answer(visitor(path)).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
