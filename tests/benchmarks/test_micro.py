"""The micro-benchmark gives whole and right answers: a wrong one would be measured as fast."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from benchmarks import micro
from sidecar.server.connection import Connection


@pytest.fixture
async def bench() -> AsyncIterator[micro.Bench]:
    made = micro.Bench(micro.config(providers=3, callers=3, models=3))
    await made.start()
    yield made
    made.close()


def written(client: Connection) -> list[bytes]:
    """What has gone to a client since the last answer's end; kept, where `exchange` would clear it."""
    assert isinstance(client.transport, micro.Transport)
    kept: list[bytes] = []
    client.transport.written = Kept(kept)
    return kept


class Kept(list[bytes]):
    """A list that another one keeps what is cleared from."""

    def __init__(self, kept: list[bytes]) -> None:
        super().__init__()
        self._kept = kept

    def append(self, data: bytes) -> None:
        self._kept.append(data)
        super().append(data)


async def test_a_whole_answer_is_whole(bench: micro.Bench) -> None:
    case = micro.cases()["unary"]
    client = bench.connect()
    kept = written(client)
    await bench.exchange(client, case.asked, case.pieces)
    head, _, body = b"".join(kept).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nx-sidecar-provider: openai\r\n" in head
    assert body == case.pieces[0].partition(b"\r\n\r\n")[2]
    assert 800 < len(body) < 1500
    assert 2000 < len(case.asked.partition(b"\r\n\r\n")[2]) < 2100


@pytest.mark.parametrize("name", ["stream", "translated"])
async def test_a_stream_has_all_its_words(bench: micro.Bench, name: str) -> None:
    case = micro.cases()[name]
    client = bench.connect()
    kept = written(client)
    await bench.exchange(client, case.asked, case.pieces)
    events = [line for line in b"".join(kept).splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    said = [msgspec.json.decode(event[6:]) for event in events[:-1]]
    texts = [each["choices"][0]["delta"].get("content") or "" for each in said if each["choices"]]
    assert len("".join(texts).split()) == micro.TOKENS
    assert said[-1]["usage"]["completion_tokens"] in (
        micro.TOKENS,
        micro.TOKENS + 1,
    )  # the simulator counts the end, too


async def test_a_burst_is_under_way_at_once_and_ends(bench: micro.Bench) -> None:
    asked = [
        micro.request(stream=False, model=model, caller=caller)
        for caller, model in enumerate(("m1", "p2/sim-large", "openai/sim-large"))
    ]
    clients = [bench.connect() for _ in range(6)]
    await bench.burst(clients, asked, micro.cases()["unary"].pieces)
    stats = {each["provider"]: each for each in bench.app.pool.stats()}
    assert {name: (each["dials"], each["idle"]) for name, each in stats.items()} == {"openai": (4, 4), "p2": (2, 2)}
    assert bench.app._ledger.stats()["total"] == 6


async def test_a_connection_is_replaced_before_its_last_request(bench: micro.Bench) -> None:
    case = micro.cases()["unary"]
    await bench.repeat(case, 1)
    first = bench.client
    bench._left = 1
    await bench.repeat(case, 2)
    assert bench.client is not first
    assert bench.server.connections == {bench.client}


async def test_a_wrong_answer_is_told(bench: micro.Bench) -> None:
    case = micro.cases()["unary"]._replace(end=b"never")
    with pytest.raises(RuntimeError, match="a wrong answer is not a fast answer"):
        await bench.repeat(case, 1)
