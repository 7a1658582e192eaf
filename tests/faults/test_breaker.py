"""A target that keeps failing is left alone, then probed by one request at a time (D21); what counts against it."""

from __future__ import annotations

import asyncio
import time

import pytest

from sidecar.config import Breaker, Limits, Pool
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Pause, RawServer, Script
from tests.faults.stand import Stand, ask, comes_true, provider, standing
from tests.faults.transcripts import CHAT_EVENTS, LAST, WAYS, chunk, head, reply as answer

CHAT = WAYS["chat"]
BROKEN = answer(b"{}", status=b"500 Oh")
FIVE = {"breaker": Breaker(consecutive_failures=5, open_seconds=0.2)}
DOWN = (503, b"provider_unavailable")


def state(stand: Stand, target: str = "lab/m") -> object:
    return next(row["breaker"] for row in stand.app._duty.health.stats() if row.get("target") == target)


async def ready(stand: Stand) -> None:
    """Its time is over: the next request is the probe."""
    breaker = stand.app._duty.health.target("lab/m", FIVE["breaker"]).breaker
    await comes_true(lambda: breaker.ready(time.monotonic()), "it may be probed")


async def fail(stand: Stand, times: int = 5, status: int = 500) -> None:
    for _ in range(times):
        assert (await stand.ask(ask(CHAT, stream=False))).status == status


async def test_the_sixth_is_refused_at_once_and_told_when_to_come_back() -> None:
    async with standing([Again((REQUEST, BROKEN))], options=FIVE) as stand:
        await fail(stand)
        spent = []
        for _ in range(3):  # the fastest, for this machine has other things to do
            began = time.monotonic()
            reply = await stand.ask(ask(CHAT))
            spent.append(time.monotonic() - began)
            assert (reply.status, reply.get(b"x-sidecar-error")) == DOWN
            assert 1 <= int(reply.get(b"retry-after-ms") or 0) <= 200
            assert (reply.get(b"retry-after"), reply.get(b"x-sidecar-attempts")) == (b"1", b"0")
            assert reply.json["error"]["code"] == "provider_unavailable"
        assert min(spent) < 0.02
        assert len(stand.peer.requests) == 5
        assert (await stand.ask(ask(CHAT, stream=False, model="lab/other"))).status == 500  # another target
        assert len(stand.peer.requests) == 6


