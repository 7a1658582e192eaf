"""Hedges on real sockets: a second target is asked when the first is slow, within a budget; the first content wins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.config import Config, Model, OnDisconnect
from tests.faults.peer import GONE, REQUEST, RST, Again, Pause, Script, Tell
from tests.faults.stand import Stand, ask, comes_true, read, standing
from tests.faults.transcripts import BOTH, CHAT, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply

LAB = WAYS["chat"]
OFF = b"x-sidecar-fallback: off"
AFTER = 0.05
SOON = 0.05  # seconds within which a loser is left
WHOLE = b"".join(CHAT.events)


def hedged(**options: Any) -> dict[str, Model]:
    options = {"targets": ("lab/a", "lab/b"), "hedge_after_seconds": AFTER, "hedge_budget_percent": 100.0, **options}
    return {"two": Model(policy="hedge", **options)}


def both(first: Script, second: Script) -> Callable[[int], Script]:
    return lambda number: first if number == 0 else second


def refusal(status: bytes, words: bytes) -> bytes:
    return reply(b'{"error":{"message":"%b","type":"x","code":null}}' % words, status=status)


async def _left(stand: Stand, number: int, at: float) -> None:
    """The provider's connection of that number is closed, at most so long after a moment; the permits are back."""
    wire = stand.peer.connections[number]
    await comes_true(lambda: wire.how is not None, "left")
    assert wire.how in ("fin", "rst")
    assert wire.closed_at - at < SOON
    await comes_true(stand.idle, "idle")


@BOTH
async def test_the_second_is_asked_after_a_time_and_its_answer_is_given(stream: bool) -> None:
    good = LAB.stream() if stream else LAB.whole()
    async with standing(both([REQUEST, GONE], [REQUEST, good]), models=hedged()) as stand, stand.client() as client:
        loop = asyncio.get_running_loop()
        client.write(ask(LAB, b"x-sidecar-explain: 1", model="two", stream=stream))
        await client.take_until(LAST if stream else CHAT.body)
        at = loop.time()
        await _left(stand, 0, at)
        assert at - stand.peer.connections[0].opened_at < 0.5
        answer = read(bytes(client.received))
        rows = await stand.recorded()
        assert len(stand.peer.requests) == 2
    assert answer.body == (WHOLE if stream else CHAT.body)
    assert (answer.get(b"x-sidecar-model"), answer.get(b"x-sidecar-attempts")) == (b"b", b"2")
    assert b": hedged after " in (answer.get(b"x-sidecar-route") or b"")
    assert [(row["model"], row["attempts"], row["status"], row["error"]) for row in rows] == [("b", 2, 200, "")]


async def test_a_first_that_answers_in_time_is_asked_alone() -> None:
    async with standing([REQUEST, LAB.stream()], models=hedged(hedge_after_seconds=5.0)) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        assert (answer.body, answer.get(b"x-sidecar-model")) == (WHOLE, b"a")
        assert len(stand.peer.requests) == 1


async def test_the_first_may_still_win() -> None:
    asked = asyncio.Event()
    first: Script = [REQUEST, Pause(asked), LAB.stream()]
    async with standing(both(first, [REQUEST, Tell(asked), GONE]), models=hedged()) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        at = asyncio.get_running_loop().time()
        assert (answer.body, answer.get(b"x-sidecar-model")) == (WHOLE, b"a")
        await _left(stand, 1, at)
        assert len(stand.peer.requests) == 2


@EVERY_WAY
async def test_content_wins_and_not_the_first_byte(way: Way) -> None:
    """The first sends a head, comments, a role; the second's first content is before its own."""
    early: Script = [REQUEST, head(), chunk(b": ping\n\n"), chunk(way.theirs.events[0]), GONE]
    name = way.model.partition("/")[0]
    models = hedged(targets=(f"{name}/a", f"{name}/b"))
    async with standing(both(early, [REQUEST, way.stream()]), models=models) as stand:
        answer = await stand.ask(ask(way, model="two"))
        assert answer.ended
        assert way.ours.done in answer.body
        assert answer.get(b"x-sidecar-model") == b"b"
        assert len(stand.peer.requests) == 2


async def test_a_client_that_wants_no_other_target_gets_none() -> None:
    go_on = asyncio.Event()
    async with standing([REQUEST, Pause(go_on), LAB.stream()], models=hedged()) as stand, stand.client() as client:
        client.write(ask(LAB, OFF, model="two"))
        await stand.peer.requested()
        await asyncio.sleep(AFTER * 3)
        assert len(stand.peer.connections) == 1
        go_on.set()
        await client.take_until(LAST)
        assert read(bytes(client.received)).body == WHOLE


