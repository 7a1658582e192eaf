"""No request chooses where it goes: not by its body, its headers, its target or its model's name (D26)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.faults.peer import REQUEST, Again, RawServer
from tests.faults.stand import Stand, ask, post, standing
from tests.faults.transcripts import EVERY_WAY, WAYS, Way

CHAT = WAYS["chat"]


@asynccontextmanager
async def trapped(way: Way = CHAT) -> AsyncIterator[tuple[Stand, list[str]]]:
    """The sidecar, and traps on 127.0.0.2 to 127.0.0.4 of which none may see a connection."""
    async with AsyncExitStack() as stack:
        traps = [
            await stack.enter_async_context(RawServer([REQUEST, way.whole()], host=f"127.0.0.{n}")) for n in (2, 3, 4)
        ]
        async with standing([Again((REQUEST, way.whole()))]) as stand:
            yield stand, [f"{trap.host}:{trap.port}" for trap in traps]
        assert all(trap.connections == [] for trap in traps)


@EVERY_WAY
async def test_members_of_the_body(way: Way) -> None:
    async with trapped(way) as (stand, (trap, *_)):
        url = f"http://{trap}/v1"
        members: dict[str, Any] = dict.fromkeys(
            ("api_base", "base_url", "api_url", "endpoint", "url", "host", "proxy", "custom_llm_provider", "webhook"),
            url,
        )
        reply = await stand.ask(ask(way, stream=False, **members, provider={"base_url": url}))
        assert reply.status == 200
        assert len(stand.peer.requests) == 1
        if way.same:  # unknown members are the provider's business, and pass
            assert msgspec.json.decode(stand.peer.requests[0].partition(b"\r\n\r\n")[2])["api_base"] == url


async def test_headers() -> None:
    async with trapped() as (stand, (trap, other, third)):
        names: tuple[bytes, ...] = (
            b"x-forwarded-host",
            b"x-host",
            b"x-upstream-host",
            b"x-original-url",
            b"x-rewrite-url",
            b"x-base-url",
        )
        names += (b"x-portkey-custom-host", b"x-envoy-original-dst-host", b"x-real-host", b"referer")
        lines = [name + b": http://" + trap.encode() + b"/v1" for name in names]
        reply = await stand.ask(ask(CHAT, *lines, b"forwarded: host=" + other.encode(), stream=False))
        assert reply.status == 200
        host = b"host: 127.0.0.1:%d\r\n" % stand.peer.port
        assert host in stand.peer.requests[0]
        assert stand.peer.requests[0].startswith(
            (b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/chat/completions?")
        )
        request = ask(CHAT, stream=False).replace(b"host: localhost", b"host: " + third.encode())
        assert (await stand.ask(request)).status == 200
        assert host in stand.peer.requests[1]


async def test_a_host_that_is_not_loopback_is_refused() -> None:
    async with trapped() as (stand, _):
        for host in (
            b"evil.test",
            b"127.evil.test:80",
            b"169.254.169.254",
            b"[::ffff:1.2.3.4]",
            b"localhost.evil.test",
        ):
            reply = await stand.ask(ask(CHAT, stream=False).replace(b"host: localhost", b"host: " + host))
            assert reply.status == 403, host
        assert stand.peer.connections == []


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://{trap}/v1/chat/completions", (200,)),  # the absolute form names us; its host is not looked at
        ("https://{trap}/v1/chat/completions", (200,)),
        ("http://me@{trap}/v1/chat/completions", (400,)),
        ("//{trap}/v1/chat/completions", (404,)),
        ("/v1/chat/completions@{trap}", (404,)),
        ("/v1/chat/completions/../../{trap}", (404,)),
        ("/providers/lab/../../http://{trap}", (404,)),
        ("/http://{trap}/v1/chat/completions", (404,)),
        ("/v1/chat/completions?base_url=http://{trap}&host={trap}", (200,)),
        ("/openai/deployments/http:%2F%2F{trap}%2F/chat/completions", (400, 404)),
        ("/openai/deployments/lab%2F..%2F..%2Fadmin/chat/completions", (200, 400, 404)),
        ("ftp://{trap}/", (400,)),
        ("{trap}", (400,)),
    ],
)
async def test_targets(target: str, status: tuple[int, ...]) -> None:
    async with trapped() as (stand, (trap, *_)):
        line = target.format(trap=trap).encode()
        request = ask(CHAT, stream=False).replace(b"POST /v1/chat/completions", b"POST " + line, 1)
        assert (await stand.ask(request)).status in status
        for sent in stand.peer.requests:
            assert sent.startswith((b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/chat/completions?"))
            asked, _, rest = sent.partition(b" HTTP/1.1\r\n")  # a query goes to the provider that is configured
            assert trap.encode() not in asked.partition(b"?")[0] + rest


async def test_connect_is_not_served() -> None:
    async with trapped() as (stand, (trap, *_)):
        reply = await stand.ask(b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (trap.encode(), trap.encode()))
        assert reply.status in (400, 405, 501)


@pytest.mark.parametrize(
    "model",
    ["http://{trap}/m", "lab@{trap}/m", "{trap}/m", "lab/../../../x", "lab/m HTTP/1.1\r\nhost: {trap}", "lab//x"],
)
async def test_names_of_models(model: str) -> None:
    """A name ends up in the body and nowhere else."""
    async with trapped() as (stand, (trap, *_)):
        reply = await stand.ask(ask(CHAT, stream=False, model=model.format(trap=trap)))
        assert reply.status in (200, 404)
        for sent in stand.peer.requests:
            head = sent.partition(b"\r\n\r\n")[0]
            assert head.startswith((b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/chat/completions?"))
            assert trap.encode() not in head


@EVERY_WAY
async def test_what_a_message_points_to_is_not_fetched_by_us(way: Way) -> None:
    async with trapped(way) as (stand, (trap, *_)):
        url = f"http://{trap}/canary.png"
        if way.path == "/v1/messages":
            part: Any = {"type": "image", "source": {"type": "url", "url": url}}
        else:
            part = {"type": "image_url", "image_url": {"url": url}}
        content = [{"type": "text", "text": "see"}, part]
        reply = await stand.ask(ask(way, stream=False, messages=[{"role": "user", "content": content}]))
        assert reply.status == 200
        assert url.encode() in stand.peer.requests[0]


async def test_a_second_model_cannot_be_smuggled() -> None:
    """R12: what was routed is what is sent, whatever the spelling of the second member."""
    async with trapped() as (stand, _):
        for second in (b'"model"', rb'"mod\u0065l"', rb'"\u006dodel"'):
            body = b'{"model":"lab/allowed",%b:"lab/m","stream":false,"messages":[]}' % second
            assert (await stand.ask(post(CHAT.path, body))).status == 200
            sent = stand.peer.requests[-1].partition(b"\r\n\r\n")[2]
            assert sent == b'{"model":"m","stream":false,"messages":[]}'
