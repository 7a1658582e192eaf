"""What single providers do otherwise: usage to the token, errors inside a 200, and keys that they repeat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from sidecar.config import Model
from sidecar.providers import ROWS
from tests.conformance.client import Client
from tests.conformance.ground import CALLER_KEY, CREDENTIALS, PROVIDER_KEY, config, serving
from tests.conformance.peer import Peer, peer, whole

JSON: Final = [("content-type", "application/json")]
EVENTS: Final = [("content-type", "text/event-stream")]
HELLO: Final = [{"role": "user", "content": "hello"}]
# Each: the row; `usage` as that provider writes it; tokens in, out, in from a cache, out in reasoning.
OPENAI: Final = {
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 30, "accepted_prediction_tokens": 0},
}
USAGES: Final[list[tuple[str, dict[str, Any], tuple[int, int, int, int]]]] = [
    ("openai", OPENAI, (1000, 50, 600, 30)),
    ("azure", OPENAI, (1000, 50, 600, 30)),
    # Reasoning is beside the completion at xAI's, and only there.
    ("xai", {**OPENAI, "total_tokens": 1080, "num_sources_used": 0}, (1000, 80, 600, 30)),
    ("grok", {**OPENAI, "total_tokens": 1080}, (1000, 80, 600, 30)),
    ("openrouter", {**OPENAI, "cost": 0.00042, "is_byok": False, "cost_details": {}}, (1000, 50, 600, 30)),
    (
        "deepseek",
        {
            "prompt_tokens": 900,
            "completion_tokens": 40,
            "total_tokens": 940,
            "prompt_cache_hit_tokens": 640,
            "prompt_cache_miss_tokens": 260,
        },
        (900, 40, 640, 0),
    ),
    (
        "groq",
        {"queue_time": 0.1, "prompt_tokens": 12, "prompt_time": 0.01, "completion_tokens": 7, "total_tokens": 19},
        (12, 7, 0, 0),
    ),
    (
        "perplexity",
        {
            "prompt_tokens": 9,
            "completion_tokens": 70,
            "total_tokens": 79,
            "citation_tokens": 11,
            "num_search_queries": 2,
            "search_context_size": "low",
            "cost": {"total_cost": 0.01},
        },
        (9, 70, 0, 0),
    ),
    (
        "cerebras",
        {
            "prompt_tokens": 5,
            "completion_tokens": 6,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 0},
        },
        (5, 6, 2, 0),
    ),
    ("mistral", {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}, (8, 3, 0, 0)),
    ("blackbox", {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11, "cost": 0.1}, (8, 3, 0, 0)),
    ("vllm", {**OPENAI, "prompt_tokens_details": None, "completion_tokens_details": None}, (1000, 50, 0, 0)),
]
ANTHROPIC: Final = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 2000,
    "output_tokens": 1,
}


@asynccontextmanager
async def asking(name: str) -> AsyncIterator[tuple[Client, Peer]]:
    async with peer() as provider, serving(config(name, provider.port)) as (client, _):
        yield client, provider


async def tokens(client: Client) -> tuple[int, int, int, int]:
    text = (await client.ask("GET", "/metrics", [])).body.decode()
    lines = dict(line.rpartition(" ")[::2] for line in text.splitlines() if "_tokens_total{" in line)
    counts = {name.removeprefix("sidecar_").partition("_tokens")[0]: int(count) for name, count in lines.items()}
    return counts["input"], counts["output"], counts["cached_input"], counts["reasoning_output"]


def sent(name: str, **members: Any) -> tuple[list[tuple[str, str]], bytes]:
    headers = [*JSON, ("authorization", f"Bearer {CALLER_KEY}")]
    return headers, msgspec.json.encode({"model": f"{name}/m", "messages": HELLO, "max_tokens": 9, **members})


def chunk(choices: list[Any], **members: Any) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode({"id": "c", "choices": choices, **members})


TEXT: Final = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
STOP: Final = {"index": 0, "delta": {}, "finish_reason": "stop"}
DONE: Final = b"data: [DONE]\n\n"


@pytest.mark.parametrize(("name", "usage", "counts"), USAGES)
async def test_usage_of_a_body(name: str, usage: dict[str, Any], counts: tuple[int, ...]) -> None:
    message = {"role": "assistant", "content": 'it says "usage": {"prompt_tokens": 5}'}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = msgspec.json.format(msgspec.json.encode({"id": "c", "choices": [choice], "usage": usage, "x": {"a": 1}}))
    async with asking(name) as (client, provider):
        provider.answers.append(whole(200, JSON, body))
        assert (await client.ask("POST", "/v1/chat/completions", *sent(name))).body == body
        assert await tokens(client) == counts


@pytest.mark.parametrize(("name", "usage", "counts"), USAGES)
@pytest.mark.parametrize("place", ["own", "last", "every"])
async def test_usage_of_a_stream(name: str, usage: dict[str, Any], counts: tuple[int, ...], place: str) -> None:
    """In a chunk of its own, in the one that ends the choice, or in every chunk: the last is what counts."""
    less = {**usage, "completion_tokens": 1, "total_tokens": usage["prompt_tokens"] + 1}
    if place == "own":
        body = chunk([TEXT], usage=None) + chunk([STOP], usage=None) + chunk([], usage=usage) + DONE
    elif place == "last":
        body = chunk([TEXT]) + chunk([STOP], usage=usage) + DONE
    else:
        body = chunk([TEXT], usage=less) + chunk([STOP], usage=usage) + DONE
    async with asking(name) as (client, provider):
        provider.answers.append(whole(200, EVENTS, body))
        reply = await client.ask("POST", "/v1/chat/completions", *sent(name, stream=True))
        hidden = place == "own" and ROWS[name].stream_usage
        assert reply.body == (body.replace(chunk([], usage=usage), b"") if hidden else body)
        assert await tokens(client) == counts


@pytest.mark.parametrize(
    ("asked", "sent_on", "shown"),
    [
        (b"null", {"include_usage": True}, False),
        (b"{}", {"include_usage": True}, False),
        (b'{"include_usage":false}', {"include_usage": True}, False),
        (
            b'{"include_usage":null,"include_obfuscation":false}',
            {"include_usage": True, "include_obfuscation": False},
            False,
        ),
        (b'{ "include_usage" : true , "x":1.0}', {"include_usage": True, "x": 1.0}, True),
    ],
)
async def test_usage_is_asked_for_and_shown_to_who_asked(asked: bytes, sent_on: dict[str, Any], shown: bool) -> None:
    body = chunk([TEXT], usage=None) + chunk([STOP], usage=None) + chunk([], usage=OPENAI) + DONE
    async with asking("openai") as (client, provider):
        provider.answers.append(whole(200, EVENTS, body))
        headers, request = sent("openai", stream=True, stream_options=msgspec.Raw(asked))
        reply = await client.ask("POST", "/v1/chat/completions", headers, request)
        assert msgspec.json.decode(provider.asked[0].body)["stream_options"] == sent_on
        assert reply.body == (body if shown else body.replace(chunk([], usage=OPENAI), b""))
        assert (await tokens(client))[:2] == (1000, 50)


async def test_usage_of_groq_s_own_member() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
    last = chunk([STOP], x_groq={"id": "r", "usage": usage})
    body = chunk([TEXT], x_groq={"id": "r"}) + last + DONE
    async with asking("groq") as (client, provider):
        provider.answers.append(whole(200, EVENTS, body))
        assert (await client.ask("POST", "/v1/chat/completions", *sent("groq", stream=True))).body == body
        assert await tokens(client) == (12, 7, 0, 0)


async def test_usage_of_anthropic_is_disjoint_and_cumulative() -> None:
    later = {"output_tokens": 77, "output_tokens_details": {"thinking_tokens": 40}}
    values: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "content": [], "usage": ANTHROPIC}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": later},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"event: %b\ndata: %b\n\n" % (v["type"].encode(), msgspec.json.encode(v)) for v in values)
    body = msgspec.json.encode({"id": "m", "type": "message", "content": [], "usage": {**ANTHROPIC, **later}})
    async with asking("anthropic") as (client, provider):
        provider.answers += [whole(200, EVENTS, stream), whole(200, JSON, body)]
        assert (await client.ask("POST", "/v1/messages", *sent("anthropic", stream=True))).body == stream
        assert await tokens(client) == (2310, 77, 2000, 40)
        assert (await client.ask("POST", "/v1/messages", *sent("anthropic"))).body == body
        assert await tokens(client) == (2 * 2310, 2 * 77, 2 * 2000, 2 * 40)


# -- errors inside a 200

IN_BODY: Final = b'{"error":{"code":502,"message":"upstream broke","metadata":{"error_type":"provider_unavailable"}}}'


async def test_openrouter_s_error_in_a_200_body() -> None:
    """It goes to its own client as it is, is an error to another's, and is recorded as one."""
    async with asking("openrouter") as (client, provider):
        provider.answers += [whole(200, JSON, IN_BODY), whole(200, JSON, IN_BODY)]
        reply = await client.ask("POST", "/v1/chat/completions", *sent("openrouter"))
        assert (reply.status, reply.body) == (200, IN_BODY)
        assert b'error="provider_error_in_answer"' in (await client.ask("GET", "/metrics", [])).body
        reply = await client.ask("POST", "/v1/messages", *sent("openrouter"))
        assert reply.status == 502
        assert "upstream broke" in msgspec.json.decode(reply.body)["error"]["message"]


