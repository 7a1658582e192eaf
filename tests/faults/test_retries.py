"""What is asked again, how often, after how long, and with which bytes (D18, D20): counted at the provider's socket."""

from __future__ import annotations

import asyncio
import math
import time
from itertools import pairwise

import pytest

from sidecar.config import Config, Limits, Model, OnDisconnect, Retry
from tests.faults.ground import closed_port
from tests.faults.peer import REQUEST, RST, Again, Pause, RawServer, Script, Tell
from tests.faults.stand import NEVER, ask, comes_true, provider, standing
from tests.faults.transcripts import BOTH, CHAT_BODY, WAYS, reply as answer

CHAT = WAYS["chat"]
QUICK = Retry(attempts=2, base_seconds=0.01, cap_seconds=0.02)
BUSY = answer(b'{"error":{"message":"busy"}}', status=b"503 Busy")
QUOTA = (
    b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}'
)


def bodies(requests: list[bytes]) -> set[bytes]:
    return {request.partition(b"\r\n\r\n")[2] for request in requests}


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        *((status, 3) for status in (500, 502, 503, 504, 529, 408, 409, 429)),
        *((status, 1) for status in (400, 401, 402, 403, 404, 413, 422)),
    ],
)
@BOTH
async def test_so_often_by_status(status: int, asked: int, stream: bool) -> None:
    error = answer(b'{"error":{"message":"no."}}', status=b"%d Oh" % status)
    async with standing([Again((REQUEST, error))], retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT, stream=stream))
        assert (reply.status, reply.get(b"x-sidecar-attempts")) == (status, b"%d" % asked)
        assert len(stand.peer.requests) == asked
        assert len(set(stand.peer.requests)) == 1  # every byte of it, head and body
        spent = asked > 1 or status == 402
        assert reply.get(b"x-should-retry") == (b"false" if spent else None)


async def test_one_that_answers_at_last_is_the_answer() -> None:
    async with standing([REQUEST, BUSY, REQUEST, BUSY, REQUEST, CHAT.whole()], retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.body, reply.get(b"x-sidecar-attempts")) == (200, CHAT_BODY, b"3")
        assert len(bodies(stand.peer.requests)) == 1
        assert (await stand.recorded())[0]["attempts"] == 3


async def test_a_reset_and_a_refused_connection_are_asked_again() -> None:
    async with standing(lambda n: [REQUEST, CHAT.whole()] if n == 2 else [REQUEST, RST], retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, len(stand.peer.requests), len(bodies(stand.peer.requests))) == (200, 3, 1)
    gone = provider(closed_port())
    async with standing([], more=lambda _: {"gone": gone}, retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT, model="gone/m"))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_connect_failed")
        assert (reply.get(b"x-sidecar-attempts"), reply.get(b"x-should-retry")) == (b"3", b"false")


async def test_what_the_provider_asks_to_wait_is_waited() -> None:
    limited = answer(b"{}", b"retry-after: 1", status=b"429 Slow")
    times: list[float] = []
    loop = asyncio.get_running_loop()

    def script(number: int) -> Script:
        times.append(loop.time())
        return [REQUEST, limited, RST] if not number else [REQUEST, CHAT.whole()]

    async with standing(script, retry=Retry()) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, len(stand.peer.requests), len(set(stand.peer.requests))) == (200, 2, 1)
        assert 1.0 <= times[1] - times[0] < 1.3


async def test_the_back_off_is_full_jitter_between_nothing_and_its_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.999)  # as the dice fall
    error = answer(b"{}", b"connection: close", status=b"500 Oh")
    settings = Retry(attempts=3, base_seconds=0.05, cap_seconds=0.1)
    async with standing([REQUEST, error, RST], retry=settings) as stand:
        assert (await stand.ask(ask(CHAT))).status == 500
        opened = [wire.opened_at for wire in stand.peer.connections]
        waits = [after - before for before, after in pairwise(opened)]
        assert len(waits) == 3
        assert all(least <= wait < least + 0.08 for wait, least in zip(waits, (0.049, 0.099, 0.099), strict=True))


@pytest.mark.parametrize(
    "lines",
    [
        (b"retry-after: 9",),
        (b"retry-after-ms: 9000",),
        (b"x-ratelimit-remaining-requests: 0", b"x-ratelimit-reset-requests: 9s"),
    ],
    ids=["seconds", "milliseconds", "reset"],
)
async def test_who_asks_for_too_long_is_passed_on_at_once_with_its_word(lines: tuple[bytes, ...]) -> None:
    limited = answer(b"{}", *lines, status=b"429 Slow")
    async with standing([Again((REQUEST, limited))], retry=Retry()) as stand:
        async with asyncio.timeout(0.5):
            reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.body, len(stand.peer.requests)) == (429, b"{}", 1)
        assert all((line.partition(b": ")[0], line.partition(b": ")[2]) in reply.headers for line in lines)
        assert reply.get(b"x-should-retry") is None  # it may come back then
        again = await stand.ask(ask(CHAT))  # until then nobody need ask: the key rests
        assert (again.status, again.get(b"x-sidecar-error"), len(stand.peer.requests)) == (429, b"provider_limited", 1)
        assert 8000 < int(again.get(b"retry-after-ms") or 0) <= 9000
        assert again.get(b"retry-after") == b"%d" % math.ceil(int(again.get(b"retry-after-ms") or 0) / 1000)
        assert again.get(b"x-sidecar-attempts") == b"0"


