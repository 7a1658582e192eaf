"""envoy/egress.yaml under the real Envoy: client, the sidecar, a unix socket, Envoy, a provider by TLS."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamReset

from sidecar.config import Breaker, Pool, Server as Settings, Timeouts
from sidecar.providers import ROWS
from tests.envoy.stand import (
    ANTHROPIC,
    FOLDER,
    KEYS,
    OPENAI,
    Envoy,
    document,
    envoy,
    mode_of,
    port_of,
    seconds,
    serving,
    settings,
    sidecar,
)
from tests.faults.ground import closed_port
from tests.faults.peer import GONE, REQUEST, Again, Pause, RawClient, RawServer, Script
from tests.faults.stand import Reply, ask, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, Way, chunk, head

CHAT: Final = WAYS["chat"]
MESSAGES: Final = WAYS["messages"]
HOSTS: Final = {CHAT.path: OPENAI, MESSAGES.path: ANTHROPIC}
MODELS: Final = {CHAT.path: "openai/m", MESSAGES.path: "anthropic/m"}
BOTH_PROVIDERS: Final = pytest.mark.parametrize("way", [CHAT, MESSAGES], ids=["openai", "anthropic"])


@asynccontextmanager
async def egress(
    way: Way,
    script: Script | Callable[[int], Script],
    folder: Path,
    authority: trustme.CA,
    *,
    signer: trustme.CA | None = None,
    named: str | None = None,
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[Egress]:
    """A provider by TLS, Envoy before it, the sidecar before both. `signer`, `named`: of the provider's certificate."""
    authority.cert_pem.write_to_path(folder / "ca.pem")
    host, asked_for = HOSTS[way.path], list[str | None]()
    tls = serving(signer or authority, named or host, asked_for)
    async with RawServer(script, tls=tls) as peer:
        moved = {f"address: {host}, port_value: 443": f"address: 127.0.0.1, port_value: {peer.port}"}
        async with envoy("egress.yaml", folder, {**(changes or {}), **moved}) as behind:
            async with sidecar(await settings("egress.toml", folder)) as server:
                yield Egress(peer, behind, port_of(server), asked_for)


class Egress(msgspec.Struct):
    peer: RawServer
    envoy: Envoy
    port: int
    names: list[str | None]

    async def ask(self, way: Way, *, stream: bool = False) -> Reply:
        async with asyncio.timeout(8), RawClient(self.port) as client:
            client.write(ask(way, b"connection: close", model=MODELS[way.path], stream=stream))
            return read(await client.rest())


@BOTH_PROVIDERS
async def test_a_stream_comes_byte_for_byte_event_by_event_from_the_name_asked_for(
    way: Way, tmp_path: Path, authority: trustme.CA
) -> None:
    go_on = asyncio.Event()
    events = way.theirs.events
    first, *others = chunk(b"".join(events[:2])), *map(chunk, events[2:]), LAST
    script: Script = [REQUEST, head() + first, Pause(go_on), *others]
    async with egress(way, script, tmp_path, authority) as behind, RawClient(behind.port) as client:
        client.write(ask(way, model=MODELS[way.path]))
        await client.take_until(events[1].split(b"\n\n")[0][-20:])  # comes while the provider still holds the rest
        go_on.set()
        await client.take_until(b"\r\n0\r\n\r\n")
        reply = read(bytes(client.received))
        told = await behind.envoy.told()
    assert (reply.status, reply.ended, reply.body) == (200, True, b"".join(events))
    assert not [name for name, _ in reply.headers if name.startswith(b"x-envoy")]
    assert behind.names == [HOSTS[way.path]]
    (line,) = told
    assert (line["provider"], line["status"], line["tls"]) == (HOSTS[way.path].split(".")[1], 200, "TLSv1.3")
    assert not [key for key in KEYS.values() if key in (tmp_path / "envoy.log").read_text()]


@BOTH_PROVIDERS
async def test_the_provider_is_asked_as_without_envoy(way: Way, tmp_path: Path, authority: trustme.CA) -> None:
    async with egress(way, [Again((REQUEST, way.whole()))], tmp_path, authority) as behind:
        assert (await behind.ask(way)).body == way.theirs.body
        async with RawServer([REQUEST, way.whole()]) as direct:
            name = HOSTS[way.path].split(".")[1]
            config = await settings("egress.toml", tmp_path)
            base = f"http://127.0.0.1:{direct.port}{'/v1' if way is CHAT else ''}"
            table = msgspec.structs.replace(config.providers[name], base_url=base)
            async with sidecar(msgspec.structs.replace(config, providers={name: table})) as server:
                async with asyncio.timeout(8), RawClient(port_of(server)) as client:
                    client.write(ask(way, model=MODELS[way.path], stream=False))
                    await client.take_message()
            (theirs,), (ours,) = behind.peer.requests, direct.requests
    assert _parts(theirs) == _parts(ours)
    assert re.findall(rb"(?i)\r\nhost: (\S+)", theirs) == [HOSTS[way.path].encode()]


