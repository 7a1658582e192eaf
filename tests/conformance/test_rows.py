"""One suite for every row of the table: under each of its names, each capability that it declares, on real sockets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args

import msgspec
import pytest

from sidecar.answer import provider_code
from sidecar.dialects import DIALECTS
from sidecar.providers import ALIASES, BUILT_IN, ROWS, Capability
from tests.conformance.ground import Ground, ground, values

CHAT: Final = "/v1/chat/completions"
HELLO: Final[dict[str, Any]] = {"messages": [{"role": "user", "content": "hello there, said the caller"}]}
PIXEL: Final = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS: Final = [
    {"type": "function", "function": {"name": name, "description": "of a city", "parameters": SCHEMA}}
    for name in ("weather", "time")
]
USES: Final = [{"name": name, "description": "of a city", "input_schema": SCHEMA} for name in ("weather", "time")]
# With the last comes a time to wait.
STATUSES: Final = (400, 401, 402, 403, 404, 408, 413, 422, 498, 500, 502, 503, 504, 529, 429)
NAMES: Final = tuple(ROWS)


def talks(ground: Ground) -> bool:
    return "chat" in dict(ground.row.speaks)


async def chat(ground: Ground) -> None:
    reply = await ground.ask(CHAT, HELLO)
    ground.check_head("chat")
    assert ground.asked == {"model": "maker/sim-large:free@1", **HELLO}
    await ground.check_answer(reply)
    assert reply.status == 200
    assert msgspec.json.decode(reply.body.strip())["choices"][0]["message"]["content"].startswith("sidecar streams")


async def stream(ground: Ground) -> None:
    await (_stream_chat if talks(ground) else _stream_messages)(ground)


async def _stream_chat(ground: Ground) -> None:
    asks = ground.row.stream_usage
    reply = await ground.ask(CHAT, {**HELLO, "stream": True})
    ground.check_head("chat")
    assert ground.asked.get("stream_options") == ({"include_usage": True} if asks else None)
    direct = await ground.check_answer(reply, hidden=asks)
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert (len(reply.body) < len(direct.body)) is asks  # its usage event was hidden
    assert "text/event-stream" in (reply.header("content-type") or "")
    options = {"include_usage": True, "x_more": 1}
    reply = await ground.ask(CHAT, {**HELLO, "stream": True, "stream_options": options})
    assert ground.asked.get("stream_options") == (None if "stream_options" in ground.row.drop else options)
    await ground.check_answer(reply)
    if asks:
        assert values(reply.body)[-1]["usage"]["prompt_tokens"] > 0


async def _stream_messages(ground: Ground) -> None:
    reply = await ground.ask("/v1/messages", {**HELLO, "max_tokens": 99, "stream": True})
    ground.check_head("messages")
    await ground.check_answer(reply)
    assert reply.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def tools(ground: Ground) -> None:
    await (_tools_chat if talks(ground) else _tools_messages)(ground)


async def _tools_chat(ground: Ground) -> None:
    asked = {**HELLO, "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}
    reply = await ground.ask(CHAT, asked)
    assert ground.asked == {"model": "maker/sim-large:free@1", **asked}
    await ground.check_answer(reply)
    message = msgspec.json.decode(reply.body.strip())["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "21 °C"} for call in message["tool_calls"]]
    turn = [*HELLO["messages"], message, *results]
    reply = await ground.ask(CHAT, {"messages": turn, "tools": TOOLS})
    assert ground.asked["messages"] == turn
    await ground.check_answer(reply)
    assert reply.status == 200
    reply = await ground.ask(CHAT, {**asked, "parallel_tool_calls": False, "stream": True})
    await ground.check_answer(reply, hidden=ground.row.stream_usage)
    named = [call["function"].get("name") for call in _called(reply.body)]
    assert [name for name in named if name] == ["weather"]
    assert "".join(call["function"]["arguments"] for call in _called(reply.body)) == (
        '{"city":"Paris","days":9007199254740993}'
    )


def _called(body: bytes) -> list[Any]:
    choices = [choice for chunk in values(body) for choice in chunk["choices"]]
    return [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]


async def _tools_messages(ground: Ground) -> None:
    asked = {**HELLO, "max_tokens": 99, "tools": USES, "tool_choice": {"type": "auto"}}
    reply = await ground.ask("/v1/messages", asked)
    assert ground.asked == {"model": "maker/sim-large:free@1", **asked}
    await ground.check_answer(reply)
    content = msgspec.json.decode(reply.body)["content"]
    assert [block["name"] for block in content] == ["weather", "time"]
    results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "21 °C"} for block in content]
    turn = [*HELLO["messages"], {"role": "assistant", "content": content}, {"role": "user", "content": results}]
    reply = await ground.ask("/v1/messages", {**asked, "messages": turn})
    assert ground.asked["messages"] == turn
    await ground.check_answer(reply)
    assert reply.status == 200
    reply = await ground.ask("/v1/messages", {**asked, "stream": True})
    await ground.check_answer(reply)
    starts = [value["content_block"] for value in values(reply.body) if value["type"] == "content_block_start"]
    assert [block["name"] for block in starts] == ["weather", "time"]


async def vision(ground: Ground) -> None:
    if talks(ground):
        images: list[Any] = [
            {"type": "image_url", "image_url": {"url": url}} for url in (PIXEL, "https://x.test/a.png")
        ]
        path, more = CHAT, {}
    else:
        media, _, data = PIXEL.removeprefix("data:").partition(";base64,")
        images = [{"type": "image", "source": {"type": "base64", "media_type": media, "data": data}}]
        path, more = "/v1/messages", {"max_tokens": 99}
    content = [{"type": "text", "text": "what is this?"}, *images]
    reply = await ground.ask(path, {"messages": [{"role": "user", "content": content}], **more})
    assert ground.asked["messages"][0]["content"] == content
    await ground.check_answer(reply)
    assert reply.status == 200


async def embeddings(ground: Ground) -> None:
    names = dict(ground.row.rename)
    for asked in (
        {"input": "one text", "dimensions": 3},
        {"input": ["one", "another"], "encoding_format": "base64", "x_input_type": "query"},
        {"input": [[1, 2], [3]]},
    ):
        reply = await ground.ask("/v1/embeddings", asked)
        ground.check_head("embeddings")
        renamed = {names.get(name, name): value for name, value in asked.items()}
        assert ground.asked == {"model": "maker/sim-large:free@1", **renamed}
        await ground.check_answer(reply)
        assert reply.status == 200
    assert (await ground.tokens())["input"] == 2 + 2 + 3


async def completions(ground: Ground) -> None:
    asked = {"prompt": ["once upon", "a time"], "max_tokens": 3, "suffix": "."}
    reply = await ground.ask("/v1/completions", asked)
    ground.check_head("completions")
    assert ground.asked == {"model": "maker/sim-large:free@1", **asked}
    await ground.check_answer(reply)
    assert [choice["finish_reason"] for choice in msgspec.json.decode(reply.body.strip())["choices"]] == [
        "length",
        "length",
    ]
    reply = await ground.ask("/v1/completions", {**asked, "stream": True})
    await ground.check_answer(reply, hidden=ground.row.stream_usage)
    assert reply.body.endswith(b"data: [DONE]\n\n")


async def messages(ground: Ground) -> None:
    asked = {"system": "be brief", **HELLO, "max_tokens": 99, "metadata": {"user_id": "u"}}
    reply = await ground.ask("/v1/messages", asked, ("anthropic-version", "2023-06-01"), ("anthropic-beta", "a,b"))
    ground.check_head("messages")
    assert ground.asked == {"model": "maker/sim-large:free@1", **asked}
    assert (ground.seen.header("anthropic-version"), ground.seen.header("anthropic-beta")) == ("2023-06-01", "a,b")
    await ground.check_answer(reply)
    assert msgspec.json.decode(reply.body)["content"][0]["text"].startswith("sidecar streams")


async def count_tokens(ground: Ground) -> None:
    reply = await ground.ask("/v1/messages/count_tokens", HELLO)
    ground.check_head("count_tokens")
    await ground.check_answer(reply)
    assert msgspec.json.decode(reply.body) == {"input_tokens": 6}


CHECKS: Final[dict[Capability, Callable[[Ground], Awaitable[None]]]] = {
    "chat": chat,
    "stream": stream,
    "tools": tools,
    "vision": vision,
    "embeddings": embeddings,
    "completions": completions,
    "messages": messages,
    "count_tokens": count_tokens,
}
CASES: Final = [(name, capability) for name, row in ROWS.items() for capability in row.capabilities]
# What the rows are asked that have no chat and no messages, to see how they fail.
ANY: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "chat": (CHAT, HELLO),
    "messages": ("/v1/messages", {**HELLO, "max_tokens": 99}),
    "embeddings": ("/v1/embeddings", {"input": "text"}),
}


def first(ground: Ground) -> tuple[str, dict[str, Any]]:
    """The path and body of a request in the first dialect of a row."""
    return ANY[ground.row.speaks[0][0]]


@pytest.mark.parametrize(("name", "capability"), CASES)
async def test_capability(name: str, capability: Capability) -> None:
    async with ground(name) as found:
        await CHECKS[capability](found)


@pytest.mark.parametrize("name", NAMES)
async def test_every_class_of_error_is_the_provider_s_own(name: str) -> None:
    async with ground(name) as found:
        path, body = first(found)
        for status in STATUSES:
            reply = await found.ask(path, body, ("x-sim-fault", f"{status}"))
            assert reply.status == status
            await found.check_answer(reply)
            assert reply.header("x-sidecar-error") == provider_code(status)
            assert reply.header("x-sidecar-attempts") == "1"
            # Nothing was tried again, so the SDK may; but money that is spent does not come back.
            assert reply.header("x-should-retry") == ("false" if status == 402 else None)


@pytest.mark.parametrize("name", NAMES)
async def test_429_has_the_provider_s_own_headers(name: str) -> None:
    async with ground(name) as found:
        path, body = first(found)
        reply = await found.ask(path, body, ("x-sim-fault", "quota"))  # spent money: no word of coming again
        await found.check_answer(reply)
        assert reply.header("retry-after") is None
        reply = await found.ask(path, body, ("x-sim-fault", "429:7"))
        direct = await found.check_answer(reply)
        assert reply.header("retry-after") == "7"
        limits = [pair for pair in direct.headers if "ratelimit" in pair[0]]
        assert [pair for pair in reply.headers if "ratelimit" in pair[0]] == limits


@pytest.mark.parametrize("name", NAMES)
async def test_members_survive_but_for_what_the_row_names(name: str) -> None:
    """Every member that any row drops or renames, and unknown ones, in spellings that no JSON library would write."""
    async with ground(name) as found:
        path, body = first(found)
        tables = [*(row.drop for row in BUILT_IN), *((old for old, _ in row.rename) for row in BUILT_IN)]
        named = {each: b'"v\\u00e9"' for table in tables for each in table if each != "stream_options"}
        named |= {"max_completion_tokens": b"77", "seed": b"1e1", "dimensions": b"3"}
        odd = {"x_number": b"1.0", "x_huge": b"1e400", "x_long": b"123456789012345678901234567890"}
        odd |= {
            "x_text": b'"\\u00e9\\/\\ud83d\\ude42"',
            "x_nested": b'{"b" : [1 , 2.50 ],"a":null}',
            "x_\u00e9": b"-0.0",
        }
        members = {each: msgspec.json.encode(value) for each, value in body.items()} | named | odd
        model = f"{name}/maker/sim-large:free@1".encode()
        sent = b'{ "model": "%b" , %b }' % (
            model,
            b" , ".join(b'"%b": %b' % (k.encode(), v) for k, v in members.items()),
        )
        reply = await found.ask(path, sent)
        assert reply.status == 200 or not talks(found), reply.body  # the simulator refuses what the provider would
        names = dict(found.row.rename)
        wanted = {names.get(each, each): value for each, value in members.items() if each not in found.row.drop}
        got = msgspec.json.decode(found.seen.body, type=dict[str, msgspec.Raw])
        assert {each: bytes(value) for each, value in got.items() if each != "model"} == wanted
        kept = [each for each in members if each not in names and each not in found.row.drop]
        assert [each for each in got if each in kept] == kept  # in the client's order


@pytest.mark.parametrize("name", NAMES)
async def test_headers_survive_but_for_credentials_and_those_of_the_hop(name: str) -> None:
    kept = [
        ("user-agent", "App/1.0 (of the caller)"),
        ("http-referer", "https://app.test"),  # OpenRouter's
        ("x-title", "an app"),
        ("openai-organization", "org"),
        ("x-client-request-id", "abc"),
        ("x-hf-bill-to", "team"),
        ("x-stainless-lang", "python"),
        ("accept", "application/json"),
        ("accept-language", "de"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("x-twice", "a"),
        ("x-twice", "b"),
    ]
    gone = [
        ("x-sidecar-tag", "t"),
        ("x-forwarded-for", "1.2.3.4"),
        ("forwarded", "for=1.2.3.4"),
        ("via", "1.1 a"),
        ("cookie", "a=b"),
        ("proxy-authorization", "Basic eDp5"),
        ("accept-encoding", "gzip"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ]
    async with ground(name) as found:
        path, body = first(found)
        reply = await found.ask(path, body, *kept, *gone)
        assert reply.status == 200
        headers = found.seen.headers
        assert [pair for pair in headers if pair in kept] == kept
        assert not [pair for pair in headers if pair in gone]
        assert found.seen.header("accept-encoding") == "identity"


@pytest.mark.parametrize("name", [name for name in NAMES if not ROWS[name].needs_key])
async def test_a_server_without_a_key_gets_none(name: str) -> None:
    async with ground(name, keyed=False) as found:
        assert (await found.ask(*first(found))).status == 200
        assert "canary" not in repr(found.seen.headers)
        assert not [each for each, _ in found.seen.headers if each in ("authorization", "x-api-key", "api-key")]


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].needs_key])
async def test_a_missing_key_is_told_and_nothing_is_sent(name: str) -> None:
    async with ground(name, keyed=False) as found:
        reply = await found.ask(*first(found))
        assert (reply.status, reply.header("x-sidecar-error")) == (500, "sidecar_misconfigured")
        assert f"set api_key in [providers.{name}]".encode() in reply.body
        assert not found.simulator.requests


OTHERS: Final[dict[str, dict[str, Any]]] = {"completions": {"prompt": "p"}, "embeddings": {"input": "i"}}
SILENT: Final = [(name, dialect) for name in NAMES for dialect in OTHERS if dialect not in dict(ROWS[name].speaks)]


@pytest.mark.parametrize(("name", "dialect"), SILENT)
async def test_a_dialect_that_a_row_does_not_speak_is_refused(name: str, dialect: str) -> None:
    async with ground(name) as found:
        reply = await found.ask(f"/v1/{dialect}", OTHERS[dialect])
        assert (reply.status, reply.header("x-sidecar-error")) == (400, "caller_feature_unsupported")
        assert f"provider {name} does not serve {dialect}".encode() in reply.body
        assert not found.simulator.requests


def test_the_suite_is_the_table() -> None:
    """No row and no capability can dodge the suite."""
    assert set(CHECKS) == set(get_args(Capability))
    assert set(NAMES) == {row.name for row in BUILT_IN} | set(ALIASES)
    assert {name for name, _ in CASES} == set(NAMES)
    assert {"xai", "grok", "blackbox", "openrouter"} < set(NAMES)
    for row in BUILT_IN:
        spoken = [dialect for dialect, _ in row.speaks]
        assert {dialect for dialect in spoken if dialect in get_args(Capability)} == set(spoken)
        assert set(spoken) <= set(DIALECTS)
        assert spoken[0] in ANY  # so that every row is asked for its errors
        assert set(row.capabilities) == {*spoken, *row.offers}
        assert not {"stream", "tools", "vision"} & set(row.offers) or {"chat", "messages"} & set(spoken)
