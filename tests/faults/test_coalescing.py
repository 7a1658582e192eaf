"""Identical requests at once, on real sockets: one is asked of the provider, all get its answer, none holds another."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sidecar.config import Caller, Key, Model, OnDisconnect
from tests.faults.peer import (
    FIN,
    GONE,
    REQUEST,
    RST,
    STOP_READING,
    Again,
    Flood,
    Pause,
    RawClient,
    Script,
)
from tests.faults.stand import Reply, Stand, ask, comes_true, read, standing
from tests.faults.transcripts import BOTH, CHAT, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply

LAB = WAYS["chat"]
WHOLE = b"".join(CHAT.events)
SOON = 0.05


def alike(*targets: str, **options: Any) -> dict[str, Model]:
    return {"one": Model(targets=targets or ("lab/m",), coalesce=True, **options)}


def caller(name: str, **options: Any) -> Caller:
    return Caller(key=Key(source="sha256:", digest=hashlib.sha256(name.encode()).digest()), **options)


def bearer(name: str) -> bytes:
    return b"authorization: Bearer " + name.encode()


async def _clients(stack: AsyncExitStack, stand: Stand, *requests: bytes) -> list[RawClient]:
    """A client for each request, all of which have arrived."""
    clients = [await stack.enter_async_context(stand.client()) for _ in requests]
    for client, request in zip(clients, requests, strict=True):
        client.write(request)
    await comes_true(lambda: len(stand.server.work) == len(requests), "arrived")
    return clients


async def _answers(clients: list[RawClient]) -> list[Reply]:
    return [read(await client.response()) for client in clients]


@EVERY_WAY
@BOTH
@pytest.mark.parametrize("count", [2, 20])
async def test_many_at_once_are_one_upstream(way: Way, stream: bool, count: int) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), way.stream() if stream else way.whole()]
    async with standing(script, models=alike(way.model)) as stand, AsyncExitStack() as stack:
        request = ask(way, b"x-sidecar-explain: 1", model="one", stream=stream)
        clients = await _clients(stack, stand, *[request] * count)
        go_on.set()
        answers = await _answers(clients)
        assert len({answer.body for answer in answers}) == 1
        assert {(answer.status, answer.ended) for answer in answers} == {(200, True)}
        assert way.ours.done in answers[0].body if stream else answers[0].body.startswith(b"{")
        assert [answer.get(b"x-sidecar-cache") for answer in answers] == [b"off", *[b"coalesced"] * (count - 1)]
        assert len({answer.get(b"x-request-id") for answer in answers}) == count
        assert len(stand.peer.requests) == 1
        rows = await stand.recorded(count)
    assert len(rows) == count
    assert {(row["status"], row["error"], row["provider"], row["bytes_out"]) for row in rows} == {
        (200, "", way.model.partition("/")[0], len(answers[0].body))
    }
    assert sum(row.get("output_tokens") or 0 for row in rows) == (2 if not stream or way.theirs is not CHAT else 0)
    assert sum(row["attempts"] for row in rows) == 1


async def test_one_after_another_are_not_one() -> None:
    async with standing([Again((REQUEST, LAB.stream()))], models=alike()) as stand:
        for _ in range(3):
            answer = await stand.ask(ask(LAB, model="one"))
            assert (answer.body, answer.get(b"x-sidecar-cache")) == (WHOLE, b"off")
        assert len(stand.peer.requests) == 3


async def test_without_the_option_nothing_is_shared() -> None:
    go_on = asyncio.Event()
    async with standing([REQUEST, Pause(go_on), LAB.whole()]) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(LAB, stream=False)] * 3)
        await stand.peer.requested(3)
        go_on.set()
        assert {answer.body for answer in await _answers(clients)} == {CHAT.body}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ask(LAB, bearer("a"), b"x-sidecar-cache: off", model="one"), id="cache off"),
        pytest.param(ask(LAB, bearer("a"), b"x-sidecar-cache: refresh", model="one"), id="cache refresh"),
        pytest.param(ask(LAB, bearer("b"), model="one"), id="another caller"),
        pytest.param(ask(LAB, bearer("a"), model="one", max_tokens=10), id="another body"),
        pytest.param(ask(LAB, bearer("a"), model="one", stream=False), id="no stream"),
        pytest.param(ask(WAYS["messages from chat"], bearer("a"), model="one"), id="another dialect"),
        pytest.param(
            ask(LAB, bearer("a"), model="one").replace(b"/v1/chat/completions", b"/v1/chat/completions?x=1"),
            id="another query",
        ),
        pytest.param(ask(LAB, bearer("a"), b"x-their-own: 1", model="one"), id="another header that goes up"),
        pytest.param(ask(LAB, bearer("a"), b"accept-encoding: gzip", model="one"), id="another coding"),
        pytest.param(ask(LAB, bearer("a"), b"x-sidecar-fallback: off", model="one"), id="no fall-back"),
        pytest.param(ask(LAB, bearer("a"), b"x-sidecar-timeout-ms: 9000", model="one"), id="another deadline"),
    ],
)
async def test_what_is_not_the_same_is_not_shared(other: bytes) -> None:
    go_on = asyncio.Event()
    callers = {name: caller(name) for name in ("a", "b")}
    script: Script = [REQUEST, Pause(go_on), LAB.stream()]
    async with standing(script, models=alike(), callers=callers) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, ask(LAB, bearer("a"), model="one"), other)
        await stand.peer.requested(2)
        go_on.set()
        answers = [read(await client.response()) for client in clients]
        assert {answer.get(b"x-sidecar-cache") for answer in answers} <= {b"off", None}


async def test_strangers_with_keys_of_their_own_share_nothing() -> None:
    """Where callers bring the provider's keys, an answer is of the key that it was asked with (R10)."""
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.stream()]
    async with standing(script, models=alike()) as stand, AsyncExitStack() as stack:
        await _clients(stack, stand, *(ask(LAB, bearer(name), model="one") for name in ("mine", "yours", "mine")))
        await stand.peer.requested(2)
        assert len(stand.peer.connections) == 2
        go_on.set()


