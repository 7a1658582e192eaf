"""Requests that an app takes directly (`Server.direct`): answers, waiting for the client, going on without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Any

import pytest

from sidecar.drive import Lazy, Signal
from sidecar.errors import BodyTooLarge, ClientGone, Malformed
from sidecar.server.cycle import Cycle
from sidecar.server.sending import HIGH_WATER
from sidecar.types import Receive, Scope, Send
from sidecar.wire.body import LONG_BYTES
from tests.faults.peer import CLOSE, FIN, READ_ON, RST, STOP_READING, Act, Expect
from tests.server.apps import GET, GET_CLOSE, Ground, chunked, get, post, serving, undated, until

MEGABYTE = 1_000_000
KERNEL = 8 * MEGABYTE  # at most, in the buffers of both sockets
PLAIN = [(b"content-type", b"text/plain")]
LINES = b"x-more: 1\r\n"


class Direct:
    """An app that takes every request directly and does with it as it is told; `turns_away` the next ones to ASGI."""

    def __init__(self, serve: Callable[[Cycle], Coroutine[Any, Any, object]]) -> None:
        self._serve = serve
        self.cycles: list[Cycle] = []
        self.turns_away = False
        self.by_asgi: list[Scope] = []

    def direct(self, cycle: Cycle) -> Coroutine[Any, Any, object] | None:
        if self.turns_away:
            return None
        self.cycles.append(cycle)
        return self._serve(cycle)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.by_asgi.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"by asgi"})


def directly(
    serve: Callable[[Cycle], Coroutine[Any, Any, object]],
) -> tuple[Direct, AbstractAsyncContextManager[Ground]]:
    app = Direct(serve)
    return app, serving(app)


async def settle(wait: Awaitable[None] | None) -> None:
    if wait is not None:
        await wait


async def echo(cycle: Cycle) -> None:
    body = await cycle.read(10 * MEGABYTE)
    await settle(cycle.answer(200, PLAIN, LINES, body, more=False))


async def in_pieces(cycle: Cycle) -> None:
    await settle(cycle.answer(200, PLAIN, LINES, b"a", more=True))
    await settle(cycle.write(b"", more=True))
    await settle(cycle.write(b"bc", more=True))
    await settle(cycle.write(b"d", more=False))


# -- answers, to the byte

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


@pytest.mark.parametrize(
    ("serve", "asked", "wanted"),
    [
        (
            echo,
            post(b"hi", b"Connection: close"),
            OK + b"content-length: 2\r\nconnection: close\r\nx-more: 1\r\n\r\nhi",
        ),
        (
            in_pieces,
            GET_CLOSE,
            OK + b"transfer-encoding: chunked\r\nconnection: close\r\nx-more: 1\r\n\r\n"
            b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n",
        ),
        (in_pieces, b"GET / HTTP/1.0\r\n\r\n", OK + b"connection: close\r\nx-more: 1\r\n\r\nabcd"),
        (
            in_pieces,
            GET_CLOSE.replace(b"GET", b"HEAD"),
            OK + b"connection: close\r\nx-more: 1\r\n\r\n",
        ),
    ],
)
async def test_an_answer_to_the_byte(
    serve: Callable[[Cycle], Coroutine[Any, Any, object]], asked: bytes, wanted: bytes
) -> None:
    _, served = directly(serve)
    async with served as ground:
        assert await ground.ask(asked) == wanted


async def test_an_answer_that_is_one_body_and_the_next_on_the_same_connection() -> None:
    app, served = directly(echo)
    async with served as ground, ground.client() as client:
        for body in (b"one", b"three", b""):
            await client.run(post(body))
            got = undated(await client.response())
            assert got == OK + LINES + b"content-length: %d\r\n\r\n" % len(body) + body
        assert [cycle.over for cycle in app.cycles] == [True] * 3


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_framed_as_one(status: int) -> None:
    async def serve(cycle: Cycle) -> None:
        cycle.answer(status, [], b"", b"never seen", more=False)

    _, served = directly(serve)
    async with served as ground, ground.client() as client:
        for _ in range(2):
            await client.run(GET)
            head = undated(await client.response())
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert head.endswith(b"\r\n\r\n")
        assert b"never" not in client.received


async def test_a_header_that_would_split_the_head_is_a_bug_and_a_500() -> None:
    async def serve(cycle: Cycle) -> None:
        with pytest.raises(Malformed):
            cycle.answer(200, [(b"x", b"a\r\nb: c")], b"", b"ok", more=False)

    _, served = directly(serve)
    async with served as ground:
        got = await ground.ask(GET_CLOSE)
        assert got.startswith(b"HTTP/1.1 500 ")
        assert b"b: c" not in got


@pytest.mark.parametrize("whole", [True, False])
async def test_what_is_written_behind_the_end_is_refused_and_never_sent(whole: bool) -> None:
    async def serve(cycle: Cycle) -> None:
        await echo(cycle) if whole else await in_pieces(cycle)
        for more in (True, False):
            with pytest.raises(RuntimeError, match="ended already"):
                cycle.write(b"late", more=more)

    _, served = directly(serve)
    async with served as ground, ground.client() as client:
        for _ in range(2):
            await client.run(post(b"x"))
            await client.response()
        assert b"late" not in client.received
        assert ground.notes.traces == ""


async def test_an_app_that_ends_without_an_answer() -> None:
    async def serve(cycle: Cycle) -> None:
        if cycle.path == b"/begun":
            cycle.answer(200, [], b"", b"part", more=True)
        if cycle.path != b"/":
            raise ValueError("a bug")

    _, served = directly(serve)
    async with served as ground:
        assert (await ground.ask(GET_CLOSE)).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert ground.notes.events == []
        assert (await ground.ask(get("/a", b"Connection: close"))).startswith(b"HTTP/1.1 500 ")
        cut = await ground.ask(get("/begun"))
        assert cut.endswith(b"4\r\npart\r\n")  # and no end
        assert ground.notes.traces.count("ValueError: a bug") == 2


# -- reading the request


async def test_a_body_that_is_too_large_is_told_before_it_is_read() -> None:
    found: list[str] = []

    async def serve(cycle: Cycle) -> None:
        try:
            await cycle.read(10)
        except BodyTooLarge as error:
            found.append(error.message)
        cycle.answer(413, [], b"", b"", more=False)

    _, served = directly(serve)
    async with served as ground:
        for asked in (post(b"x" * 11, b"Expect: 100-continue")[:-11], post(b"x" * 11), chunked(b"x" * 6, b"x" * 6)):
            async with ground.client() as client:
                await client.run(asked)
                assert (await client.response()).startswith(b"HTTP/1.1 413 ")
                assert b"100 Continue" not in client.received
        assert found == [
            "the body has 11 bytes; at most 10 are taken",
            "the body has 11 bytes; at most 10 are taken",
            "the body has more than the 10 bytes that are taken",
        ]


async def test_a_body_is_asked_for_once_and_read_past_the_high_water() -> None:
    _, served = directly(echo)
    async with served as ground, ground.client() as client:
        data = b"x" * (HIGH_WATER * 20)
        head, _, body = post(data, b"Expect: 100-continue").partition(b"\r\n\r\n")
        await client.run(head + b"\r\n\r\n", Expect(b"HTTP/1.1 100 Continue\r\n\r\n"))
        client.write(body)
        assert (await client.response()).endswith(b"\r\n\r\n" + data)
        assert client.received.count(b"100 Continue") == 1


@pytest.mark.parametrize("size", [LONG_BYTES, LONG_BYTES + 1, 3 * MEGABYTE + 7])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_long_body_is_put_together_as_it_came(size: int, declared: bool) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    cuts = [0, 1, size // 16, size // 8 + 2, size // 2, size]
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    head = post(data).removesuffix(data)
    _, served = directly(echo)
    async with served as ground, ground.client() as client:
        for _ in range(2):
            for piece in [head, *pieces] if declared else [chunked(*pieces)]:
                client.write(piece)
                await asyncio.sleep(0.001)
            assert (await client.response()).partition(b"\r\n\r\n")[2] == data


@pytest.mark.parametrize("leave", [CLOSE, FIN, RST], ids=lambda act: act.name)
async def test_a_client_that_leaves_while_its_body_is_read(leave: Act) -> None:
    ends: list[BaseException] = []

    async def serve(cycle: Cycle) -> None:
        cycle.stay = cycle.path == b"/stays"
        try:
            await cycle.read(100)
        except BaseException as error:
            ends.append(error)
            raise

    _, served = directly(serve)
    async with served as ground:
        for path in ("/", "/stays"):
            async with ground.client() as client:
                await client.run(post(b"x" * 50, path=path)[:-1])
                await until(lambda: ground.exchanges)
                await client.run(leave)
                await until(lambda: not ground.exchanges)
        assert [type(end) for end in ends] == [asyncio.CancelledError, ClientGone]


# -- a client that does not read


async def test_what_a_write_answers_is_to_be_waited_for_when_the_client_does_not_read() -> None:
    waits: list[object] = []
    sent = 0
    piece = b"x" * 50_000

    async def serve(cycle: Cycle) -> None:
        nonlocal sent
        wait = cycle.answer(200, [], b"", piece, more=True)
        for _ in range(400):
            if wait is not None:
                waits.append(wait)
                await wait
            wait = cycle.write(piece, more=True)
            sent += len(piece)
        await settle(wait)
        await settle(cycle.write(b"", more=False))

    _, served = directly(serve)
    async with served as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING, GET)
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.05)
        assert 0 < sent < KERNEL
        assert [type(wait) for wait in waits] == [Lazy] * len(waits)
        assert waits
        await client.run(READ_ON)
        got = await client.response()
        assert got.count(b"x") == 401 * len(piece)


async def test_a_wait_may_be_dropped_and_the_client_may_leave_meanwhile() -> None:
    """Nothing complains (warnings are errors here), and who waits is let go."""
    held = asyncio.Event()

    async def serve(cycle: Cycle) -> None:
        cycle.answer(200, [], b"", b"x" * 20 * MEGABYTE, more=True)
        for _ in range(5):
            cycle.write(b"x" * MEGABYTE, more=True)
        wait = cycle.write(b"x", more=True)
        assert wait is not None
        held.set()
        await wait

    app, served = directly(serve)
    async with served as ground, ground.client(receive_buffer=65536) as client:
        await client.run(STOP_READING, GET)
        await held.wait()
        await client.run(RST)
        await until(lambda: not ground.exchanges)
        assert app.cycles[0].gone
        assert ground.notes.traces == ""


# -- going on without the client


@pytest.mark.parametrize("leave", [CLOSE, FIN, RST], ids=lambda act: act.name)
@pytest.mark.parametrize("stay", [True, False], ids=["stays", "leaves"])
async def test_an_exchange_goes_on_without_its_client_or_ends_with_it(stay: bool, leave: Act) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    ends: list[str] = []

    async def serve(cycle: Cycle) -> None:
        cycle.stay = stay
        await settle(cycle.answer(200, [], b"", b"a", more=True))
        begun.set()
        waiting = Signal(cycle.loop)
        woken = asyncio.get_running_loop().create_task(go_on.wait())
        woken.add_done_callback(lambda _: waiting.wake())
        try:
            await waiting
            assert cycle.gone
            assert cycle.write(b"b", more=True) is None
            assert cycle.write(b"", more=False) is None
            ends.append("went on")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        finally:
            woken.cancel()

    app, served = directly(serve)
    async with served as ground, ground.client() as client:
        await client.run(GET, Expect(b"1\r\na\r\n"))
        await begun.wait()
        await client.run(leave)
        await until(lambda: app.cycles[0].gone)
        await until(lambda: not ground.server.connections)
        assert ground.exchanges == (1 if stay else 0)
        go_on.set()
        await until(lambda: not ground.exchanges)
        assert ends == ["went on" if stay else "cancelled"]
        assert ground.notes.traces == ""


# -- a head that comes again


async def test_a_repeated_head_is_taken_without_the_reader_and_means_the_same() -> None:
    app, served = directly(echo)
    async with served as ground, ground.client() as client:
        for body in (b"a", b"bcd", b"", b"e" * 1000):
            await client.run(post(body))
            assert (await client.response()).endswith(b"\r\n\r\n" + body)
        first, *others = app.cycles
        assert all(cycle.head is first.head for cycle in others)
        assert [cycle.length for cycle in app.cycles] == [1, 3, 0, 1000]
        app.turns_away = True
        await client.run(post(b"12345"))
        assert (await client.response()).endswith(b"by asgi")
        assert (b"content-length", b"5") in app.by_asgi[0]["headers"]
        await client.run(post(b"1234567"))
        assert (await client.response()).endswith(b"by asgi")
        assert (b"content-length", b"7") in app.by_asgi[1]["headers"]


@pytest.mark.parametrize("together", [True, False], ids=["in one segment", "while the first is served"])
async def test_requests_pipelined_behind_a_repeated_head(together: bool) -> None:
    go_on = asyncio.Event()
    open_ = 0

    async def serve(cycle: Cycle) -> None:
        nonlocal open_
        open_ += 1
        assert open_ == 1
        body = await cycle.read(100)
        if body == b"first":
            woken = Signal(cycle.loop)
            cycle.loop.create_task(go_on.wait()).add_done_callback(lambda _: woken.wake())
            await woken
        open_ -= 1
        await settle(cycle.answer(200, PLAIN, b"", body, more=False))

    app, served = directly(serve)
    async with served as ground, ground.client() as client:
        await client.run(post(b"zero"))
        await client.response()
        behind = post(b"second") + chunked(b"third") + post(b"fourth") + post(b"fifth")[:-2]
        if together:
            await client.run(post(b"first") + behind)
        else:
            await client.run(post(b"first"))
            await until(lambda: len(app.cycles) == 2)
            for at in range(0, len(behind), 50):
                await client.run(behind[at : at + 50])
                await asyncio.sleep(0)
        await until(lambda: ground.server.connections)
        go_on.set()
        for body in (b"first", b"second", b"third", b"fourth"):
            assert (await client.response()).endswith(b"\r\n\r\n" + body)
        await client.run(b"th")
        assert (await client.response()).endswith(b"\r\n\r\nfifth")
        await client.run(post(b"sixth"))
        assert (await client.response()).endswith(b"\r\n\r\nsixth")
        assert len(app.cycles) == 7
        assert ground.notes.events == []


async def test_repeated_heads_of_a_client_that_does_not_read_are_not_served_on() -> None:
    """It gets no further answers until it has taken those it has; then all of them, in order."""

    async def serve(cycle: Cycle) -> None:
        number = (await cycle.read(100)).strip()
        cycle.answer(200, PLAIN, b"", number * MEGABYTE, more=False)  # without waiting

    app, served = directly(serve)
    async with served as ground, ground.client(receive_buffer=65536) as client:
        await client.run(post(b"0"))
        await client.response()
        await client.run(STOP_READING)
        for number in range(1, 20):
            client.write(post(b"%d" % (number % 10)))
            await asyncio.sleep(0.003)
        served_before = len(app.cycles)
        assert 1 < served_before < 10
        await client.run(READ_ON)
        for number in range(1, 20):
            assert (await client.response()).endswith(b"\r\n\r\n" + b"%d" % (number % 10) * MEGABYTE)
        assert len(app.cycles) == 20


async def test_a_repeated_head_of_a_client_that_never_reads_is_given_up() -> None:
    async def serve(cycle: Cycle) -> None:
        cycle.answer(200, PLAIN, b"", b"x" * 10 * MEGABYTE, more=False)

    app = Direct(serve)
    async with serving(app, send_stall_seconds=0.2) as ground, ground.client(receive_buffer=65536) as client:
        await client.run(post(b"0"))
        await client.response()
        await client.run(STOP_READING, post(b"1"))
        await until(lambda: not ground.server.connections)
        assert ground.notes.events == ["stalled"]
        assert len(app.cycles) == 2
