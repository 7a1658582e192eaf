"""Envoy before two sidecars, processes of their own: one stops, and neither a stream nor a request is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trustme

from sidecar.config import Server as Settings
from tests.commands.process import environment
from tests.config.files import written
from tests.envoy.stand import AUTH, FOLDER, KEYS, certify, changed, envoy
from tests.envoy.test_ingress import healthy
from tests.faults.peer import REQUEST, Again, Pause, RawClient, RawServer, Script
from tests.faults.stand import ask, comes_true, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk

CHAT: Final = WAYS["chat"]
MODEL: Final = "openai/m"
ENDPOINT: Final = "        - endpoint:\n            address: { pipe: { path: /run/sidecar/sidecar.sock } }\n"
LAME_DUCK_SECONDS: Final = Settings().lame_duck_seconds


@asynccontextmanager
async def process(name: str, folder: Path, peer: RawServer) -> AsyncIterator[asyncio.subprocess.Process]:
    """`sidecar serve` under ingress.toml, on a socket of this name, before a provider."""
    table = "[providers.openai]\n"
    text = (FOLDER / "ingress.toml").read_text()
    text = changed(text, {"/run/sidecar/sidecar.sock": f"{folder}/{name}.sock"})
    text = changed(text, {table: f'{table}base_url = "http://127.0.0.1:{peer.port}/v1"\n'})
    file = written(folder / f"{name}.toml", text)
    command = [sys.executable, "-m", "sidecar", "serve", "--config", str(file)]
    with (folder / f"{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, stderr=log, env=environment(KEYS, covered=False))
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_one_of_two_stops_and_nothing_is_lost(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    go_on = asyncio.Event()
    whole: Script = [Again((REQUEST, CHAT.whole()))]
    held: Script = [REQUEST, CHAT.stream(3), Pause(go_on), *map(chunk, CHAT_EVENTS[3:]), LAST]
    two = {ENDPOINT: ENDPOINT + ENDPOINT.replace("sidecar.sock", "other.sock")}
    async with RawServer(lambda number: whole if number else held) as leaving, RawServer(whole) as staying:
        async with process("sidecar", tmp_path, leaving) as stopped, process("other", tmp_path, staying):
            async with envoy("ingress.yaml", tmp_path, two) as before, RawClient(before.plain) as client:
                await healthy(before, 2)
                while not leaving.requests:  # they take turns
                    client.received.clear()
                    client.taken = 0
                    client.write(ask(CHAT, AUTH, model=MODEL))
                    await client.take_until(b"one")
                    if not leaving.requests:
                        await client.until(lambda: client.received.endswith(b"}"))
                loop, statuses = asyncio.get_running_loop(), list[int]()
                stopped.send_signal(signal.SIGTERM)
                until = loop.time() + LAME_DUCK_SECONDS + 0.5  # it listens no more by then
                while loop.time() < until:
                    statuses.append((await before.ask(ask(CHAT, AUTH, model=MODEL, stream=False))).status)
                    await asyncio.sleep(0.01)
                assert not (tmp_path / "sidecar.sock").exists()
                assert stopped.returncode is None  # it waits for the stream
                go_on.set()
                await client.take_until(b"\r\n0\r\n\r\n")
                await comes_true(lambda: stopped.returncode == 0, "it has ended", 3.0)
    assert read(bytes(client.received)).body == b"".join(CHAT_EVENTS)
    assert len(statuses) > 20
    assert set(statuses) == {200}
