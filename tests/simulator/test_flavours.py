from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from sidecar.simulator import Settings, Simulator
from sidecar.simulator.settings import FLAVOURS
from tests.simulator.raw import CHAT, ask, post, split

STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"city": {"type": "string"}}}}}
    for name in ("weather", "time")
]
CALLS = {**CHAT, "tools": TOOLS}
THINKS = {**CHAT, "reasoning_effort": "high"}


async def told(flavour: str, value: object, *headers: tuple[str, str], path: str = "/chat/completions") -> bytes:
    async with Simulator(Settings(flavour=flavour, tokens=3)) as simulator:
        data, end = await ask(simulator, post(value, *headers, path=path))
    assert end == "eof"
    return data


async def whole(flavour: str, value: object, *headers: tuple[str, str]) -> Any:
    return msgspec.json.decode(split(await told(flavour, value, *headers))[2].strip())


async def streamed(flavour: str, value: object, *headers: tuple[str, str]) -> list[Any]:
    body = split(await told(flavour, value, *headers))[2]
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [msgspec.json.decode(line) for line in lines]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_each_flavour_serves_every_endpoint(flavour: str) -> None:
    async with Simulator(Settings(flavour=flavour)) as simulator:
        for value, path in (
            (CHAT, "/chat/completions"),
            (STREAM if flavour != "cohere" else {**CHAT, "stream": True}, "/v1/chat/completions"),
            (CALLS, "/chat/completions"),
            ({**CALLS, "stream": True}, "/chat/completions"),
            (THINKS, "/chat/completions"),
            ({**THINKS, "stream": True}, "/chat/completions"),
            ({"model": "m", "prompt": "p"}, "/v1/completions"),
            ({"model": "m", "prompt": "p", "stream": True}, "/completions"),
            ({"model": "m", "input": "p"}, "/v1/embeddings"),
        ):
            status, _, body = split((await ask(simulator, post(value, path=path)))[0])
            assert status == 200, (path, body)
            if b"data: " in body:
                assert body.endswith(b"data: [DONE]\n\n")
            else:
                assert isinstance(msgspec.json.decode(body.strip()), dict)
        status, _, body = split((await ask(simulator, post(b"", path="/v1/models", method="GET")))[0])
        assert (status, [each["id"] for each in msgspec.json.decode(body)["data"]]) == (200, ["sim-large", "sim-small"])


async def test_a_header_chooses_it_for_one_request() -> None:
    assert "x_groq" in await whole("openai", CHAT, ("x-sim-flavour", "groq"))


async def test_xai_counts_reasoning_beside_the_completion() -> None:
    usage = (await whole("xai", CHAT))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 3, 11)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}
    usage = (await whole("xai", THINKS))["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (3, 9)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3}


async def test_xai_ends_tool_calls_with_an_empty_reason() -> None:
    assert (await whole("xai", CALLS))["choices"][0]["finish_reason"] == ""
    chunks = await streamed("xai", {**CALLS, "stream": True})
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, ""]


async def test_openrouter_comments_and_tells_usage_and_cost_always() -> None:
    data = await told("openrouter", {**CHAT, "stream": True})
    _, headers, body = split(data)
    assert body.startswith(b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\ndata: ")
    assert headers["x-generation-id"] == "gen-sim"
    assert not any(name.startswith("x-ratelimit") for name in headers)
    chunks = await streamed("openrouter", {**CHAT, "stream": True})
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["cost"]) == ([], 0.00012)
    chunks = await streamed("openrouter", STREAM)
    assert [bool(chunk.get("usage")) for chunk in chunks].count(True) == 1
    assert {chunk["provider"] for chunk in chunks} == {"Simulated"}


async def test_deepseek_keeps_alive_with_comments_and_blank_lines() -> None:
    body = split(await told("deepseek", STREAM))[2]
    assert body.count(b"\n\n: keep-alive\n\n") == 1
    body = split(await told("deepseek", CHAT))[2]
    assert body.startswith(b"\n\n{")
    usage = msgspec.json.decode(body.strip())["usage"]
    assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (1, 2)


