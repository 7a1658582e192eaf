"""envoy/mesh.yaml under the real Envoy: client, Envoy by TLS, the sidecar, the same Envoy, a provider by TLS."""

from __future__ import annotations

import asyncio
import re
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
    certify,
    document,
    envoy,
    serving,
    settings,
    sidecar,
    trusting,
)
from tests.faults.peer import GONE, REQUEST, Pause, RawClient, RawServer, Script
from tests.faults.stand import ask, comes_true, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk, head

CHAT: Final = WAYS["chat"]
FILES: Final = sorted(path.name for path in FOLDER.glob("*.toml"))


async def test_a_stream_passes_both_sides_and_so_does_leaving(tmp_path: Path, authority: trustme.CA) -> None:
    go_on = asyncio.Event()
    first, *others = chunk(b"".join(CHAT_EVENTS[:2])), *map(chunk, CHAT_EVENTS[2:]), LAST
    script: Script = [REQUEST, head() + first, Pause(go_on), *others, REQUEST, CHAT.stream(3), GONE]
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certify(authority, tmp_path)
    async with RawServer(script, tls=serving(authority, OPENAI, [])) as peer:
        moved = {f"address: {OPENAI}, port_value: 443": f"address: 127.0.0.1, port_value: {peer.port}"}
        async with sidecar(await settings("mesh.toml", tmp_path)), envoy("mesh.yaml", tmp_path, moved) as both:
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