@pytest.mark.parametrize("status", [429, 402, 403, 400])
async def test_a_spend_cap_is_told_at_once(status: int) -> None:
    async with standing([Again((REQUEST, answer(QUOTA, status=b"%d Oh" % status)))], retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.body, len(stand.peer.requests)) == (status, QUOTA, 1)
        assert reply.get(b"x-should-retry") == b"false"


async def test_who_says_that_asking_again_is_of_no_use_is_believed() -> None:
    error = answer(b"{}", b"x-should-retry: false", status=b"500 Oh")
    async with standing([Again((REQUEST, error))], retry=QUICK) as stand:
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, len(stand.peer.requests), reply.get(b"x-should-retry")) == (500, 1, b"false")


# -- load is not multiplied


async def test_two_hundred_failing_requests_are_not_two_hundred_more() -> None:
    """D20, all within its 5 s."""
    async with standing([Again((REQUEST, BUSY))], retry=Retry(base_seconds=0.001), breaker=NEVER) as stand:
        for _ in range(10):
            replies = await asyncio.gather(*(stand.ask(ask(CHAT, stream=False)) for _ in range(20)))
            assert {reply.status for reply in replies} == {503}
            assert all(reply.get(b"x-should-retry") == b"false" for reply in replies)  # asked again, or out of budget
        assert 200 < len(stand.peer.requests) <= 200 + max(10 * 5, 0.2 * 200)


async def test_a_limit_of_our_own_is_told_at_once() -> None:
    """Waiting for it would be a second queue, which nobody bounds; here it has room again after 2 s."""
    limits = {"limits": Limits(requests_per_minute=30)}
    async with standing([Again((REQUEST, CHAT.whole()))], retry=Retry(), options=limits) as stand:
        for _ in range(30):
            assert (await stand.ask(ask(CHAT, stream=False))).status == 200
        async with asyncio.timeout(0.5):
            reply = await stand.ask(ask(CHAT, stream=False))
        assert (reply.status, reply.get(b"x-sidecar-error")) == (429, b"provider_limited")
        assert 0 < int(reply.get(b"retry-after-ms") or 0) <= 2000
        assert (len(stand.peer.requests), "way, 0 for" in repr(stand.app._duty.retries)) == (30, True)


# -- who wants less


async def test_the_clients_own_deadline_bounds_the_back_off_too() -> None:
    limited = answer(b"{}", b"retry-after: 1", status=b"429 Slow")
    async with standing([Again((REQUEST, limited))], retry=Retry()) as stand:
        began = time.monotonic()
        reply = await stand.ask(ask(CHAT, b"x-sidecar-timeout-ms: 400"))
        assert (reply.status, len(stand.peer.requests)) == (429, 1)
        assert time.monotonic() - began < 0.3  # there is no use in waiting for what comes too late


async def test_the_clients_own_deadline_is_of_all_tries_together() -> None:
    async with RawServer([REQUEST]) as silent, RawServer([REQUEST]) as other:
        async with standing(
            lambda _: [REQUEST, RST],
            models={"fast": ("lab/m", "silent/m", "other/m")},
            more=lambda _: {"silent": provider(silent), "other": provider(other)},
            retry=QUICK,
        ) as stand:
            began = time.monotonic()
            reply = await stand.ask(ask(CHAT, b"x-sidecar-timeout-ms: 300", model="fast"))
            assert (reply.status, reply.json["error"]["code"]) == (504, "provider_timeout")
            assert 0.28 < time.monotonic() - began < 0.45
            assert (len(stand.peer.requests), len(silent.requests), len(other.connections)) == (3, 1, 0)
            assert reply.get(b"x-sidecar-attempts") == b"4"


async def test_an_sdk_that_waits_no_longer_is_not_asked_for() -> None:
    limited = answer(b"{}", b"retry-after: 2", status=b"429 Slow")
    async with standing([Again((REQUEST, limited))], retry=Retry()) as stand:
        async with asyncio.timeout(0.5):
            reply = await stand.ask(ask(CHAT, b"x-stainless-read-timeout: 1"))
        assert (reply.status, len(stand.peer.requests)) == (429, 1)


async def test_fallback_off_asks_one_target_only() -> None:
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(
            [Again((REQUEST, BUSY))],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
            retry=QUICK,
        ) as stand:
            reply = await stand.ask(ask(CHAT, b"x-sidecar-fallback: off", model="fast"))
            assert (reply.status, len(stand.peer.requests), len(other.connections)) == (503, 3, 0)


