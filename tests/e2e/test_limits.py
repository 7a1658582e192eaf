"""Limits of tokens by every door, for the official SDKs: what is left, and the refusal, in each API's own words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from sidecar.clock import now
from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, FEW, Door, caller, config_for, door
from tests.faults.ground import nothing_left

ASK: Any = [{"role": "user", "content": "hello there"}]
BACK = 2.0  # tokens a second, at 120 a minute


@asynccontextmanager
async def limited(name: str, **limits: int) -> AsyncIterator[tuple[Door, Simulator]]:
    async with nothing_left(), Simulator() as simulator:
        config = config_for(simulator)
        config.callers["web"] = caller(**limits)  # type: ignore[arg-type]
        async with door(name, config) as way:
            yield way, simulator


async def chat(client: Any, stream: bool, model: str) -> tuple[int, int]:
    """What is left when the head of an answer comes, and what it came to in the end."""
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    create = client.chat.completions.with_raw_response.create
    raw = await create(model=model, messages=ASK, max_tokens=5, **more)
    answer = raw.parse()
    usage = [chunk.usage async for chunk in answer][-1] if stream else answer.usage
    return int(raw.headers["x-ratelimit-remaining-tokens"]), usage.total_tokens


async def messages(client: Any, stream: bool, model: str) -> tuple[int, int]:
    create = client.messages.with_raw_response.create
    raw = await create(model=model, messages=ASK, max_tokens=5, stream=stream)
    answer = await raw.parse()
    usage = [event.usage async for event in answer if event.type == "message_delta"][-1] if stream else answer.usage
    asked = 3 if usage.input_tokens is None else usage.input_tokens  # told at the beginning
    return int(raw.headers["anthropic-ratelimit-tokens-remaining"]), asked + usage.output_tokens


@pytest.mark.parametrize("name", [name for name in ALL if name != "transport-httpx"])  # SDKs take httpx2 only
async def test_each_answer_tells_what_is_left_by_the_providers_count(name: str) -> None:
    async with limited(name, tokens_per_minute=120) as (way, _):
        async with way.openai_async() as client, way.anthropic_async() as ant:
            for ask, of in ((chat, client), (messages, ant)):
                for stream in (False, True):
                    began = now()
                    first, came_to = await ask(of, stream, "lab/m")
                    second, came_to_then = await ask(of, stream, "lab/m")
                    assert came_to == came_to_then == 8
                    assert 0 <= second - (first - came_to) <= (now() - began) * BACK + 1


@pytest.mark.parametrize("name", FEW)
async def test_who_has_no_tokens_left_gets_its_apis_own_error(name: str) -> None:
    async with limited(name, output_tokens_per_minute=6, requests_per_minute=100) as (way, simulator):
        async with way.openai_async() as client, way.anthropic_async() as ant:
            await client.chat.completions.create(model="lab/m", messages=ASK, max_tokens=5)
            with pytest.raises(openai.RateLimitError, match="output tokens per minute reached") as one:
                await client.chat.completions.create(model="lab/m", messages=ASK, max_tokens=5)
            with pytest.raises(anthropic.RateLimitError, match="output tokens per minute reached") as two:
                await ant.messages.create(model="ant/m", messages=ASK, max_tokens=5)
        for error, names in (
            (one.value, ("x-ratelimit-limit-requests", "x-ratelimit-limit-tokens")),
            (two.value, ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-output-tokens-limit")),
        ):
            headers = error.response.headers
            assert [headers[each] for each in names] == ["100", "6"]
            assert 30 < float(headers["retry-after-ms"]) / 1000 <= 40
        assert len(simulator.requests) == 1


async def test_an_sdk_that_waits_as_told_is_served() -> None:
    async with limited("server", tokens_per_minute=6000) as (way, simulator), way.openai_async(max_retries=1) as client:
        await client.chat.completions.create(model="lab/m", messages=ASK, max_tokens=5)
        began = now()
        done = await client.chat.completions.create(model="lab/m", messages=ASK, max_tokens=5990)  # all there is
        assert done.usage is not None
        assert len(simulator.requests) == 2
        assert now() - began < 5
