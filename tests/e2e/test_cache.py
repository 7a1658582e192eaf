"""The cache behind every door: what an SDK is given a second time is what it was given the first time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sidecar.config import Cache
from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, Door, config_for, door
from tests.faults.ground import nothing_left

ASK: Any = [{"role": "user", "content": "hello there"}]


@asynccontextmanager
async def cached(name: str, **options: Any) -> AsyncIterator[tuple[Door, Simulator]]:
    async with nothing_left(), Simulator() as simulator:
        config = msgspec.structs.replace(config_for(simulator), cache=Cache(ttl_seconds=60, **options))
        async with door(name, config) as way:
            yield way, simulator


@pytest.mark.parametrize("name", ALL)
async def test_whole_answers_and_streams(name: str) -> None:
    async with cached(name) as (door, simulator), door.openai_async() as client:
        told, bodies, streams = [], [], []
        for _ in range(2):
            raw = await client.chat.completions.with_raw_response.create(model="lab/m", messages=ASK)
            told.append(raw.headers["x-sidecar-cache"])
            bodies.append(raw.content)
            stream = await client.chat.completions.create(
                model="lab/m", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            streams.append([chunk.model_dump_json() async for chunk in stream])
        assert told == ["miss", "hit"]
        assert bodies[0] == bodies[1]
        assert streams[0] == streams[1]
        assert len(streams[0]) > 3
        assert len(simulator.requests) == 2


@pytest.mark.parametrize("name", [each for each in ALL if each != "transport-httpx"])  # which Anthropic's refuses
async def test_messages_and_embeddings(name: str) -> None:
    async with cached(name) as (door, simulator):
        async with door.anthropic_async() as client:
            said = [
                (await client.messages.create(model="ant/m", messages=ASK, max_tokens=9)).model_dump_json()
                for _ in range(2)
            ]
        async with door.openai_async() as openai:
            vectors = [
                (await openai.embeddings.create(model="lab/m", input=texts)).data
                for texts in (["a", "b"], ["c", "a"], ["c", "b"])
            ]
        assert said[0] == said[1]
        assert [each.index for each in vectors[1]] == [0, 1]
        assert vectors[1][1].embedding == vectors[0][0].embedding
        assert [each.embedding for each in vectors[2]] == [vectors[1][0].embedding, vectors[0][1].embedding]
        assert len(simulator.requests) == 3


@pytest.mark.parametrize("name", ["transport", "transport-httpx"])
def test_a_synchronous_client(name: str) -> None:
    """Whose transport runs the sidecar on a loop of its own."""
    import asyncio

    async def run() -> None:
        async with cached(name) as (door, simulator):

            def ask() -> list[str]:
                with door.openai() as client:
                    answers = [
                        client.chat.completions.with_raw_response.create(model="lab/m", messages=ASK) for _ in range(3)
                    ]
                    return [each.headers["x-sidecar-cache"] for each in answers]

            assert await asyncio.to_thread(ask) == ["miss", "hit", "hit"]
            assert len(simulator.requests) == 1

    asyncio.run(run())
