"""What the commands do. Faults of the user's are told in clear lines on standard error, never as tracebacks."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec
import uvloop

from sidecar import config as configuration, routing, simulator
from sidecar.app import Sidecar
from sidecar.clock import now
from sidecar.config import Config, ConfigError, Fault, Key, Loaded, Provider, examine
from sidecar.errors import SidecarError
from sidecar.secret import Secret
from sidecar.server import Served, Server, run

Options = argparse.Namespace

_EXAMPLES: Final = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "xai": "grok-4",
    "deepseek": "deepseek-chat",
}


def serve(options: Options) -> int:
    """Serve until a signal ends it."""
    loaded = _loaded(options.config)
    if loaded is None:
        return 2
    changes: dict[str, Any] = {}
    if options.listen:
        changes["listen"] = tuple(options.listen)
    if options.workers is not None:
        changes["workers"] = options.workers
    settings = msgspec.structs.replace(loaded.config.server, **changes)
    config = msgspec.structs.replace(loaded.config, server=settings)
    problems = _flag_problems(config)
    if problems:
        return _fail("\n".join(problems), 2)
    for warning in loaded.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    try:
        return run(lambda: _served(config, options.config, changes), settings)
    except OSError as error:
        return _fail(error.strerror or str(error), 1)


def _flag_problems(config: Config) -> list[str]:
    """What the flags may have made wrong, as the file would have been told."""
    server = config.server
    problems = [problem for address in server.listen if (problem := configuration.address_problem(address))]
    if not problems and not config.callers:
        problems = [found for each in server.listen if (found := configuration.exposed(each, server.socket_mode))]
    if not 1 <= server.workers <= 256:
        problems.append("--workers takes a number from 1 to 256")
    return problems


def _served(config: Config, path: str | None, changes: dict[str, Any]) -> Served:
    """The app in one worker, with its log and its reload."""
    app = Sidecar(config, guard=True)

    def reload() -> None:
        try:
            loaded = examine(path)
        except ConfigError as error:
            app.note({"event": "reload", "ok": False, "why": str(error)})
            return
        settings = msgspec.structs.replace(loaded.config.server, **changes)
        changed = msgspec.structs.replace(loaded.config, server=settings)
        if problems := _flag_problems(changed):
            app.note({"event": "reload", "ok": False, "why": "; ".join(problems)})
            return
        app.reload(changed)
        app.note({"event": "reload", "ok": True, "warnings": [str(warning) for warning in loaded.warnings]})

    def ready(addresses: list[str]) -> None:
        sys.stderr.write("\n".join(banner(config, addresses)) + "\n")
        sys.stderr.flush()
        if config.log.level != "off":
            app.open_log()

    return Served(app=app, on_ready=ready, on_drain=app.drain, on_reload=reload, log=app.note)


def banner(config: Config, addresses: list[str]) -> list[str]:
    """At most ten lines: where it listens, whom it asks, and two things to paste."""
    named = []
    for name, table in config.providers.items():
        missing = table.api_key is not None and table.api_key.missing
        named.append(f"{name} (NO KEY: {missing})" if missing else name)
    lines = [f"sidecar listens on {', '.join(addresses)}", f"providers: {', '.join(named)}"]
    if config.models:
        lines.append(f"models: {', '.join(list(config.models)[:8])}")
    address = addresses[0]
    scheme = "https" if config.server.tls_cert is not None else "http"
    model = next(iter(config.models), None) or _example(config)
    key = ' -H "authorization: Bearer $KEY"' if config.callers else ""
    if address.startswith("unix:"):
        where = f"--unix-socket {address.removeprefix('unix:')} http://localhost"
    else:
        where = f"{scheme}://{address}"
        lines.append(f"export OPENAI_BASE_URL={where}/v1")
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}'
    lines.append(f"curl {where}/v1/chat/completions{key} -H 'content-type: application/json' -d '{body}'")
    return lines


def _example(config: Config) -> str:
    name = next(iter(config.providers))
    return f"{name}/{_EXAMPLES.get(config.providers[name].kind or name, 'MODEL')}"


def check(options: Options) -> int:
    """Validate, tell every fault."""
    loaded = _loaded(options.file)
    if loaded is None:
        return 2
    for warning in loaded.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if loaded.warnings and options.strict:
        return _fail(f"{len(loaded.warnings)} warnings, and --strict was asked for", 2)
    where = loaded.file or "the environment"
    counts = f"{len(loaded.config.providers)} providers, {len(loaded.config.models)} models"
    sys.stdout.write(f"{where}: ok ({counts}, {len(loaded.config.callers)} callers, {len(loaded.warnings)} warnings)\n")
    return 0


def config(options: Options) -> int:
    """Show the schema, or what is in force."""
    if options.schema:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(configuration.schema()), indent=2).decode() + "\n")
        return 0
    loaded = _loaded(options.config)
    if loaded is None:
        return 2
    sys.stdout.write(configuration.effective(loaded, {}) + "\n")
    return 0


def explain(options: Options) -> int:
    """The plan of one model name."""
    loaded = _loaded(options.config)
    if loaded is None:
        return 2
    try:
        lines = routing.explain(routing.build(loaded.config), options.model, options.dialect)
    except SidecarError as error:
        return _fail(error.message, 1)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def simulate(options: Options) -> int:
    """The simulated provider."""
    try:
        settings = simulator.settings_from(options)
    except ValueError as error:
        return _fail(str(error), 2)
    try:
        return simulator.run(settings)
    except OSError as error:
        return _fail(f"cannot listen: {(error.strerror or str(error)).lower()}", 1)


# -- demo


def demo(options: Options) -> int:
    """A simulated provider, the sidecar before it, one streamed answer; then, on a terminal, time to try."""
    stay = sys.stdout.isatty() and not options.once
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_demo(stay=stay))


async def _demo(*, stay: bool) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: stopped.done() or stopped.set_result(None))
    settings = simulator.Settings(latency_ms=(80, 120, 200), tokens=40, tokens_per_second=40, seed=7)
    async with simulator.Simulator(settings) as provider:
        key = Key(source="inline", secret=Secret("sk-simulated"))
        config = Config(
            server=configuration.Server(listen=("127.0.0.1:0",), lame_duck_seconds=0.0),
            providers={"openai": Provider(base_url=provider.base_url, api_key=key)},
        )
        app = Sidecar(config, guard=True)
        async with Server(app, config.server) as server:
            address = server.addresses[0]
            sys.stdout.write(f"simulated provider at {provider.base_url}, sidecar at http://{address}/v1\n\n")
            code = await _stream_one(f"http://{address}", stopped)
            if stay and code == 0 and not stopped.done():
                lines = banner(config, [address])
                sys.stdout.write("\nstill up; try it, Ctrl-C ends it:\n" + "\n".join(lines[2:]) + "\n")
                sys.stdout.flush()
                await stopped
    return code


async def _stream_one(base_url: str, stopped: asyncio.Future[None]) -> int:
    """Ask, print the tokens as they come, then what happened."""
    ask = {
        "model": "openai/sim-large",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "What do you do?"}],
    }
    began = now()
    first: float | None = None
    usage: Mapping[str, Any] = {}
    async with httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False) as client:
        async with client.stream("POST", "/v1/chat/completions", json=ask) as response:
            if response.status_code != 200:
                return _fail(
                    f"the demo failed with status {response.status_code}: {(await response.aread()).decode()}", 1
                )
            async for line in response.aiter_lines():
                if stopped.done():
                    return 0
                if not line.startswith("data: {"):
                    continue
                chunk = msgspec.json.decode(line[6:])
                usage = chunk.get("usage") or usage
                text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if text and first is None:
                    first = now()
                sys.stdout.write(text)
                sys.stdout.flush()
            headers = response.headers
    took = (first or now()) - began
    tokens = f"{usage.get('prompt_tokens')} in, {usage.get('completion_tokens')} out"
    sys.stdout.write(
        f"\n\nprovider {headers['x-sidecar-provider']}, model {headers['x-sidecar-model']}\n"
        f"tokens: {tokens}; time to first token: {took * 1000:.0f} ms;"
        f" added by the sidecar before the first byte: {headers['x-sidecar-overhead-us']} us\n"
    )
    return 0


# -- telling


def _loaded(path: str | None) -> Loaded | None:
    """The configuration, or None when its faults have been told."""
    try:
        return examine(path)
    except ConfigError as error:
        for fault in error.faults:
            _tell(fault)
        count = len(error.faults)
        sys.stderr.write(f"{count} fault{'s' if count > 1 else ''}; nothing was started\n")
        return None


def _tell(fault: Fault) -> None:
    sys.stderr.write(f"{fault}\n")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"sidecar: {message}\n")
    return code
