"""`sidecar demo`: a simulated provider, the sidecar before it, one streamed answer; on a terminal, time to try."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec
import uvloop

from sidecar.app import Sidecar
from sidecar.clock import now
from sidecar.commands.banner import banner
from sidecar.commands.telling import Options, fail
from sidecar.config import Config, Key, Provider, Server as Settings
from sidecar.secret import Secret
from sidecar.server import Server
from sidecar.simulator import Settings as Simulated, Simulator

_PROVIDER: Final = Simulated(latency_ms=(80, 120, 200), tokens=40, tokens_per_second=40, seed=7)
_ASK: Final = {
    "model": "openai/sim-large",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": "What do you do?"}],
}


def run(options: Options) -> int:
    stay = sys.stdout.isatty() and not options.once
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_demo(stay=stay))


async def _demo(*, stay: bool) -> int:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with Simulator(_PROVIDER) as provider:
        config = Config(
            server=Settings(listen=("127.0.0.1:0",), drain_seconds=0.0),
            providers={
                "openai": Provider(
                    base_url=provider.base_url, api_key=Key(source="inline", secret=Secret("sk-simulated"))
                )
            },
        )
        async with Server(Sidecar(config, guard=True), config.server) as server:
            address = server.addresses[0]
            sys.stdout.write(f"simulated provider at {provider.base_url}, sidecar at http://{address}/v1\n\n")
            try:
                code = await _stream_one(f"http://{address}", stopped)
            except httpx.HTTPError as error:
                code = fail(f"the demo failed: {type(error).__name__}: {error}", 1)
            if stay and code == 0 and not stopped.done():
                lines = banner(config, [address])
                sys.stdout.write("\nstill up; try it, Ctrl-C ends it:\n" + "\n".join(lines[2:]) + "\n")
                sys.stdout.flush()
                await stopped
    return code


async def _stream_one(base_url: str, stopped: asyncio.Future[None]) -> int:
    """Ask, print the tokens as they come, then what happened."""
    began = now()
    first: float | None = None
    usage: Mapping[str, Any] = {}
    async with httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False) as client:
        async with client.stream("POST", "/v1/chat/completions", json=_ASK) as response:
            if response.status_code != 200:
                return fail(f"the demo failed: status {response.status_code}: {(await response.aread()).decode()}", 1)
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