async def test_headers_that_say_nothing_of_the_answer_are_no_difference() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.stream()]
    lines = (b"x-stainless-retry-count: 1", b"idempotency-key: k", b"traceparent: 00-1-2-01")
    async with standing(script, models=alike()) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, ask(LAB, model="one"), ask(LAB, *lines, model="one"))
        go_on.set()
        assert [answer.body for answer in await _answers(clients)] == [WHOLE] * 2
        assert len(stand.peer.requests) == 1


@EVERY_WAY
async def test_who_joins_late_gets_what_was_and_then_what_comes(way: Way) -> None:
    go_on = asyncio.Event()
    rest = b"".join(map(chunk, way.theirs.events[3:])) + LAST
    script: Script = [REQUEST, way.stream(3), Pause(go_on), rest]
    async with standing(script, models=alike(way.model)) as stand, stand.client() as first:
        first.write(ask(way, model="one"))
        await first.take_until(b"one")
        async with stand.client() as late:
            late.write(ask(way, model="one"))
            await late.take_until(b"one")  # before anything more has come
            go_on.set()
            await late.take_until(LAST)
            await first.take_until(LAST)
            one, two = read(bytes(first.received)), read(bytes(late.received))
        assert one.body == two.body
        assert (two.ended, two.get(b"x-sidecar-cache")) == (True, b"coalesced")
        assert len(stand.peer.requests) == 1


async def test_a_slow_follower_holds_nobody() -> None:
    """It takes nothing at all, while the others get 8 MB; then it gets them, too."""
    piece = chunk(CHAT.events[1] * 4000)
    script: Script = [REQUEST, LAB.stream(2), Flood(piece, 14), *map(chunk, CHAT.events[2:]), LAST]
    async with standing(script, models=alike()) as stand, stand.client() as first:
        async with stand.client(receive_buffer=65536) as slow, stand.client() as third:
            for client in (slow, first, third):
                client.write(ask(LAB, model="one"))
            slow.transport.pause_reading()
            await first.take_until(LAST)
            await third.take_until(LAST)
            assert len(first.received) > 8_000_000
            slow.transport.resume_reading()
            await slow.take_until(LAST)
            assert read(bytes(slow.received)).body == read(bytes(first.received)).body
        assert len(stand.peer.requests) == 1


async def test_one_that_is_left_too_far_behind_is_let_go_with_an_error() -> None:
    """So that what is kept for it has a bound. The others have all of it."""
    piece = chunk(CHAT.events[1] * 4000)
    script: Script = [REQUEST, LAB.stream(2), Flood(piece, 60), *map(chunk, CHAT.events[2:]), LAST]
    async with standing(script, models=alike()) as stand, stand.client() as first:
        async with stand.client(receive_buffer=4096) as slow:
            for client in (slow, first):
                client.write(ask(LAB, model="one"))
            slow.transport.pause_reading()
            await first.take_until(LAST)
            assert len(first.received) > 35_000_000
            slow.transport.resume_reading()
            await slow.take_until(LAST)
            got = read(bytes(slow.received))
        assert CHAT.done not in got.body
        assert b'"code":"provider_cut"' in got.body[-400:]
        assert len(got.body) < 2_000_000
        assert len(stand.peer.requests) == 1