async def test_one_request_probes_it_and_its_success_lets_all_in() -> None:
    until = asyncio.Event()
    five: Script = [step for _ in range(5) for step in (REQUEST, BROKEN)]
    good: Script = [Again((REQUEST, CHAT.whole()))]

    def script(number: int) -> Script:
        return [*five, REQUEST, Pause(until), CHAT.whole(), *good] if not number else good

    async with standing(script, options=FIVE) as stand:
        await fail(stand)
        await ready(stand)
        probe = asyncio.ensure_future(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested(6)
        others = await asyncio.gather(*(stand.ask(ask(CHAT, stream=False)) for _ in range(20)))
        assert {(reply.status, reply.get(b"x-sidecar-error")) for reply in others} == {DOWN}
        assert len(stand.peer.requests) == 6  # exactly one
        until.set()
        assert (await probe).status == 200
        assert state(stand) == "closed"
        assert {(await stand.ask(ask(CHAT, stream=False))).status for _ in range(3)} == {200}
        assert len(stand.peer.requests) == 9


@pytest.mark.parametrize("how", ["leaves", "is refused for its own fault"])
async def test_a_probe_that_says_nothing_makes_way_for_the_next(how: str) -> None:
    five: Script = [step for _ in range(5) for step in (REQUEST, BROKEN)]
    sixth: Script = [REQUEST] if how == "leaves" else [REQUEST, answer(b"{}", status=b"400 Bad")]
    good: Script = [REQUEST, CHAT.whole()]

    async with standing(lambda n: good if n else [*five, *sixth, *good], options=FIVE) as stand:
        await fail(stand)
        await ready(stand)
        if how == "leaves":
            async with stand.client() as client:
                client.write(ask(CHAT))
                await stand.peer.requested(6)
                assert state(stand) == "half-open"
            await comes_true(stand.idle, "the probe is over")
        else:
            await fail(stand, 1, 400)
        assert (await stand.ask(ask(CHAT, stream=False))).status == 200
        assert (state(stand), len(stand.peer.requests)) == ("closed", 7)


async def test_another_target_is_asked_in_its_place() -> None:
    async with RawServer([Again((REQUEST, CHAT.whole()))]) as other:
        async with standing(
            [Again((REQUEST, BROKEN))],
            models={"fast": ("lab/m", "other/m")},
            more=lambda _: {"other": provider(other)},
            options=FIVE,
        ) as stand:
            for _ in range(8):
                assert (await stand.ask(ask(CHAT, stream=False, model="fast"))).status == 200
            assert (len(stand.peer.requests), len(other.requests)) == (5, 8)


ROLE = head() + chunk(CHAT_EVENTS[0])
ONE = ROLE + chunk(CHAT_EVENTS[1])
FAULT = chunk(b'data: {"error":{"message":"boom","type":"server_error"}}\n\n')
CUTS: dict[str, Script] = {
    "reset in front of content": [REQUEST, ROLE, RST],
    "reset behind content": [REQUEST, ONE, RST],
    "an end without the last word": [REQUEST, ONE + LAST, CLOSE],
    "an error behind content": [REQUEST, ONE + FAULT + LAST, CLOSE],
    "broken chunks behind content": [REQUEST, ONE + b"zz\r\n", CLOSE],
    "silence behind content": [REQUEST, ONE],
    "nothing at all": [REQUEST],
    "an empty stream": [REQUEST, head() + chunk(b"data: [DONE]\n\n") + LAST, CLOSE],
}


@pytest.mark.parametrize("script", CUTS.values(), ids=CUTS)
async def test_streams_that_break_off_count_as_failures(script: Script) -> None:
    times = {"first_byte_seconds": 0.05, "idle_seconds": 0.05}
    async with standing(script, options=FIVE, timeouts=times) as stand:
        await asyncio.gather(*(stand.ask(ask(CHAT)) for _ in range(5)))
        assert len(stand.peer.requests) == 5
        reply = await stand.ask(ask(CHAT))
        assert (reply.status, reply.get(b"x-sidecar-error"), len(stand.peer.requests)) == (*DOWN, 5)


GOOD: dict[str, Script] = {
    "a good stream": [REQUEST, CHAT.stream(), CLOSE],
    "a cut behind the last word": [REQUEST, CHAT.stream().removesuffix(LAST), CLOSE],
    "the request's fault": [REQUEST, answer(b"{}", status=b"400 Bad"), CLOSE],
    "the key's fault": [REQUEST, answer(b"{}", status=b"401 No"), CLOSE],
    "too many": [REQUEST, answer(b"{}", status=b"429 Slow"), CLOSE],
}


@pytest.mark.parametrize("script", GOOD.values(), ids=GOOD)
async def test_what_is_no_failure_of_its_does_not_count(script: Script) -> None:
    async with standing(script, options=FIVE) as stand:
        for _ in range(7):
            await stand.ask(ask(CHAT))
        assert (state(stand), len(stand.peer.requests)) == ("closed", 7)


@pytest.mark.parametrize("sent", [b"", ONE], ids=["nothing", "content"])
async def test_clients_that_leave_or_give_no_time_do_not_count(sent: bytes) -> None:
    async with standing([REQUEST, sent], options=FIVE) as stand:
        for count in range(1, 7):
            async with stand.client() as client:
                client.write(ask(CHAT))
                await stand.peer.requested(count)
        for _ in range(6):  # whoever asks so may not take it from the others
            reply = await stand.ask(ask(CHAT, b"x-sidecar-timeout-ms: 30"))
            assert reply.status == (200 if sent else 504)
        assert (state(stand), len(stand.peer.requests)) == ("closed", 12)


async def test_our_own_full_pool_does_not_count() -> None:
    until = asyncio.Event()
    options = {**FIVE, "pool": Pool(max_connections=1), "limits": Limits(concurrency=50)}
    async with standing([REQUEST, Pause(until), CHAT.whole()], options=options) as stand:
        held = asyncio.ensure_future(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested()
        waiting = [asyncio.ensure_future(stand.ask(ask(CHAT, b"x-sidecar-timeout-ms: 50"))) for _ in range(7)]
        assert {(await each).status for each in waiting} <= {503, 504}
        assert state(stand) == "closed"
        until.set()
        assert (await held).status == 200


# -- limits that are found


async def test_the_bound_is_what_was_found_to_work_and_grows_again() -> None:
    until = asyncio.Event()
    script: Script = [REQUEST, Pause(until), CHAT.whole(), Again((REQUEST, CHAT.whole()))]
    async with standing(script, options={"limits": Limits(adaptive=True)}) as stand:
        aimd = stand.app._duty.health.aimd("lab", True)
        assert aimd is not None
        aimd._limit = 4.0  # as after a brown-out
        asked = [asyncio.ensure_future(stand.ask(ask(CHAT, stream=False))) for _ in range(8)]
        await stand.peer.requested(4)
        await comes_true(lambda: " 4 waiting>" in repr(stand.app._limits), "four wait")
        assert len(stand.peer.requests) == 4
        until.set()
        assert {(await each).status for each in asked} == {200}
        assert stand.app._spine.providers["lab"].most == aimd.limit > 4


@pytest.mark.parametrize(
    ("script", "cut"),
    [
        ([REQUEST, answer(b"{}", status=b"429 Slow"), CLOSE], True),
        ([REQUEST, answer(b"{}", status=b"503 Busy"), CLOSE], True),
        ([REQUEST, answer(b"{}", status=b"529 Busy"), CLOSE], True),
        ([REQUEST], True),
        ([REQUEST, ONE], True),
        ([REQUEST, answer(b"{}", status=b"500 Oh"), CLOSE], False),
        ([REQUEST, answer(b"{}", status=b"400 Bad"), CLOSE], False),
        ([REQUEST, ONE, RST], False),
    ],
    ids=["429", "503", "529", "first byte", "idle", "500", "400", "reset"],
)
async def test_what_cuts_an_adaptive_limit(script: Script, cut: bool) -> None:
    times = {"first_byte_seconds": 0.05, "idle_seconds": 0.05}
    async with standing(script, options={"limits": Limits(adaptive=True)}, timeouts=times) as stand:
        await stand.ask(ask(CHAT))
        aimd = stand.app._duty.health.aimd("lab", True)
        assert aimd is not None
        assert aimd.limit == (90 if cut else 100)
