"""The official SDKs are the judges of the simulator's form: they read its answers and raise its errors as their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from sidecar.simulator import Settings, Simulator

ASK: Any = [{"role": "user", "content": "hello there"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"city": {"type": "string"}}}}}
    for name in ("weather", "time")
]
USES: Any = [
    {"name": name, "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for name in ("weather", "time")
]


def openai_sync(simulator: Simulator, **extra: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=simulator.base_url, api_key="k", max_retries=0, timeout=5, **extra)


@asynccontextmanager
async def openai_async(simulator: Simulator, **extra: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=simulator.base_url, api_key="k", max_retries=0, timeout=5, default_headers=extra
    ) as client:
        yield client


@asynccontextmanager
async def anthropic_async(simulator: Simulator, **extra: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=simulator.base_url.removesuffix("/v1"), api_key="k", max_retries=0, timeout=5, default_headers=extra
    ) as client:
        yield client


async def test_openai_sync() -> None:
    def use(simulator: Simulator) -> None:
        with openai_sync(simulator) as client:
            done = client.chat.completions.create(model="m", messages=ASK)
            assert done.usage is not None
            assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("stop", 16)
            with client.chat.completions.create(model="m", messages=ASK, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text.startswith("streams every token")
            assert client.completions.create(model="m", prompt="p").choices[0].text
            assert [model.id for model in client.models.list()] == ["sim-large", "sim-small"]
            assert client.models.retrieve("sim-small").owned_by == "simulator"
            vector = client.embeddings.create(model="m", input="text", dimensions=3).data[0].embedding
            assert len(vector) == 3
            plain = client.embeddings.create(model="m", input="text", dimensions=3, encoding_format="float")
            assert plain.data[0].embedding == pytest.approx(vector)

    async with Simulator() as simulator:
        await asyncio.to_thread(use, simulator)


async def test_openai_async_streams_with_usage_and_parallel_tools() -> None:
    async with Simulator() as simulator, openai_async(simulator) as client:
        async with client.chat.completions.stream(
            model="m", messages=ASK, tools=TOOLS, stream_options={"include_usage": True}
        ) as stream:
            done = await stream.get_final_completion()
        calls = done.choices[0].message.tool_calls
        assert calls is not None
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", '{"city":"Paris"}'),
            ("time", '{"city":"Paris"}'),
        ]
        assert done.choices[0].finish_reason == "tool_calls"
        assert done.usage is not None
        assert done.usage.prompt_tokens == 3
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "4"} for call in calls]
        turn: Any = done.choices[0].message.model_dump(include={"role", "content", "tool_calls"})
        again = await client.chat.completions.create(model="m", messages=[*ASK, turn, *results], tools=TOOLS)
        assert again.choices[0].message.content


async def test_openai_vision_json_and_several_choices() -> None:
    parts: Any = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    async with Simulator() as simulator, openai_async(simulator) as client:
        done = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": parts}], n=2, response_format={"type": "json_object"}
        )
        assert [choice.message.content for choice in done.choices] == ['{"ok":true}'] * 2


OPENAI_ERRORS: list[tuple[str, type[openai.OpenAIError]]] = [
    ("400", openai.BadRequestError),
    ("401", openai.AuthenticationError),
    ("403", openai.PermissionDeniedError),
    ("404", openai.NotFoundError),
    ("422", openai.UnprocessableEntityError),
    ("429", openai.RateLimitError),
    ("quota", openai.RateLimitError),
    ("500", openai.InternalServerError),
    ("503", openai.InternalServerError),
    ("529", openai.InternalServerError),
    ("reset", openai.APIConnectionError),
    ("close", openai.APIConnectionError),
]


@pytest.mark.parametrize(("fault", "kind"), OPENAI_ERRORS)
async def test_openai_raises_the_right_class(fault: str, kind: type[openai.OpenAIError]) -> None:
    async with Simulator() as simulator, openai_async(simulator, **{"x-sim-fault": fault}) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model="m", messages=ASK)
    assert type(caught.value) is kind
    if isinstance(caught.value, openai.APIStatusError):
        assert caught.value.request_id == (None if fault == "quota" else "req_sim_1")
        assert caught.value.message.startswith(f"Error code: {429 if fault == 'quota' else fault}")


async def test_openai_raises_in_a_broken_stream() -> None:
    headers = {"x-sim-fault": "error_in_stream:2"}
    async with Simulator() as simulator, openai_async(simulator, **headers) as client:
        stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
        with pytest.raises(openai.APIError, match="the simulated model broke"):
            async for _ in stream:
                pass


async def test_openai_times_out_and_the_simulator_sees_it_leave() -> None:
    async with Simulator() as simulator:
        async with openai_async(simulator, **{"x-sim-fault": "stall"}) as client:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=ASK, timeout=0.05)
        while simulator.connections:
            await asyncio.sleep(0)
        assert simulator.requests[0].cancelled_at is not None


async def test_openai_retries_as_it_is_told() -> None:
    async with Simulator() as simulator:
        headers = {"x-sim-fault": "429:0", "x-sim-times": "1"}
        async with openai_async(simulator, **headers) as client:
            done = await client.with_options(max_retries=1).chat.completions.create(model="m", messages=ASK)
        assert done.id == "chatcmpl-00000002"


async def test_a_wrong_key_and_an_unknown_model() -> None:
    async with Simulator(Settings(keys=("right",))) as simulator, openai_async(simulator) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="m", messages=ASK)
        assert caught.value.code == "invalid_api_key"
    async with Simulator(Settings(models=("one",))) as simulator, anthropic_async(simulator) as other:
        with pytest.raises(anthropic.NotFoundError):
            await other.messages.create(model="m", messages=ASK, max_tokens=5)


# -- Anthropic


async def test_anthropic_sync() -> None:
    def use(simulator: Simulator) -> None:
        base_url = simulator.base_url.removesuffix("/v1")
        with anthropic.Anthropic(base_url=base_url, api_key="k", max_retries=0, timeout=5) as client:
            done = client.messages.create(model="m", messages=ASK, max_tokens=50)
            assert (done.stop_reason, done.usage.input_tokens) == ("end_turn", 3)
            with client.messages.stream(model="m", messages=ASK, max_tokens=50) as stream:
                text = "".join(stream.text_stream)
                assert stream.get_final_message().stop_reason == "end_turn"
            assert text.startswith("streams every token")
            assert client.messages.count_tokens(model="m", messages=ASK).input_tokens == 3
            assert [model.id for model in client.models.list()] == ["sim-large", "sim-small"]

    async with Simulator() as simulator:
        await asyncio.to_thread(use, simulator)


async def test_anthropic_async_thinks_and_uses_tools_in_parallel() -> None:
    async with Simulator() as simulator, anthropic_async(simulator) as client:
        asked: dict[str, Any] = {"model": "m", "max_tokens": 2000, "tools": USES}
        asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
        async with client.messages.stream(messages=ASK, **asked) as stream:
            done = await stream.get_final_message()
        assert [block.type for block in done.content] == ["thinking", "tool_use", "tool_use"]
        assert done.content[0].type == "thinking"
        assert (done.content[0].thinking, done.content[0].signature) == ("let me think", "sig-00000001==")
        assert [block.input for block in done.content if block.type == "tool_use"] == [{"city": "Paris"}] * 2
        assert done.stop_reason == "tool_use"
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "4"}
            for block in done.content
            if block.type == "tool_use"
        ]
        turn: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in done.content]}
        again = await client.messages.create(messages=[*ASK, turn, {"role": "user", "content": results}], **asked)
        assert [block.type for block in again.content] == ["thinking", "text"]


ANTHROPIC_ERRORS: list[tuple[str, type[anthropic.AnthropicError]]] = [
    ("400", anthropic.BadRequestError),
    ("401", anthropic.AuthenticationError),
    ("403", anthropic.PermissionDeniedError),
    ("404", anthropic.NotFoundError),
    ("429", anthropic.RateLimitError),
    ("quota", anthropic.EnforcedSpendLimitReachedError),
    ("500", anthropic.InternalServerError),
    ("reset", anthropic.APIConnectionError),
]


@pytest.mark.parametrize(("fault", "kind"), ANTHROPIC_ERRORS)
async def test_anthropic_raises_the_right_class(fault: str, kind: type[anthropic.AnthropicError]) -> None:
    async with Simulator() as simulator, anthropic_async(simulator, **{"x-sim-fault": fault}) as client:
        with pytest.raises(kind) as caught:
            await client.messages.create(model="m", messages=ASK, max_tokens=5)
    assert type(caught.value) is kind
    if isinstance(caught.value, anthropic.APIStatusError) and fault != "quota":
        assert caught.value.request_id == "req_sim_1"


async def test_anthropic_is_overloaded() -> None:
    async with Simulator() as simulator, anthropic_async(simulator, **{"x-sim-fault": "529"}) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(model="m", messages=ASK, max_tokens=5)
    assert caught.value.status_code == 529
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "simulated 529"},
        "request_id": "req_sim_1",
    }


async def test_anthropic_raises_in_a_broken_stream() -> None:
    headers = {"x-sim-fault": "error_in_stream:3"}
    async with Simulator() as simulator, anthropic_async(simulator, **headers) as client:
        with pytest.raises(anthropic.APIStatusError, match="the simulated model broke"):
            async with client.messages.stream(model="m", messages=ASK, max_tokens=50) as stream:
                await stream.get_final_message()


@pytest.mark.parametrize("fault", ["split_utf8", "drip:0", "crlf", "comments", "interim", "gzip", "no_done"])
async def test_harmless_faults_do_not_change_what_the_sdks_read(fault: str) -> None:
    async def read(headers: dict[str, str]) -> tuple[str, str]:
        async with Simulator() as simulator:
            async with openai_async(simulator, **headers) as client:
                stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
                one = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            async with anthropic_async(simulator, **headers) as other:
                events = await other.messages.create(model="m", messages=ASK, max_tokens=90, stream=True)
                two = "".join([_text(event) async for event in events])
        return one, two

    plain = await read({"x-sim-tokens": "44"})
    assert "🙂" in plain[0]
    assert "🙂" in plain[1]
    assert await read({"x-sim-tokens": "44", "x-sim-fault": fault}) == plain


def _text(event: anthropic.types.RawMessageStreamEvent) -> str:
    delta = event.delta if event.type == "content_block_delta" else None
    return delta.text if delta is not None and delta.type == "text_delta" else ""
