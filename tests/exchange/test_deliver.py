"""The way to the client without sockets: the plan told, the end that decides, and an answer all at once."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

import msgspec
import pytest

from sidecar.app import Sidecar
from sidecar.dialects import DIALECTS
from sidecar.errors import UpstreamCut
from sidecar.exchange import deliver
from sidecar.relay import Through
from sidecar.types import Client, Inbound, Outcome, Sink
from tests.exchange import stage
from tests.exchange.clients import Kept


class Breaks:
    """An answer that is cut behind some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def pump(self, sink: Sink, through: object = None) -> Awaitable[None] | None:
        sink(self._data)
        raise UpstreamCut("cut")


@pytest.mark.parametrize(("data", "whole"), [(b"data: [DONE]\n\n", True), (b'data: {"choices":[]}\n\n', False)])
async def test_behind_its_last_word_an_answer_is_whole(data: bytes, whole: bool) -> None:
    meter = DIALECTS["chat"].meter(stream=True, hide_usage=False)

    def sink(piece: bytes) -> None:
        meter.feed(piece)

    inbound = cast("Inbound", Breaks(data))
    if whole:
        await deliver.pump(inbound, sink, meter)
    else:
        with pytest.raises(UpstreamCut):
            await deliver.pump(inbound, sink, meter)


async def test_an_answer_all_at_once() -> None:
    exchange = stage.exchange(Sidecar(stage.config()))
    client = exchange.client = Kept()
    assert deliver.send(exchange, 201, [], b"all", {}) is None
    assert (client.status, client.sent, client.ended) == (201, [b"all"], True)
    assert (exchange.record.status, exchange.outcome.bytes_sent, exchange.outcome.complete) == (201, 3, True)


@pytest.mark.parametrize(
    ("trail", "words"),
    [([], b"nothing tried"), (["lab/m 500", "wait 9 ms"], b"lab/m 500; wait 9 ms")],
)
def test_the_route_is_told_to_who_asks(trail: list[str], words: bytes) -> None:
    exchange = stage.exchange(Sidecar(stage.config()))
    exchange.trail = trail
    assert deliver.explained(exchange) == b""
    asking: Any = exchange.asking
    exchange.asking = msgspec.structs.replace(asking, explain=True)
    line = deliver.explained(exchange)
    assert line.startswith(b"x-sidecar-route: failover over lab/m: ")
    assert words.strip() in line


class OpenPipe(Kept):
    """A client whose chunks may be passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[bytes] = []
        self.pass_on: Any = self.passed.append
        self.unflushed = b""

    def pipe(self) -> Any:
        return self


def test_a_chunk_is_passed_on_only_where_nothing_stands_before_it() -> None:
    event = b"5\r\n: a\n\n\r\n"
    client, outcome = OpenPipe(), Outcome()
    way = Through(DIALECTS["chat"].meter(stream=True, hide_usage=False), None)
    through = deliver.chunks(cast("Client", client), way, outcome)
    assert through is not None
    assert through(event, 5)
    assert (client.passed, outcome.bytes_sent) == ([event], 5)
    client.unflushed = b"the head"  # which would come behind it
    assert not through(event, 5)
    client.unflushed = b""
    client.pass_on = None  # it does not take what it is sent
    assert not through(event, 5)
    client.pass_on = client.passed.append
    way.feed(b"data: half")
    assert not through(event, 5)
    way.feed(b" an event\n\n")
    assert through(event, 5)
    assert not through(b'{"error":1}', 5)
    assert (client.passed, outcome.bytes_sent) == ([event, event], 10)
