"""More than may run at once: so many run, so many wait, the rest hear of it at once (R8, D22).

Who waits goes by class, then by arrival and how long it will take; who would wait in vain is told so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from sidecar.config import Caller, Key, Limits, Queue, Retry
from tests.faults.peer import REQUEST, Again, Pause, RawClient, RawServer, Script
from tests.faults.stand import Reply, Stand, ask, comes_true, provider, read, standing
from tests.faults.transcripts import LAST, WAYS, chunk

CHAT = WAYS["chat"]
ONE = {"limits": Limits(concurrency=1)}
LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
PATIENT = Queue(length=8, wait_seconds=8.0)


def held(until: asyncio.Event) -> Script:
    """A provider that answers nothing before the event."""
    return [Again((REQUEST, Pause(until), CHAT.whole()))]


def caller(key: str, **options: Any) -> Caller:
    return Caller(key=Key(source="inline", digest=hashlib.sha256(key.encode()).digest()), **options)


def bearer(key: str) -> bytes:
    return b"authorization: Bearer " + key.encode()


async def queued(stand: Stand, count: int) -> None:
    await comes_true(lambda: f" {count} waiting>" in repr(stand.app._limits), f"{count} wait")


async def served(stand: Stand, requests: Sequence[bytes], release: asyncio.Event) -> list[str]:
    """The `user` of each request, in the order in which they reach the provider; the first is there already."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stand.client()) for _ in requests]
        for count, (client, request) in enumerate(zip(clients, requests, strict=True)):
            client.write(request)
            if count:
                await queued(stand, count)
            else:
                await stand.peer.requested()
        release.set()
        replies = [read(await client.response()) for client in clients]
    assert [reply.status for reply in replies] == [200] * len(requests)
    bodies = [msgspec.json.decode(each.partition(b"\r\n\r\n")[2]) for each in stand.peer.requests]
    assert len(bodies) == len(requests)
    return [body["user"] for body in bodies]


# -- D22


async def burst(stand: Stand, stack: AsyncExitStack, request: bytes, count: int) -> tuple[list[Any], list[float]]:
    """So many clients ask at once: their answers under way, and when each has come."""
    loop, told = asyncio.get_running_loop(), list[float]()
    clients = [await stack.enter_async_context(stand.client()) for _ in range(count)]
    began = loop.time()

    async def one(client: RawClient) -> Reply:
        client.write(request)
        data = await client.response()
        told.append(loop.time() - began)
        return read(data)

    return [loop.create_task(one(client)) for client in clients], told


@pytest.mark.parametrize("whose", ["provider", "caller"])
async def test_so_many_run_so_many_wait_and_the_rest_is_refused_at_once(whose: str) -> None:
    release, loop, by_caller = asyncio.Event(), asyncio.get_running_loop(), whose == "caller"
    async with RawServer([Again((REQUEST, CHAT.whole()))]) as other:
        stands = standing(
            held(release),
            options={"limits": Limits(concurrency=500 if by_caller else 16)},
            more=lambda _: {"other": provider(other)},
            callers={"web": caller("one", concurrency=16 if by_caller else 500), "else": caller("two")},
            retry=Retry(),  # as it comes
            queue=Queue(wait_seconds=8.0),
        )
        async with stands as stand, AsyncExitStack() as stack:
            tasks, told = await burst(stand, stack, ask(CHAT, bearer("one"), stream=False), 200)
            await comes_true(lambda: len(told) >= 168, "168 are refused")
            assert told[-1] < 0.5  # of which nearly all is this test's own: see the log below
            for _ in range(5):
                start = loop.time()
                assert (await stand.ask(ask(CHAT, bearer("two"), model="other/m", stream=False))).status == 200
                assert (await stand.ask(LIVE)).status == 200
                assert loop.time() - start < 0.1
            under_way = 16 + 16 if by_caller else 16 + 16 + 16  # at the provider, and of the caller
            assert repr(stand.app._limits) == f"<Limits {under_way} running, 16 waiting>"
            assert (len(told), len(stand.peer.requests)) == (168, 16)
            release.set()
            replies = [await task for task in tasks]
            assert Counter(reply.status for reply in replies) == {200: 32, 429: 168}
            refused = [reply for reply in replies if reply.status == 429]
            codes = {reply.get(b"x-sidecar-error") for reply in refused}
            assert codes == {b"policy_concurrency_limited" if by_caller else b"provider_limited"}
            assert all(reply.get(b"retry-after-ms") == b"8000" for reply in refused)
            assert len(stand.peer.requests) == 32
            rows = [row for row in await stand.recorded(205) if row["status"] == 429]
            assert len(rows) == 168
            assert max(row["seconds"] for row in rows) < 0.05


# -- order


def named(user: str, *headers: bytes, **members: Any) -> bytes:
    return ask(CHAT, *headers, stream=False, user=user, **members)


async def test_a_request_says_how_urgent_it_is() -> None:
    release = asyncio.Event()
    async with standing(held(release), options=ONE, queue=PATIENT) as stand:
        names = ["low", "normal", "high", "low", "high"]
        requests = [named(each, b"x-sidecar-priority: " + each.encode()) for each in names]
        order = await served(stand, [named("first"), *requests, named("plain")], release)
        assert order == ["first", "high", "high", "normal", "plain", "low", "low"]


