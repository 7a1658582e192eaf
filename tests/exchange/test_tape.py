"""Clients in between: what they keep, what they pass on, and what they leave to the client behind them."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import UpstreamProtocol
from sidecar.exchange.heartbeat import COMMENT
from sidecar.exchange.tape import Box, Tape
from tests.exchange.clients import Kept

OFF = b"a: b\r\nx-sidecar-cache: off\r\nc: d\r\n"
MISS = b"a: b\r\nx-sidecar-cache: miss\r\nc: d\r\n"


def test_a_tape_passes_on_and_keeps() -> None:
    times = iter([1.0, 2.0])
    tape = Tape(client := Kept(), 10, lambda: next(times))
    assert tape.answer(200, [(b"n", b"v")], OFF, b"12345", more=True) is None
    assert not tape.whole
    assert tape.write(COMMENT, more=True) is None
    assert tape.write(b"67890", more=True) is None
    assert tape.write(b"", more=False) is None
    assert (client.sent, client.ended, client.lines) == ([b"12345", COMMENT, b"67890", b""], True, MISS)
    assert (tape.data, tape.times, tape.whole, tape.answered) == (b"1234567890", [1.0, 2.0], True, [(b"n", b"v")])
    assert repr(tape) == "<Tape 200, 10 bytes>"


def test_a_tape_lets_go_of_what_is_too_much_and_passes_it_on() -> None:
    tape = Tape(client := Kept(), 10)
    tape.answer(200, [], b"", b"1234567890", more=True)
    tape.write(b"1", more=True)
    assert tape.pieces == []
    tape.write(b"2", more=False)
    assert (tape.pieces, tape.ended, tape.whole, b"".join(client.sent)) == ([], True, False, b"123456789012")


async def test_what_is_to_be_waited_for_is_the_clients() -> None:
    takes = asyncio.Event()
    tape = Tape(Kept(takes), 10)
    wait = tape.answer(200, [], b"", b"1", more=True)
    assert wait is not None
    takes.set()
    await wait
    assert tape.write(b"2", more=False) is not None


def test_a_box_passes_nothing_on() -> None:
    box = Box(client := Kept(), 3)
    box.answer(200, [(b"n", b"v")], OFF, b"1", more=True)
    box.write(b"23", more=False)
    assert (client.status, client.sent) == (0, [])
    assert (box.status, box.answered, box.lines, box.data) == (200, [(b"n", b"v")], OFF, b"123")
    with pytest.raises(UpstreamProtocol, match="more than 3 bytes"):
        box.write(b"4", more=True)


@pytest.mark.parametrize("kind", [Tape, Box])
async def test_the_rest_is_the_clients(kind: type[Tape] | type[Box]) -> None:
    client = Kept()
    between = kind(client, 10)
    assert not between.gone
    client.gone = True
    between.stay = True
    assert (between.gone, between.stay, client.stay) == (True, True, True)
    assert (between.body(1), await between.read(1)) == (b"", b"")
    assert between.notes is client.notes