async def test_the_budget_bounds_hedges_but_no_fall_backs() -> None:
    """Of two requests at once one may be hedged, however small the percentage; the other waits for the first target."""
    fails = asyncio.Event()
    slow: Script = [REQUEST, Pause(fails), refusal(b"500 Oh", b"no")]

    def script(number: int) -> Script:
        return slow if number < 2 else [Again((REQUEST, LAB.stream()))]

    async with standing(script, models=hedged(hedge_budget_percent=1.0)) as stand:
        async with stand.client() as one, stand.client() as two:
            one.write(ask(LAB, model="two"))
            two.write(ask(LAB, model="two"))
            await stand.peer.requested(3)
            await asyncio.sleep(AFTER * 3)
            assert len(stand.peer.requests) == 3
            fails.set()  # the one that was not hedged falls back then
            await one.take_until(LAST)
            await two.take_until(LAST)
        assert len(stand.peer.requests) == 4
        rows = await stand.recorded(2)
        assert [(row["model"], row["attempts"], row["status"]) for row in rows] == [("b", 2, 200)] * 2


async def test_without_a_time_of_its_own_it_is_the_p95_of_the_first() -> None:
    def script(number: int) -> Script:
        return [REQUEST, GONE] if number == 0 else [REQUEST, LAB.stream()]

    async with standing(script, models=hedged(hedge_after_seconds=None)) as stand:
        latency = stand.app._duty.health.target("lab/a", stand.app.config.providers["lab"].breaker).latency
        moment = asyncio.get_running_loop().time()
        for _ in range(40):
            latency.observe(0.06, moment)
        began = asyncio.get_running_loop().time()
        answer = await stand.ask(ask(LAB, model="two"))
        assert answer.get(b"x-sidecar-model") == b"b"
        assert 0.06 <= asyncio.get_running_loop().time() - began < 0.5
        assert len(stand.peer.requests) == 2


@pytest.mark.parametrize("status", [b"500 Oh", b"429 Slow", b"401 Who"])
async def test_a_first_that_fails_early_is_followed_at_once(status: bytes) -> None:
    first: Script = [REQUEST, refusal(status, b"no"), GONE]
    models = hedged(hedge_after_seconds=5.0)
    async with standing(both(first, [REQUEST, LAB.stream()]), models=models) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        assert (answer.status, answer.body, answer.get(b"x-sidecar-model")) == (200, WHOLE, b"b")
        assert len(stand.peer.requests) == 2


async def test_a_first_whose_request_is_at_fault_is_not_followed() -> None:
    async with standing([REQUEST, refusal(b"400 Bad", b"no such thing")], models=hedged()) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        assert (answer.status, answer.json["error"]["message"]) == (400, "no such thing")
        assert len(stand.peer.requests) == 1
        assert [(row["model"], row["status"]) for row in await stand.recorded()] == [("a", 400)]


async def test_what_the_first_must_not_fall_back_on_the_second_does_not_mend() -> None:
    """It was asked for the time it takes, not for another mind."""
    asked = asyncio.Event()
    words = b"content_policy_violation: your request was rejected by our safety system"
    first: Script = [REQUEST, Pause(asked), refusal(b"400 Bad", words)]
    async with standing(both(first, [REQUEST, Tell(asked), GONE]), models=hedged()) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        assert answer.status == 400
        await _left(stand, 1, asyncio.get_running_loop().time())
        assert len(stand.peer.requests) == 2


@BOTH
async def test_both_fail_and_one_error_tells(stream: bool) -> None:
    first: Script = [REQUEST, refusal(b"500 Oh", b"the first"), GONE]
    second: Script = [REQUEST, refusal(b"503 Oh", b"the second"), GONE]
    async with standing(both(first, second), models=hedged()) as stand:
        answer = await stand.ask(ask(LAB, model="two", stream=stream))
        assert (answer.status, answer.json["error"]["message"], answer.rest) == (503, "the second", b"")
        assert (answer.get(b"x-sidecar-model"), answer.get(b"x-should-retry")) == (b"b", b"false")
        assert len(stand.peer.requests) == 2
        row = (await stand.recorded())[0]
    assert (row["model"], row["status"], row["attempts"]) == ("b", 503, 2)