async def test_groq_has_its_own_member() -> None:
    chunks = await streamed("groq", STREAM)
    assert chunks[0]["x_groq"] == {"id": "req_groq"}
    assert chunks[-1]["x_groq"]["usage"] == chunks[-1]["usage"]
    assert chunks[-1]["usage"]["queue_time"] == 0.01


async def test_mistral_has_short_ids_and_takes_no_others() -> None:
    calls = (await whole("mistral", CALLS))["choices"][0]["message"]["tool_calls"]
    assert [re.fullmatch("[a-zA-Z0-9]{9}", call["id"]) is not None for call in calls] == [True, True]
    ids = [
        call["id"]
        for chunk in await streamed("mistral", {**CALLS, "stream": True})
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
        if "id" in call
    ]
    assert ids == [call["id"] for call in calls]
    for call_id, status in (("abcDEF123", 200), ("call_000000000", 400)):
        call = {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        history = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": "4"},
        ]
        assert split(await told("mistral", {"model": "m", "messages": history}))[0] == status


async def test_mistral_thinks_in_a_list_of_content() -> None:
    content = (await whole("mistral", THINKS))["choices"][0]["message"]["content"]
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "let me think"}]}
    assert content == [thinking, {"type": "text", "text": "sidecar streams every"}]
    chunks = await streamed("mistral", {**THINKS, "stream": True})
    thought = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert thought[1] == [{"type": "thinking", "thinking": [{"type": "text", "text": "let"}]}]
    assert thought[4:7] == ["sidecar", " streams", " every"]


