"""Headers that are for one hop alone stay on it, in both directions; those of strangers never pass (D05 to D08)."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.config import Key
from sidecar.secret import Secret
from tests.faults.peer import REQUEST, Again, RawServer
from tests.faults.stand import KEY, ask, post, provider, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, LAST, WAYS, Way, chunk, head, reply as answer

CHAT = WAYS["chat"]
HOP = (
    b"connection: keep-alive, x-named, x-other",
    b"Connection: X-Third",
    b"keep-alive: timeout=5",
    b"proxy-connection: keep-alive",
    b"proxy-authenticate: Basic",
    b"proxy-authorization: Basic Y2FuYXJ5",
    b"proxy-status: x",
    b"te: trailers",
    b"trailer: x-sum",
    b"upgrade: websocket",
    b"http2-settings: x",
    b"x-named: canary",
    b"X-Other: canary",
    b"x-third: canary",
)
FOREIGN = (
    b"authorization: Bearer canary-of-the-caller",
    b"x-api-key: canary-of-the-caller",
    b"api-key: canary-of-the-caller",
    b"x-goog-api-key: canary-of-the-caller",
    b"cookie: session=canary",
    b"x-forwarded-for: 1.2.3.4",
    b"x-forwarded-host: canary.test",
    b"x-forwarded-proto: https",
    b"forwarded: for=1.2.3.4",
    b"via: 1.1 canary",
    b"x-real-ip: 1.2.3.4",
    b"x-sidecar-tag: canary",
    b"accept-encoding: br",
    b"expect: 100-continue",
)
PASSES = (b"x-custom: kept \xe4", b"user-agent: me/1", b"accept: text/event-stream", b"x-stainless-lang: python")


def _lines(message: bytes) -> list[bytes]:
    return message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


@EVERY_WAY
@BOTH
async def test_what_goes_up(way: Way, stream: bool) -> None:
    """The whole head that the provider sees, byte for byte."""
    good = way.stream() if stream else way.whole()
    async with standing([REQUEST, good]) as stand:
        hop = [line for line in HOP if not line.startswith(b"connection")]  # ask() closes
        reply = await stand.ask(ask(way, b"connection: x-named, x-other", *hop, *FOREIGN, *PASSES, stream=stream))
        assert reply.status == 200
        sent = _lines(stand.peer.requests[0])
        host = f"host: 127.0.0.1:{stand.peer.port}".encode()
        key = b"authorization: Bearer " if way.theirs is CHAT.theirs else b"x-api-key: "
        version = [] if way.theirs is CHAT.theirs else [b"anthropic-version: 2023-06-01"]
        length = b"content-length: %d" % len(stand.peer.requests[0].partition(b"\r\n\r\n")[2])
        ours = [host, b"content-type: application/json", *version, b"accept-encoding: identity", length]
        assert sorted(sent) == sorted([*ours, *PASSES, key + KEY.encode()])


async def test_what_a_client_says_of_where_it_came_from_is_believed_nowhere() -> None:
    """D08."""
    async with standing([REQUEST, CHAT.whole()]) as stand:
        await stand.ask(ask(CHAT, b"x-forwarded-for: 1.2.3.4", b"forwarded: for=1.2.3.4", stream=False))
        await stand.ask(b"GET / HTTP/1.1\r\nhost: localhost\r\nx-forwarded-for: 1.2.3.4\r\nx-y: \r\n\r\n")
        assert b"1.2.3.4" not in stand.peer.received
        assert "1.2.3.4" not in repr(await stand.recorded())
        assert b"1.2.3.4" not in stand.app._ledger.metrics()


DOWN = (
    *(line for line in HOP if not line.startswith((b"te:", b"upgrade", b"proxy-status"))),
    b"set-cookie: canary=1",
    b"Set-Cookie: canary=2",
    b"server: canary/1",
    b"alt-svc: h3=canary",
    b"via: 1.1 canary",
    b"x-sidecar-provider: canary",
    b"x-sidecar-anything: canary",
    b"access-control-allow-origin: *",
    b"cache-control: public, max-age=99",
)


@EVERY_WAY
@BOTH
async def test_what_comes_down(way: Way, stream: bool) -> None:
    if stream:
        good = head(*DOWN, *PASSES[:1]) + b"".join(map(chunk, way.theirs.events)) + LAST
    else:
        good = answer(way.theirs.body, *DOWN, *PASSES[:1])
    async with standing([REQUEST, good]) as stand:
        reply = await stand.ask(ask(way, stream=stream))
        names = [name for name, _ in reply.headers]
        assert b"canary" not in b"".join(value for _, value in reply.headers)
        ours = (b"connection", b"transfer-encoding" if stream else b"content-length", b"cache-control", b"date")
        for name in ours:
            assert names.count(name) == 1
        assert reply.get(b"cache-control") == b"private, no-store"
        dropped = {line.partition(b":")[0].lower() for line in DOWN} - {*ours, b"x-sidecar-provider"}
        assert not dropped & set(names)
        assert reply.get(b"x-custom") == b"kept \xe4"
        assert reply.ended


async def test_nothing_of_a_proxys_comes_down() -> None:
    async with standing([REQUEST, answer(CHAT.theirs.body, b"proxy-status: x", b"proxy-anything: x")]) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert [name for name, _ in reply.headers if name.startswith(b"proxy-")] == []


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_what_comes_down_with_an_error(status: int) -> None:
    async with standing([REQUEST, answer(b'{"error":{"message":"no"}}', *DOWN, status=b"%d No" % status)]) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.body) == (status, b'{"error":{"message":"no"}}')
        assert b"canary" not in b"".join(value for _, value in reply.headers)


@pytest.mark.parametrize(
    "line",
    [
        b"x: a\rset-cookie: b",
        b"x: a\r set-cookie: b",
        b"x: a\nset-cookie: b",
        b"x: a\0b",
        b"x\0y: a",
        b"x y: a",
        b": a",
    ],
)
async def test_a_header_that_would_split_the_answer_is_an_error(line: bytes) -> None:
    """D05, downwards."""
    async with standing([REQUEST, head(line)]) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_protocol_error")
        assert reply.get(b"set-cookie") is None
        await stand.peer.left()


@pytest.mark.parametrize("line", [b"x: a\rb", b"x: a\nb: c\r", b"x: a\0b", b"x : a", b" x: a", b"x\x01: a"])
async def test_a_header_that_would_split_the_request_is_refused(line: bytes) -> None:
    """D05, upwards."""
    async with standing([]) as stand:
        reply = await stand.ask(ask(CHAT, line))
        assert reply.status == 400
        assert stand.peer.connections == []


async def test_what_a_client_names_is_never_reflected_in_a_header() -> None:
    nasty = "lab/m\r\nset-cookie: a=b\u00e9\u4e16"
    async with standing([REQUEST, CHAT.whole()]) as stand:
        reply = await stand.ask(ask(CHAT, model=nasty, stream=False))
        assert reply.get(b"set-cookie") is None
        assert reply.status in (200, 400, 404, 500, 502)
        assert b"\r\nset-cookie" not in stand.peer.received


async def test_headers_of_one_api_do_not_go_to_another() -> None:
    lines = (b"anthropic-beta: x", b"anthropic-version: 2099-01-01", b"openai-organization: x")
    for name, expected in (("messages", lines[:2] + lines[2:]), ("messages from chat", ())):
        async with standing([REQUEST, WAYS[name].whole()]) as stand:
            await stand.ask(ask(WAYS[name], *lines, stream=False))
            sent = _lines(stand.peer.requests[0])
            assert [line for line in sent if line in lines] == list(expected)


async def test_the_providers_key_goes_to_that_provider_only() -> None:
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        key = Key(source="inline", secret=Secret("sk-other"))
        table = provider(other)
        async with standing(
            [REQUEST, answer(b"{}", status=b"500 Oh")],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": msgspec.structs.replace(table, api_key=key)},
        ) as stand:
            assert (await stand.ask(ask(CHAT, stream=False, model="fast"))).status == 200
            assert KEY.encode() in stand.peer.received
            assert KEY.encode() not in other.received
            assert b"sk-other" not in stand.peer.received


async def test_with_the_callers_own_key_only_that_key_goes_up() -> None:
    async with RawServer([Again((REQUEST, CHAT.whole()))]) as other:
        table = msgspec.structs.replace(provider(other), api_key=Key(source="caller"))
        async with standing([], more=lambda _: {"own": table}) as stand:
            for line in (b"authorization: Bearer sk-mine", b"x-api-key: sk-mine", b"api-key: sk-mine"):
                reply = await stand.ask(ask(CHAT, line, stream=False, model="own/m"))
                assert reply.status == 200
                assert _lines(other.requests[-1]).count(b"authorization: Bearer sk-mine") == 1
                assert other.requests[-1].count(b"sk-mine") == 1
            reply = await stand.ask(ask(CHAT, stream=False, model="own/m"))
            assert (reply.status, len(other.requests)) == (401, 3)


async def test_a_body_is_sent_with_its_own_length_and_type() -> None:
    async with standing([REQUEST, CHAT.whole()]) as stand:
        body = b' { "model" : "lab/m" , "x" : 1.0 } '
        lines = (b"content-md5: x", b"digest: x", b"content-type: application/json; charset=utf-8")
        request = post(CHAT.path, body, *lines).replace(b"content-type: application/json\r\n", b"", 1)
        assert (await stand.ask(request)).status == 200
        head_, _, sent = stand.peer.requests[0].partition(b"\r\n\r\n")
        assert sent == b'{"model":"m","x":1.0}'
        assert b"md5" not in head_
        assert b"digest" not in head_
        assert b"content-type: application/json; charset=utf-8" in head_
