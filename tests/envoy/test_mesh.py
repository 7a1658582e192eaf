"""envoy/mesh.yaml under the real Envoy: client, Envoy by TLS, the sidecar, the same Envoy, a provider by TLS."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trustme

from sidecar.commands import check
from sidecar.commands.telling import Options
from tests.envoy.stand import (
    AUTH,
    FOLDER,
    KEYS,
    OPENAI,
    Envoy,
    certify,
    document,
    envoy,
    serving,
    settings,
    sidecar,
    trusting,
)
from tests.faults.peer import GONE, REQUEST, STOP_READING, Flood, Pause, RawClient, RawServer, Script
from tests.faults.stand import ask, comes_true, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk, head

CHAT: Final = WAYS["chat"]
FILES: Final = sorted(path.name for path in FOLDER.glob("*.toml"))


@asynccontextmanager
async def meshed(
    script: Script, folder: Path, authority: trustme.CA, *, send_buffer: int | None = None
) -> AsyncIterator[tuple[RawServer, Envoy]]:
    """The provider, and Envoy before and behind the sidecar."""
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certify(authority, folder)
    async with RawServer(script, tls=serving(authority, OPENAI, []), send_buffer=send_buffer) as provider:
        moved = {f"address: {OPENAI}, port_value: 443": f"address: 127.0.0.1, port_value: {provider.port}"}
        async with sidecar(await settings("mesh.toml", folder)), envoy("mesh.yaml", folder, moved) as both:
            yield provider, both


async def test_a_stream_passes_both_sides_and_so_does_leaving(tmp_path: Path, authority: trustme.CA) -> None:
    go_on = asyncio.Event()
    first, *others = chunk(b"".join(CHAT_EVENTS[:2])), *map(chunk, CHAT_EVENTS[2:]), LAST
    script: Script = [REQUEST, head() + first, Pause(go_on), *others, REQUEST, CHAT.stream(3), GONE]
    async with meshed(script, tmp_path, authority) as (peer, both):
        async with RawClient(both.tls, tls=trusting(authority)) as client:
            client.write(ask(CHAT, AUTH, model="openai/m"))
            await client.take_until(b'"one"')  # comes while the provider still holds the rest
            go_on.set()
            await client.take_until(b"\r\n0\r\n\r\n")
            reply = read(bytes(client.received))
            client.write(ask(CHAT, AUTH, model="openai/m"))
            await client.take_until(b'"one"')
        await comes_true(lambda: not peer.open, "the provider is left")
        told = await both.told()
    assert (reply.status, reply.ended, reply.body) == (200, True, b"".join(CHAT_EVENTS))
    assert sorted(line["provider"] for line in told) == ["openai"] * 4
    assert not [key for key in KEYS.values() if key in (tmp_path / "envoy.log").read_text()]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
async def test_who_leaves_before_the_first_byte_is_gone_for_the_provider(
    stream: bool, tmp_path: Path, authority: trustme.CA
) -> None:
    async with meshed([REQUEST, GONE], tmp_path, authority) as (provider, both):
        async with RawClient(both.plain) as client:
            client.write(ask(CHAT, AUTH, model="openai/m", stream=stream))
            await provider.requested()
        async with asyncio.timeout(1.0):
            await provider.left()


async def test_a_provider_is_held_while_its_client_does_not_read(tmp_path: Path, authority: trustme.CA) -> None:
    token = CHAT_EVENTS[1]
    flood = Flood(chunk(token * (65536 // len(token))), 1000)
    script: Script = [REQUEST, head(), flood]
    async with meshed(script, tmp_path, authority, send_buffer=65536) as (provider, both):
        async with RawClient(both.plain, receive_buffer=65536) as client:
            await client.run(ask(CHAT, AUTH, model="openai/m"), STOP_READING)
            await provider.requested()
            wire, taken = provider.connections[0], -1
            while wire.accepted != taken:
                taken = wire.accepted
                await asyncio.sleep(0.2)
    assert 0 < taken <= 4 * 1024 * 1024


async def test_as_many_headers_as_the_sidecar_takes_pass(tmp_path: Path, authority: trustme.CA) -> None:
    lines = [b"x-ratelimit-%02d: %b" % (number, b"v" * 600) for number in range(90)]
    script: Script = [REQUEST, head(*lines, kind=b"application/json") + chunk(CHAT.theirs.body) + LAST]
    async with meshed(script, tmp_path, authority) as (_, both):
        reply = await both.ask(ask(CHAT, AUTH, model="openai/m", stream=False))
    assert (reply.status, reply.body) == (200, CHAT.theirs.body)
    assert len([name for name, _ in reply.headers if name.startswith(b"x-ratelimit-")]) == 90


def test_it_is_the_two_others_in_one() -> None:
    mesh, before, behind = (document(f"{name}.yaml") for name in ("mesh", "ingress", "egress"))
    for found in (mesh, before, behind):
        del found["node"]
    for kind in ("listeners", "clusters"):
        parts = before["static_resources"].pop(kind) + behind["static_resources"].pop(kind)
        assert mesh["static_resources"].pop(kind) == parts
    assert mesh == before == behind


@pytest.mark.parametrize("name", FILES)
def test_the_sidecars_own_file_is_good(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, key in KEYS.items():
        monkeypatch.setenv(variable, key)
    assert check.run(Options(file=str(FOLDER / name), strict=True)) == 0


def test_each_file_of_envoys_has_one_of_the_sidecars() -> None:
    assert {f"{name.removesuffix('.toml')}.yaml" for name in FILES} == {
        path.name for path in FOLDER.glob("*.yaml") if re.search(r"^static_resources:", path.read_text(), re.MULTILINE)
    }