@pytest.mark.parametrize(
    ("flavour", "name"),
    [
        ("openai", None),
        ("azure", None),
        ("perplexity", None),
        ("groq", "reasoning"),
        ("together", "reasoning"),
        ("cerebras", "reasoning"),
        ("ollama", "reasoning"),
        ("vllm", "reasoning"),
        ("openrouter", "reasoning"),
        ("xai", "reasoning_content"),
        ("deepseek", "reasoning_content"),
        ("fireworks", "reasoning_content"),
        ("llamacpp", "reasoning_content"),
    ],
)
async def test_where_the_text_of_reasoning_stands(flavour: str, name: str | None) -> None:
    message = (await whole(flavour, THINKS))["choices"][0]["message"]
    found = {key: value for key, value in message.items() if key.startswith("reasoning")}
    assert found == ({} if name is None else {name: "let me think"})
    chunks = await streamed(flavour, {**THINKS, "stream": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    pieces = [delta[name] for delta in deltas if name in delta]
    assert "".join(pieces) == ("" if name is None else "let me think")


async def test_perplexity_tells_usage_on_every_chunk() -> None:
    chunks = await streamed("perplexity", {**CHAT, "stream": True})
    assert all(chunk["usage"]["total_tokens"] == 7 for chunk in chunks)
    assert chunks[0]["citations"] == ["https://example.com"]


async def test_small_members_of_others() -> None:
    assert (await whole("llamacpp", CHAT))["timings"] == {"prompt_n": 1, "predicted_n": 16}
    assert (await whole("together", CHAT))["choices"][0]["finish_reason"] == "eos"
    assert (await whole("cerebras", CHAT))["time_info"] == {"queue_time": 0.0001, "total_time": 0.01}
    assert (await whole("vllm", CHAT))["choices"][0]["stop_reason"] is None


async def test_azure_begins_with_a_chunk_without_choices() -> None:
    first, second, *_ = await streamed("azure", STREAM)
    assert first == {
        "id": "",
        "object": "",
        "model": "",
        "choices": [],
        "prompt_filter_results": [{"prompt_index": 0}],
    }
    assert second["choices"][0]["delta"]["role"] == "assistant"


# -- errors

STD = {"message": "simulated 500", "type": "server_error", "param": None, "code": None}
ERRORS: dict[str, Any] = {
    "openai": {"error": STD},
    "groq": {"error": STD},
    "deepseek": {"error": STD},
    "xai": {"code": "server_error", "error": "simulated 500"},
    "huggingface": {"error": "simulated 500"},
    "mistral": {"object": "error", "message": "simulated 500", "type": "server_error", "param": None, "code": "1000"},
    "openrouter": {"error": {"code": 500, "message": "simulated 500", "metadata": {}}},
    "perplexity": {"error": {"message": "simulated 500", "type": "server_error", "code": 500}},
    "vllm": {"error": {**STD, "code": 500}},
    "llamacpp": {"error": {"code": 500, "message": "simulated 500", "type": "server_error"}},
    "cerebras": STD,
}


@pytest.mark.parametrize("flavour", ERRORS)
async def test_an_error_in_the_shape_of_each(flavour: str) -> None:
    assert await whole(flavour, CHAT, ("x-sim-fault", "500")) == ERRORS[flavour]


async def test_blackbox_may_answer_with_html() -> None:
    status, headers, body = split(await told("blackbox", CHAT, ("x-sim-fault", "503")))
    assert (status, headers["content-type"]) == (503, "text/html")
    assert body == b"<html><body><h1>503</h1>simulated 503</body></html>"
    assert headers["x-request-id"] == "req_sim_1"


async def test_mistral_details_what_it_does_not_know() -> None:
    status, _, body = split(await told("mistral", {**CHAT, "seed": 1}))
    detail = {"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}
    assert (status, msgspec.json.decode(body)) == (422, {"detail": [detail]})


BROKE = "the simulated model broke"
SERVER = {"message": BROKE, "type": "server_error", "param": None, "code": "server_error"}
BREAKS: dict[str, Any] = {
    "openai": {"error": SERVER},
    "xai": {"code": "server_error", "error": BROKE},
    "huggingface": {"error": BROKE},
    "cerebras": {"error": SERVER, "status_code": 500},
    "groq": {"error": {**SERVER, "status_code": 500}},
    "vllm": {"error": {**SERVER, "code": 500}},
}


@pytest.mark.parametrize("flavour", BREAKS)
async def test_how_each_breaks_a_stream(flavour: str) -> None:
    assert (await streamed(flavour, STREAM, ("x-sim-fault", "error_in_stream:2")))[-1] == BREAKS[flavour]
    body = split(await told(flavour, STREAM, ("x-sim-fault", "error_in_stream:2")))[2]
    assert body.endswith(b"[DONE]\n\n") == (flavour == "vllm")
    assert (b"event: error\ndata: " in body) == (flavour == "groq")


async def test_openrouter_breaks_a_stream_with_a_chunk() -> None:
    last = (await streamed("openrouter", STREAM, ("x-sim-fault", "error_in_stream:3")))[-1]
    assert last["error"] == {"code": 502, "message": BROKE, "metadata": {"error_type": "provider_unavailable"}}
    assert last["choices"][0]["finish_reason"] == "error"
    assert last["object"] == "chat.completion.chunk"


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [
        ("groq", {"retry-after": "3", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-tokens": "3s"}),
        ("openrouter", {"retry-after": "3", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1767225603000"}),
        (
            "cerebras",
            {"retry-after": "3", "x-ratelimit-reset-tokens-minute": "3.0", "x-ratelimit-limit-requests-day": "30000"},
        ),
        ("mistral", {"retry-after": "3", "x-ratelimit-remaining": "0"}),
        ("xai", {"retry-after": "3", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-limit-tokens": "30000000"}),
        ("deepseek", {"retry-after": "3"}),
    ],
)
async def test_a_429_has_the_headers_of_its_provider(flavour: str, expected: dict[str, str]) -> None:
    status, headers, _ = split(await told(flavour, CHAT, ("x-sim-fault", "429:3")))
    assert status == 429
    limits = {name: value for name, value in headers.items() if name.startswith(("x-ratelimit", "retry"))}
    assert limits.items() >= expected.items()
    if flavour == "deepseek":
        assert limits == expected
    if flavour == "xai":
        assert not any("reset" in name for name in limits)


async def test_cohere_refuses_stream_options() -> None:
    status, _, body = split(await told("cohere", STREAM))
    assert (status, msgspec.json.decode(body)["error"]["param"]) == (422, "stream_options")