async def test_openrouter_s_error_in_a_stream() -> None:
    error = {"code": 502, "message": "upstream broke"}
    broken = chunk([{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], error=error)
    stream = b": OPENROUTER PROCESSING\n\n" + chunk([TEXT]) + broken
    async with asking("openrouter") as (client, provider):
        provider.answers += [whole(200, EVENTS, stream), whole(200, EVENTS, stream)]
        assert (await client.ask("POST", "/v1/chat/completions", *sent("openrouter", stream=True))).body == stream
        reply = await client.ask("POST", "/v1/messages", *sent("openrouter", stream=True))
        assert b"message_stop" not in reply.body
        last = reply.body.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\n")
        assert b"upstream broke" in last


# -- keys


@pytest.mark.parametrize("name", ["openai", "azure", "anthropic", "xai", "blackbox", "openrouter"])
async def test_a_key_that_a_provider_repeats_goes_no_further(name: str) -> None:
    """Not in the body, not in a header; however the client asked for it."""
    told = f"Incorrect API key provided: {PROVIDER_KEY}. You can find your key"
    body = msgspec.json.encode({"error": {"message": told, "type": "invalid_request_error", "key": PROVIDER_KEY}})
    headers = [*JSON, ("x-debug", f"Bearer {PROVIDER_KEY}")]
    async with asking(name) as (client, provider):
        for path in ("/v1/chat/completions", "/v1/messages"):
            provider.answers.append(whole(401, headers, body))
            reply = await client.ask("POST", path, *sent(name))
            assert reply.status == 401
            assert PROVIDER_KEY.encode() not in reply.bare + reply.body
            assert b"Incorrect API key provided" in reply.body


@pytest.mark.parametrize("presented", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
@pytest.mark.parametrize("name", ["openai", "azure", "anthropic"])
async def test_the_caller_s_key_stays_here(name: str, presented: str) -> None:
    """In whichever header it came, and also what stands in the other ones."""
    others = [(each, "canary-of-another") for each in ("x-api-key", "api-key", "x-goog-api-key") if each != presented]
    own = [(presented, f"Bearer {CALLER_KEY}" if presented == "authorization" else CALLER_KEY)]
    path = "/v1/messages" if name == "anthropic" else "/v1/chat/completions"
    _, body = sent(name)
    async with asking(name) as (client, provider):
        provider.answers.append(whole(200, JSON, b"{}"))
        reply = await client.ask("POST", path, [*own, *others, *JSON, ("cookie", "c=canary-of-another")], body)
        assert reply.status == 200, reply.body
        (asked,) = provider.asked
        assert "canary-of-another" not in repr(asked)
        assert CALLER_KEY not in repr(asked)
        assert repr(asked).count(PROVIDER_KEY) == 1


async def test_the_caller_s_own_key_is_forwarded_where_the_table_says_so() -> None:
    async with peer() as provider:
        settings = config("azure", provider.port)
        table = msgspec.structs.replace(
            settings.providers["azure"],
            api_key=msgspec.structs.replace(settings.callers["someone"].key, source="caller"),
        )
        own = msgspec.structs.replace(settings, providers={"azure": table}, callers={})
        async with serving(own) as (client, _):
            provider.answers.append(whole(200, JSON, b"{}"))
            await client.ask("POST", "/v1/chat/completions", *sent("azure"))
            assert [pair for pair in provider.asked[0].headers if CALLER_KEY in pair[1]] == [("api-key", CALLER_KEY)]
            reply = await client.ask("POST", "/v1/chat/completions", JSON, sent("azure")[1])
            assert (reply.status, len(provider.asked)) == (401, 1)


# -- from one row to the next


async def test_each_target_gets_the_request_in_its_own_words() -> None:
    """What one row drops, renames, adds or translates is there again for the next."""
    async with peer() as one, peer() as two, peer() as three:
        kinds = {"mistral": one, "anthropic": two, "perplexity": three}
        providers = {name: config(name, found.port).providers[name] for name, found in kinds.items()}
        targets = ("mistral/magistral-x", "anthropic/claude-x", "perplexity/sonar")
        settings = msgspec.structs.replace(
            config("mistral", one.port), providers=providers, models={"any": Model(targets=targets)}
        )
        async with serving(settings) as (client, _):
            one.answers.append(whole(503, JSON, b"{}"))
            two.answers.append(whole(529, JSON, b"{}"))
            three.answers.append(whole(200, EVENTS, chunk([STOP], usage=OPENAI) + DONE))
            more = {"seed": 7, "user": "u", "max_completion_tokens": 9, "x_extra": 1.5, "stream": True}
            body = msgspec.json.encode({"model": "any", "messages": HELLO, **more})
            reply = await client.ask("POST", "/v1/chat/completions", sent("any")[0], body)
            assert (reply.status, reply.header("x-sidecar-attempts")) == (200, "3")
            assert reply.header("x-sidecar-provider") == "perplexity"
            first, second, third = (msgspec.json.decode(found.asked[0].body) for found in kinds.values())
            assert first.keys() == {
                "model", "messages", "random_seed", "max_tokens", "x_extra", "stream", "stream_options",
            }  # fmt: skip
            assert (second["max_tokens"], second["model"]) == (9, "claude-x")
            assert third == {"model": "sonar", "messages": HELLO, **more}
            heads = [[name for name, _ in found.asked[0].headers if name in CREDENTIALS] for found in kinds.values()]
            assert heads == [["authorization"], ["x-api-key"], ["authorization"]]


# -- what clients choose


async def test_a_query_string_reaches_the_provider() -> None:
    """Anthropic's SDK asks for its beta endpoints with `?beta=true`."""
    async with asking("anthropic") as (client, provider):
        provider.answers.append(whole(200, JSON, b"{}"))
        await client.ask("POST", "/v1/messages?beta=true", *sent("anthropic"))
        assert provider.asked[0].target == "/v1/messages?beta=true"


# -- addresses


async def test_azure_s_classic_form_has_the_deployment_in_the_path() -> None:
    async with peer() as provider:
        settings = config("azure", provider.port)
        base = f"http://127.0.0.1:{provider.port}/openai/deployments/{{model}}?api-version=2024-10-21"
        table = msgspec.structs.replace(settings.providers["azure"], base_url=base)
        async with serving(msgspec.structs.replace(settings, providers={"azure": table})) as (client, _):
            headers, _ = sent("azure")
            for model, target in (
                ("gpt-4o_2024", "/openai/deployments/gpt-4o_2024/chat/completions?api-version=2024-10-21"),
                ("a/../b?c#d%", "/openai/deployments/a%2F..%2Fb%3Fc%23d%25/chat/completions?api-version=2024-10-21"),
            ):
                provider.answers.append(whole(200, JSON, b"{}"))
                body = msgspec.json.encode({"model": f"azure/{model}", "messages": HELLO})
                assert (await client.ask("POST", "/v1/chat/completions", headers, body)).status == 200
                assert provider.asked[-1].target == target
            body = msgspec.json.encode({"model": "azure/..", "messages": HELLO})
            assert (await client.ask("POST", "/v1/chat/completions", headers, body)).status == 404
            assert len(provider.asked) == 2


@pytest.mark.parametrize(
    "model", ["a/b:c@d", "é", "モデル", "with space", "%2e%2e/x", "{model}", "$&+,;=", '"quoted"', "m" * 400]
)
async def test_a_model_s_name_reaches_the_provider_as_it_is(model: str) -> None:
    async with asking("blackbox") as (client, provider):
        provider.answers.append(whole(200, JSON, b"{}"))
        headers, _ = sent("blackbox")
        body = msgspec.json.encode({"model": f"blackbox/{model}", "messages": HELLO})
        reply = await client.ask("POST", "/v1/chat/completions", headers, body)
        assert reply.status == 200, reply.body
        assert msgspec.json.decode(provider.asked[0].body) == {"model": model, "messages": HELLO}
        assert reply.header("x-sidecar-model") == model.encode("latin-1", "replace").decode("latin-1")


@pytest.mark.parametrize("model", ["m\r\nset-cookie: a=b", "m\0", "m\u2028n", "m" * 600])
async def test_a_model_s_name_puts_nothing_else_into_an_answer(model: str) -> None:
    async with asking("blackbox") as (client, provider):
        headers, _ = sent("blackbox")
        body = msgspec.json.encode({"model": f"blackbox/{model}", "messages": HELLO})
        reply = await client.ask("POST", "/v1/chat/completions", headers, body)
        assert (reply.status, reply.header("x-sidecar-error")) == (404, "caller_model_unknown")
        assert b"set-cookie" not in reply.bare + reply.body
        assert len(reply.bare + reply.body) < 1000
        assert not provider.asked
