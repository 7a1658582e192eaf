"""envoy/ingress.yaml under the real Envoy: client, Envoy, a unix socket, the sidecar, a provider."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anthropic
import httpx
import httpx2
import openai
import pytest
import trustme
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event

from sidecar.config import Server as Settings
from sidecar.server import listen
from tests.envoy.stand import (
    AUTH,
    FOLDER,
    GATEWAY,
    KEYS,
    Envoy,
    certify,
    document,
    envoy,
    mode_of,
    negotiated,
    seconds,
    settings,
    sidecar,
    trusting,
)
from tests.faults.peer import GONE, REQUEST, Again, Pause, RawClient, RawServer, Script
from tests.faults.stand import ask, post, read
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk, head, reply as answer

CHAT: Final = WAYS["chat"]
MODEL: Final = "openai/m"
WHOLE: Final = b"".join(CHAT_EVENTS)


@asynccontextmanager
async def ingress(
    script: Script, folder: Path, authority: trustme.CA, changes: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[RawServer, Envoy]]:
    """The provider, and Envoy before the sidecar that has it."""
    certify(authority, folder)
    async with RawServer(script) as peer, sidecar(await settings("ingress.toml", folder, _of(peer))):
        async with envoy("ingress.yaml", folder, changes) as before:
            await healthy(before)
            yield peer, before


def _of(peer: RawServer) -> dict[str, str]:
    table = "[providers.openai]\n"
    return {table: f'{table}base_url = "http://127.0.0.1:{peer.port}/v1"\n'}


async def healthy(running: Envoy, count: int = 1) -> None:
    """Until Envoy has found so many sidecars healthy, which it looks for each second."""
    async with asyncio.timeout(4):
        while (await running.admin("/clusters")).count("health_flags::healthy") != count:
            await asyncio.sleep(0.02)


async def test_a_stream_passes_byte_for_byte_and_event_by_event(tmp_path: Path, authority: trustme.CA) -> None:
    go_on = asyncio.Event()
    first, *others = chunk(b"".join(CHAT_EVENTS[:2])), *map(chunk, CHAT_EVENTS[2:]), LAST
    script: Script = [REQUEST, head() + first, Pause(go_on), *others]
    async with ingress(script, tmp_path, authority) as (_, before), RawClient(before.plain) as client:
        client.write(ask(CHAT, AUTH, model=MODEL))
        await client.take_until(b'"one"')  # comes while the provider still holds the rest
        go_on.set()
        await client.take_until(b"0\r\n\r\n")
        reply = read(bytes(client.received))
    assert (reply.status, reply.ended, reply.body) == (200, True, WHOLE)
    assert reply.get(b"x-sidecar-provider") == b"openai"
    assert not [name for name, _ in reply.headers if name.startswith(b"x-envoy")]


async def test_tls_carries_http_1_and_2_and_the_log_tells_what_answers_say(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with ingress([Again((REQUEST, CHAT.stream()))], tmp_path, authority) as (_, before):
        url = f"https://127.0.0.1:{before.tls}/v1/chat/completions?key=sk-query-canary"
        body = {"model": MODEL, "messages": [{"role": "user", "content": "prompt canary"}], "stream": True}
        for two in (False, True):
            async with httpx.AsyncClient(verify=trusting(authority), http2=two, trust_env=False) as client:
                reply = await client.post(url, json=body, headers={"authorization": f"Bearer {KEYS['WEB_KEY']}"})
            assert (reply.status_code, reply.content) == (200, WHOLE)
            assert reply.http_version == ("HTTP/2" if two else "HTTP/1.1")
        told = await before.told()
    assert [line["protocol"] for line in told] == ["HTTP/1.1", "HTTP/2"]
    for line in told:
        assert (line["status"], line["provider"], line["model"], line["attempts"]) == (200, "openai", "m", "1")
        assert (line["path"], line["tls"], line["cache"]) == ("/v1/chat/completions", "TLSv1.3", "off")
        assert int(line["overhead_us"]) > 0
        assert line["request_id"]
        assert line["error"] is None
    assert "canary" not in (tmp_path / "envoy.log").read_text()


async def test_a_client_that_leaves_is_gone_for_the_provider_too(tmp_path: Path, authority: trustme.CA) -> None:
    async with ingress([REQUEST, CHAT.stream(3), GONE], tmp_path, authority) as (peer, before):
        async with RawClient(before.plain) as client:
            client.write(ask(CHAT, AUTH, model=MODEL))
            await client.take_until(b"one")
        async with asyncio.timeout(1.0):
            await peer.left()
        async with _begun_by_http_2(before, authority) as (stream, writer):
            stream.reset_stream(1, ErrorCodes.CANCEL)
            writer.write(stream.data_to_send())
            async with asyncio.timeout(1.0):  # its connection stays; the stream alone is no more
                await peer.left(2)


@asynccontextmanager
async def _begun_by_http_2(
    before: Envoy, authority: trustme.CA
) -> AsyncIterator[tuple[H2Connection, asyncio.StreamWriter]]:
    """A connection whose stream 1 has got the first event of an answer. (httpx never resets a stream.)"""
    context = trusting(authority)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", before.tls, ssl=context)
    try:
        h2, body = H2Connection(), b'{"model":"openai/m","messages":[],"stream":true}'
        h2.initiate_connection()
        pseudo = [(":method", "POST"), (":path", CHAT.path), (":scheme", "https"), (":authority", GATEWAY)]
        key = ("authorization", f"Bearer {KEYS['WEB_KEY']}")
        h2.send_headers(1, [*pseudo, key, ("content-type", "application/json")])
        h2.send_data(1, body, end_stream=True)
        events: list[Event] = []
        async with asyncio.timeout(4):
            while not any(isinstance(event, DataReceived) for event in events):
                writer.write(h2.data_to_send())
                events = h2.receive_data(await reader.read(65536))
        yield h2, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_provider_gets_nothing_of_envoys(tmp_path: Path, authority: trustme.CA) -> None:
    body = b'{"model":"openai/m","messages":[{"role":"user","content":"hi"}],"odd":1.0e+2,"n\xc3\xb6":123456789012}'
    async with ingress([REQUEST, CHAT.whole()], tmp_path, authority) as (peer, before):
        reply = await before.ask(post(CHAT.path, body, AUTH))
        asked = peer.requests[0]
    assert (reply.status, reply.body) == (200, CHAT.theirs.body)
    assert b'"odd":1.0e+2' in asked
    assert b"123456789012" in asked
    assert not re.search(rb"\r\n(x-forwarded|x-envoy|via|x-request-id)", asked, re.IGNORECASE)
    assert KEYS["WEB_KEY"].encode() not in asked


async def test_a_providers_error_is_not_tried_again_by_envoy(tmp_path: Path, authority: trustme.CA) -> None:
    error = b'{"error":{"message":"busy","type":"overloaded"}}'
    async with ingress([REQUEST, answer(error, status=b"503 Busy")], tmp_path, authority) as (peer, before):
        reply = await before.ask(ask(CHAT, AUTH, model=MODEL, stream=False))
        assert (reply.status, reply.body) == (503, error)
        assert len(peer.requests) == 1


async def test_what_envoy_answers_itself_is_an_error_of_the_api_that_was_called(
    tmp_path: Path, authority: trustme.CA
) -> None:
    certify(authority, tmp_path)
    async with envoy("ingress.yaml", tmp_path) as alone:
        url, key = f"http://127.0.0.1:{alone.plain}", KEYS["WEB_KEY"]
        async with (
            httpx2.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http) as client,
        ):
            with pytest.raises(openai.InternalServerError) as chat:
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        async with (
            httpx2.AsyncClient(trust_env=False) as http,
            anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0, http_client=http) as other,
        ):
            with pytest.raises(anthropic.InternalServerError) as messages:
                await other.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
        bad = await alone.ask(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nunder_score: 1\r\n\r\n")
    assert (chat.value.status_code, chat.value.code, chat.value.type) == (503, "sidecar_unavailable", "server_error")
    assert chat.value.request_id
    assert isinstance(messages.value.body, dict)
    assert messages.value.status_code == 503
    assert messages.value.body["error"]["type"] == "overloaded_error"
    assert messages.value.body["request_id"] == messages.value.response.headers["x-request-id"]
    assert messages.value.response.headers["x-sidecar-error"] == "sidecar_unavailable"
    assert messages.value.response.headers["retry-after"] == "1"
    assert (bad.status, bad.json["error"]["type"]) == (400, "invalid_request_error")
    assert bad.get(b"x-sidecar-error") == b"caller_request_invalid"


async def test_a_sidecar_that_comes_late_is_found_at_once(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    async with envoy("ingress.yaml", tmp_path) as before, RawServer([]) as peer:
        assert "/failed_active_hc" in await before.admin("/clusters")
        async with sidecar(await settings("ingress.toml", tmp_path, _of(peer))):
            await healthy(before)


async def test_the_admin_socket_is_for_its_user_alone(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    async with envoy("ingress.yaml", tmp_path):
        assert mode_of(tmp_path / "envoy-admin.sock") == 0o600


async def test_a_full_envoy_refuses_in_the_apis_words(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    async with envoy("ingress.yaml", tmp_path, {"max_heap_size_bytes: 536870912": "max_heap_size_bytes: 4096"}) as full:
        name = "overload.envoy.overload_actions.stop_accepting_requests.active"
        async with asyncio.timeout(4):
            while await full.stat(name) != 1:
                await asyncio.sleep(0.02)
        reply = await full.ask(ask(CHAT, AUTH, model=MODEL))
    assert (reply.status, reply.json["error"]["code"]) == (503, "sidecar_unavailable")
    assert "overloaded" in reply.json["error"]["message"]


async def test_a_certificate_is_replaced_under_the_running_envoy(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    context = trusting(authority)
    async with envoy("ingress.yaml", tmp_path) as running:
        chosen, first = await asyncio.to_thread(negotiated, running.tls, context, "h2", "http/1.1")
        assert chosen == "h2"
        certify(authority, tmp_path)
        async with asyncio.timeout(4):
            while (await asyncio.to_thread(negotiated, running.tls, context, "http/1.1"))[1] == first:
                await asyncio.sleep(0.02)


def test_its_limits_fit_the_sidecars() -> None:
    server, found = Settings(), document("ingress.yaml")
    secure, plain = found["static_resources"]["listeners"]
    http = secure["filter_chains"][0]["filters"][0]["typed_config"]
    assert plain["filter_chains"][0]["filters"] == secure["filter_chains"][0]["filters"]
    (option,) = secure["socket_options"]
    assert (option["int_value"], plain["socket_options"]) == (listen._SEND_BUFFER_BYTES, secure["socket_options"])
    assert plain["address"]["socket_address"]["address"] == "127.0.0.1"
    assert http["request_headers_timeout"] == f"{server.header_seconds:.0f}s"
    assert secure["filter_chains"][0]["transport_socket_connect_timeout"] == f"{server.header_seconds:.0f}s"
    assert http["stream_flush_timeout"] == f"{server.send_stall_seconds:.0f}s"
    assert http["stream_idle_timeout"] == "0s"
    assert http["max_request_headers_kb"] * 1024 < server.max_header_bytes
    common = http["common_http_protocol_options"]
    assert common["max_headers_count"] < server.max_headers
    assert common["idle_timeout"] == f"{server.keepalive_seconds:.0f}s"
    (route,) = http["route_config"]["virtual_hosts"][0]["routes"]
    assert route == {"match": {"prefix": "/"}, "route": {"cluster": "sidecar", "timeout": "0s"}}
    (cluster,) = found["static_resources"]["clusters"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert seconds(options["common_http_protocol_options"]["idle_timeout"]) < server.keepalive_seconds
    (health,) = cluster["health_checks"]
    assert health["interval"] == health["no_traffic_interval"]
    assert seconds(health["interval"]) + seconds(health["timeout"]) < server.lame_duck_seconds
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = tomllib.loads((FOLDER / "ingress.toml").read_text())["server"]["listen"]
    assert [f"unix:{endpoint['endpoint']['address']['pipe']['path']}"] == addresses
