"""Exchanges in process: straight to the spine and by ASGI they say the same; and what either costs in tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import msgspec
import pytest

from sidecar import SidecarTransport
from sidecar.config import OnDisconnect, Server
from sidecar.simulator import Simulator
from sidecar.transport.answer import HIGH_WATER, Asgi, Direct
from tests.faults.ground import nothing_left
from tests.transport.test_transport import CHAT, MIDWAY, SILENT, STREAM, URL, open_config

OWN = (b"x-sidecar-overhead-us", b"x-request-id", b"request-id", b"content-length")  # of one exchange


class Ways:
    """Counts the exchanges that went either way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct = self.asgi = 0
        start, init = Direct.start, Asgi.__init__

        def started(answer: Direct, sidecar: Any) -> bool:
            taken = start(answer, sidecar)
            self.direct += taken
            return taken

        def made(answer: Asgi, *args: Any) -> None:
            self.asgi += 1
            init(answer, *args)

        monkeypatch.setattr(Direct, "start", started)
        monkeypatch.setattr(Asgi, "__init__", made)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def common(answer: httpx2.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What such answers have in common: the status, headers, how the body ends."""
    kept = [(name, value) for name, value in answer.headers.raw if name not in OWN]
    assert "content-length" not in answer.headers or int(answer.headers["content-length"]) == len(answer.content)
    return answer.status_code, kept, answer.content[-20:]


@pytest.mark.parametrize(
    ("asked", "headers"),
    [
        (CHAT, {}),
        (STREAM, {}),
        ({"model": "nobody/m", "messages": []}, {}),
        (CHAT, {"x-sim-fault": "400"}),
        (CHAT, {"x-sim-tokens": "30000"}),
        ({**CHAT, "x": "y" * 5000}, {}),
    ],
    ids=["whole", "stream", "unknown", "refused", "long", "too large"],
)
async def test_both_ways_say_the_same(ways: Ways, asked: dict[str, Any], headers: dict[str, str]) -> None:
    async with nothing_left(), Simulator() as simulator:
        config = msgspec.structs.replace(open_config(simulator), server=Server(max_body_bytes=4096))
        async with httpx2.AsyncClient(transport=SidecarTransport(config)) as client:
            answers = [common(await client.post(URL, json=asked, headers=headers)) for _ in range(3)]
        assert (ways.asgi, ways.direct) == (1, 2)
        assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    "paced",
    [{"x-sim-rate": "100", "x-sim-tokens": "5"}, {"x-sim-rate": "20000", "x-sim-tokens": "4000"}],
    ids=["event by event", "more than is held for a client that does not read"],
)
async def test_a_stream_that_comes_bit_by_bit_is_whole(paced: dict[str, str], counted_ends: list[Direct]) -> None:
    """The third is the hot lane's: to its end, or until its client does not read."""
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            texts = []
            for _ in range(3):
                async with client.stream("POST", URL, json=STREAM, headers=paced) as answer:
                    await asyncio.sleep(0.1)
                    data = b"".join([piece async for piece in answer.aiter_raw()])
                events = [msgspec.json.decode(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
                assert data.endswith(b"data: [DONE]\n\n")
                texts.append("".join(each["choices"][0]["delta"].get("content") or "" for each in events))
            assert [len(text.split()) for text in texts] == [int(paced["x-sim-tokens"])] * 3  # other words each time
        assert bool(counted_ends) == (paced["x-sim-tokens"] == "5")


@pytest.fixture
def counted_ends(monkeypatch: pytest.MonkeyPatch) -> list[Direct]:
    ends: list[Direct] = []
    end = Direct.end

    def counted(answer: Direct) -> None:
        ends.append(answer)
        end(answer)

    monkeypatch.setattr(Direct, "end", counted)
    return ends


async def test_a_client_that_leaves_a_stream_of_the_lane_takes_its_call_with_it() -> None:
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            paced = {"x-sim-rate": "100"}
            for _ in range(2):
                assert (await client.post(URL, json=STREAM, headers=paced)).content.endswith(b"data: [DONE]\n\n")
            async with client.stream("POST", URL, json=STREAM, headers=paced) as answer:
                await anext(answer.aiter_raw())
            async with asyncio.timeout(2):
                while simulator.requests[-1].cancelled_at is None:
                    await asyncio.sleep(0.002)


async def test_what_is_no_hot_path_goes_by_asgi(ways: Ways) -> None:
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            for _ in range(2):
                assert (await client.get("http://sidecar/livez")).content == b"ok\n"
                assert (await client.post("http://sidecar/v1/nothing")).status_code == 404
        assert (ways.asgi, ways.direct) == (4, 0)


async def test_a_head_that_changes_is_not_taken_for_the_last_one() -> None:
    """Its notes are remembered by path, query and headers: what a client wishes in them counts for each request."""
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            for headers in ({}, {"x-sidecar-explain": "1"}, {}, {"x-sidecar-explain": "1"}):
                answer = await client.post(URL, json=CHAT, headers=headers)
                assert ("x-sidecar-route" in answer.headers) == bool(headers)
            for query in ("?a=1", "", "?a=2"):
                await client.post(URL + query, json=CHAT)
        assert [seen.path.partition("?")[2] for seen in simulator.requests][-3:] == ["a=1", "", "a=2"]


async def test_tasks_are_for_what_goes_on_behind_the_head() -> None:
    made: list[str] = []

    def counting(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **options)

    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            await client.post(URL, json=CHAT)
            asyncio.get_running_loop().set_task_factory(counting)
            for _ in range(3):
                await client.post(URL, json=CHAT)
            assert made == []
            await client.post(URL, json=STREAM)
            asyncio.get_running_loop().set_task_factory(None)
            assert made in ([], ["Direct._until_it_ends"])


@pytest.mark.parametrize("headers", [SILENT, MIDWAY], ids=["head", "body"])
async def test_a_client_that_leaves_has_its_answer_read_to_the_end_where_that_is_wanted(
    headers: dict[str, str],
) -> None:
    """`drain`: the provider is not left, until the sidecar itself ends."""
    async with nothing_left(), Simulator() as simulator:
        config = msgspec.structs.replace(open_config(simulator), on_disconnect=OnDisconnect(policy="drain"))
        transport = SidecarTransport(config)
        async with httpx2.AsyncClient(transport=transport) as client:
            await client.get("http://sidecar/livez")
            call = asyncio.create_task(client.post(URL, json=STREAM, headers=headers))
            while not (simulator.requests and (headers is SILENT or simulator.requests[0].answered_at)):
                await asyncio.sleep(0.002)
            call.cancel()
            await asyncio.sleep(0.05)
            assert simulator.requests[0].cancelled_at is None
            await transport.aclose()
            await asyncio.wait([call])


def test_what_is_held_for_a_client_that_does_not_read_is_bounded() -> None:
    async def fill() -> None:
        answer = Direct(b"/", b"", [], {}, {}, b"", {}, httpx2)
        assert answer.answer(200, [], b"a: b\r\n", b"x" * HIGH_WATER, more=True) is None
        waits = answer.write(b"y", more=True)
        assert waits is not None
        blocked = asyncio.ensure_future(waits)
        await asyncio.sleep(0)
        assert not blocked.done()
        assert await answer.next() == b"x" * HIGH_WATER + b"y"
        await blocked
        assert answer.write(b"z", more=False) is None
        assert answer.response(None).headers.raw == [(b"a", b"b")]
        assert await answer.next() == b"z"
        assert await answer.next() == b""

    asyncio.run(fill())
