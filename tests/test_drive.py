"""A coroutine runs to its end without a task, and the same one under a task: woken, cancelled, failing."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from sidecar.drive import Drive, Signal


class Walk:
    """A coroutine that waits on a signal so many times, and what became of it."""

    def __init__(self, waits: int) -> None:
        self.signal = Signal(asyncio.get_running_loop())
        self.steps: list[str] = []
        self.ended: list[BaseException | None] = []
        self._waits = waits

    async def run(self) -> None:
        try:
            for number in range(self._waits):
                self.steps.append(f"waits {number}")
                await self.signal
        except asyncio.CancelledError:
            self.steps.append("cancelled")
            raise
        self.steps.append("done")

    def drive(self) -> Drive:
        return Drive(asyncio.get_running_loop(), self.run(), self.ended.append)


async def test_each_step_is_taken_inside_the_call_that_wakes_it() -> None:
    walk = Walk(2)
    drive = walk.drive()
    drive.resume()
    assert (walk.steps, repr(drive), repr(walk.signal)) == (["waits 0"], "<Drive waiting>", "<Signal waited on>")
    walk.signal.wake()
    assert walk.steps == ["waits 0", "waits 1"]
    walk.signal.wake()
    walk.signal.wake()  # nobody waits: lost
    drive.resume()  # over: nothing
    assert (walk.steps[-1], walk.ended, repr(drive), repr(walk.signal)) == (
        "done", [None], "<Drive over>", "<Signal idle>",
    )  # fmt: skip


async def test_it_is_cancelled_where_it_waits_and_only_once() -> None:
    walk = Walk(1)
    drive = walk.drive()
    drive.resume()
    drive.cancel()
    assert walk.steps == ["waits 0", "cancelled"]
    assert [type(error) for error in walk.ended] == [asyncio.CancelledError]
    drive.cancel()
    walk.signal.wake()
    assert len(walk.ended) == 1


async def test_cancelled_by_itself_it_ends_at_its_next_wait() -> None:
    ended: list[BaseException | None] = []
    signal = Signal(asyncio.get_running_loop())
    drives: list[Drive] = []

    async def run() -> None:
        drives[0].cancel()
        await signal

    drives.append(Drive(asyncio.get_running_loop(), run(), ended.append))
    drives[0].resume()
    assert [type(error) for error in ended] == [asyncio.CancelledError]


async def test_it_may_wait_on_futures_and_a_round_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    ended: list[BaseException | None] = []
    got: list[int] = []

    async def run() -> None:
        await asyncio.sleep(0)
        got.append(await future)

    Drive(loop, run(), ended.append).resume()
    loop.call_soon(loop.call_soon, future.set_result, 7)
    for _ in range(6):
        await asyncio.sleep(0)
    assert (got, ended) == ([7], [None])


async def test_a_coroutine_that_goes_on_after_its_cancellation_does_so() -> None:
    loop = asyncio.get_running_loop()
    signal, ended = Signal(loop), list[BaseException | None]()

    async def run() -> None:
        try:
            await signal
        except asyncio.CancelledError:
            await signal

    drive = Drive(loop, run(), ended.append)
    drive.resume()
    drive.cancel()
    assert ended == []
    signal.wake()
    assert ended == [None]


async def test_what_it_raises_is_handed_over() -> None:
    ended: list[BaseException | None] = []

    async def run() -> None:
        raise ValueError("no")

    Drive(asyncio.get_running_loop(), run(), ended.append).resume()
    assert [repr(error) for error in ended] == ["ValueError('no')"]


async def test_a_task_waits_on_a_signal_too() -> None:
    walk = Walk(1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(walk.run())
        await asyncio.sleep(0)
        walk.signal.wake()
    assert walk.steps == ["waits 0", "done"]


async def test_a_task_that_waits_is_cancelled() -> None:
    walk = Walk(1)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(walk.run())
        await asyncio.sleep(0)
        task.cancel("why")
        task.cancel("again")
        with pytest.raises(asyncio.CancelledError):
            await task
    assert walk.steps == ["waits 0", "cancelled"]


async def test_anyio_knows_its_own_cancellation_of_it() -> None:
    walk = Walk(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await walk.run()
    assert walk.steps == ["waits 0", "cancelled"]