async def test_where_all_are_slow_the_provider_is_held() -> None:
    flood = Flood(chunk(CHAT.events[1] * 400), 20_000)
    async with standing([REQUEST, LAB.stream(2), flood], models=alike()) as stand, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stand.client(receive_buffer=4096)) for _ in range(2)]
        for client in clients:
            await client.run(ask(LAB, model="one"), STOP_READING)
        wire = await stand.peer.connected()
        taken = -1
        while wire.accepted != taken:
            taken = wire.accepted
            await asyncio.sleep(0.1)
        assert 0 < taken < 16_000_000


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_the_first_leaves_and_the_others_go_on(ending: Any) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, LAB.stream(2), Pause(go_on), *map(chunk, CHAT.events[2:]), LAST]
    async with standing(script, models=alike()) as stand, AsyncExitStack() as stack:
        first, *others = await _clients(stack, stand, *[ask(LAB, model="one")] * 3)
        await first.take_until(b"one")
        await first.run(ending)
        await comes_true(lambda: len(stand.server.work) == 2, "left")
        go_on.set()
        assert [answer.body for answer in await _answers(others)] == [WHOLE] * 2
        rows = await stand.recorded(3)
        assert sorted(row["status"] for row in rows) == [200, 200, 499]
        assert len(rows) == 3
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize("begun", [True, False])
async def test_all_leave_and_the_provider_is_left_at_once(begun: bool) -> None:
    script: Script = [REQUEST, *([LAB.stream(2)] if begun else []), GONE]
    async with standing(script, models=alike()) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(LAB, model="one")] * 3)
        await stand.peer.requested()
        for client in clients:
            if begun:
                await client.take_until(b"one")
        for client in clients[:2]:
            await client.run(RST)
        await comes_true(lambda: len(stand.server.work) == 1, "two left")
        assert stand.peer.open == 1
        await clients[2].run(RST)
        at = asyncio.get_running_loop().time()
        await comes_true(lambda: not stand.peer.open, "left")
        assert stand.peer.connections[0].closed_at - at < SOON
        rows = await stand.recorded(3)
        assert {(row["status"], row["error"]) for row in rows} == {(499, "caller_gone")}
        assert stand.app._duty.flights == {}


async def test_with_drain_the_answer_is_heard_out_for_nobody_and_counted_once() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), reply(CHAT.body)]
    drain: dict[str, Any] = {"on_disconnect": OnDisconnect(policy="drain")}
    async with standing(script, models=alike(), **drain) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(LAB, model="one", stream=False)] * 3)
        await stand.peer.requested()
        for client in clients:
            await client.run(RST)
        await comes_true(lambda: not stand.server.work, "left")
        go_on.set()
        rows = await stand.recorded(3)
        assert [row["status"] for row in rows] == [499] * 3
        assert sum(row["output_tokens"] or 0 for row in rows) == 2
        assert stand.peer.open == 1  # and kept for the next


@EVERY_WAY
async def test_an_upstream_error_is_everybodys_own(way: Way) -> None:
    go_on = asyncio.Event()
    refusal = reply(b'{"error":{"message":"down","type":"server_error","code":null}}', status=b"500 Oh")
    script: Script = [REQUEST, Pause(go_on), refusal]
    async with standing(script, models=alike(way.model)) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(way, model="one")] * 3)
        go_on.set()
        answers = await _answers(clients)
        assert {(answer.status, answer.json["error"]["message"]) for answer in answers} == {(500, "down")}
        assert len(stand.peer.requests) == 1
        assert {row["status"] for row in await stand.recorded(3)} == {500}


@EVERY_WAY
async def test_a_cut_is_told_in_each_answer(way: Way) -> None:
    cut = asyncio.Event()
    script: Script = [REQUEST, way.stream(3), Pause(cut), RST]
    async with standing(script, models=alike(way.model)) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(way, model="one")] * 3)
        for client in clients:
            await client.take_until(b"one")
        cut.set()
        for client in clients:
            await client.take_until(LAST)
            answer = read(bytes(client.received))
            assert answer.ended
            assert way.ours.fault.search(answer.body)
            assert way.ours.done not in answer.body
        assert len(stand.peer.requests) == 1
        assert {row["error"] for row in await stand.recorded(3)} == {"provider_cut"}


async def test_a_cut_long_body_is_cut_for_all() -> None:
    go_on = asyncio.Event()
    long = chunk(b'{"x":"' + b"x" * 200_000)
    script: Script = [REQUEST, head(kind=JSON), long, Pause(go_on), RST]
    async with standing(script, models=alike()) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(LAB, model="one", stream=False)] * 2)
        for client in clients:
            await client.take_until(b"xxx")
        go_on.set()
        for client in clients:
            await client.until(lambda client=client: client.how)  # type: ignore[misc]
            assert not read(bytes(client.received)).ended
        assert len(stand.peer.requests) == 1


async def test_each_has_a_place_of_its_own_among_its_callers_limits() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.stream(), Again((REQUEST, LAB.stream()))]
    callers = {"a": caller("a", concurrency=2)}
    async with standing(script, models=alike(), callers=callers) as stand, AsyncExitStack() as stack:
        request = ask(LAB, bearer("a"), model="one")
        clients = await _clients(stack, stand, *[request] * 2)
        running = stand.app._limits.stats()
        assert "2" in repr([row for row in running if "caller" in repr(row)])
        go_on.set()
        await _answers(clients)
        await comes_true(stand.idle, "idle")
        assert (await stand.ask(request)).body == WHOLE


async def test_a_drain_tells_each_who_follows() -> None:
    async with standing([REQUEST, LAB.stream(2), GONE], models=alike()) as stand, AsyncExitStack() as stack:
        clients = await _clients(stack, stand, *[ask(LAB, model="one")] * 2)
        for client in clients:
            await client.take_until(b"one")
        for work in tuple(stand.server.work):  # as the server does when its drain has taken long enough
            work.cancel()
        for client in clients:
            await client.take_until(LAST)
            assert b"sidecar_draining" in read(bytes(client.received)).body
        await stand.peer.left()
