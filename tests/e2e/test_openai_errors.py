"""Whatever fails, wherever: OpenAI's SDK raises the exception that it has for it, never one of its own confusion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import openai
import pytest

from sidecar.config import Timeouts
from sidecar.simulator import Simulator
from tests.e2e.doors import ALL, FEW, Door, behind, caller, config_for, door as open_door
from tests.faults.ground import closed_port
from tests.faults.peer import REQUEST, RawServer

ASK: Any = [{"role": "user", "content": "hello there"}]
PAIR: Any = ("server", "transport")
CUT = "closed the connection inside the answer|ended before|was cut"

PROVIDERS: list[tuple[str, type[openai.APIStatusError], int]] = [
    ("400", openai.BadRequestError, 400),
    ("401", openai.AuthenticationError, 401),
    ("402", openai.APIStatusError, 402),
    ("403", openai.PermissionDeniedError, 403),
    ("404", openai.NotFoundError, 404),
    ("408", openai.APIStatusError, 408),
    ("413", openai.APIStatusError, 413),
    ("422", openai.UnprocessableEntityError, 422),
    ("429", openai.RateLimitError, 429),
    ("quota", openai.RateLimitError, 429),
    ("500", openai.InternalServerError, 500),
    ("502", openai.InternalServerError, 502),
    ("503", openai.InternalServerError, 503),
    ("504", openai.InternalServerError, 504),
    ("529", openai.InternalServerError, 529),
    ("html", openai.InternalServerError, 502),
    # what is no answer becomes one
    ("reset", openai.InternalServerError, 502),
    ("close", openai.InternalServerError, 502),
    ("cut_after:9", openai.InternalServerError, 502),
    ("reset_after:9", openai.InternalServerError, 502),
    ("length_long", openai.InternalServerError, 502),
    ("redirect", openai.InternalServerError, 502),
    ("huge_headers", openai.InternalServerError, 502),
    ("injected", openai.InternalServerError, 502),
]


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize(("fault", "kind", "status"), PROVIDERS, ids=[row[0] for row in PROVIDERS])
async def test_the_providers_errors(fault: str, kind: type[openai.APIStatusError], status: int, name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="lab/m", messages=ASK, extra_headers={"x-sim-fault": fault})
    assert (type(caught.value), caught.value.status_code) == (kind, status)
    assert caught.value.request_id
    assert caught.value.response.headers["x-sidecar-error"].startswith("provider_")
    assert len(simulator.requests) == 1
    if fault.isdigit():
        assert caught.value.request_id == "req_sim_1"
        assert f"simulated {fault}" in caught.value.message


async def test_a_conflict_and_a_body_that_is_not_json() -> None:
    async def answer(status: bytes, body: bytes) -> openai.APIError:
        head = b"HTTP/1.1 %b X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        async with RawServer([REQUEST, head + body]) as peer:
            async with behind("server", base_url=f"http://127.0.0.1:{peer.port}/v1") as (door, _):
                async with door.openai_async() as client:
                    with pytest.raises(openai.APIError) as caught:
                        await client.chat.completions.create(model="lab/m", messages=ASK)
        return caught.value

    assert type(await answer(b"409", b'{"error":{"message":"again"}}')) is openai.ConflictError
    assert type(await answer(b"418", b"")) is openai.APIStatusError


@pytest.mark.parametrize("name", PAIR)
async def test_a_provider_that_is_not_there(name: str) -> None:
    async with behind(name, base_url=f"http://127.0.0.1:{closed_port()}/v1") as (door, _):
        async with door.openai_async() as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="lab/m", messages=ASK)
    assert (caught.value.status_code, caught.value.code) == (502, "provider_connect_failed")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", PAIR)
async def test_a_provider_that_says_nothing(name: str, stream: bool) -> None:
    async with behind(name, timeouts=Timeouts(first_byte_seconds=0.1)) as (door, _), door.openai_async() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(
                model="lab/m", messages=ASK, stream=stream, extra_headers={"x-sim-fault": "stall"}
            )
    assert (caught.value.status_code, caught.value.code) == (504, "provider_timeout")


OWN: list[tuple[dict[str, Any], type[openai.APIStatusError], int, str]] = [
    ({"model": "nobody"}, openai.NotFoundError, 404, "caller_model_unknown"),
    ({"model": "nowhere/m"}, openai.NotFoundError, 404, "caller_model_unknown"),
    ({"model": "ant/m"}, openai.PermissionDeniedError, 403, "policy_model_forbidden"),
    ({"extra_headers": {"authorization": "Bearer wrong"}}, openai.AuthenticationError, 401, "caller_key_invalid"),
    ({"messages": "x" * 5000}, openai.APIStatusError, 413, "caller_body_too_large"),
    ({"extra_body": {"model": 5}}, openai.BadRequestError, 400, "caller_body_invalid"),
    ({"extra_headers": {"x-sidecar-timeout-ms": "soon"}}, openai.BadRequestError, 400, "caller_body_invalid"),
]


@pytest.mark.parametrize("name", FEW)
async def test_the_sidecars_own_errors(name: str) -> None:
    async with Simulator() as simulator:
        config = config_for(simulator)
        server = msgspec.structs.replace(config.server, max_body_bytes=4096)
        config = msgspec.structs.replace(config, server=server, callers={"web": caller(models=("lab/*", "no*"))})
        async with open_door(name, config) as door, door.openai_async() as client:
            for ask, kind, status, code in OWN:
                with pytest.raises(openai.APIStatusError) as caught:
                    await client.chat.completions.create(**{"model": "lab/m", "messages": ASK} | ask)
                assert (type(caught.value), caught.value.status_code, caught.value.code) == (kind, status, code)
                assert caught.value.response.headers["x-sidecar-error"] == code
                assert caught.value.request_id
        assert not simulator.requests


@pytest.mark.parametrize("name", FEW)
async def test_a_callers_limit_says_when_to_come_again(name: str) -> None:
    async with Simulator() as simulator:
        config = msgspec.structs.replace(config_for(simulator), callers={"web": caller(requests_per_minute=1)})
        async with open_door(name, config) as door, door.openai_async() as client:
            await client.chat.completions.create(model="lab/m", messages=ASK)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="lab/m", messages=ASK)
            assert caught.value.code == "policy_rate_limited"
            assert 59_000 < int(caught.value.response.headers["retry-after-ms"]) <= 60_000


@pytest.mark.parametrize("name", ALL)
async def test_a_synchronous_client_is_told_the_same(name: str) -> None:
    def use(door: Door) -> None:
        with door.openai() as client:
            for fault, kind in (("404", openai.NotFoundError), ("reset", openai.InternalServerError)):
                with pytest.raises(kind):
                    client.chat.completions.create(model="lab/m", messages=ASK, extra_headers={"x-sim-fault": fault})
            stream = client.chat.completions.create(
                model="lab/m", messages=ASK, stream=True, extra_headers={"x-sim-fault": "cut_after:2"}
            )
            with pytest.raises(openai.APIError, match=CUT), stream:
                list(stream)

    async with behind(name) as (door, _):
        await asyncio.to_thread(use, door)


# -- streams that fail in the middle

MIDWAY = [
    ("error_in_stream:2", "the simulated model broke"),
    ("cut_after:5", CUT),
    ("reset_after:5", CUT),
    ("truncated", CUT),
    ("stall_after:5", "0.2 s"),
]


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("model", ["lab/m", "ant/m"])
@pytest.mark.parametrize(("fault", "words"), MIDWAY, ids=[row[0] for row in MIDWAY])
async def test_a_stream_that_fails_is_an_error_of_the_api(fault: str, words: str, model: str, name: str) -> None:
    async with Simulator() as simulator:
        config = config_for(simulator)
        quick = {
            name: msgspec.structs.replace(each, timeouts=Timeouts(idle_seconds=0.2))
            for name, each in config.providers.items()
        }
        config = msgspec.structs.replace(config, providers=quick)
        async with open_door(name, config) as door, door.openai_async() as client:
            stream = await client.chat.completions.create(
                model=model, messages=ASK, stream=True, extra_headers={"x-sim-fault": fault}
            )
            said: list[Any] = []
            with pytest.raises(openai.APIError, match=words) as caught:
                await _read(stream, said)
        assert type(caught.value) is openai.APIError
        assert said
        assert len(simulator.requests) == 1


async def _read(stream: AsyncIterator[Any], said: list[Any]) -> None:
    async for each in stream:
        said.append(each)  # noqa: PERF401  # what came before the error is kept


@pytest.mark.parametrize("name", PAIR)
@pytest.mark.parametrize("fault", ["no_done", "split_utf8", "crlf", "comments", "gzip", "interim", "drip:0"])
async def test_what_does_no_harm_changes_nothing(fault: str, name: str) -> None:
    async def read(**headers: str) -> list[str]:
        stream = await client.chat.completions.create(
            model="lab/m", messages=ASK, stream=True, extra_headers={"x-sim-tokens": "44", **headers}
        )
        return [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]

    async with behind(name) as (door, _), door.openai_async() as client:
        plain = await read()
        assert " 🙂" in plain
        faulty = await read(**{"x-sim-fault": fault})
        assert faulty[2:-2] == plain[3:-1]  # it begins a word later each time


# -- trying again


@pytest.mark.parametrize("name", PAIR)
async def test_the_sdk_tries_again_as_the_provider_says(name: str) -> None:
    headers = {"x-sim-fault": "429:0", "x-sim-times": "1"}
    async with behind(name) as (door, simulator), door.openai_async(max_retries=1) as client:
        assert (await client.chat.completions.create(model="lab/m", messages=ASK, extra_headers=headers)).id
    assert len(simulator.requests) == 2


@pytest.mark.parametrize("name", PAIR)
async def test_the_sdk_does_not_multiply_tries_that_are_spent(name: str) -> None:
    async with behind(name) as (door, simulator), door.openai_async(max_retries=3) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="fast", messages=ASK, extra_headers={"x-sim-fault": "503"})
    assert caught.value.response.headers["x-sidecar-attempts"] == "2"
    assert [seen.route for seen in simulator.requests] == ["/chat/completions", "/messages"]


@pytest.mark.parametrize("name", PAIR)
async def test_another_target_answers_for_one_that_fails(name: str) -> None:
    headers = {"x-sim-fault": "reset", "x-sim-times": "1"}
    async with behind(name) as (door, simulator), door.openai_async() as client:
        stream = await client.chat.completions.create(model="fast", messages=ASK, stream=True, extra_headers=headers)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text.startswith("streams every token")
    assert [seen.route for seen in simulator.requests] == ["/chat/completions", "/messages"]
