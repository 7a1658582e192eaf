"""What a provider says is left of its limits: nothing is sent that it would refuse; requests wait for it or go on."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.config import Key, Model, Provider, Retry
from tests.faults.peer import REQUEST, Again, RawServer, Script
from tests.faults.stand import Stand, ask, standing
from tests.faults.test_keys import KEYS, keyed, sent
from tests.faults.transcripts import CHAT_BODY, EVERY_WAY, WAYS, Way, reply

LAB, CLAUDE = WAYS["chat"], WAYS["messages"]
TWO = {"two": Model(targets=("lab/m", "claude/m"))}


def openai(requests: int = 59, tokens: int = 149_984, most: int = 60, reset: bytes = b"1m0s") -> tuple[bytes, ...]:
    return (
        b"x-ratelimit-limit-requests: %d" % most,
        b"x-ratelimit-remaining-requests: %d" % requests,
        b"x-ratelimit-reset-requests: %b" % reset,
        b"x-ratelimit-limit-tokens: 150000",
        b"x-ratelimit-remaining-tokens: %d" % tokens,
        b"x-ratelimit-reset-tokens: 1m0s",
    )


def anthropic(tokens: int) -> tuple[bytes, ...]:
    return (
        b"anthropic-ratelimit-requests-limit: 60",
        b"anthropic-ratelimit-requests-remaining: 59",
        b"anthropic-ratelimit-requests-reset: 2020-01-01T00:00:00Z",
        b"anthropic-ratelimit-input-tokens-limit: 60000",
        b"anthropic-ratelimit-input-tokens-remaining: %d" % tokens,
        b"anthropic-ratelimit-input-tokens-reset: 2099-01-01T00:00:00Z",
    )


def asked(stand: Stand) -> list[bytes]:
    """The paths that the providers were asked at."""
    return [request.split(b" ", 2)[1] for request in stand.peer.requests]


async def test_a_provider_with_nothing_left_is_not_asked_where_another_may_be() -> None:
    first = reply(CHAT_BODY, *openai(0))
    script: Script = [Again((REQUEST, first))]
    other: Script = [Again((REQUEST, WAYS["chat from messages"].whole()))]
    async with standing(lambda number: script if number == 0 else other, models=TWO) as stand:
        answers = [await stand.ask(ask(LAB, b"x-sidecar-explain: 1", model="two", stream=False)) for _ in range(3)]
        assert [each.get(b"x-sidecar-provider") for each in answers] == [b"lab", b"claude", b"claude"]
        assert [each.get(b"x-sidecar-attempts") for each in answers] == [b"1", b"1", b"1"]
        assert asked(stand) == [b"/v1/chat/completions", b"/v1/messages", b"/v1/messages"]
        assert b"lab/m provider_limited" in (answers[1].get(b"x-sidecar-route") or b"")


async def test_where_nobody_else_may_be_asked_the_first_to_come_back_is_waited_for() -> None:
    script: Script = [REQUEST, reply(CHAT_BODY, *openai(0, most=600)), REQUEST, LAB.whole()]  # one in 100 ms
    async with standing(script, retry=Retry()) as stand:
        loop = asyncio.get_running_loop()
        assert (await stand.ask(ask(LAB, stream=False))).status == 200
        began = loop.time()
        told = await stand.ask(ask(LAB, b"x-sidecar-explain: 1", stream=False))
        assert told.status == 200
        assert loop.time() - began > 0.08
        assert b"; wait " in (told.get(b"x-sidecar-route") or b"")
        assert len(asked(stand)) == 2


async def test_what_would_be_waited_for_too_long_is_refused_and_told_when() -> None:
    async with standing([REQUEST, reply(CHAT_BODY, *openai(0, most=6))], retry=Retry()) as stand:  # one in ten seconds
        assert (await stand.ask(ask(LAB, stream=False))).status == 200
        refusal = await stand.ask(ask(LAB, stream=False))
        assert (refusal.status, refusal.get(b"x-sidecar-error")) == (429, b"provider_limited")
        assert 8000 < int(refusal.get(b"retry-after-ms") or 0) <= 10_000
        assert len(asked(stand)) == 1


async def test_another_key_with_more_left_is_taken() -> None:
    script: Script = [REQUEST, reply(CHAT_BODY, *openai(0)), Again((REQUEST, reply(CHAT_BODY, *openai(50))))]
    async with keyed(script) as stand:
        for _ in range(4):
            assert (await stand.ask(ask(LAB, model="many/m", stream=False))).status == 200
        assert sent(stand) == [KEYS[0], KEYS[1], KEYS[1], KEYS[1]]


async def test_one_that_needs_more_tokens_than_are_left_goes_on_and_a_smaller_one_does_not() -> None:
    script: Script = [Again((REQUEST, reply(CHAT_BODY, *openai(tokens=2000))))]
    other: Script = [Again((REQUEST, WAYS["chat from messages"].whole()))]
    scripts = {0: script, 1: other, 2: script}
    async with standing(lambda number: scripts[number], models=TWO) as stand:
        for most, name in ((9, b"lab"), (100_000, b"claude"), (100, b"lab")):
            told = await stand.ask(ask(LAB, model="two", stream=False, max_tokens=most))
            assert told.get(b"x-sidecar-provider") == name


async def test_anthropics_input_sends_a_long_prompt_on_but_not_one_that_is_cached() -> None:
    script: Script = [Again((REQUEST, reply(CLAUDE.theirs.body, *anthropic(100))))]
    other: Script = [Again((REQUEST, LAB.whole()))]
    scripts = {0: script, 1: other, 2: script}
    models = {"two": ("claude/m", "lab/m")}
    long = "word " * 1000
    cached = [{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]
    async with standing(lambda number: scripts[number], models=models) as stand:
        for more, name in (({}, b"claude"), ({"system": long}, b"lab"), ({"system": cached}, b"claude")):
            told = await stand.ask(ask(CLAUDE, model="two", stream=False, **more))
            assert told.get(b"x-sidecar-provider") == name


@pytest.mark.parametrize("left", [0, 100])
async def test_where_there_is_nobody_else_a_guess_refuses_nothing_but_nothing_left_does(left: int) -> None:
    async with standing([Again((REQUEST, reply(CLAUDE.theirs.body, *anthropic(left))))]) as stand:
        assert (await stand.ask(ask(CLAUDE, stream=False))).status == 200
        told = await stand.ask(ask(CLAUDE, stream=False, system="word " * 1000))
        assert (told.status, len(asked(stand))) == ((200, 2) if left else (429, 1))


async def test_what_one_callers_own_key_has_left_is_no_others() -> None:
    def more(raw: RawServer) -> dict[str, Provider]:
        url = f"http://127.0.0.1:{raw.port}/v1"
        return {"own": Provider(kind="openai-compatible", base_url=url, api_key=Key(source="caller"))}

    async with standing([Again((REQUEST, reply(CHAT_BODY, *openai(0, most=1))))], more=more) as stand:
        for name in (b"one", b"two", b"one"):
            told = await stand.ask(ask(LAB, b"authorization: Bearer " + name, model="own/m", stream=False))
            assert told.status == 200


@EVERY_WAY
async def test_once_all_is_there_again_nothing_is_remembered(way: Way) -> None:
    lines = (
        openai(0, most=600, reset=b"20ms")[:3]
        if way.theirs is LAB.theirs
        else (*anthropic(100)[:2], b"anthropic-ratelimit-requests-reset: 2020-01-01T00:00:00Z")
    )
    async with standing([Again((REQUEST, reply(way.theirs.body, *lines)))], retry=Retry(attempts=3)) as stand:
        assert (await stand.ask(ask(way, stream=False))).status == 200
        place = stand.app._spine.places[way.model]
        assert place.quota.short
        assert not place.simple
        await asyncio.sleep(0.03)
        assert place.quota.stats(asyncio.get_running_loop().time()) == []
        assert not place.quota.short
        assert (await stand.ask(ask(way, stream=False))).status == 200


async def test_requests_that_come_again_on_one_connection_heed_it_too() -> None:
    """They take a shorter way, which ends where little is left."""
    plenty, little = openai(9999, 1_499_984, most=10_000), openai(0, 1_499_984, most=6)
    script: Script = [
        *(REQUEST, reply(CHAT_BODY, *plenty)) * 3,
        *(REQUEST, reply(CHAT_BODY, *little)),
        *(REQUEST, reply(CHAT_BODY, *plenty)),
    ]
    async with standing(script) as stand, stand.client() as client:
        for number in range(4):
            client.write(ask(LAB, stream=False))
            await client.take_until(CHAT_BODY)
            assert stand.app._spine.places["lab/m"].simple == (number < 3)
        client.write(ask(LAB, stream=False))
        await client.take_until(b"has not as much left")
        assert len(asked(stand)) == 4


async def test_plenty_is_not_remembered_at_all() -> None:
    lines = openai(9999, 1_499_984, most=10_000)
    async with standing([REQUEST, reply(CHAT_BODY, *lines)]) as stand:
        assert (await stand.ask(ask(LAB, stream=False))).status == 200
        assert stand.app._spine.places["lab/m"].simple


async def test_status_tells_what_each_target_has_left() -> None:
    async with standing([REQUEST, reply(CHAT_BODY, *openai(7, 1000, most=6000))]) as stand:
        await stand.ask(ask(LAB, stream=False))
        told = await stand.ask(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n")
        (row,) = [each for each in told.json["health"] if each.get("target") == "lab/m"]
        ((left),) = row["left"]
        assert left["key"] == 0
        assert left["requests"] in range(7, 600)
        assert left["tokens"] in range(1000, 20_000)


async def test_what_was_learned_outlives_a_reload() -> None:
    async with standing([REQUEST, reply(CHAT_BODY, *openai(0, most=6))]) as stand:
        assert (await stand.ask(ask(LAB, stream=False))).status == 200
        stand.app.reload(stand.app.config)
        assert (await stand.ask(ask(LAB, stream=False))).status == 429
