"""Limits of tokens on real sockets: reserved by a guess, settled by what the provider counted, whatever became of it.

The rates here are so slow that nothing to speak of comes back during a test: what is used is exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec
import pytest

from sidecar import rates
from sidecar.config import Breaker, Limits, Model, OnDisconnect, Retry
from sidecar.rates import KINDS, input_tokens
from tests.e2e.doors import CALLER_KEY, caller
from tests.faults.peer import GONE, REQUEST, RST, Again, Pause, Script, Tell
from tests.faults.stand import Reply, Stand, ask, closing, comes_true, standing
from tests.faults.transcripts import BOTH, CHAT, EVERY_WAY, LAST, WAYS, Way, chunk, head, reply

LAB, CLAUDE = WAYS["chat"], WAYS["messages"]
SIXTY: Final[dict[str, Any]] = dict.fromkeys((name for name, _, _ in KINDS), 60)
KEY: Final = b"authorization: Bearer " + CALLER_KEY.encode()
USAGE: Final = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
)
ALL: Final = {"tokens_per_minute": 5, "input_tokens_per_minute": 3, "output_tokens_per_minute": 2}
NONE: Final = dict.fromkeys(ALL, 0)
RETRY: Final = Retry(base_seconds=0.001)


def limited(
    script: Script | Callable[[int], Script], models: dict[str, Model] | None = None, **config: Any
) -> AbstractAsyncContextManager[Stand]:
    """The sidecar with sixty tokens a minute of each kind for the caller, the models, and each provider."""
    options = {"limits": Limits(**SIXTY), **config.pop("options", {})}
    tables = {name: msgspec.structs.replace(model, **SIXTY) for name, model in (models or {}).items()}
    return standing(script, models=tables, options=options, callers={"web": caller(**SIXTY)}, **config)


def used(stand: Stand, key: str = "caller:web") -> dict[str, int]:
    """Tokens that are taken, by kind: of a bucket that has not been empty since the first."""
    buckets = stand.app._limits._counters[key].tokens
    assert buckets is not None
    return {each.name: round(max(each.due - each.since, 0) * each.per_minute / 60) for each in buckets}


def guessed(request: bytes) -> int:
    """What the input of a request is guessed to be."""
    return input_tokens(
        map(bytes, msgspec.json.decode(request.partition(b"\r\n\r\n")[2], type=dict[str, msgspec.Raw]).values())
    )


def by_kind(input_: int, output: int) -> dict[str, int]:
    return dict(zip(ALL, (input_ + output, input_, output), strict=True))


def streamed(way: Way, usage: bool = True) -> bytes:
    """A stream with the usage where providers of that dialect have it."""
    events = way.theirs.events
    if way.theirs is CHAT and usage:
        events = (*events[:-1], USAGE, events[-1])
    return head() + b"".join(map(chunk, events)) + LAST


# -- settled by the provider's count


@BOTH
@EVERY_WAY
async def test_an_answer_costs_its_caller_its_model_and_its_provider_what_the_provider_counted(
    way: Way, stream: bool
) -> None:
    models = {"mine": Model(targets=(way.model,))}
    answer = streamed(way) if stream else way.whole()
    async with limited([REQUEST, answer], models) as stand:
        assert (await stand.ask(ask(way, KEY, model="mine", stream=stream))).status == 200
        provider = way.model.partition("/")[0]
        await comes_true(stand.idle, "idle")
        for key in ("caller:web", "model:mine", f"provider:{provider}"):
            assert used(stand, key) == ALL, key


async def test_what_is_reserved_is_the_guess_and_all_that_the_answer_may_have() -> None:
    asked = asyncio.Event()
    request = ask(LAB, KEY, stream=False)
    async with limited([REQUEST, Tell(asked), Pause(let := asyncio.Event()), LAB.whole()]) as stand:
        waiting = asyncio.ensure_future(stand.ask(request))  # awaited below
        await asked.wait()
        assert used(stand) == used(stand, "provider:lab") == by_kind(guessed(request), 9)
        let.set()
        assert (await waiting).status == 200
        assert used(stand) == used(stand, "provider:lab") == ALL


async def test_a_stream_that_is_not_counted_is_guessed_by_its_bytes() -> None:
    request = ask(LAB, KEY)
    async with limited([REQUEST, streamed(LAB, usage=False)]) as stand:
        answer = await stand.ask(request)
        assert used(stand) == by_kind(guessed(request), len(answer.body) // 128)


async def test_a_body_that_is_not_counted_is_guessed_by_its_bytes_but_no_more_than_was_allowed() -> None:
    request = ask(LAB, KEY, stream=False)
    async with limited(
        [REQUEST, reply(b'{"choices":[{"message":{"role":"assistant","content":"%b"}}]}' % (b"x" * 400))]
    ) as stand:
        assert (await stand.ask(request)).status == 200
        assert used(stand) == by_kind(guessed(request), 9)


# -- what does not end well


@EVERY_WAY
@pytest.mark.parametrize("how", ["left", "cut"])
async def test_an_answer_that_breaks_off_or_is_left_costs_what_had_come_of_it(way: Way, how: str) -> None:
    """Anthropic tells the input at the beginning, OpenAI nothing before the end: the rest is guessed by bytes."""
    request = ask(way, KEY)
    sent = way.stream(3)
    script: Script = [REQUEST, sent, RST] if how == "cut" else [REQUEST, sent, GONE]
    async with limited(script) as stand:
        async with stand.client() as client:
            client.write(closing(request))
            await client.take_until("tw\u00f6".encode() if way.theirs is not CHAT else b"tw")
            if how == "cut":
                await client.rest()
        await comes_true(stand.idle, "idle")
        (row,) = await stand.recorded()
        wrote = max(min(row["bytes_out"] // 128, 9), 1 if way.theirs is not CHAT else 0)
        known = 3 if way.theirs is not CHAT else guessed(request)
        assert wrote > 0
        assert used(stand) == by_kind(known, wrote)
        assert used(stand, "provider:lab" if way.theirs is CHAT else "provider:claude") == by_kind(known, wrote)


async def test_one_that_is_left_before_anything_comes_has_been_read_there() -> None:
    request = ask(LAB, KEY)
    asked = asyncio.Event()
    async with limited([REQUEST, Tell(asked), GONE]) as stand:
        async with stand.client() as client:
            client.write(request)
            await asked.wait()
        await comes_true(stand.idle, "idle")
        assert used(stand) == used(stand, "provider:lab") == by_kind(guessed(request), 0)


async def test_one_whose_client_has_left_is_counted_where_it_is_read_to_its_end() -> None:
    asked, let = asyncio.Event(), asyncio.Event()
    script: Script = [REQUEST, Tell(asked), Pause(let), streamed(LAB)]
    async with limited(script, on_disconnect=OnDisconnect(policy="drain")) as stand:
        async with stand.client() as client:
            client.write(ask(LAB, KEY))
            await asked.wait()
        let.set()
        await comes_true(stand.idle, "idle")
        assert used(stand) == used(stand, "provider:lab") == ALL


@pytest.mark.parametrize("status", [b"400 Bad", b"401 No", b"429 Slow", b"500 Oh"])
async def test_a_refusal_costs_nothing(status: bytes) -> None:
    async with limited([REQUEST, reply(b'{"error":{"message":"no"}}', status=status)]) as stand:
        assert (await stand.ask(ask(LAB, KEY))).status == int(status[:3])
        assert used(stand) == used(stand, "provider:lab") == NONE


async def test_what_is_never_sent_costs_nothing() -> None:
    async with limited([RST]) as stand:
        assert (await stand.ask(ask(LAB, KEY))).status == 502
        assert used(stand) == used(stand, "provider:lab") == NONE


async def test_who_finds_its_target_down_behind_the_queue_has_used_nothing() -> None:
    asked, let = asyncio.Event(), asyncio.Event()
    options = {
        "limits": Limits(concurrency=1, **SIXTY),
        "breaker": Breaker(consecutive_failures=1, open_seconds=60.0),
    }
    script: Script = [REQUEST, Tell(asked), Pause(let), reply(b"{}", status=b"500 Oh")]
    async with limited(script, options=options) as stand:
        async with asyncio.TaskGroup() as group:
            group.create_task(stand.ask(ask(LAB, KEY)))
            await asked.wait()
            second = group.create_task(stand.ask(ask(LAB, KEY)))
            lab = stand.app._limits._counters["provider:lab"]
            await comes_true(lambda: len(lab.waiting) == 1, "waiting")
            let.set()
        assert (second.result().status, second.result().get(b"x-sidecar-error")) == (503, b"provider_unavailable")
        assert used(stand) == used(stand, "provider:lab") == NONE


# -- several tries


@BOTH
async def test_a_retry_costs_its_caller_once(stream: bool) -> None:
    good = streamed(LAB) if stream else LAB.whole()
    async with limited([REQUEST, reply(b"{}", status=b"500 Oh"), REQUEST, good], retry=RETRY) as stand:
        answer = await stand.ask(ask(LAB, KEY, stream=stream))
        assert (answer.status, answer.get(b"x-sidecar-attempts")) == (200, b"2")
        assert used(stand) == used(stand, "provider:lab") == ALL


async def test_a_fall_back_costs_the_provider_that_answered() -> None:
    models = {"two": Model(targets=("lab/m", "claude/m"))}
    scripts: tuple[Script, ...] = (
        [REQUEST, reply(b"{}", status=b"503 Oh")],
        [REQUEST, WAYS["chat from messages"].whole()],
    )
    async with limited(lambda number: scripts[number], models) as stand:
        assert (await stand.ask(ask(LAB, KEY, model="two", stream=False))).get(b"x-sidecar-provider") == b"claude"
        assert used(stand, "provider:lab") == NONE
        assert used(stand) == used(stand, "model:two") == used(stand, "provider:claude") == ALL


async def test_a_hedge_costs_its_caller_the_answer_and_the_loser_what_it_was_asked() -> None:
    models = {
        "two": Model(targets=("lab/m", "claude/m"), policy="hedge", hedge_after_seconds=0.02, hedge_budget_percent=100)
    }
    scripts: tuple[Script, ...] = ([REQUEST, GONE], [REQUEST, WAYS["chat from messages"].whole()])
    request = ask(LAB, KEY, model="two", stream=False)
    async with limited(lambda number: scripts[number], models) as stand:
        assert (await stand.ask(request)).get(b"x-sidecar-provider") == b"claude"
        await comes_true(stand.idle, "idle")
        assert used(stand) == used(stand, "provider:claude") == ALL
        assert used(stand, "provider:lab") == by_kind(guessed(request), 0)


async def test_a_stream_that_goes_on_elsewhere_costs_both_parts() -> None:
    models = {"two": Model(targets=("claude/m", "claude/n"), continuation=True)}
    scripts: tuple[Script, ...] = ([REQUEST, CLAUDE.stream(3), RST], [REQUEST, streamed(CLAUDE)])
    async with limited(lambda number: scripts[number], models, options={"limits": Limits(concurrency=9)}) as stand:
        answer = await stand.ask(ask(CLAUDE, KEY, model="two"))
        assert (answer.status, answer.ended) == (200, True)
        assert used(stand) == by_kind(6, 3)


async def test_joined_requests_cost_one_answer() -> None:
    asked, let = asyncio.Event(), asyncio.Event()
    models = {"one": Model(targets=("lab/m",), coalesce=True)}
    async with limited([REQUEST, Tell(asked), Pause(let), LAB.whole()], models) as stand:
        request = ask(LAB, KEY, model="one", stream=False)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(stand.ask(request))
            await asked.wait()
            second = group.create_task(stand.ask(request))
            await comes_true(lambda: stand.app._limits._counters["caller:web"].running == 2, "joined")
            let.set()
        assert {first.result().get(b"x-sidecar-cache"), second.result().get(b"x-sidecar-cache")} == {
            b"off",
            b"coalesced",
        }
        await comes_true(stand.idle, "idle")
        assert used(stand) == used(stand, "provider:lab") == ALL


# -- refusals, and what the caller is told


@EVERY_WAY
async def test_who_has_used_its_tokens_is_told_when_there_are_some_again(way: Way) -> None:
    async with limited([Again((REQUEST, way.whole()))]) as stand:
        answers = [await stand.ask(ask(way, KEY, stream=False, max_tokens=60)) for _ in range(2)]
        assert [each.status for each in answers] == [200, 429]
        refusal = answers[1]
        assert refusal.get(b"x-sidecar-error") == b"policy_rate_limited"
        milliseconds = int(refusal.get(b"retry-after-ms") or 0)
        assert 3000 < milliseconds <= 5000
        assert refusal.get(b"retry-after") == b"%d" % -(-milliseconds // 1000)
        assert (
            refusal.json["error"]["type"] == "rate_limit_error"
            if way.ours is not CHAT
            else "message" in refusal.json["error"]
        )
        assert "tokens per minute reached" in refusal.json["error"]["message"]
        assert remaining(refusal, way) in range(55, 60)
        await comes_true(stand.idle, "idle")
        assert used(stand) == ALL
        assert len(stand.peer.requests) == 1


def remaining(answer: Reply, way: Way) -> int:
    name = b"x-ratelimit-remaining-tokens" if way.ours is CHAT else b"anthropic-ratelimit-tokens-remaining"
    return int(answer.get(name) or -1)


THEIRS: Final = (
    b"x-ratelimit-remaining-tokens: 999999",
    b"x-ratelimit-limit-requests: 7",
    b"anthropic-ratelimit-tokens-limit: 7",
)


@EVERY_WAY
@BOTH
async def test_a_caller_with_limits_is_told_of_its_own_and_not_of_the_providers(way: Way, stream: bool) -> None:
    answer = head(*THEIRS) + streamed(way).partition(b"\r\n\r\n")[2] if stream else reply(way.theirs.body, *THEIRS)
    async with limited([REQUEST, answer]) as stand:
        told = await stand.ask(ask(way, KEY, stream=stream))
        names = sorted(name.decode() for name, _ in told.headers if b"ratelimit" in name)
        if way.ours is CHAT:
            assert names == [f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")]
            assert told.get(b"x-ratelimit-limit-tokens") == b"60"
            assert (told.get(b"x-ratelimit-reset-tokens") or b"").endswith(b"s")
        else:
            kinds = ("input-tokens", "output-tokens", "tokens")
            assert names == [
                f"anthropic-ratelimit-{kind}-{what}" for kind in kinds for what in ("limit", "remaining", "reset")
            ]
        assert remaining(told, way) in range(35, 42)  # what is reserved is not there


@EVERY_WAY
async def test_without_limits_of_tokens_the_providers_headers_pass(way: Way) -> None:
    callers = {"web": caller(requests_per_minute=60)}
    async with standing([REQUEST, reply(way.theirs.body, *THEIRS)], callers=callers) as stand:
        told = await stand.ask(ask(way, KEY, stream=False))
        assert all(told.get(name) == value for name, _, value in (line.partition(b": ") for line in THEIRS))


async def test_a_refusal_by_requests_tells_what_is_left_too() -> None:
    callers = {"web": caller(requests_per_minute=1)}
    async with standing([REQUEST, LAB.whole()], callers=callers) as stand:
        await stand.ask(ask(LAB, KEY, stream=False))
        told = await stand.ask(ask(LAB, KEY, stream=False))
        assert (told.status, told.get(b"x-ratelimit-limit-requests")) == (429, b"1")
        assert told.get(b"x-ratelimit-remaining-requests") == b"0"


async def test_a_model_has_limits_of_all_its_callers_together() -> None:
    callers = {"a": caller(), "b": caller("another-key-00000000")}
    models = {"few": Model(targets=("lab/m",), requests_per_minute=2)}
    async with standing([Again((REQUEST, LAB.whole()))], callers=callers, models=models) as stand:
        other = b"authorization: Bearer another-key-00000000"
        told = [await stand.ask(ask(LAB, key, model="few", stream=False)) for key in (KEY, other, KEY)]
        assert [each.status for each in told] == [200, 200, 429]
        assert told[2].json["error"]["message"] == "the limit set for model few: requests per minute reached"
        assert told[1].get(b"x-ratelimit-remaining-requests") == b"0"
        assert (await stand.ask(ask(LAB, KEY, stream=False))).status == 200  # by another name


@pytest.mark.parametrize("of", ["caller", "model", "provider"])
async def test_requests_that_come_again_on_one_connection_are_counted_too(of: str) -> None:
    """They take a shorter way, where there are no such limits."""
    sixty = {each: SIXTY if of == each else {} for each in ("caller", "model", "provider")}
    callers = {"web": caller(**sixty["caller"])}
    models = {"mine": Model(targets=("lab/m",), **sixty["model"])}
    options = {"limits": Limits(**sixty["provider"])}
    script: Script = [Again((REQUEST, LAB.whole()))]
    async with standing(script, callers=callers, models=models, options=options) as stand, stand.client() as client:
        for _ in range(4):
            client.write(ask(LAB, KEY, model="mine", stream=False))
            await client.take_until(LAB.theirs.body)
        key = {"caller": "caller:web", "model": "model:mine", "provider": "provider:lab"}[of]
        assert used(stand, key) == by_kind(12, 8)


async def test_a_provider_that_is_out_of_tokens_sends_the_request_on() -> None:
    models = {"two": Model(targets=("lab/m", "claude/m"))}
    async with standing(
        [Again((REQUEST, WAYS["chat from messages"].whole()))],
        models=models,
        options={"limits": Limits(tokens_per_minute=20)},
    ) as stand:
        lab = stand.app._limits._counters["provider:lab"]
        assert lab.tokens is not None
        rates.take(lab.tokens, (60.0,), asyncio.get_running_loop().time())
        told = await stand.ask(ask(LAB, model="two", stream=False))
        assert told.get(b"x-sidecar-provider") == b"claude"
        alone = await stand.ask(ask(LAB, stream=False))
        assert (alone.status, alone.get(b"x-sidecar-error")) == (429, b"provider_limited")


async def test_who_is_refused_a_slot_takes_no_tokens() -> None:
    asked, let = asyncio.Event(), asyncio.Event()
    callers = {"web": caller(tokens_per_minute=60, concurrency=1)}
    async with standing([REQUEST, Tell(asked), Pause(let), LAB.whole()], callers=callers) as stand:
        request = ask(LAB, KEY, stream=False)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(stand.ask(request))
            await asked.wait()
            over = await stand.ask(ask(LAB, KEY, b"x-sidecar-timeout-ms: 20", stream=False))
            assert (over.status, over.get(b"x-sidecar-error")) == (429, b"policy_concurrency_limited")
            assert used(stand) == {"tokens_per_minute": guessed(request) + 9}
            let.set()
        assert first.result().status == 200
        assert used(stand) == {"tokens_per_minute": 5}


async def test_counting_tokens_and_embedding_cost_no_output() -> None:
    request = ask(LAB, KEY, stream=False)
    body = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0]}],"model":"m"}'
    line, _, rest = request.partition(b"\r\n")
    async with limited([REQUEST, reply(body)]) as stand:
        assert (await stand.ask(line.replace(b"chat/completions", b"embeddings") + b"\r\n" + rest)).status == 200
        assert used(stand) == by_kind(guessed(request), 0)


async def test_a_long_body_costs_what_it_says_at_its_end() -> None:
    body = LAB.theirs.body.replace(b"one tw", b"one " * 40_000 + b"tw")
    async with limited([REQUEST, reply(body)]) as stand:
        assert len((await stand.ask(ask(LAB, KEY, stream=False))).body) == len(body)
        assert used(stand) == used(stand, "provider:lab") == ALL


async def test_status_tells_what_is_left_of_each_limit() -> None:
    async with limited([REQUEST, LAB.whole()]) as stand:
        await stand.ask(ask(LAB, KEY, stream=False))
        told = await stand.ask(b"GET /status HTTP/1.1\r\nhost: localhost\r\n%b\r\n\r\n" % KEY)
        left = {row["key"]: row["remaining"] for row in told.json["limits"]}
        assert left["caller:web"]["input_tokens_per_minute"] in range(57, 60)
        assert left["provider:lab"]["tokens_per_minute"] in range(55, 60)