def _parts(message: bytes) -> tuple[bytes, set[bytes], bytes]:
    """The request line, the headers in lower case but for the host, and the body."""
    top, _, body = message.partition(b"\r\n\r\n")
    line, *lines = top.split(b"\r\n")
    named = [each.partition(b":") for each in lines]
    return line, {name.lower() + b":" + value for name, _, value in named if name.lower() != b"host"}, body


@BOTH_PROVIDERS
async def test_a_client_that_leaves_is_gone_for_the_provider_too(
    way: Way, tmp_path: Path, authority: trustme.CA
) -> None:
    async with egress(way, [REQUEST, way.stream(3), GONE], tmp_path, authority) as behind:
        async with RawClient(behind.port) as client:
            client.write(ask(way, model=MODELS[way.path]))
            await client.take_until(b"one")
        async with asyncio.timeout(1.0):
            await behind.peer.left()


@BOTH_PROVIDERS
@pytest.mark.parametrize("wrong", ["name", "authority"])
async def test_whose_certificate_is_not_the_providers_gets_no_request(
    way: Way, wrong: str, tmp_path: Path, authority: trustme.CA
) -> None:
    named = "other.test" if wrong == "name" else None
    signer = trustme.CA() if wrong == "authority" else None
    async with egress(way, [REQUEST, way.whole()], tmp_path, authority, signer=signer, named=named) as behind:
        reply = await behind.ask(way)
        assert behind.peer.received == b""
        (line,) = await behind.envoy.told()
    assert reply.status == 503
    assert "envoy: upstream connect error" in reply.json["error"]["message"]
    assert (reply.json.get("type") == "error") is (way is MESSAGES)
    assert "CERTIFICATE_VERIFY_FAILED" in line["tls_fault"]


async def test_an_address_that_fails_is_left_alone(tmp_path: Path, authority: trustme.CA) -> None:
    dead = closed_port()
    marks = (
        "      - lb_endpoints:\n        - endpoint:\n            address: { socket_address: { address: api.openai.com"
    )
    more = f"{marks.replace(OPENAI, '127.0.0.1')}, port_value: {dead} }} }}\n{marks}"
    script: Script = [Again((REQUEST, CHAT.whole()))]
    async with egress(CHAT, script, tmp_path, authority, changes={marks: more}) as behind:
        ejected = "cluster.openai.outlier_detection.ejections_active"
        async with asyncio.timeout(6):
            while await behind.envoy.stat(ejected) != 1:
                await behind.ask(CHAT)
        replies = [(await behind.ask(CHAT)).status for _ in range(9)]
        assert replies == [200] * 9


async def test_the_last_address_is_never_left_alone(tmp_path: Path, authority: trustme.CA) -> None:
    async with egress(CHAT, lambda _: [REQUEST], tmp_path, authority, named="other.test") as behind:
        assert {(await behind.ask(CHAT)).status for _ in range(8)} == {503}
        assert await behind.envoy.stat("cluster.openai.outlier_detection.ejections_active") == 0


async def test_more_than_the_bound_is_refused_at_once(tmp_path: Path, authority: trustme.CA) -> None:
    one = {"max_connections: 1000, max_pending_requests: 1000": "max_connections: 1, max_pending_requests: 1"}
    async with egress(CHAT, [REQUEST, CHAT.stream(2), GONE], tmp_path, authority, changes=one) as behind:
        async with RawClient(behind.port) as client, RawClient(behind.port) as waiting:
            client.write(ask(CHAT, model="openai/m"))
            await client.take_until(b'"one"')
            waiting.write(ask(CHAT, model="openai/m"))
            async with asyncio.timeout(4):
                while await behind.envoy.stat("cluster.openai.upstream_rq_pending_active") != 1:
                    await asyncio.sleep(0.005)
            reply = await behind.ask(CHAT)
    assert reply.status == 503
    assert "overflow" in reply.json["error"]["message"]


