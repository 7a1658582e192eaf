"""Every row asked in the other language: Anthropic's client at each that speaks chat, OpenAI's at Anthropic's."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

from sidecar.answer import provider_code
from sidecar.providers import ROWS
from sidecar.simulator.flavours import REASONING
from tests.conformance.ground import Ground, flavour, ground, values
from tests.conformance.test_rows import CHAT, HELLO, PIXEL, SCHEMA, STATUSES, TOOLS, USES

MESSAGES: Final = "/v1/messages"
ASK: Final[dict[str, Any]] = {"system": "be brief", **HELLO, "max_tokens": 4000}
VERSION: Final = ("anthropic-version", "2023-06-01")
TALKERS: Final = [name for name, row in ROWS.items() if "chat" in row.capabilities]
SEERS: Final = [name for name in TALKERS if "vision" in ROWS[name].capabilities]
CALLERS: Final = [name for name in TALKERS if "tools" in ROWS[name].capabilities]
MUTE: Final = [name for name, row in ROWS.items() if not {"chat", "messages"} & set(row.capabilities)]
ARGUMENTS: Final = {"city": "Paris", "days": 9007199254740993}


def folded(stream: bytes) -> dict[str, Any]:
    """The message that a stream of Anthropic's makes, as its API reference has it."""
    found: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for value in values(stream):
        kind = value["type"]
        if kind == "message_start":
            found = value["message"]
        elif kind == "content_block_start":
            assert value["index"] == len(found["content"])
            found["content"].append(value["content_block"])
        elif kind == "content_block_delta":
            delta, block = value["delta"], found["content"][value["index"]]
            if delta["type"] == "input_json_delta":
                texts[value["index"]] = texts.get(value["index"], "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] = block.get(name, "") + delta[name]
        elif kind == "message_delta":
            found |= value["delta"]
            found["usage"] |= value["usage"]
    for index, text in texts.items():
        found["content"][index]["input"] = msgspec.json.decode(text)
    return found


async def both(ground: Ground, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request of Messages, whole; the same comes when it is streamed."""
    reply = await ground.ask(MESSAGES, asked, VERSION, ("anthropic-beta", "a"))
    assert reply.status == 200, reply.body
    ground.check_head("chat")
    assert not ground.seen.header("anthropic-version")  # of a language that the provider does not speak
    assert not ground.seen.header("anthropic-beta")
    whole = msgspec.json.decode(reply.body)
    assert isinstance(whole, dict)
    reply = await ground.ask(MESSAGES, {**asked, "stream": True}, VERSION)
    assert reply.status == 200, reply.body
    assert reply.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    stream = folded(reply.body)
    assert {**_timeless(stream), "usage": None} == {**_timeless(whole), "usage": None}
    return whole


def _timeless(message: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one answer to the next: its id, and (as the simulator has it) its words."""
    content = [{"type": "text"} if block["type"] == "text" else block for block in message["content"]]
    return {**message, "id": None, "content": content}


@pytest.mark.parametrize("name", TALKERS)
async def test_text(name: str) -> None:
    async with ground(name) as found:
        whole = await both(found, ASK)
        assert (whole["type"], whole["role"], whole["stop_reason"]) == ("message", "assistant", "end_turn")
        (block,) = whole["content"]
        assert block["type"] == "text"
        assert len(block["text"].split()) == 6
        roles = [message["role"] for message in found.asked["messages"]]
        assert roles == ["system", "user"]
        assert found.asked["model"] == "maker/sim-large:free@1"
        usage = whole["usage"]
        told = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
        counted = await found.tokens()
        times = 1 if "stream_options" in found.row.drop else 2  # it cannot be asked to tell them in a stream
        assert counted["input"] == times * told
        assert counted["output"] == times * usage["output_tokens"]


@pytest.mark.parametrize("name", TALKERS)
async def test_a_bound_ends_it(name: str) -> None:
    async with ground(name) as found:
        whole = await both(found, {**ASK, "max_tokens": 2})
        assert (whole["stop_reason"], len(whole["content"][0]["text"].split())) == ("max_tokens", 2)


@pytest.mark.parametrize("name", CALLERS)
async def test_parallel_tools_and_their_results(name: str) -> None:
    async with ground(name) as found:
        asked = {**ASK, "tools": USES, "tool_choice": {"type": "auto"}}
        whole = await both(found, asked)
        assert whole["stop_reason"] == "tool_use"
        assert [(block["type"], block["name"], block["input"]) for block in whole["content"]] == [
            ("tool_use", "weather", ARGUMENTS),
            ("tool_use", "time", ARGUMENTS),
        ]
        assert found.asked["tools"][0]["function"]["parameters"] == SCHEMA
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "21 °C"}]}
            for block in whole["content"]
        ]
        turn = [*HELLO["messages"], {"role": "assistant", "content": whole["content"]}]
        answer = await both(found, {**asked, "messages": [*turn, {"role": "user", "content": results}]})
        assert (answer["stop_reason"], answer["content"][0]["type"]) == ("end_turn", "text")
        results.append({"type": "text", "text": "and now?"})
        await both(found, {**asked, "messages": [*turn, {"role": "user", "content": results}]})
        roles = [message["role"] for message in found.asked["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "tool", "user"]
        alone = await both(found, {**asked, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}})
        assert [block["name"] for block in alone["content"]] == ["weather"]
        assert found.asked["parallel_tool_calls"] is False


@pytest.mark.parametrize("name", CALLERS)
async def test_turns_of_one_role_in_a_row_are_one(name: str) -> None:
    """As Anthropic has it; the others want the calls of a turn and their results side by side."""
    ids = ("aaaaaaaaa", "bbbbbbbbb")
    calls = [{"type": "tool_use", "id": each, "name": "weather", "input": {}} for each in ids]
    results = [{"type": "tool_result", "tool_use_id": each, "content": "21 °C"} for each in ids]
    turns = [("user", "hello"), ("assistant", [calls[0]]), ("assistant", [calls[1]])]
    turns += [("user", [results[0], {"type": "text", "text": "well?"}]), ("user", [results[1]])]
    messages = [{"role": role, "content": content} for role, content in turns]
    async with ground(name) as found:
        reply = await found.ask(MESSAGES, {**ASK, "messages": messages, "tools": USES}, VERSION)
        assert reply.status == 200, reply.body
        roles = [message["role"] for message in found.asked["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "tool", "user"]


@pytest.mark.parametrize("name", TALKERS)
async def test_thinking_comes_as_a_block_of_its_own(name: str) -> None:
    async with ground(name) as found:
        whole = await both(found, {**ASK, "thinking": {"type": "enabled", "budget_tokens": 2000}})
        kinds = [block["type"] for block in whole["content"]]
        if REASONING.get(flavour(found.row), "reasoning_content") is None:
            assert kinds == ["text"]
        else:
            assert kinds == ["thinking", "text"]
            assert whole["content"][0]["thinking"] == "let me think"


@pytest.mark.parametrize("name", SEERS)
async def test_images(name: str) -> None:
    async with ground(name) as found:
        media, _, data = PIXEL.removeprefix("data:").partition(";base64,")
        sources = [
            {"type": "base64", "media_type": media, "data": data},
            {"type": "url", "url": "https://x.test/a.png"},
        ]
        content = [{"type": "text", "text": "what?"}, *({"type": "image", "source": source} for source in sources)]
        await both(found, {**ASK, "messages": [{"role": "user", "content": content}]})
        assert found.asked["messages"][-1]["content"] == [
            {"type": "text", "text": "what?"},
            {"type": "image_url", "image_url": {"url": PIXEL}},
            {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        ]


@pytest.mark.parametrize("name", TALKERS)
async def test_errors_are_worded_anew_and_keep_their_status(name: str) -> None:
    async with ground(name) as found:
        for status in STATUSES:
            reply = await found.ask(MESSAGES, ASK, VERSION, ("x-sim-fault", f"{status}"))
            direct = await found.direct()
            assert (reply.status, reply.header("x-sidecar-error")) == (status, provider_code(status))
            assert reply.header("content-type") == "application/json"
            told = msgspec.json.decode(reply.body)
            assert told["type"] == "error"
            if b"<html" not in direct.body:  # what a CDN says is not repeated
                assert f"simulated {status}" in told["error"]["message"]
            limits = [pair for pair in direct.headers if "ratelimit" in pair[0] or pair[0] == "retry-after"]
            assert [pair for pair in reply.headers if "ratelimit" in pair[0] or pair[0] == "retry-after"] == limits


@pytest.mark.parametrize("name", TALKERS)
async def test_an_error_in_a_stream_ends_it_as_messages_do(name: str) -> None:
    async with ground(name) as found:
        reply = await found.ask(MESSAGES, {**ASK, "stream": True}, VERSION, ("x-sim-fault", "error_in_stream:3"))
        assert reply.status == 200
        *_, last = values(reply.body)
        assert (last["type"], last["error"]["message"]) == ("error", "the simulated model broke")
        assert b"message_stop" not in reply.body


@pytest.mark.parametrize("name", MUTE)
async def test_a_row_without_conversations_says_so(name: str) -> None:
    async with ground(name) as found:
        reply = await found.ask(MESSAGES, ASK, VERSION)
        assert (reply.status, reply.header("x-sidecar-error")) == (400, "caller_feature_unsupported")
        assert msgspec.json.decode(reply.body)["error"]["message"] == f"provider {name} does not serve messages"


# -- OpenAI's client at Anthropic's

SPEAKERS: Final = [name for name, row in ROWS.items() if row.speaks[0][0] == "messages"]


@pytest.mark.parametrize("name", SPEAKERS)
async def test_chat_at_messages(name: str) -> None:
    async with ground(name) as found:
        turn = [{"role": "system", "content": "be brief"}, *HELLO["messages"]]
        reply = await found.ask(CHAT, {"messages": turn, "max_completion_tokens": 99, "temperature": 0.5})
        found.check_head("messages")
        assert found.seen.header("anthropic-version") == "2023-06-01"
        assert (found.asked["max_tokens"], found.asked["temperature"]) == (99, 0.5)
        done = msgspec.json.decode(reply.body)
        assert (done["object"], done["choices"][0]["finish_reason"]) == ("chat.completion", "stop")
        assert len(done["choices"][0]["message"]["content"].split()) == 6
        told = msgspec.json.decode((await found.direct()).body)["usage"]
        usage = done["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (told["input_tokens"], told["output_tokens"])
        counted = await found.tokens()
        assert (counted["input"], counted["output"]) == (told["input_tokens"], told["output_tokens"])


@pytest.mark.parametrize("name", SPEAKERS)
async def test_chat_stream_at_messages(name: str) -> None:
    async with ground(name) as found:
        asked = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        reply = await found.ask(CHAT, asked)
        assert reply.header("content-type") == "text/event-stream; charset=utf-8"
        assert reply.body.endswith(b"data: [DONE]\n\n")
        *chunks, usage = values(reply.body)
        said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert len(said.split()) == 6
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], (await found.tokens())["input"])
        reply = await found.ask(CHAT, {**HELLO, "stream": True})
        assert not any(chunk.get("usage") for chunk in values(reply.body))


@pytest.mark.parametrize("name", SPEAKERS)
async def test_chat_tools_at_messages(name: str) -> None:
    async with ground(name) as found:
        asked = {**HELLO, "tools": TOOLS, "tool_choice": "required"}
        reply = await found.ask(CHAT, asked)
        assert reply.status == 200, reply.body
        choice = msgspec.json.decode(reply.body)["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert [call["function"]["name"] for call in calls] == ["weather", "time"]
        assert [msgspec.json.decode(call["function"]["arguments"]) for call in calls] == [ARGUMENTS, ARGUMENTS]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "21 °C"} for call in calls]
        reply = await found.ask(CHAT, {**asked, "messages": [*HELLO["messages"], choice["message"], *results]})
        assert reply.status == 200, reply.body  # the simulator has checked the order of turns and results
        reply = await found.ask(CHAT, {**asked, "stream": True, "parallel_tool_calls": False})
        choices = [choice for chunk in values(reply.body) for choice in chunk["choices"]]
        parts = [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]
        assert [part["function"].get("name") for part in parts if part["function"].get("name")] == ["weather"]
        assert msgspec.json.decode("".join(part["function"]["arguments"] for part in parts)) == ARGUMENTS
        assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("name", SPEAKERS)
async def test_chat_errors_at_messages(name: str) -> None:
    async with ground(name) as found:
        reply = await found.ask(CHAT, {**HELLO, "stream": True}, ("x-sim-fault", "error_in_stream:4"))
        assert values(reply.body)[-1]["error"]["message"] == "the simulated model broke"
        assert b"[DONE]" not in reply.body
        await found.direct()
        for status in STATUSES:
            reply = await found.ask(CHAT, HELLO, ("x-sim-fault", f"{status}"))
            direct = await found.direct()
            assert (reply.status, reply.header("x-sidecar-error")) == (status, provider_code(status))
            error = msgspec.json.decode(reply.body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"] == f"simulated {status}"
            assert reply.header("retry-after") == direct.header("retry-after")