async def test_a_request_may_ask_for_less_than_its_caller_has_and_never_for_more() -> None:
    release = asyncio.Event()
    keys = {name: caller(name, priority=name) for name in ("high", "normal", "low")}
    async with standing(held(release), options=ONE, queue=PATIENT, callers=keys) as stand:
        asks = [("low", b"high"), ("normal", b"high"), ("normal", b"normal"), ("high", b"low"), ("high", b"normal")]
        requests = [
            named(f"{key} asks {asked.decode()}", bearer(key), b"x-sidecar-priority: " + asked) for key, asked in asks
        ]
        order = await served(stand, [named("first", bearer("high")), *requests, named("high", bearer("high"))], release)
        assert order == [
            *("first", "high"),
            *("normal asks high", "normal asks normal", "high asks normal"),
            *("low asks high", "high asks low"),
        ]


async def test_short_ones_go_before_long_ones_of_their_class() -> None:
    release = asyncio.Event()
    async with standing(held(release), options=ONE, queue=PATIENT) as stand:
        long_text = [{"role": "user", "content": "x" * 600_000}]
        requests = [
            named("first"),
            named("writes much", max_tokens=8000),
            named("reads much", messages=long_text),
            named("short", max_tokens=10),
            named("urgent and long", b"x-sidecar-priority: high", max_tokens=8000),
        ]
        assert await served(stand, requests, release) == [
            *("first", "urgent and long", "short", "writes much", "reads much")
        ]


async def test_the_urgent_one_takes_the_place_of_another_in_a_full_queue() -> None:
    release = asyncio.Event()
    async with standing(held(release), options=ONE, queue=Queue(length=1, wait_seconds=8.0)) as stand:
        async with AsyncExitStack() as stack:
            first, low, urgent = [await stack.enter_async_context(stand.client()) for _ in range(3)]
            first.write(named("first"))
            await stand.peer.requested()
            low.write(named("low"))
            await queued(stand, 1)
            urgent.write(named("urgent", b"x-sidecar-priority: high"))
            async with asyncio.timeout(0.5):
                refused = read(await low.response())
            assert (refused.status, refused.get(b"x-sidecar-error")) == (429, b"provider_limited")
            await queued(stand, 1)
            over = await stand.ask(named("over", b"x-sidecar-priority: high"))
            assert over.status == 429
            release.set()
            assert [read(await client.response()).status for client in (first, urgent)] == [200, 200]
        assert len(stand.peer.requests) == 2


# -- deadlines


async def test_who_would_wait_in_vain_is_told_how_long_it_would_take() -> None:
    release, answer = asyncio.Event(), asyncio.Event()
    script: Script = [REQUEST, Pause(answer), CHAT.whole(), REQUEST, Pause(release), CHAT.whole()]
    loop = asyncio.get_running_loop()
    async with standing(script, options=ONE, queue=PATIENT) as stand, asyncio.TaskGroup() as tasks:
        loop.call_later(0.5, answer.set)
        await stand.ask(named("first"))  # so long does one take
        last = tasks.create_task(stand.ask(named("second")))
        await stand.peer.requested(2)
        for header in (b"x-sidecar-timeout-ms: 150", b"x-stainless-read-timeout: 0.15"):
            began = loop.time()
            reply = await stand.ask(named("third", header))
            assert loop.time() - began < 0.05
            assert (reply.status, reply.get(b"retry-after")) == (429, b"1")
            assert 300 < int(reply.get(b"retry-after-ms") or b"") <= 520
        release.set()
        assert (await last).status == 200
        assert len(stand.peer.requests) == 2


async def test_nobody_waits_longer_than_its_sdk() -> None:
    release, loop = asyncio.Event(), asyncio.get_running_loop()
    async with standing(held(release), options=ONE, queue=PATIENT) as stand, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(stand.ask(named("first")))
        await stand.peer.requested()
        began = loop.time()
        reply = await stand.ask(named("second", b"x-stainless-read-timeout: 0.1"))
        assert reply.status == 429
        assert 0.09 < loop.time() - began < 0.3
        release.set()
        assert (await first).status == 200
        assert len(stand.peer.requests) == 1


# -- bounds that move


async def test_who_waits_is_let_in_when_the_provider_is_found_to_take_more() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, CHAT.stream(2), Pause(go_on), *map(chunk, CHAT.theirs.events[2:]), LAST]
    adaptive = {"limits": Limits(adaptive=True)}
    async with standing(script, options=adaptive, queue=PATIENT) as stand, AsyncExitStack() as stack:
        aimd = stand.app._duty.health.aimd("lab", True)
        assert aimd is not None
        aimd._limit = 1.0
        clients = [await stack.enter_async_context(stand.client()) for _ in range(3)]
        for client in clients:
            client.write(ask(CHAT))
        await stand.peer.requested(3)  # the first content of each has raised the limit by one
        assert repr(stand.app._limits).startswith("<Limits 6 running, 0")
        go_on.set()
        assert [read(await client.response()).status for client in clients] == [200] * 3
