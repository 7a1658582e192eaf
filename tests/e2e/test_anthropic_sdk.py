"""Anthropic's own SDK before providers that speak its language and OpenAI's, and OpenAI's SDK before Anthropic's."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from sidecar.config import Timeouts
from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, ANT_KEY, LAB_KEY, Door, behind, config_for, door as open_door

ASK: Any = [{"role": "user", "content": "hello there"}]
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "integer"}}}
TOOLS: Any = [
    {"name": name, "description": f"tells the {name}", "input_schema": SCHEMA} for name in ("weather", "time")
]
FUNCTIONS: Any = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("weather", "time")
]
ARGUMENTS = {"city": "Paris", "zip": 9007199254740993}
PNG: Any = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
BOTH = ("ant/m", "lab/m")
PAIR = ("server", "transport")
WAYS = [("ant/m", "server"), ("lab/m", "transport"), ("lab/m", "server")]  # where the number of cases matters
DOORS = [name for name in ALL if name != "transport-httpx"]  # the SDK takes httpx2 alone


@pytest.mark.parametrize("name", DOORS)
async def test_messages(name: str) -> None:
    async with behind(name) as (door, simulator), door.anthropic_async() as client:
        for model in BOTH:
            done = await client.messages.create(model=model, messages=ASK, max_tokens=50, system="be brief")
            assert (done.type, done.role, done.stop_reason) == ("message", "assistant", "end_turn")
            assert done.content[0].type == "text"
            assert len(done.content[0].text.split()) == 16
            assert done.usage.output_tokens >= 16
            assert done._request_id
            short = await client.messages.create(model=model, messages=ASK, max_tokens=3)
            assert short.stop_reason == "max_tokens"
        assert [seen.route for seen in simulator.requests] == ["/messages"] * 2 + ["/chat/completions"] * 2
        assert simulator.requests[0].header("x-api-key") == ANT_KEY
        assert simulator.requests[2].header("authorization") == f"Bearer {LAB_KEY}"
        assert not any(simulator.requests[2].header(each) for each in ("x-api-key", "anthropic-version"))


@pytest.mark.parametrize("name", DOORS)
async def test_a_synchronous_client(name: str) -> None:
    def use(door: Door) -> None:
        with door.anthropic() as client:
            for model in BOTH:
                with client.messages.stream(model=model, messages=ASK, max_tokens=50) as stream:
                    text = "".join(stream.text_stream)
                    final = stream.get_final_message()
                assert final.content[0].type == "text"
                assert (final.stop_reason, final.content[0].text, len(text.split())) == ("end_turn", text, 16)
                assert final.usage.output_tokens >= 16
            raw = client.messages.with_raw_response.create(model="ant/m", messages=ASK, max_tokens=50)
            assert raw.headers["request-id"] == "req_sim_3"
            assert raw.headers["x-sidecar-provider"] == "ant"
            assert [model.id for model in client.models.list()] == ["fast", "lab/m", "ant/m"]
            assert client.models.retrieve("fast").type == "model"

    async with behind(name) as (door, _):
        await asyncio.to_thread(use, door)


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("model", BOTH)
async def test_tools_in_parallel_and_their_results(model: str, name: str) -> None:
    async with behind(name) as (door, _), door.anthropic_async() as client:
        done = await client.messages.create(model=model, messages=ASK, max_tokens=50, tools=TOOLS)
        async with client.messages.stream(model=model, messages=ASK, max_tokens=50, tools=TOOLS) as stream:
            streamed = await stream.get_final_message()
        for each in (done, streamed):
            uses = [block for block in each.content if block.type == "tool_use"]
            assert [(use.name, use.input) for use in uses] == [("weather", ARGUMENTS), ("time", ARGUMENTS)]
            assert each.stop_reason == "tool_use"
        turn: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in done.content]}
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "4"}]}
            for block in done.content
            if block.type == "tool_use"
        ]
        again = await client.messages.create(
            model=model, messages=[*ASK, turn, {"role": "user", "content": results}], max_tokens=50, tools=TOOLS
        )
        assert [block.type for block in again.content] == ["text"]
        one = await client.messages.create(
            model=model,
            messages=ASK,
            max_tokens=50,
            tools=TOOLS,
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
        assert [block.type for block in one.content] == ["tool_use"]


@pytest.mark.parametrize("name", PAIR)
async def test_thinking_goes_round(name: str) -> None:
    asked: dict[str, Any] = {"model": "ant/m", "max_tokens": 2000, "tools": TOOLS}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    async with behind(name) as (door, _), door.anthropic_async() as client:
        async with client.messages.stream(messages=ASK, **asked) as stream:
            thought = "".join([event.thinking async for event in stream if event.type == "thinking"])
            done = await stream.get_final_message()
        assert [block.type for block in done.content] == ["thinking", "tool_use", "tool_use"]
        assert done.content[0].type == "thinking"
        assert (thought, done.content[0].signature) == ("let me think", "sig-00000001==")
        turn: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in done.content]}
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "4"}
            for block in done.content
            if block.type == "tool_use"
        ]
        again = await client.messages.create(messages=[*ASK, turn, {"role": "user", "content": results}], **asked)
        assert [block.type for block in again.content] == ["thinking", "text"]


@pytest.mark.parametrize("name", PAIR)
async def test_thinking_of_a_provider_that_speaks_openai(name: str) -> None:
    asked: dict[str, Any] = {"model": "lab/m", "max_tokens": 4000, "extra_headers": {"x-sim-flavour": "deepseek"}}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 2048}
    async with behind(name) as (door, simulator), door.anthropic_async() as client:
        done = await client.messages.create(messages=ASK, **asked)
        async with client.messages.stream(messages=ASK, **asked) as stream:
            streamed = await stream.get_final_message()
        assert b'"reasoning_effort"' in simulator.requests[0].body
        for each in (done, streamed):
            thought, text = (block.model_dump() for block in each.content)
            assert (thought["type"], thought["thinking"], text["type"]) == ("thinking", "let me think", "text")
        turn: Any = {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in done.content]}
        again = await client.messages.create(messages=[*ASK, turn, *ASK], **asked)
        assert again.content[-1].type == "text"


@pytest.mark.parametrize("model", BOTH)
async def test_an_image_and_a_count_of_tokens(model: str) -> None:
    content: Any = [{"type": "text", "text": "what is it"}, {"type": "image", "source": PNG}]
    async with behind("server") as (door, simulator), door.anthropic_async() as client:
        done = await client.messages.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=50, stop_sequences=["END"]
        )
        assert done.stop_reason == "end_turn"
        assert b"AAAA" in simulator.requests[0].body
        count = await client.messages.count_tokens(model=model, messages=ASK, system="be brief", tools=TOOLS)
        assert count.input_tokens > 3
        assert len(simulator.requests) == (2 if model == "ant/m" else 1)  # estimated, where nobody counts


ERRORS: list[tuple[str, type[anthropic.APIStatusError], str]] = [
    ("400", anthropic.BadRequestError, "invalid_request_error"),
    ("401", anthropic.AuthenticationError, "authentication_error"),
    ("403", anthropic.PermissionDeniedError, "permission_error"),
    ("404", anthropic.NotFoundError, "not_found_error"),
    ("429", anthropic.RateLimitError, "rate_limit_error"),
    ("500", anthropic.InternalServerError, "api_error"),
    ("529", anthropic.APIStatusError, "overloaded_error"),
    ("reset", anthropic.InternalServerError, ""),
    ("cut_after:9", anthropic.InternalServerError, ""),
    ("html", anthropic.InternalServerError, ""),
]


@pytest.mark.parametrize(("model", "name"), WAYS)
@pytest.mark.parametrize(("fault", "kind", "word"), ERRORS, ids=[row[0] for row in ERRORS])
async def test_errors(fault: str, kind: type[anthropic.APIStatusError], word: str, model: str, name: str) -> None:
    async with behind(name) as (door, _), door.anthropic_async() as client:
        with pytest.raises(kind) as caught:
            await client.messages.create(model=model, messages=ASK, max_tokens=5, extra_headers={"x-sim-fault": fault})
    assert caught.value.status_code == (int(fault) if fault.isdigit() else 502)
    assert caught.value.request_id
    if fault == "html" and model == "ant/m":
        return  # the same language: its body passes, and is no JSON
    body: Any = caught.value.body
    assert body["type"] == "error"
    if word:
        assert (body["error"]["type"], body["error"]["message"]) == (word, f"simulated {fault}")


@pytest.mark.parametrize("name", PAIR)
async def test_the_sidecars_own_errors(name: str) -> None:
    asks: list[tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = [
        ({"model": "nobody"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"model": 5}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "lab/m", "extra_body": {"messages": 5}}, anthropic.BadRequestError, "invalid_request_error"),
    ]
    async with behind(name) as (door, simulator), door.anthropic_async() as client:
        for ask, kind, word in asks:
            with pytest.raises(kind) as caught:
                await client.messages.create(**{"model": "ant/m", "messages": ASK, "max_tokens": 5} | ask)
            body: Any = caught.value.body
            assert (body["type"], body["error"]["type"]) == ("error", word)
            assert body["request_id"] == caught.value.request_id
        async with door.anthropic_async(api_key="wrong") as stranger:
            with pytest.raises(anthropic.AuthenticationError, match="not one of this sidecar's callers"):
                await stranger.messages.create(model="ant/m", messages=ASK, max_tokens=5)
        assert not simulator.requests


MIDWAY = [
    ("error_in_stream:3", "the simulated model broke"),
    ("cut_after:3", "closed the connection inside the answer|was cut"),
    ("reset_after:3", "closed the connection inside the answer|was cut"),
    ("truncated", "ended before|was cut"),
    ("stall_after:3", "0.2 s"),
]


@pytest.mark.parametrize(("model", "name"), WAYS)
@pytest.mark.parametrize(("fault", "words"), MIDWAY, ids=[row[0] for row in MIDWAY])
async def test_a_stream_that_fails_is_an_error_of_the_api(fault: str, words: str, model: str, name: str) -> None:
    async with Simulator() as simulator:
        config = config_for(simulator)
        quick = {
            each: msgspec.structs.replace(table, timeouts=Timeouts(idle_seconds=0.2))
            for each, table in config.providers.items()
        }
        config = msgspec.structs.replace(config, providers=quick)
        async with open_door(name, config) as door, door.anthropic_async() as client:
            with pytest.raises(anthropic.APIStatusError, match=words):
                async with client.messages.stream(
                    model=model, messages=ASK, max_tokens=50, extra_headers={"x-sim-fault": fault}
                ) as stream:
                    await stream.get_final_message()


# -- OpenAI's SDK before a provider that speaks Anthropic's language


@pytest.mark.parametrize("name", PAIR)
async def test_openais_sdk_before_an_anthropic_provider(name: str) -> None:
    image: Any = [
        {"type": "text", "text": "what is it"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    async with behind(name) as (door, simulator), door.openai_async() as client:
        done = await client.chat.completions.create(
            model="ant/m", messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": image}]
        )
        assert done.usage is not None
        assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("stop", 17)
        assert done._request_id
        sent = msgspec.json.decode(simulator.requests[0].body)
        assert sent["system"] == "be brief" or sent["system"][0]["text"] == "be brief"
        assert sent["messages"][0]["content"][1]["source"] == PNG
        stream = await client.chat.completions.create(
            model="ant/m", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 16
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [17]
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="ant/m", input="text")


@pytest.mark.parametrize("name", PAIR)
async def test_openais_tools_before_an_anthropic_provider(name: str) -> None:
    async with behind(name) as (door, _), door.openai_async() as client:
        done = await client.chat.completions.create(model="ant/m", messages=ASK, tools=FUNCTIONS)
        async with client.chat.completions.stream(model="ant/m", messages=ASK, tools=FUNCTIONS) as stream:
            streamed = await stream.get_final_completion()
        for each in (done.choices[0], streamed.choices[0]):
            calls = each.message.tool_calls
            assert calls is not None
            said = [(call.function.name, call.function.arguments) for call in calls if call.type == "function"]
            assert [(name, msgspec.json.decode(text)) for name, text in said] == [
                ("weather", ARGUMENTS),
                ("time", ARGUMENTS),
            ]
            assert each.finish_reason == "tool_calls"
        turn: Any = done.choices[0].message.model_dump(exclude_none=True)
        results: Any = [{"role": "tool", "tool_call_id": call["id"], "content": "4"} for call in turn["tool_calls"]]
        again = await client.chat.completions.create(model="ant/m", messages=[*ASK, turn, *results], tools=FUNCTIONS)
        assert again.choices[0].message.content


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.AuthenticationError),
        ("404", openai.NotFoundError),
        ("413", openai.APIStatusError),
        ("429", openai.RateLimitError),
        ("529", openai.InternalServerError),
    ],
)
async def test_openais_errors_before_an_anthropic_provider(fault: str, kind: type[openai.APIStatusError]) -> None:
    async with behind("server") as (door, _), door.openai_async() as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model="ant/m", messages=ASK, extra_headers={"x-sim-fault": fault})
    assert caught.value.status_code == int(fault)
    body: Any = caught.value.body
    assert body["message"] == f"simulated {fault}"
    assert body.keys() >= {"message", "type", "param", "code"}
