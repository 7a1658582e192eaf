"""An alarm rings once, when it should, however often it was moved before."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.clock import Alarm, now, wall

pytestmark = pytest.mark.anyio


class Bell:
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rung: list[float] = []
        self.once = asyncio.Event()
        self.alarm = Alarm(self.loop, self.ring)

    def ring(self) -> None:
        self.rung.append(self.loop.time())
        self.once.set()

    async def heard(self) -> float:
        async with asyncio.timeout(5):
            await self.once.wait()
        return self.rung[0]


async def test_the_loops_clock_is_ours() -> None:
    assert abs(asyncio.get_running_loop().time() - now()) < 0.1
    assert wall() > 1_700_000_000


async def test_it_rings_at_its_time() -> None:
    bell = Bell()
    at = bell.loop.time() + 0.05
    bell.alarm.set(at)
    assert await bell.heard() >= at - 0.002
    assert bell.alarm.at is None


async def test_moved_later_it_rings_later() -> None:
    bell = Bell()
    began = bell.loop.time()
    for step in range(50):
        bell.alarm.set(began + 0.01 + step * 0.002)
    assert await bell.heard() >= began + 0.01 + 49 * 0.002 - 0.002


async def test_moved_earlier_it_rings_earlier_and_once() -> None:
    bell = Bell()
    began = bell.loop.time()
    bell.alarm.set(began + 3)
    bell.alarm.set(began + 0.02)
    assert await bell.heard() < began + 2
    await asyncio.sleep(0.02)
    assert len(bell.rung) == 1


@pytest.mark.parametrize("way", ["clear", "close"])
async def test_silenced_it_does_not_ring(way: str) -> None:
    bell = Bell()
    bell.alarm.set(bell.loop.time() + 0.01)
    getattr(bell.alarm, way)()
    await asyncio.sleep(0.03)
    assert bell.rung == []


async def test_cleared_it_may_be_set_again() -> None:
    bell = Bell()
    bell.alarm.set(bell.loop.time() + 0.01)
    bell.alarm.clear()
    bell.alarm.set(bell.loop.time() + 0.03)
    await bell.heard()
    assert len(bell.rung) == 1
