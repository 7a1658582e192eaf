"""An answer's body as its reader takes it: read, or given to a sink in the very call that brings it (`pump`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sidecar.drive import ENOUGH, Drive, Lazy
from sidecar.errors import UpstreamCut, UpstreamProtocol, UpstreamTimeout
from sidecar.pool.answer import Answer
from sidecar.pool.connection import HIGH_WATER, Phase
from tests.faults.peer import FIN, GONE, REQUEST, RST, Act, Drip, Flood, Pause, Script
from tests.pool.asks import HEAD, LIMITS, ask, fresh, numbers, origin, pooled, settled, whole, within

LENGTH_9 = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class Sink:
    """Takes what it is given; waits, or fails, at the calls that it is told to."""

    def __init__(self, *, waits: Callable[[int], bool] = lambda _: False, fails_at: int = 0) -> None:
        self.taken: list[bytes] = []
        self.waited = 0
        self._waits = waits
        self._fails_at = fails_at

    def __call__(self, data: bytes) -> Awaitable[None] | None:
        self.taken.append(data)
        if len(self.taken) == self._fails_at:
            raise ValueError("the sink is full")
        return Lazy(self._wait) if self._waits(len(self.taken)) else None

    async def _wait(self) -> None:
        self.waited += 1
        await asyncio.sleep(0)


async def pumped(answer: Answer, sink: Sink) -> None:
    """To the framed end, as the spine does it; then the connection is given back."""
    try:
        while (wait := await answer.pump(sink)) is not None:
            await wait
    finally:
        answer.close()


class Taken:
    """A connection without a socket whose answer's head has come, and somebody who pumps it: a task, or a Drive."""

    def __init__(self, sink: Sink, *, drive: bool) -> None:
        self.connection, self.transport, self.owner = fresh()
        self.sink = sink
        self.error: BaseException | None = None
        self.over = False
        self._drive = drive
        self.work: asyncio.Task[None] | Drive | None = None

    def begin(self, head: bytes) -> Answer:
        self.connection.begin(ask(origin(1)), within())
        self.connection.data_received(head)
        came = self.connection.head()
        answer = Answer(came.status, came.headers, came.index, self.connection)
        loop = asyncio.get_running_loop()
        if self._drive:
            self.work = Drive(loop, pumped(answer, self.sink), self._ended)
            self.work.resume()
        else:
            self.work = loop.create_task(pumped(answer, self.sink))
            self.work.add_done_callback(lambda task: self._ended(None if task.cancelled() else task.exception()))
        return answer

    def _ended(self, error: BaseException | None) -> None:
        self.over, self.error = True, error

    async def ended(self) -> None:
        await settled(lambda: self.over)


