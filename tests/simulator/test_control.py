"""What a load test has of the simulated provider: changed settings, a log of requests, and what a body is to be."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from sidecar.simulator import Settings, Simulator
from tests.simulator.raw import CHAT, ask, connected, post, split, until

GET_LOG = b"GET /__sim/log HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
STREAM = {**CHAT, "stream": True}


async def test_settings_change_under_way() -> None:
    async with Simulator() as simulator:
        change = b'{"faults":{"503":1.0},"tokens":2}'
        head = b"POST /__sim/settings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        assert (await ask(simulator, head % len(change) + change))[0].startswith(b"HTTP/1.1 200 OK")
        assert (await ask(simulator, post(CHAT)))[0].startswith(b"HTTP/1.1 503 ")
        for wrong in (b'{"faults":{"tornado":1.0}}', b'{"token":2}', b'{"tokens":"2"}', b"["):
            assert (await ask(simulator, head % len(wrong) + wrong))[0].startswith(b"HTTP/1.1 400 "), wrong
        assert simulator.settings == Settings(faults={"503": 1.0}, tokens=2)


async def test_what_became_of_each_request_is_logged() -> None:
    async with Simulator() as simulator:
        for number, fault in enumerate(("", "reset_after:1", "500")):
            await ask(simulator, post(STREAM, ("x-sim-key", f"k{number}"), ("x-sim-fault", fault)))
        async with connected(simulator) as raw:
            raw.send(post(CHAT, ("x-sim-key", "left"), ("x-sim-fault", "stall")))
            await raw.until(lambda: True)
            await until(lambda: len(simulator.requests) == 4)
        await until(lambda: len(simulator.log) == 4)
        await ask(simulator, post(CHAT))  # has no key
        await ask(simulator, post(CHAT, ("x-client-request-id", "as OpenAI's clients tell it")))
        _, _, body = split((await ask(simulator, GET_LOG))[0])
    lines = [msgspec.json.decode(line) for line in body.splitlines()]
    assert [line["key"] for line in lines] == ["k0", "k1", "k2", "left", "as OpenAI's clients tell it"]
    assert [line["fault"] for line in lines] == ["", "reset_after", "500", "stall", ""]
    assert [line["finished_at"] is None for line in lines] == [False, False, False, True, False]
    assert [line["cancelled_at"] is None for line in lines] == [True, True, True, False, True]
    assert all("authorization" not in line for line in lines)


@pytest.mark.parametrize("request_", [CHAT, STREAM])
async def test_a_client_is_told_what_the_whole_body_is_to_be(request_: dict[str, object]) -> None:
    async with Simulator() as simulator:
        data, _ = await ask(simulator, post(request_, ("x-sim-digest", "1")))
        silent, _ = await ask(simulator, post(request_))
    _, headers, body = split(data)
    assert headers["x-sim-digest"] == f"{zlib.crc32(body):08x}-{len(body)}"
    assert b"x-sim-digest" not in silent
