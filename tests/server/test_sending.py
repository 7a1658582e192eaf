"""Sending: one write a round, a bound on what is put off, and everybody who waits is told."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.drive import Round
from sidecar.server.sending import HIGH_WATER, Sending
from tests.pool.asks import settled


class Transport(asyncio.Transport):
    """Remembers the writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unsent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent


def sending() -> tuple[Sending, Transport]:
    loop = asyncio.get_running_loop()
    half, transport = Sending(loop, Round(loop)), Transport()
    half.transport = transport
    return half, transport


async def test_what_is_written_in_one_round_is_one_write() -> None:
    half, transport = sending()
    for piece in (b"a", b"b", b"c"):
        half.write(piece)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert transport.writes == [b"abc"]
    half.write(b"d")
    half.flush()
    half.flush()
    half.write(b"e")
    assert transport.writes == [b"abc", b"d"]
    await asyncio.sleep(0)
    assert transport.writes == [b"abc", b"d", b"e"]


async def test_more_than_the_high_water_is_not_put_off() -> None:
    half, transport = sending()
    half.write(b"x" * HIGH_WATER)
    assert transport.writes == []
    half.write(b"y")
    assert transport.writes == [b"x" * HIGH_WATER + b"y"]


async def test_without_a_transport_nothing_is_kept() -> None:
    half, transport = sending()
    half.write(b"a")
    half.transport = None
    half.write(b"b")
    await asyncio.sleep(0)
    half.transport = transport
    half.flush()
    assert transport.writes == []


@pytest.mark.parametrize("leaves", [False, True])
async def test_all_who_wait_go_on_when_the_client_takes_bytes_or_leaves(leaves: bool) -> None:
    half, _ = sending()
    await half.drained()
    half.pause_writing()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(half.drained()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [False, True, False]
    if leaves:
        half._left = True
        half._let_send()
    else:
        half.resume_writing()
    await settled(lambda: all(task.done() for task in tasks))
    assert tasks[1].cancelled()
    assert half._drains == []


async def test_paused_again_before_it_was_woken_it_waits_on() -> None:
    half, _ = sending()
    half.pause_writing()
    task = asyncio.get_running_loop().create_task(half.drained())
    await asyncio.sleep(0)
    half.resume_writing()
    half.pause_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    half.resume_writing()
    await settled(task.done)


async def test_whether_a_client_takes_what_is_left_is_seen_from_look_to_look() -> None:
    half, transport = sending()
    looks = []
    for transport.unsent in (0, 10, 10, 4, 0, 0):
        looks.append(half._takes())
    assert looks == [False, True, False, True, False, False]
    half.transport = None
    assert not half._takes()


async def test_chunks_are_passed_on_while_its_client_takes_them() -> None:
    half, transport = sending()
    half.connection_made(transport)
    assert half.pass_on is not None
    half.pass_on(b"a")
    assert transport.writes == [b"a"]
    half.pause_writing()
    assert half.pass_on is None
    half.resume_writing()
    assert half.pass_on is not None
    half.connection_lost(None)
    assert half.pass_on is None
    half.resume_writing()
    assert half.pass_on is None