@pytest.fixture(params=[True, False], ids=["drive", "task"])
def drive(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# -- what a sink is given


async def test_a_sink_is_given_bytes_in_the_call_that_brings_them(drive: bool) -> None:
    taken = Taken(Sink(), drive=drive)
    taken.begin(HEAD + chunks(b"a"))
    await asyncio.sleep(0)
    assert taken.sink.taken == [b"a"]
    taken.connection.data_received(chunks(b"b"))
    assert taken.sink.taken == [b"a", b"b"]
    taken.connection.data_received(chunks(b"c", b"d") + b"0\r\n\r\n")
    assert taken.sink.taken == [b"a", b"b", b"c", b"d"]
    await taken.ended()
    assert (taken.error, taken.connection.phase, taken.owner.free) == (None, Phase.IDLE, 1)


async def test_a_sink_that_waits_gets_the_rest_afterwards_and_in_order(drive: bool) -> None:
    """Many events come in one read; it stops at the first and at the third."""
    taken = Taken(Sink(waits=lambda call: call in (1, 2)), drive=drive)
    taken.begin(HEAD)
    await asyncio.sleep(0)
    taken.connection.data_received(chunks(b"a", b"b", b"c", b"d") + b"0\r\n\r\n")
    await taken.ended()
    assert b"".join(taken.sink.taken) == b"abcd"
    assert taken.sink.taken[0] == b"a"
    assert (taken.sink.waited, taken.error, taken.connection.phase) == (2, None, Phase.IDLE)


async def test_bytes_that_come_while_the_sink_waits_are_kept(drive: bool) -> None:
    taken = Taken(Sink(waits=lambda call: call == 1), drive=drive)
    taken.begin(LENGTH_9)
    await asyncio.sleep(0)
    for piece in (b"12", b"34", b"567", b"89"):
        taken.connection.data_received(piece)
    await taken.ended()
    assert b"".join(taken.sink.taken) == b"123456789"
    assert (taken.error, taken.owner.free) == (None, 1)


async def test_what_was_put_back_is_given_first(drive: bool) -> None:
    taken = Taken(Sink(), drive=drive)
    connection = taken.connection
    connection.begin(ask(origin(1)), within())
    connection.data_received(HEAD + chunks(b"abc"))
    came = connection.head()
    answer = Answer(came.status, came.headers, came.index, connection)
    assert answer.whole() is None
    assert await answer.read() == b"abc"
    answer.unread(b"bc")
    connection.data_received(chunks(b"d") + b"0\r\n\r\n")
    await pumped(answer, taken.sink)
    assert b"".join(taken.sink.taken) == b"bcd"


async def test_an_answer_that_is_all_there_is_read_at_once() -> None:
    taken = Taken(Sink(), drive=True)
    taken.connection.begin(ask(origin(1)), within())
    await asyncio.sleep(0)  # in which the request is sent
    taken.connection.data_received(LENGTH_9 + b"123456789")
    answer = Answer(200, [], {}, taken.connection)
    assert answer.whole() == b"123456789"
    assert await answer.read() == b""
    assert await answer.pump(taken.sink) is None
    answer.close()
    assert repr(answer) == "<Answer 200 None>"
    assert (answer.whole(), await answer.read(), await answer.pump(taken.sink)) == (None, b"", None)
    answer.interrupt()
    answer.unread(b"x")
    assert (taken.sink.taken, taken.owner.free) == ([], 1)


# -- how it ends


@pytest.mark.parametrize("behind", [b"", chunks(b"c"), chunks(b"c") + b"0\r\n\r\n", b"0\r\n\r\n"])
async def test_what_a_sink_raises_is_raised_where_it_is_pumped_and_the_connection_goes(
    behind: bytes, drive: bool
) -> None:
    taken = Taken(Sink(fails_at=2), drive=drive)
    taken.begin(HEAD)
    await asyncio.sleep(0)
    taken.connection.data_received(chunks(b"a", b"b") + behind)
    await taken.ended()
    assert isinstance(taken.error, ValueError)
    assert taken.sink.taken == [b"a", b"b"]
    assert (taken.connection.phase, taken.transport.closed) == (Phase.LOST, True)
    assert (taken.owner.free, taken.owner.gone) == (0, 1)


async def test_what_a_sink_raises_of_bytes_that_were_held_is_raised_too(drive: bool) -> None:
    taken = Taken(Sink(fails_at=1), drive=drive)
    taken.begin(HEAD + chunks(b"a"))
    await taken.ended()
    assert isinstance(taken.error, ValueError)
    assert (taken.connection.phase, taken.owner.gone) == (Phase.LOST, 1)


async def test_a_sink_may_end_its_own_exchange_in_the_middle_of_a_read() -> None:
    """As when a client is found to have gone while it is written to."""
    taken = Taken(Sink(), drive=True)
    taken.begin(HEAD)
    sink = taken.sink

    def cancels(data: bytes) -> Awaitable[None] | None:
        assert isinstance(taken.work, Drive)
        taken.work.cancel()
        return Sink.__call__(sink, data)

    taken.connection._sink = cancels
    taken.connection.data_received(chunks(b"a", b"b") + b"0\r\n\r\n")
    assert isinstance(taken.error, asyncio.CancelledError)
    assert (taken.connection.phase, taken.owner.free, taken.owner.gone) == (Phase.LOST, 0, 1)
    assert sink.taken == [b"a"]


async def test_a_cut_is_raised_once_all_that_came_has_been_given(drive: bool) -> None:
    taken = Taken(Sink(waits=lambda call: call == 1), drive=drive)
    taken.begin(HEAD)
    await asyncio.sleep(0)
    taken.connection.data_received(chunks(b"a", b"b"))
    taken.connection.eof_received()
    await taken.ended()
    assert isinstance(taken.error, UpstreamCut)
    assert b"".join(taken.sink.taken) == b"ab"
    assert (taken.connection.phase, taken.owner.gone) == (Phase.LOST, 1)


async def test_broken_framing_is_raised(drive: bool) -> None:
    taken = Taken(Sink(), drive=drive)
    taken.begin(HEAD + chunks(b"a"))
    await asyncio.sleep(0)
    taken.connection.data_received(b"x\r\n")
    await taken.ended()
    assert isinstance(taken.error, UpstreamProtocol)
    assert taken.sink.taken == [b"a"]


async def test_cancelled_while_it_is_pumped_the_connection_goes_at_once(drive: bool) -> None:
    taken = Taken(Sink(), drive=drive)
    taken.begin(HEAD + chunks(b"a"))
    await asyncio.sleep(0)
    assert taken.work is not None
    taken.work.cancel()
    await taken.ended()
    assert (taken.connection.phase, taken.transport.closed, taken.owner.gone) == (Phase.LOST, True, 1)
    taken.connection.data_received(chunks(b"b"))
    assert taken.sink.taken == [b"a"]


# -- being interrupted


async def test_whoever_pumps_goes_on_when_interrupted_and_loses_nothing(drive: bool) -> None:
    taken = Taken(Sink(), drive=drive)
    answer = taken.begin(HEAD)
    await asyncio.sleep(0)
    for number in range(3):
        answer.interrupt()
        taken.connection.data_received(chunks(b"%d" % number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not taken.over
    taken.connection.data_received(chunks(b"3") + b"0\r\n\r\n")
    await taken.ended()
    assert b"".join(taken.sink.taken) == b"0123"
    assert taken.error is None


async def test_an_interrupted_pump_answers_enough() -> None:
    connection, _, _ = fresh()
    connection.begin(ask(origin(1)), within())
    connection.data_received(HEAD)
    answer = Answer(200, [], {}, connection)
    answer.interrupt()  # nobody pumps yet: nothing to interrupt
    task = asyncio.get_running_loop().create_task(answer.pump(Sink()))
    await asyncio.sleep(0)
    assert not task.done()
    answer.interrupt()
    answer.interrupt()
    assert await task is ENOUGH
    answer.close()


# -- how fast, and how long


async def _pump(script: Script, sink: Sink, *, idle: float = 5.0, total: float = 10.0) -> None:
    async with pooled(script) as (pool, peer):
        await pumped(await pool.send(ask(peer), within(total, idle=idle), LIMITS), sink)


@pytest.mark.parametrize(("idle", "total", "phase"), [(0.3, 9.0, "idle"), (0.2, 0.45, "total")])
async def test_silence_while_it_is_pumped_ends_it_on_time(idle: float, total: float, phase: str) -> None:
    """Idle: three drips, then silence. Total: drips for ever."""
    loop = asyncio.get_running_loop()
    at: list[float] = []
    sink = Sink(waits=lambda _: bool(at.append(loop.time())))  # type: ignore[func-returns-value]
    drips = 3 if phase == "idle" else 100
    began = loop.time()
    with pytest.raises(UpstreamTimeout) as caught:
        await _pump([REQUEST, HEAD, Drip(chunks(b"x"), 0.1, drips), GONE], sink, idle=idle, total=total)
    took = loop.time() - (at[-1] if phase == "idle" else began)
    wanted = idle if phase == "idle" else total
    assert wanted * 0.9 - 0.002 <= took <= wanted * 1.1 + 0.05
    assert caught.value.phase == phase


async def test_a_sink_that_waits_long_holds_the_provider_and_is_not_its_silence() -> None:
    piece = b"x" * 50_000
    held: list[int] = []
    async with pooled([REQUEST, HEAD, Flood(chunks(piece), 200), b"0\r\n\r\n"]) as (pool, peer):
        answer = await pool.send(ask(peer), within(idle=0.15), LIMITS)
        sink, got = Sink(waits=lambda call: call == 3), 0
        while (wait := await answer.pump(sink)) is not None:
            await asyncio.sleep(0.4)  # longer than a provider may be silent
            assert answer.connection is not None
            held.append(answer.connection.size)
            await wait
        got = sum(map(len, sink.taken))
        answer.close()
        assert got == 200 * len(piece)
        assert len(held) == 1
        assert held[0] <= HIGH_WATER + 512 * 1024  # one reading past the mark
        assert numbers(pool) == (1, 0, 0, 0)


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_a_cut_while_the_sink_waits_is_raised_when_it_pumps_on(ending: Act) -> None:
    cut = asyncio.Event()
    async with pooled([REQUEST, HEAD, chunks(b"a"), Pause(cut), ending]) as (pool, peer):
        answer = await pool.send(ask(peer), within(), LIMITS)
        sink = Sink(waits=lambda call: call == 1)
        wait = await answer.pump(sink)
        assert wait is not None
        cut.set()
        await peer.left()
        await wait
        with pytest.raises(UpstreamCut):
            await answer.pump(sink)
        answer.close()


async def test_a_body_behind_a_sink_that_waited_leaves_a_connection_that_is_used_again() -> None:
    reply = LENGTH_9 + b"123456789"
    async with pooled([REQUEST, reply, REQUEST, reply]) as (pool, peer):
        for _ in range(2):
            sink = Sink(waits=lambda _: True)
            await pumped(await pool.send(ask(peer), within(), LIMITS), sink)
            assert b"".join(sink.taken) == b"123456789"
        assert len(peer.connections) == 1
        assert await whole(Answer(200, [], {}, None)) == b""