async def test_what_no_route_names_goes_nowhere(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    async with envoy("egress.yaml", tmp_path) as behind, RawClient(unix=str(tmp_path / "egress.sock")) as client:
        client.write(b"POST /v1/files HTTP/1.1\r\nhost: api.openai.com\r\ncontent-length: 0\r\n\r\n")
        reply = read(await client.take_message())
        assert (reply.status, reply.json["error"]["type"]) == (404, "server_error")
        assert mode_of(tmp_path / "egress.sock") == mode_of(tmp_path / "envoy-admin.sock") == 0o600
        assert behind.process.returncode is None


class Http2Provider:
    """A provider that speaks HTTP/2: half of a stream for each request, and then it waits."""

    def __init__(self) -> None:
        self.asked: list[dict[bytes, bytes]] = []
        self.reset = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        h2.initiate_connection()
        try:
            while data := await reader.read(65536):
                for event in h2.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self.asked.append({bytes(name): bytes(value) for name, value in event.headers})
                        h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "text/event-stream")])
                        h2.send_data(event.stream_id, b"".join(CHAT_EVENTS[:2]))
                    elif isinstance(event, StreamReset):
                        self.reset.set()
                writer.write(h2.data_to_send())
        finally:
            writer.close()


async def test_a_provider_may_speak_http_2(tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls, provider = serving(authority, OPENAI, []), Http2Provider()
    tls.set_alpn_protocols(["h2", "http/1.1"])
    async with await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=tls) as listening:
        port = listening.sockets[0].getsockname()[1]
        moved = {f"address: {OPENAI}, port_value: 443": f"address: 127.0.0.1, port_value: {port}"}
        async with (
            envoy("egress.yaml", tmp_path, moved) as behind,
            sidecar(await settings("egress.toml", tmp_path)) as server,
        ):
            async with RawClient(port_of(server)) as client:
                client.write(ask(CHAT, model="openai/m"))
                await client.take_until(b'"one"')
            async with asyncio.timeout(1.0):
                await provider.reset.wait()
            (line,) = await behind.told()
    (asked,) = provider.asked
    assert (asked[b":authority"], asked[b":path"]) == (OPENAI.encode(), b"/v1/chat/completions")
    assert line["protocol"] == "HTTP/2"


def test_its_bounds_fit_the_sidecars() -> None:
    found = document("egress.yaml")["static_resources"]
    (listener,) = found["listeners"]
    http = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = http["route_config"]["virtual_hosts"][0]["routes"]
    clusters = {cluster["name"]: cluster for cluster in found["clusters"]}
    assert http["stream_idle_timeout"] == "0s"
    assert http["max_request_headers_kb"] * 1024 > Settings().max_header_bytes
    assert seconds(http["common_http_protocol_options"]["idle_timeout"]) > Pool().keepalive_seconds
    config = tomllib.loads((FOLDER / "egress.toml").read_text())
    for route in routes:
        name = route["route"]["cluster"]
        assert route["route"]["timeout"] == "0s"
        assert "retry_policy" not in route["route"]
        cluster, host = clusters.pop(name), route["route"]["host_rewrite_literal"]
        tls = cluster["transport_socket"]["typed_config"]
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        assert endpoint["endpoint"]["address"]["socket_address"] == {"address": host, "port_value": 443}
        assert (tls["sni"], tls["auto_sni_san_validation"]) == (host, True)
        assert urlsplit(ROWS[name].base_url).hostname == host
        path = listener["address"]["pipe"]["path"]
        base = config["providers"][name]["base_url"]
        assert base == f"unix:{path}:{route['match']['prefix']}{urlsplit(ROWS[name].base_url).path[1:]}".rstrip("/")
        _fits(cluster)
    assert not clusters


def _fits(cluster: dict[str, Any]) -> None:
    """A cluster's bounds are those that the sidecar has for a provider."""
    breaker, pool = Breaker(), Pool()
    (bounds,) = cluster["circuit_breakers"]["thresholds"]
    assert {bounds[f"max_{name}"] for name in ("connections", "pending_requests", "requests")} == {pool.max_connections}
    assert bounds["max_retries"] == 0
    assert seconds(cluster["connect_timeout"]) == Timeouts().connect_seconds
    (options,) = cluster["typed_extension_protocol_options"].values()
    common = options["common_http_protocol_options"]
    assert seconds(common["idle_timeout"]) == pool.keepalive_seconds
    assert seconds(common["max_connection_duration"]) == pool.max_age_seconds
    outliers = cluster["outlier_detection"]
    assert outliers["consecutive_local_origin_failure"] == breaker.consecutive_failures
    assert outliers["consecutive_gateway_failure"] == breaker.consecutive_failures
    assert seconds(outliers["base_ejection_time"]) == breaker.open_seconds
    assert seconds(outliers["max_ejection_time"]) == breaker.max_open_seconds
