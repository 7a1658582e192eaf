"""What is finite is shared by nobody: one provider's bad day is not another's, and limits are told (R7, R8)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import Limits, Pool, Queue
from tests.commands.process import started
from tests.config.files import written
from tests.faults.ground import black_hole
from tests.faults.peer import REQUEST, STOP_READING, Again, Flood, Pause, RawServer, Script
from tests.faults.stand import Stand, ask, closing, comes_true, provider, read, standing
from tests.faults.transcripts import WAYS, chunk, head

CHAT = WAYS["chat"]
GOOD: Script = [Again((REQUEST, CHAT.whole()))]


async def _quick(stand: Stand, model: str, status: int = 200, seconds: float = 0.1) -> Any:
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await stand.ask(ask(CHAT, stream=False, model=model))
    assert reply.status == status
    assert loop.time() - began <= seconds
    return reply


async def test_a_full_provider_delays_no_other() -> None:
    release = asyncio.Event()
    script: Script = [REQUEST, Pause(release), CHAT.whole(), *GOOD]
    async with RawServer(GOOD) as other, asyncio.TaskGroup() as tasks:
        async with standing(
            script, options={"pool": Pool(max_connections=2)}, more=lambda _: {"other": provider(other)}
        ) as stand:
            held = [tasks.create_task(stand.ask(ask(CHAT, stream=False))) for _ in range(4)]
            await comes_true(lambda: "2 busy, 2 waiting" in repr(stand.app.pool), "full")
            for _ in range(5):
                await _quick(stand, "other/m")
            reply = await _quick(stand, "lab/m", 503, 0.05)  # nobody waits behind a full queue
            assert (reply.json["error"]["code"], reply.get(b"retry-after-ms")) == ("provider_pool_exhausted", b"1000")
            release.set()
            assert [(await task).status for task in held] == [200] * 4


async def test_one_that_cannot_be_connected_to_delays_no_other() -> None:
    async with RawServer(GOOD) as other, black_hole() as hole, asyncio.TaskGroup() as tasks:
        more = {"other": provider(other), "hole": provider(hole)}
        async with standing([], more=lambda _: more) as stand:
            dials = [tasks.create_task(stand.ask(ask(CHAT, model="hole/m"))) for _ in range(50)]
            await comes_true(lambda: "50 dialing" in repr(stand.app.pool), "dialing")
            for _ in range(5):
                await _quick(stand, "other/m")
            for dial in dials:
                dial.cancel()


async def test_names_that_hang_delay_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def look_up(host: str, port: None, *, type: int) -> list[Any]:  # noqa: A002  # getaddrinfo's own word
        if host.startswith("hung"):
            release.wait(10)
            raise OSError
        return [(socket.AF_INET, type, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with RawServer(GOOD) as other, asyncio.TaskGroup() as tasks:
        more = {"other": provider(other, base_url=f"http://fine.test:{other.port}/v1")}
        more |= {f"hung{n}": provider(9, base_url=f"http://hung{n}.test/v1") for n in range(12)}
        async with standing([], more=lambda _: more) as stand:
            dials = [tasks.create_task(stand.ask(ask(CHAT, model=f"hung{n}/m"))) for n in range(12)]
            await comes_true(lambda: repr(stand.app.pool).count("1 dialing") == 12, "dialing")
            for _ in range(3):
                await _quick(stand, "other/m")
            release.set()
            assert {(await dial).status for dial in dials} == {502}


async def test_a_client_that_does_not_read_delays_no_other() -> None:
    flood = Flood(chunk(b"data: x\n\n" * 7000), 100_000)
    async with RawServer([REQUEST, head(), flood]) as other:
        async with standing(GOOD, more=lambda _: {"other": provider(other)}) as stand:
            async with stand.client(receive_buffer=4096) as first, stand.client(receive_buffer=4096) as second:
                for client in (first, second):
                    await client.run(ask(CHAT, model="other/m"), STOP_READING)
                await other.requested(2)
                for _ in range(5):
                    await _quick(stand, "lab/m")


@pytest.mark.parametrize(("way", "code"), [("chat", "provider_limited"), ("chat from messages", "provider_limited")])
async def test_over_a_limit_it_is_said_at_once(way: str, code: str) -> None:
    release = asyncio.Event()
    script: Script = [REQUEST, Pause(release), WAYS[way].whole(), Again((REQUEST, WAYS[way].whole()))]
    options = {"limits": Limits(concurrency=1)}
    async with standing(script, options=options, queue=Queue(length=0)) as stand, asyncio.TaskGroup() as tasks:
        held = tasks.create_task(stand.ask(ask(WAYS[way], stream=False)))
        await stand.peer.requested()
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await stand.ask(ask(WAYS[way], stream=False))
        assert loop.time() - began < 0.05
        assert (reply.status, reply.json["error"]["code"]) == (429, code)
        assert reply.get(b"retry-after") is not None
        release.set()
        assert (await held).status == 200
        assert len(stand.peer.requests) == 1


async def test_a_queue_is_left_at_the_clients_own_deadline() -> None:
    release = asyncio.Event()
    script: Script = [REQUEST, Pause(release), CHAT.whole()]
    options = {"limits": Limits(concurrency=1)}
    slow = Queue(wait_seconds=0.6)
    async with standing(script, options=options, queue=slow) as stand, asyncio.TaskGroup() as tasks:
        held = tasks.create_task(stand.ask(ask(CHAT, stream=False)))
        await stand.peer.requested()
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await stand.ask(ask(CHAT, b"x-sidecar-timeout-ms: 100", stream=False))
        took = loop.time() - began
        release.set()
        assert (await held).status == 200
        assert reply.status in (429, 503, 504)
        assert took < 0.3


async def test_a_huge_body_delays_no_other() -> None:
    """A body of so many small messages is the dearest there is to look into."""
    many = [{"role": "user", "content": "a"}] * 250_000  # 8 MB
    async with RawServer(GOOD) as other, asyncio.TaskGroup() as tasks:
        async with standing(GOOD, more=lambda _: {"other": provider(other)}) as stand:
            huge = [tasks.create_task(stand.ask(ask(CHAT, stream=False, messages=many))) for _ in range(3)]
            for _ in range(5):
                began = time.thread_time()  # what the loop does meanwhile, however much other processes do
                await _quick(stand, "other/m", seconds=1)
                assert time.thread_time() - began <= 0.25  # the test's own clients share the loop
            assert [(await task).status for task in huge] == [200] * 3


async def test_a_stuck_log_pipe_delays_nobody(tmp_path: Path) -> None:
    async with RawServer(GOOD) as other:
        lab = f'[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{other.port}/v1"\n'
        file = written(tmp_path / "sidecar.toml", '[server]\nlisten = ["127.0.0.1:0"]\n' + lab)
        with started("serve", "--config", str(file), folder=tmp_path) as process:
            loop = asyncio.get_running_loop()
            line = await loop.run_in_executor(None, process.line, "export OPENAI_BASE_URL=")
            port = int(line.rpartition(":")[2].partition("/")[0])
            slowest = 0.0
            for _ in range(400):  # lines of more than the pipe holds; nobody reads it
                began = loop.time()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(closing(ask(CHAT, stream=False)))
                reply = read(await reader.read())
                writer.close()
                assert reply.status == 200
                slowest = max(slowest, loop.time() - began)
            assert slowest <= 0.25
            assert await loop.run_in_executor(None, process.end) == 0
