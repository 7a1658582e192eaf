"""A client that leaves, by whatever door and in whatever phase, has its provider cancelled within a second."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from sidecar.clock import now
from sidecar.config import Limits
from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, FEW, Door, behind, behind_uvicorn, cancelled

ASK: Any = [{"role": "user", "content": "hello there"}]
SILENT = {"x-sim-fault": "stall"}
MIDWAY = {"x-sim-fault": "stall_after:2"}


async def _cancel_a_call(door: Door, simulator: Simulator, *, stream: bool) -> None:
    before = len(simulator.requests)
    async with door.openai_async() as client:
        call: asyncio.Task[object] = asyncio.create_task(
            client.chat.completions.create(model="lab/m", messages=ASK, stream=stream, extra_headers=SILENT)
        )
        while len(simulator.requests) == before:
            await asyncio.sleep(0.002)
        left_at = now()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await cancelled(simulator, left_at)


async def before_an_answer(door: Door, simulator: Simulator) -> None:
    await _cancel_a_call(door, simulator, stream=False)


async def before_a_stream(door: Door, simulator: Simulator) -> None:
    await _cancel_a_call(door, simulator, stream=True)


async def at_its_own_timeout(door: Door, simulator: Simulator) -> None:
    async with door.openai_async() as client:
        began = now()
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="lab/m", messages=ASK, timeout=0.1, extra_headers=SILENT)
        assert now() - began < 1.0
        await cancelled(simulator, now())


async def in_a_silent_stream(door: Door, simulator: Simulator) -> None:
    """Whose next event takes longer than the client waits."""
    async with door.openai_async(timeout=0.1) as client:
        stream = await client.chat.completions.create(model="lab/m", messages=ASK, stream=True, extra_headers=MIDWAY)
        with pytest.raises(openai.APITimeoutError):
            async for _ in stream:
                pass
        await cancelled(simulator, now())


async def in_the_middle_of_a_stream(door: Door, simulator: Simulator) -> None:
    async with door.openai_async() as client:
        stream = await client.chat.completions.create(model="lab/m", messages=ASK, stream=True, extra_headers=MIDWAY)
        await anext(stream)
        await stream.close()
        await cancelled(simulator, now())


async def in_the_middle_of_a_translated_stream(door: Door, simulator: Simulator) -> None:
    async with door.anthropic_async() as client:
        async with client.messages.stream(model="lab/m", messages=ASK, max_tokens=9, extra_headers=MIDWAY) as stream:
            await anext(stream)
        await cancelled(simulator, now())


PHASES: tuple[Callable[[Door, Simulator], Awaitable[None]], ...] = (
    before_an_answer,
    before_a_stream,
    at_its_own_timeout,
    in_a_silent_stream,
    in_the_middle_of_a_stream,
    in_the_middle_of_a_translated_stream,
)


@pytest.mark.parametrize("name", ALL)
async def test_the_provider_is_cancelled(name: str) -> None:
    async with behind(name) as (door, simulator):
        for number, phase in enumerate(PHASES, 1):
            if name == "transport-httpx" and phase is in_the_middle_of_a_translated_stream:
                continue  # Anthropic's SDK takes httpx2 alone
            await phase(door, simulator)
            assert len(simulator.requests) == number, phase.__name__
            assert simulator.requests[-1].cancelled_at is not None, phase.__name__
        assert not simulator.connections


@pytest.mark.parametrize("name", ALL)
async def test_the_provider_is_cancelled_by_a_synchronous_client(name: str) -> None:
    def use(door: Door) -> None:
        with door.openai() as client:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model="lab/m", messages=ASK, timeout=0.1, extra_headers=SILENT)
            with client.chat.completions.create(
                model="lab/m", messages=ASK, stream=True, extra_headers=MIDWAY
            ) as stream:
                next(stream)

    async with behind(name) as (door, simulator):
        await asyncio.to_thread(use, door)
        await cancelled(simulator, now(), count=2)
        assert [seen.cancelled_at is not None for seen in simulator.requests] == [True, True]


async def test_a_request_that_waits_in_the_queue_leaves_it() -> None:
    async with behind("middleware-uvicorn", limits=Limits(concurrency=1)) as (door, simulator):
        async with door.openai_async() as client:
            first = await client.chat.completions.create(model="lab/m", messages=ASK, stream=True, extra_headers=MIDWAY)
            # Its SDK tells how long it waits: the sidecar may be the first to say that this is over.
            with pytest.raises((openai.APITimeoutError, openai.RateLimitError)):
                await client.chat.completions.create(model="lab/m", messages=ASK, timeout=0.1)
            await first.close()
            assert (await client.chat.completions.create(model="lab/m", messages=ASK)).id
        assert len(simulator.requests) == 2


@pytest.mark.parametrize("name", FEW)
async def test_many_that_leave_at_any_moment_leave_nothing_behind(name: str) -> None:
    chance = random.Random(3)
    async with behind(name) as (door, simulator), door.openai_async() as client:

        async def ask(stream: bool, seconds: float) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    rate = {"x-sim-latency-ms": "60", "x-sim-rate": "150"}
                    done = await client.chat.completions.create(
                        model="lab/m", messages=ASK, stream=stream, extra_headers=rate
                    )
                    if isinstance(done, openai.AsyncStream):
                        async for _ in done:
                            pass

        for _ in range(20):  # few at a time, that a slow machine lets them come as far as the provider
            await asyncio.gather(*(ask(chance.random() < 0.7, chance.random() * 0.3) for _ in range(12)))
            if sum(seen.cancelled_at is not None for seen in simulator.requests) >= 12:
                break
        deadline = now() + 1.0
        while any(seen.finished_at is None and seen.cancelled_at is None for seen in simulator.requests):
            assert now() < deadline
            await asyncio.sleep(0.005)
        assert sum(seen.cancelled_at is not None for seen in simulator.requests) >= 12
        while (busy := await _in_use(client, door)) != [0, 0, 0]:
            assert now() < deadline, busy
            await asyncio.sleep(0.01)


async def _in_use(client: openai.AsyncOpenAI, door: Door) -> list[int]:
    status: Any = await client.get(f"{door.url}/status", cast_to=object)
    return [row[each] for row in status["providers"] for each in ("busy", "dialing", "waiting")]


async def test_a_server_that_stops_ends_its_streams_with_an_error() -> None:
    async with behind_uvicorn() as (door, simulator, stop), door.openai_async() as client:
        stream = await client.chat.completions.create(model="lab/m", messages=ASK, stream=True, extra_headers=MIDWAY)
        waiting = asyncio.create_task(client.chat.completions.create(model="lab/m", messages=ASK, extra_headers=SILENT))
        while len(simulator.requests) < 2:
            await asyncio.sleep(0.002)
        stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            async for _ in stream:
                pass
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            await waiting
        await cancelled(simulator, now(), count=2)
