"""Coroutines without tasks: a step is taken in the call that makes it possible, not a round of the loop later.

A task costs a proxy three rounds of the event loop per request, and each wake-up a future. A `Drive` runs a coroutine
from the callbacks of its connections instead; it waits on a `Signal`, which its owner keeps and wakes again and again.
The same coroutine runs under an ordinary task too (in somebody else's server): a Signal is a future to asyncio.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Protocol

import msgspec


class Signal:
    """What one coroutine at a time waits on. A wake-up that nobody waits for is lost: look before you wait."""

    __slots__ = ("_asyncio_future_blocking", "_call", "_cancelled", "_context", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._call: Callable[..., object] | None = None
        self._context: contextvars.Context | None = None  # of a task; a Drive has none
        self._cancelled: tuple[object] | None = None  # with the message
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Signal, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def wake(self) -> None:
        """Let whoever waits go on: a Drive at once, a task in the loop's next round."""
        call = self._call
        if call is None:
            return
        self._call = None
        if self._context is None:
            call()
        else:
            self._loop.call_soon(call, self, context=self._context)

    # -- a Drive's side

    def attach(self, call: Callable[[], object]) -> None:
        self._context = None
        self._call = call

    def detach(self) -> None:
        self._call = None

    # -- a task's side: as much of a future as asyncio.Task asks of what it waits on

    def add_done_callback(self, call: Callable[..., object], *, context: contextvars.Context) -> None:
        self._context = context
        self._call = call

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def cancel(self, msg: object = None) -> bool:
        """False when a wake-up is under way already: the task is then cancelled at its next wait."""
        if self._call is None:
            return False
        self._cancelled = (msg,)
        self.wake()
        return True

    def result(self) -> None:
        if self._cancelled is not None:
            (msg,), self._cancelled = self._cancelled, None
            raise asyncio.CancelledError(*(() if msg is None else (msg,)))  # by it anyio knows its own

    def __repr__(self) -> str:
        return f"<Signal {'waited on' if self._call is not None else 'idle'}>"


class Lazy(msgspec.Struct, eq=False):
    """What may be waited for or dropped: the call is made when somebody waits. A dropped coroutine would complain."""

    call: Callable[[], Awaitable[None]]

    def __await__(self) -> Generator[Any, None, None]:
        return self.call().__await__()


async def _nothing() -> None:
    pass


ENOUGH: Final = Lazy(_nothing)  # what a sink answers that takes no more until it is pumped again: nothing to wait for


class Drive(msgspec.Struct, eq=False):
    """Runs `coroutine` to its end; `over` is called then, with what it raised. It may wait on Signals and on futures.

    Nothing in it may ask for the current task (`asyncio.timeout`, anyio's scopes): there is none.
    """

    loop: asyncio.AbstractEventLoop
    coroutine: Coroutine[Any, Any, object] | None
    over: Callable[[BaseException | None], object]
    waits: Any = None  # what the coroutine waits on
    running: bool = False
    cancelled: bool = False

    def resume(self) -> None:
        """Go on until the next wait. Also the call with which it begins."""
        coroutine = self.coroutine
        if coroutine is None:
            return
        self.running = True
        try:
            waits = coroutine.send(None)
        except StopIteration:
            self.coroutine = self.waits = None
            self.running = False
            self.over(None)
            return
        except BaseException as error:  # noqa: BLE001  # the owner decides: it is handed over, not dropped
            self._end(error)
            return
        self.running = False
        if type(waits) is Signal:
            waits._context = None
            waits._call = self.resume
            self.waits = waits
        else:
            self._wait_on(waits)
        if self.cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Raise CancelledError where it waits, now; when it is running, at its next wait."""
        if self.coroutine is None:
            return
        if self.running:
            self.cancelled = True
            return
        self.cancelled = False
        waits, self.waits = self.waits, None
        if type(waits) is Signal:
            waits.detach()
        elif waits is not None:
            waits.remove_done_callback(self._ready)
        self.running = True
        try:
            waits = self.coroutine.throw(asyncio.CancelledError())
        except StopIteration:
            self._end(None)
            return
        except BaseException as error:  # noqa: BLE001  # as above
            self._end(error)
            return
        self.running = False
        self._wait_on(waits)

    def _wait_on(self, waits: Any) -> None:
        self.waits = waits
        if type(waits) is Signal:
            waits.attach(self.resume)
        elif waits is None:  # asyncio.sleep(0)
            self.loop.call_soon(self.resume)
        else:
            waits._asyncio_future_blocking = False
            waits.add_done_callback(self._ready)

    def _ready(self, future: object) -> None:
        if future is self.waits:
            self.resume()

    def _end(self, error: BaseException | None) -> None:
        self.coroutine = None
        self.waits = None
        self.running = False
        self.over(error)

    def __repr__(self) -> str:
        state = "over" if self.coroutine is None else "running" if self.running else "waiting"
        return f"<Drive {state}>"


class Flushed(Protocol):
    def flush(self) -> None:
        """Send what has been written. It must not raise."""
        ...


class Round:
    """What is to be done once the loop's present round has read all that there is to read: sending, above all.

    A write wakes the process at the other end, which costs more than all our own work on an event. Writes of one round
    are made one after another, while their readers are awake. Nobody waits longer than the round takes.
    """

    __slots__ = ("_calls", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: list[Flushed] = []

    def later(self, what: Flushed) -> None:
        """Flush it at the end of this round."""
        calls = self._calls
        if not calls:
            self._loop.call_soon(self._run)
        calls.append(what)

    def _run(self) -> None:
        calls, self._calls = self._calls, []
        for each in calls:
            each.flush()

    def __repr__(self) -> str:
        return f"<Round {len(self._calls)} calls>"
