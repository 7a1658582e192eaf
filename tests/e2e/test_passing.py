"""What the sidecar does not know passes it, both ways; what is not for the other side does not."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.doors import CALLER_KEY, FEW, Door, behind

ASK: Any = [{"role": "user", "content": "hello there"}]
SENT = {"x-team": "blue", "OpenAI-Beta": "assistants=v2", "anthropic-beta": "one-2025-01-01,two-2025-01-01"}
KEPT_BACK = {
    "cookie": "session=1",
    "x-forwarded-for": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
    "x-sidecar-tag": "mine",
    "x-api-key": "another-caller-key",
    "te": "trailers",
}


@pytest.mark.parametrize("name", FEW)
async def test_headers_of_the_request(name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async() as client:
        await client.chat.completions.create(model="lab/m", messages=ASK, extra_headers=SENT | KEPT_BACK)
        seen = simulator.requests[0]
        assert {each: seen.header(each.lower()) for each in SENT} == SENT
        assert seen.header("user-agent").startswith("AsyncOpenAI/Python")
        assert not [each for each in KEPT_BACK if seen.header(each)]
        assert CALLER_KEY not in str(seen.headers)
        assert seen.header("host").startswith("127.0.0.1:")


@pytest.mark.parametrize("name", FEW)
async def test_headers_of_the_answer(name: str) -> None:
    async with behind(name) as (door, _), door.openai_async() as client:
        raw = await client.chat.completions.with_raw_response.create(model="lab/m", messages=ASK)
        assert raw.headers["x-ratelimit-limit-requests"]
        assert raw.headers["x-request-id"] == "req_sim_1"
        assert raw.headers["request-id"]
        assert int(raw.headers["x-sidecar-overhead-us"]) >= 0
        assert raw.headers["x-sidecar-attempts"] == "1"
        assert raw.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize("name", FEW)
async def test_anthropics_beta_endpoints(name: str) -> None:
    async with behind(name) as (door, simulator), door.anthropic_async() as client:
        done = await client.beta.messages.create(
            model="ant/m", messages=ASK, max_tokens=5, betas=["one-2025-01-01"], extra_body={"a_new_member": {"b": 1.0}}
        )
        assert done.content[0].type == "text"
        seen = simulator.requests[0]
        assert (seen.route, seen.header("anthropic-beta")) == ("/messages", "one-2025-01-01")
        assert b'"a_new_member":{"b":1.0}' in seen.body


@pytest.mark.parametrize("name", FEW)
async def test_the_query_of_a_request(name: str) -> None:
    async with behind(name) as (door, simulator), door.anthropic_async() as client:
        await client.messages.create(model="ant/m", messages=ASK, max_tokens=5, extra_query={"beta": "true", "x": "é"})
        assert simulator.requests[0].path == "/v1/messages?beta=true&x=%C3%A9"


async def test_the_sdks_own_http_clients() -> None:
    def use(door: Door) -> None:
        with openai.OpenAI(base_url=f"{door.url}/v1", api_key=CALLER_KEY) as one:
            assert one.chat.completions.create(model="lab/m", messages=ASK).choices
        with anthropic.Anthropic(base_url=door.url, api_key=CALLER_KEY) as two:
            assert two.messages.create(model="ant/m", messages=ASK, max_tokens=5).content

    async with behind("server") as (door, _):
        await asyncio.to_thread(use, door)