async def test_both_fail_and_the_first_last() -> None:
    """The record is of the target whose error is given."""
    asked = asyncio.Event()
    first: Script = [REQUEST, Pause(asked), refusal(b"500 Oh", b"the first"), GONE]
    second: Script = [REQUEST, refusal(b"503 Oh", b"the second"), GONE]
    async with standing(both(first, second), models=hedged()) as stand, stand.client() as client:
        client.write(ask(LAB, model="two"))
        await stand.peer.requested(2)
        await asyncio.sleep(AFTER)
        asked.set()
        answer = read(await client.response())
        assert (answer.status, answer.json["error"]["message"]) == (500, "the first")
        assert answer.get(b"x-sidecar-model") == b"a"
        assert [(row["model"], row["status"]) for row in await stand.recorded()] == [("a", 500)]


async def test_both_are_cut_and_the_third_answers() -> None:
    def script(number: int) -> Script:
        return [REQUEST, RST] if number < 2 else [REQUEST, LAB.stream()]

    models = hedged(targets=("lab/a", "lab/b", "lab/c"))
    async with standing(script, models=models) as stand:
        answer = await stand.ask(ask(LAB, model="two"))
        assert (answer.status, answer.get(b"x-sidecar-model")) == (200, b"c")
        assert len(stand.peer.requests) == 3


@pytest.mark.parametrize("policy", ["cancel", "drain"])
async def test_a_client_that_leaves_in_between_ends_both(policy: Any) -> None:
    """With `drain` those that were asked are heard out, and nobody else is asked."""
    drained = asyncio.Event()
    script: Script = [REQUEST, *([GONE] if policy == "cancel" else [Pause(drained), LAB.whole()])]
    settings: dict[str, Any] = {"on_disconnect": OnDisconnect(policy=policy)}
    async with standing(script, models=hedged(), **settings) as stand, stand.client() as client:
        client.write(ask(LAB, model="two", stream=False))
        await stand.peer.requested(2)
        await client.run(RST)
        at = asyncio.get_running_loop().time()
        if policy == "drain":
            await comes_true(lambda: stand.server.work, "going on")
            drained.set()
            await comes_true(stand.idle, "idle")
        else:
            await _left(stand, 0, at)
            await _left(stand, 1, at)
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert len(stand.peer.requests) == 2


async def test_a_client_that_left_before_the_hedge_is_not_hedged_for() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.whole()]
    drain: dict[str, Any] = {"on_disconnect": OnDisconnect(policy="drain")}
    async with standing(script, models=hedged(), **drain) as stand, stand.client() as client:
        client.write(ask(LAB, model="two", stream=False))
        await stand.peer.requested()
        await client.run(RST)
        await asyncio.sleep(AFTER * 3)
        go_on.set()
        row = (await stand.recorded())[0]
        assert (row["status"], row["input_tokens"]) == (499, 3)
        assert len(stand.peer.requests) == 1


async def test_losers_hold_nothing_back(anyio_backend: object) -> None:
    """A first that fails and a second that wins at the same moment: the first's refusal is given back as well."""
    go_on = asyncio.Event()
    first: Script = [REQUEST, Pause(go_on), refusal(b"500 Oh", b"no"), GONE]
    second: Script = [
        REQUEST,
        Pause(go_on),
        head(kind=JSON, framing=b"content-length: %d" % len(CHAT.body)) + CHAT.body,
    ]
    async with standing(both(first, second), models=hedged()) as stand, stand.client() as client:
        client.write(ask(LAB, model="two", stream=False))
        await stand.peer.requested(2)
        go_on.set()
        assert read(await client.response()).body == CHAT.body


async def test_another_percentage_after_a_reload_counts_at_once() -> None:
    async with standing([Again((REQUEST, LAB.stream()))], models=hedged(hedge_budget_percent=0.0)) as stand:
        await stand.ask(ask(LAB, model="two"))
        old: Config = stand.app.config
        tables = {"two": Model(targets=("lab/a", "lab/b"), policy="hedge", hedge_budget_percent=50.0)}
        stand.app.reload(type(old)(server=old.server, providers=old.providers, models=tables, retry=old.retry))
        await stand.ask(ask(LAB, model="two"))
        budgets = [repr(each) for each in stand.app._duty.hedges.values()]
        assert budgets == ["<HedgeBudget 0 for 1 requests>"] * 2