CAUSES = {
    "error": answer(b"{}", status=b"500 Oh"),
    "rate_limit": answer(b"{}", status=b"429 Slow"),
    "timeout": answer(b"{}", status=b"504 Late"),
    "context_window": answer(b'{"error":{"code":"context_length_exceeded","message":"m"}}', status=b"400 Long"),
    "content_policy": answer(b'{"error":{"code":"content_filter","message":"m"}}', status=b"400 Bad"),
}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("word", [*CAUSES, "any"])
async def test_the_next_target_is_asked_for_the_causes_that_are_named(cause: str, word: str) -> None:
    asked = word in (cause, "any") or (word, cause) == ("error", "timeout")
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(
            [REQUEST, CAUSES[cause]],
            models={"fast": Model(targets=("lab/m", "other/m"), fallback_on=(word,))},  # type: ignore[arg-type]
            more=lambda _: {"other": provider(other)},
        ) as stand:
            reply = await stand.ask(ask(CHAT, stream=False, model="fast"))
            assert (reply.status == 200, len(stand.peer.requests), len(other.requests)) == (asked, 1, int(asked))


async def test_another_target_is_not_kept_waiting_for() -> None:
    """The first asks to be left alone for a second; the second would answer now."""
    limited = answer(b"{}", b"retry-after: 1", status=b"429 Slow")
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(
            [REQUEST, limited],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
            retry=Retry(),
        ) as stand:
            async with asyncio.timeout(0.5):
                reply = await stand.ask(ask(CHAT, model="fast"))
            assert (reply.status, len(stand.peer.requests), len(other.requests)) == (200, 1, 1)


# -- what is told


async def test_the_route_tells_the_plan_and_each_try() -> None:
    async with RawServer([Again((REQUEST, CHAT.whole()))]) as other:
        async with standing(
            [Again((REQUEST, BUSY))],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
            retry=Retry(attempts=1, base_seconds=0.01),
        ) as stand:
            reply = await stand.ask(ask(CHAT, b"x-sidecar-explain: 1", model="fast"))
            route = (reply.get(b"x-sidecar-route") or b"").decode()
            plan, _, tries = route.partition(": ")
            assert plan == "failover over lab/m, other/m"
            assert [each.partition(" after ")[0] for each in tries.split("; ") if not each.startswith("wait ")] == [
                "lab/m 503 provider_overloaded (overloaded)",
                "lab/m 503 provider_overloaded (overloaded)",
                "other/m answered",
            ]
            assert sum(each.startswith("wait ") for each in tries.split("; ")) == 1
            assert (await stand.ask(ask(CHAT, model="fast"))).get(b"x-sidecar-route") is None


# -- while it waits


async def test_a_client_that_leaves_during_the_back_off_ends_it() -> None:
    limited = answer(b"{}", b"retry-after: 1", status=b"429 Slow")
    async with standing([Again((REQUEST, limited))], retry=Retry()) as stand:
        async with stand.client() as client:
            client.write(ask(CHAT))
            await stand.peer.requested()
            await comes_true(lambda: " 1 under way" in repr(stand.app._duty.retries), "the back-off")
        await comes_true(stand.idle, "nothing is left of it", seconds=0.2)
        assert [row["status"] for row in await stand.recorded()] == [499]
        assert len(stand.peer.requests) == 1


async def test_a_reload_during_the_back_off_changes_nothing_for_it() -> None:
    limited = answer(b"{}", b"retry-after-ms: 200", status=b"429 Slow")
    async with standing([REQUEST, limited, REQUEST, CHAT.whole()], retry=Retry()) as stand:
        async with stand.client() as client:
            client.write(ask(CHAT, stream=False))
            await comes_true(lambda: " 1 under way" in repr(stand.app._duty.retries), "the back-off")
            before = stand.app.config
            empty = Config(
                server=before.server, providers={}, retry=Retry(attempts=0, budget_percent=0, budget_minimum=0)
            )
            stand.app.reload(empty)
            assert CHAT_BODY in await client.response()
            stand.app.reload(before)
        assert len(stand.peer.requests) == 2


async def test_no_retry_is_begun_for_a_client_that_left_and_is_stayed_with() -> None:
    until, asked = asyncio.Event(), asyncio.Event()
    script: Script = [REQUEST, Tell(asked), Pause(until), BUSY, REQUEST, CHAT.whole()]
    async with standing(script, retry=QUICK, on_disconnect=OnDisconnect(policy="drain")) as stand:
        async with stand.client() as client:
            client.write(ask(CHAT))
            await asked.wait()
        await comes_true(lambda: repr(stand.server).startswith("<Server 0 connections"), "the client is gone")
        until.set()
        await comes_true(stand.idle, "the end of it")
        assert len(stand.peer.requests) == 1
