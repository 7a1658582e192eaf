"""OpenAI's own SDK through every door: what it asks and what it reads is what it would be without a sidecar between."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, FEW, LAB_KEY, Door, behind

ASK: Any = [{"role": "user", "content": "hello there"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}}},
        },
    }
    for name in ("weather", "time")
]
ARGUMENTS = '{"city":"Paris","zip":9007199254740993}'
VISION: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is it"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        ],
    }
]


@pytest.mark.parametrize("name", ALL)
async def test_asynchronous(name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async() as client:
        done = await client.chat.completions.create(model="lab/m", messages=ASK)
        assert done.usage is not None
        assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("stop", 16)
        assert done._request_id == "req_sim_1"
        stream = await client.chat.completions.create(
            model="lab/m", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.split()[:3] == ["streams", "every", "token"]
        assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [19]
        assert [model.id async for model in client.models.list()] == ["fast", "lab/m", "ant/m"]
        assert (await client.models.retrieve("lab/m")).owned_by == "lab"
        assert {seen.header("authorization") for seen in simulator.requests} == {f"Bearer {LAB_KEY}"}


@pytest.mark.parametrize("name", ALL)
async def test_synchronous(name: str) -> None:
    def use(door: Door) -> None:
        with door.openai() as client:
            raw = client.chat.completions.with_raw_response.create(model="fast", messages=ASK)
            assert raw.request_id == "req_sim_1"
            assert (raw.headers["x-sidecar-provider"], raw.headers["x-sidecar-model"]) == ("lab", "m")
            assert raw.parse().choices[0].message.content
            with client.chat.completions.create(model="lab/m", messages=ASK, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text.split()[:3] == ["streams", "every", "token"]
            with client.chat.completions.with_streaming_response.create(model="lab/m", messages=ASK) as streamed:
                assert b"".join(streamed.iter_bytes()).startswith(b'{"id":"chatcmpl-00000003"')

    async with behind(name) as (door, _):
        await asyncio.to_thread(use, door)


@pytest.mark.parametrize("name", FEW)
async def test_tools_in_parallel_and_their_results(name: str) -> None:
    async with behind(name) as (door, _), door.openai_async() as client:
        done = await client.chat.completions.create(model="lab/m", messages=ASK, tools=TOOLS)
        async with client.chat.completions.stream(model="lab/m", messages=ASK, tools=TOOLS) as stream:
            streamed = await stream.get_final_completion()
        for each in (done.choices[0], streamed.choices[0]):
            calls = each.message.tool_calls
            assert calls is not None
            assert [(call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
                ("weather", ARGUMENTS),
                ("time", ARGUMENTS),
            ]
            assert each.finish_reason == "tool_calls"
        turn: Any = done.choices[0].message.model_dump(exclude_none=True)
        results: Any = [{"role": "tool", "tool_call_id": call["id"], "content": "4"} for call in turn["tool_calls"]]
        again = await client.chat.completions.create(model="lab/m", messages=[*ASK, turn, *results], tools=TOOLS)
        assert again.choices[0].message.content
        one = await client.chat.completions.create(
            model="lab/m", messages=ASK, tools=TOOLS, parallel_tool_calls=False, tool_choice="required"
        )
        assert len(one.choices[0].message.tool_calls or ()) == 1


@pytest.mark.parametrize("name", FEW)
async def test_vision_embeddings_and_completions(name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async() as client:
        seen = await client.chat.completions.create(model="lab/m", messages=VISION, n=2, max_completion_tokens=5)
        assert [choice.finish_reason for choice in seen.choices] == ["length"] * 2
        assert b'"url":"data:image/png;base64,AAAA","detail":"low"' in simulator.requests[-1].body
        vector = (await client.embeddings.create(model="lab/m", input="text", dimensions=3)).data[0].embedding
        assert b'"encoding_format":"base64"' in simulator.requests[-1].body
        plain = await client.embeddings.create(model="lab/m", input=["text"], dimensions=3, encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(vector)
        text = await client.completions.create(model="lab/m", prompt=["one", "two"])
        assert [choice.index for choice in text.choices] == [0, 1]
        stream = await client.completions.create(model="lab/m", prompt="p", stream=True)
        assert len("".join([chunk.choices[0].text async for chunk in stream]).split()) == 16
        wire = await client.chat.completions.create(model="lab/m", messages=ASK, extra_body={"a_new_member": 1.50})
        assert wire.id
        assert b'"a_new_member":1.5' in simulator.requests[-1].body


@pytest.mark.parametrize("name", FEW)
async def test_structured_output_is_parsed(name: str) -> None:
    async with behind(name) as (door, _), door.openai_async() as client:
        done = await client.chat.completions.create(
            model="lab/m", messages=ASK, response_format={"type": "json_object"}
        )
        assert done.choices[0].message.content == '{"ok":true}'


async def test_azures_client_names_the_model_in_the_path() -> None:
    async with behind("server") as (door, simulator):
        client = openai.AsyncAzureOpenAI(
            azure_endpoint=door.url,
            azure_deployment="lab/m",
            api_version="2024-10-21",
            api_key=door.openai_async().api_key,
            http_client=door.async_(),
        )
        async with client:
            done = await client.chat.completions.create(model="ignored", messages=ASK)
        assert done.choices[0].message.content
        assert simulator.requests[-1].route == "/chat/completions"
        assert b'"model":"m"' in simulator.requests[-1].body


@pytest.mark.parametrize("name", ALL)
async def test_the_first_event_arrives_while_the_provider_still_sends(name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async() as client:
        stream = await client.chat.completions.create(
            model="lab/m", messages=ASK, stream=True, extra_headers={"x-sim-fault": "stall_after:3"}
        )
        said = [await anext(stream) for _ in range(3)]
        assert [chunk.choices[0].delta.content for chunk in said] == ["", "sidecar", " streams"]
        assert _still_sends(simulator)
        await stream.close()


def _still_sends(simulator: Simulator) -> bool:
    return simulator.requests[-1].finished_at is None and simulator.requests[-1].cancelled_at is None
