"""A cache in a real Redis: what one sidecar was answered serves another; whatever becomes of it, no client notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sidecar.app import Sidecar
from sidecar.cache.remote import PREFIX
from sidecar.config import Cache, Store, place
from tests.asgi import Answer, ask as by_asgi
from tests.exchange.passing import said, stats
from tests.faults.peer import FIN, REQUEST, Again, Script
from tests.faults.stand import Stand, ask, comes_true, post, read, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, WAYS, Way, reply
from tests.store.conftest import own_server, server, shared_server
from tests.store.fake import until
from tests.store.servers import Redis

__all__ = ["own_server", "server", "shared_server"]
LAB = WAYS["chat"]
ALWAYS: Script = [Again((REQUEST, LAB.whole()))]
MOST_SECONDS = 0.05  # that a store may cost a request


@asynccontextmanager
async def sharing(redis: Redis, script: Script | Callable[[int], Script], **cache: Any) -> AsyncIterator[Stand]:
    options: dict[str, Any] = {
        "store": Store(url=place(redis.url)),
        "cache": Cache(**{"ttl_seconds": 3600, **cache}),
    }
    async with standing(script, **options) as stand:
        assert stand.app._store is not None
        stand.app._store.open()
        await stand.app._store.ready()
        yield stand


def kept(redis: Redis) -> list[bytes]:
    return list(redis.ask("KEYS", PREFIX + b"*"))


@asynccontextmanager
async def another(of: Stand) -> AsyncIterator[Sidecar]:
    """A second sidecar with the same configuration, and nothing in common but the store."""
    async with Sidecar(of.app.config) as app:
        assert app._store is not None
        app._store.open()
        await app._store.ready()
        yield app


async def asked(app: Sidecar, request: bytes) -> Answer:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = dict(each.split(": ", 1) for each in lines)
    return await by_asgi(app, "POST", line.split()[1], headers, body)


@EVERY_WAY
@BOTH
async def test_an_answer_of_one_sidecar_serves_the_other(server: Redis, way: Way, stream: bool) -> None:
    script: Script = [REQUEST, way.stream() if stream else way.whole()]
    async with sharing(server, script) as stand, another(stand) as other:
        request = ask(way, stream=stream)
        first = await stand.ask(request)
        await comes_true(lambda: kept(server), "kept")
        again, once_more = await asked(other, request), await stand.ask(request)
        assert said(first) == (200, b"miss", None)
        assert said(once_more)[:2] == (again.status, again.get(b"x-sidecar-cache")) == (200, b"hit")
        assert first.body == once_more.body == again.body
        assert again.get(b"content-type") == first.get(b"content-type")
        assert len(stand.peer.requests) == 1
        assert stats(stand)["store"] == "redis"
        (key,) = kept(server)
        assert len(key) == len(PREFIX) + 32
        assert 3_500_000 < server.ask("PTTL", key) <= 3_600_000


async def test_embeddings_are_shared_an_input_each(server: Redis) -> None:
    def answers(*texts: str) -> bytes:
        data = [{"object": "embedding", "index": at, "embedding": [len(each)]} for at, each in enumerate(texts)]
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        return reply(msgspec.json.encode({"object": "list", "data": data, "model": "m", "usage": usage}))

    def asks(*texts: str) -> bytes:
        return post("/v1/embeddings", msgspec.json.encode({"model": "lab/m", "input": texts}))

    script: Script = [REQUEST, answers("a", "bb"), FIN]
    parts: list[Script] = [script, [REQUEST, answers("ccc")]]
    async with sharing(server, lambda number: parts[number]) as stand, another(stand) as other:
        await stand.ask(asks("a", "bb"))
        await comes_true(lambda: len(kept(server)) == 2, "kept")
        answer = await asked(other, asks("ccc", "a"))
        assert [datum["embedding"] for datum in answer.json["data"]] == [[3], [1]]
        assert b'"input":["ccc"]' in stand.peer.requests[1]


async def test_callers_of_several_sidecars_share_nothing(server: Redis) -> None:
    async with sharing(server, ALWAYS) as stand, another(stand) as other:
        mine, yours = (ask(LAB, b"authorization: Bearer " + name, stream=False) for name in (b"mine", b"yours"))
        await stand.ask(mine)
        await comes_true(lambda: kept(server), "kept")
        assert (await asked(other, yours)).get(b"x-sidecar-cache") == b"miss"
        assert (await asked(other, mine)).get(b"x-sidecar-cache") == b"hit"


async def test_what_somebody_else_wrote_is_a_miss(server: Redis) -> None:
    async with sharing(server, ALWAYS) as stand:
        request = ask(LAB, stream=False)
        await stand.ask(request)
        await comes_true(lambda: kept(server), "kept")
        (key,) = kept(server)
        for junk in (b"", b"\x00junk", b"\x01junk", b"\xff" * 1000):
            server.ask("SET", key, junk)
            assert said(await stand.ask(request))[:2] == (200, b"miss")
            await comes_true(lambda: server.ask("GET", key) != junk, "mended")  # noqa: B023
        assert said(await stand.ask(request))[1] == b"hit"


def _kill(redis: Redis) -> None:
    redis.kill()


def _stall(redis: Redis) -> None:
    redis.pause()


def _restart(redis: Redis) -> None:
    redis.kill()
    redis.start()


def _flush(redis: Redis) -> None:
    redis.ask("FLUSHALL")


@pytest.mark.parametrize("hurt", [_kill, _stall, _restart, _flush])
async def test_what_becomes_of_redis_under_load_costs_no_client_an_error_or_a_wait(
    own_server: Redis, hurt: Callable[[Redis], None]
) -> None:
    """No request fails, and none takes 50 ms longer than before (but for what this process was not run meanwhile)."""
    async with sharing(own_server, ALWAYS) as stand:
        loop = asyncio.get_running_loop()
        took: list[float] = []
        told: Counter[bytes | None] = Counter()
        late = [0.0]
        stop = asyncio.Event()

        async def lag() -> None:
            while not stop.is_set():
                before = loop.time()
                await asyncio.sleep(0.002)
                late[0] = max(late[0], loop.time() - before - 0.002)

        async def client(number: int) -> None:
            async with stand.client() as wire:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    wire.write(ask(LAB, stream=False, user=str((number + turn) % 5)))
                    began = loop.time()
                    answer = read(await wire.response())
                    took.append(loop.time() - began)
                    assert answer.status == 200
                    told[answer.get(b"x-sidecar-cache")] += 1

        async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
            tasks.create_task(lag())
            for number in range(6):
                tasks.create_task(client(number))
            await until(lambda: told[b"hit"] > 20)
            before, usual = Counter(told), max(took)
            await asyncio.to_thread(hurt, own_server)
            await until(lambda: told[b"miss"] > before[b"miss"] and told.total() > before.total() + 60)
            stop.set()
        if hurt is _stall:
            own_server.go_on()
        assert set(told) <= {b"hit", b"miss", b"coalesced"}
        assert max(took) <= MOST_SECONDS + usual + 2 * late[0]
        rows = [row for row in stand.lines() if row.get("event") == "exchange"]
        assert {row["status"] for row in rows} == {200}


async def test_it_is_asked_again_when_it_is_back(own_server: Redis) -> None:
    async with sharing(own_server, ALWAYS) as stand:
        request = ask(LAB, stream=False)
        await stand.ask(request)
        own_server.kill()
        assert said(await stand.ask(request))[:2] == (200, b"miss")
        own_server.start()

        async def hits() -> None:
            while said(await stand.ask(request))[1] != b"hit":
                await asyncio.sleep(0.05)

        async with asyncio.timeout(8):
            await hits()
