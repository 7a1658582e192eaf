"""The sidecar in process: both libraries, both kinds of client, many threads and loops, and every way to end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx
import httpx2
import msgspec
import pytest

from sidecar import Config, ConfigError, Sidecar, SidecarTransport
from sidecar.clock import now
from sidecar.config import KEY_VARIABLES
from sidecar.simulator import Simulator
from tests.e2e.doors import cancelled, config_for
from tests.faults.ground import nothing_left

LIBRARIES: pytest.MarkDecorator = pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
URL = "http://sidecar/v1/chat/completions"
CHAT: Any = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}
STREAM: Any = {**CHAT, "stream": True}
SILENT = {"x-sim-fault": "stall"}
MIDWAY = {"x-sim-fault": "stall_after:2"}


@pytest.fixture(autouse=True, params=["by ASGI first", "directly"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request of a loop goes by ASGI, since there is no pool yet; those behind it go to the spine."""
    if request.param == "directly":

        def opened(config: Config) -> Sidecar:
            sidecar = Sidecar(config)
            sidecar._reopen()
            return sidecar

        monkeypatch.setattr("sidecar.transport.Sidecar", opened)


def open_config(simulator: Simulator) -> Config:
    return msgspec.structs.replace(config_for(simulator), callers={})


@contextmanager
def simulated() -> Iterator[tuple[Simulator, SidecarTransport]]:
    """A simulator on a loop of its own, for tests that are synchronous; and a transport, closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    simulator = Simulator()
    try:
        asyncio.run_coroutine_threadsafe(simulator.start(), loop).result()
        with SidecarTransport(open_config(simulator)) as transport:
            yield simulator, transport
        assert not sidecar_threads()
    finally:
        asyncio.run_coroutine_threadsafe(simulator.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def sidecar_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sidecar-transport"]


def until(what: Any) -> None:
    """Wait (in a thread) for what another thread does."""
    deadline = now() + 5
    while not what():
        assert now() < deadline
        threading.Event().wait(0.002)


# -- requests and answers


@LIBRARIES
async def test_an_asynchronous_client(library: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        data = msgspec.json.encode(CHAT)
        for at in range(0, len(data), 7):
            yield data[at : at + 7]

    async with nothing_left(), Simulator() as simulator:
        async with library.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            answer = await client.post(URL, json=CHAT)
            assert isinstance(answer, library.Response)
            assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
            assert answer.json()["choices"][0]["message"]["content"]
            streamed = await client.post(URL, content=pieces(), headers={"content-type": "application/json"})
            assert streamed.status_code == 200
            assert (await client.head("https://sidecar/")).content == b""
            assert (await client.get("http://sidecar/v1/models?limit=5")).status_code == 200
        one, two = (msgspec.json.decode(seen.body) for seen in simulator.requests)
        assert one == two == {**CHAT, "model": "m"}
        assert simulator.requests[1].header("transfer-encoding") == ""


@LIBRARIES
def test_a_synchronous_client(library: Any) -> None:
    def pieces() -> Iterator[bytes]:
        yield msgspec.json.encode(CHAT)

    with simulated() as (simulator, transport), library.Client(transport=transport) as client:
        answer = client.post(URL, json=CHAT)
        assert isinstance(answer, library.Response)
        assert answer.json()["choices"][0]["message"]["content"]
        assert client.post(URL, content=pieces()).status_code == 200
        with client.stream("POST", URL, json=STREAM) as streamed:
            assert b"".join(streamed.iter_bytes()).endswith(b"data: [DONE]\n\n")
        assert client.head("http://sidecar/").content == b""
        assert len(simulator.requests) == 3


async def test_events_arrive_one_by_one() -> None:
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            async with client.stream("POST", URL, json=STREAM, headers=MIDWAY) as answer:
                first = await anext(answer.aiter_bytes())
                assert first.startswith(b'data: {"id":"chatcmpl-00000001"')
                assert simulator.requests[0].finished_at is None
            await cancelled(simulator, now())


def test_a_request_of_a_class_derived_from_the_librarys() -> None:
    class Mine(httpx2.Request):
        pass

    with simulated() as (_, transport):
        answer = transport.handle_request(Mine("GET", "http://sidecar/livez"))
        assert isinstance(answer, httpx2.Response)
        assert answer.read() == b"ok\n"


# -- what goes wrong is an answer, or an exception of the client's library


@LIBRARIES
async def test_a_provider_that_fails_is_an_answer(library: Any) -> None:
    async with nothing_left(), Simulator() as simulator:
        async with library.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            answer = await client.post(URL, json=CHAT, headers={"x-sim-fault": "reset"})
    assert (answer.status_code, answer.headers["x-sidecar-error"]) == (502, "provider_cut")


@LIBRARIES
async def test_an_answer_that_is_cut(library: Any) -> None:
    """A body that is too large to be held until it is whole, and then is not."""
    headers = {"x-sim-tokens": "30000", "x-sim-fault": "cut_after:150000"}
    async with nothing_left(), Simulator() as simulator:
        async with library.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            with pytest.raises(library.RemoteProtocolError, match="without sending complete message body"):
                await client.post(URL, json=CHAT, headers=headers)


@LIBRARIES
@pytest.mark.parametrize("headers", [SILENT, MIDWAY], ids=["head", "body"])
async def test_an_asynchronous_client_has_waited_long_enough(library: Any, headers: dict[str, str]) -> None:
    async with nothing_left(), Simulator() as simulator:
        transport = SidecarTransport(open_config(simulator))
        async with library.AsyncClient(transport=transport, timeout=library.Timeout(5, read=0.1)) as client:
            began = now()
            with pytest.raises(library.ReadTimeout, match=r"within 0\.1 s"):
                await client.post(URL, json=STREAM, headers=headers)
            assert 0.1 <= now() - began < 0.6
            await cancelled(simulator, now())


@LIBRARIES
@pytest.mark.parametrize("headers", [SILENT, MIDWAY], ids=["head", "body"])
def test_a_synchronous_client_has_waited_long_enough(library: Any, headers: dict[str, str]) -> None:
    with simulated() as (simulator, transport), library.Client(transport=transport, timeout=0.1) as client:
        with pytest.raises(library.ReadTimeout):
            client.post(URL, json=STREAM, headers=headers)
        until(lambda: simulator.requests[-1].cancelled_at is not None)


async def test_no_timeout_is_none() -> None:
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator)), timeout=None) as client:
            assert (await client.post(URL, json=CHAT)).status_code == 200


async def test_a_body_that_fails_asks_nothing() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b'{"model":'
        raise OSError("the file is gone")

    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            with pytest.raises(OSError, match="the file is gone"):
                await client.post(URL, content=breaks())
        assert not simulator.requests


def test_without_a_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SIDECAR_CONFIG", *KEY_VARIABLES.values()):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no provider's key in the environment"):
        SidecarTransport()
    with pytest.raises(ConfigError, match="cannot be read"):
        SidecarTransport(tmp_path / "none.toml")


# -- leaving


@pytest.mark.parametrize("headers", [SILENT, MIDWAY], ids=["head", "body"])
async def test_a_cancelled_call(headers: dict[str, str]) -> None:
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            call = asyncio.create_task(client.post(URL, json=STREAM, headers=headers))
            while not (simulator.requests and (headers is SILENT or simulator.requests[0].answered_at)):
                await asyncio.sleep(0.002)
            left_at = now()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await cancelled(simulator, left_at)


@pytest.mark.parametrize("headers", [SILENT, MIDWAY], ids=["head", "body"])
async def test_a_scope_of_anyios_that_is_over(headers: dict[str, str]) -> None:
    """Which cancels again and again whatever still waits in it, closing too."""
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            with anyio.move_on_after(0.1) as scope:
                async with client.stream("POST", URL, json=STREAM, headers=headers) as answer:
                    async for _ in answer.aiter_bytes():
                        pass
            assert scope.cancelled_caught
            await cancelled(simulator, now())


def test_control_c_ends_what_was_waited_for() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with simulated() as (simulator, transport), httpx2.Client(transport=transport) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.15)
            with pytest.raises(KeyboardInterrupt):
                client.post(URL, json=CHAT, headers=SILENT)
            until(lambda: simulator.requests[-1].cancelled_at is not None)
            assert client.post(URL, json=CHAT).status_code == 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def test_a_client_that_does_not_read_holds_its_provider_back() -> None:
    ask = {**STREAM, "model": "lab/" + "m" * 400}  # which each event repeats: 12 MB in all
    async with nothing_left(), Simulator() as simulator:
        async with httpx2.AsyncClient(transport=SidecarTransport(open_config(simulator))) as client:
            async with client.stream("POST", URL, json=ask, headers={"x-sim-tokens": "20000"}) as answer:
                assert answer.status_code == 200
                pieces = answer.aiter_raw()
                assert await anext(pieces)
                held = 0
                deadline = now() + 10
                while held < 15 and now() < deadline:
                    await asyncio.sleep(0.02)
                    held = held + 1 if any(peer._paused for peer in simulator.connections) else 0
                assert held == 15  # for 0.3 s nobody took a byte of it
                assert len(await anext(pieces)) < 1024 * 1024  # all that had come of it


# -- threads, loops, processes


def test_many_threads_share_one_transport() -> None:
    def use(number: int) -> tuple[int, bytes]:
        together.wait()
        with httpx2.Client(transport=Lent(transport)) as client:
            status = client.post(URL, json=CHAT).status_code
            with client.stream("POST", URL, json=STREAM) as answer:
                return status, b"".join(answer.iter_bytes())[-14:]

    together = threading.Barrier(16)
    with simulated() as (simulator, transport), ThreadPoolExecutor(16) as threads:
        assert list(threads.map(use, range(16))) == [(200, b"data: [DONE]\n\n")] * 16
        assert len(sidecar_threads()) == 1
        assert len(simulator.requests) == 32


class Lent(httpx2.BaseTransport):
    """A transport that its client does not close."""

    def __init__(self, transport: SidecarTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response: httpx2.Response = self._transport.handle_request(request)
        return response


def test_several_loops_one_after_the_other_and_at_once() -> None:
    async def use() -> int:
        async with httpx2.AsyncClient(transport=transport) as client:
            return (await client.post(URL, json=CHAT)).status_code

    with simulated() as (simulator, transport):
        assert [asyncio.run(use()) for _ in range(3)] == [200] * 3
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda _: asyncio.run(use()), range(8))) == [200] * 8
        until(lambda: not simulator.connections)  # each loop's are closed with its client


def test_a_loop_that_ended_without_closing_is_forgotten() -> None:
    async def use() -> int:
        request = httpx2.Request("GET", "http://sidecar/livez")
        return int((await transport.handle_async_request(request)).status_code)

    with simulated() as (_, transport):
        assert [asyncio.run(use()) for _ in range(3)] == [200] * 3
        assert len(transport._sidecars) == 1


def _child(transport: SidecarTransport) -> None:
    with httpx2.Client(transport=transport) as client:
        os._exit(0 if client.post(URL, json=CHAT).status_code == 200 else 1)


def test_a_process_that_was_forked_has_a_thread_of_its_own() -> None:
    with simulated() as (_, transport), httpx2.Client(transport=transport) as client:
        assert client.post(URL, json=CHAT).status_code == 200
        child = multiprocessing.get_context("fork").Process(target=_child, args=(transport,))
        child.start()
        child.join(10)
        assert child.exitcode == 0
        assert client.post(URL, json=CHAT).status_code == 200


# -- closing


def test_closing_ends_what_other_threads_wait_for() -> None:
    begun = threading.Event()

    def wait() -> str:
        with httpx2.Client(transport=Lent(transport), timeout=10) as client:
            return client.post(URL, json=STREAM, headers=SILENT).text

    def read() -> str:
        with httpx2.Client(transport=Lent(transport), timeout=10) as client:
            with client.stream("POST", URL, json=STREAM, headers=MIDWAY) as answer:
                pieces = answer.iter_text()
                first = next(pieces)
                begun.set()
                return first + "".join(pieces)

    with simulated() as (simulator, transport), ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(wait), threads.submit(read)]
        assert begun.wait(5)
        until(lambda: len(simulator.requests) == 2)
        began = now()
        transport.close()
        silent, midway = [call.result(timeout=5) for call in calls]
        assert silent.startswith('{"error":')
        assert midway.startswith("data: {")
        assert '"error":' in midway.rstrip().rpartition("\n")[2]
        assert now() - began < 2
        assert not sidecar_threads()


def test_closing_with_an_answer_that_nobody_reads() -> None:
    ask = {**STREAM, "model": "lab/" + "m" * 400}
    with simulated() as (_, transport):
        client = httpx2.Client(transport=Lent(transport))
        request = client.build_request("POST", URL, json=ask, headers={"x-sim-tokens": "20000"})
        answer = client.send(request, stream=True)
        transport.close()
        rest = answer.read()  # what was held of it, and how it ended
        assert len(rest) < 1024 * 1024
        assert b'"error":' in rest.rstrip().rpartition(b"\n")[2]
        client.close()


def test_reading_on_from_a_transport_that_was_closed() -> None:
    headers = {"x-sim-tokens": "30000", "x-sim-fault": "stall_after:150000"}
    with simulated() as (_, transport):
        client = httpx2.Client(transport=Lent(transport))
        answer = client.send(client.build_request("POST", URL, json=CHAT, headers=headers), stream=True)
        pieces = answer.iter_raw()
        assert next(pieces)
        transport.close()
        with pytest.raises(httpx2.ReadError, match="the transport is closed"):
            list(pieces)
        answer.close()
        client.close()


def test_closing_twice_and_never_used() -> None:
    with simulated() as (_, transport):
        transport.close()
        assert transport.handle_request(httpx2.Request("GET", "http://sidecar/livez")).read() == b"ok\n"
        transport.close()
        transport.close()


async def test_closing_by_with() -> None:
    async with nothing_left(), Simulator() as simulator:
        async with SidecarTransport(open_config(simulator)) as transport:
            request = httpx2.Request("POST", URL, json=CHAT)
            answer = await transport.handle_async_request(request)
            assert (await answer.aread()).startswith(b"{")
            assert simulator.connections


def test_closing_by_with_for_a_synchronous_client() -> None:
    with SidecarTransport(Config()) as bare:
        assert bare.handle_request(httpx2.Request("GET", "http://sidecar/livez")).read() == b"ok\n"
