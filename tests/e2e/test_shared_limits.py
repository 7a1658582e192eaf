"""Two sidecars and one real Redis: what they let in together, and what when one of the three is killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from sidecar.config import Store, place
from sidecar.simulator import Simulator
from sidecar.store.scripts import CLOCK, keys
from tests.commands.process import Process, started
from tests.config.files import written
from tests.e2e.doors import CALLER_KEY, FEW, caller, config_for, door
from tests.e2e.flood import Flood, answering
from tests.faults.ground import nothing_left
from tests.store.servers import Redis, redis

ENV = {"KEY": CALLER_KEY}
BEARER = {"authorization": f"Bearer {CALLER_KEY}"}
ASKED = {"model": "lab/m", "messages": [{"role": "user", "content": "hello"}]}


def file(provider: int, store: str, limits: str, *, workers: int = 1, of_provider: str = "", wait: float = 3.0) -> str:
    return (
        f'[server]\nlisten = "127.0.0.1:0"\nlame_duck_seconds = 0.0\nworkers = {workers}\n'
        f'[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{provider}/v1"\n'
        f'{of_provider}\n[callers.web]\nkey = "env:KEY"\n{limits}\n[queue]\nwait_seconds = {wait}\n'
        f'[store]\nurl = "{store}"\n[log]\nlevel = "off"\n'
    )


def up(process: Process) -> int:
    """The port it listens on, once it is ready."""
    return int(process.line("sidecar listens on ").split()[3].rstrip(",").rpartition(":")[2])


@asynccontextmanager
async def sidecars(folder: Path, text: str, count: int = 2) -> AsyncIterator[tuple[list[int], list[Process]]]:
    written(folder / "sidecar.toml", text)
    with contextlib.ExitStack() as processes:
        made = [processes.enter_context(started("serve", folder=folder, env=ENV, covered=False)) for _ in range(count)]
        ports = [await asyncio.to_thread(up, process) for process in made]
        for port in ports:
            await connected(port)
        yield ports, made


def status(port: int) -> dict[str, Any]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/status", headers={"x-api-key": CALLER_KEY})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        found: dict[str, Any] = msgspec.json.decode(answer.read())
    return found


async def connected(port: int, *, alive: bool = True) -> dict[str, Any]:
    """What a sidecar says of the store, once it has found it, or lost it."""
    async with asyncio.timeout(15):
        while (store := (await asyncio.to_thread(status, port))["store"])["up"] is not alive:
            await asyncio.sleep(0.02)
    return dict(store)


def live(store: Redis, counters: tuple[str, ...]) -> int:
    """How many slots are taken: those whose lease has not ended."""
    now = store.ask("EVAL", CLOCK + "return now", 0)
    return sum(store.ask("ZCOUNT", keys(counter).leases, now, "+inf") for counter in counters)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """One loop: what is tested runs in other processes."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


@pytest.fixture
def store() -> Any:
    with redis() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_ten_thousand_requests_are_let_in_as_often_as_the_limit_says(store: Redis, tmp_path: Path) -> None:
    limit = 3000
    async with answering() as provider:
        text = file(provider.port, store.url, f"requests_per_minute = {limit}")
        async with sidecars(tmp_path, text) as (ports, _):
            before = 0
            for _ in range(3):
                flood, asked = Flood(), provider.asked
                await flood.run(ports, 8, most=10_000)
                local = sum([(await connected(port))["local_decisions"] for port in ports])
                if local == before:
                    break
                before = local  # Redis was too slow, for this machine has others to serve: what then is, others test
                await asyncio.to_thread(store.ask, "FLUSHALL")
            else:
                raise AssertionError("the store could not be asked")
            seconds = flood.last - flood.first
            assert sum(flood.statuses.values()) == 10_000
            assert set(flood.statuses) == {200, 429}
            expected = limit + limit * seconds / 60  # a period's allowance at once, then evenly
            assert flood.statuses[200] == provider.asked - asked
            assert flood.statuses[200] == pytest.approx(expected, rel=0.01)
            assert [(await connected(port))["sidecars"] for port in ports] == [2, 2]


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_tokens_are_let_in_to_within_one_estimate(store: Redis, tmp_path: Path) -> None:
    limit, most = 60_000, 400
    async with answering(share=0.25) as provider:
        text = file(provider.port, store.url, f"tokens_per_minute = {limit}")
        async with sidecars(tmp_path, text) as (ports, _):
            flood = Flood()
            await flood.run(ports, 4, most=1500, max_tokens=most)
            first, calm = flood.first, Flood()
            while not calm.statuses[429]:  # one after another, so that nothing is reserved when one is refused
                await calm.run(ports[:1], 1, most=1, max_tokens=most)
            seconds = calm.last - first
            expected = limit * (1 + seconds / 60)
            estimate = most + 100  # which is more than its bytes come to
            assert flood.statuses[429] > 100
            assert set(flood.statuses) == {200, 429}
            assert expected - estimate <= provider.tokens <= expected + estimate


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_slots_are_never_more_than_there_are(store: Redis, tmp_path: Path) -> None:
    async with answering(0.01) as provider:
        text = file(provider.port, store.url, "", of_provider="[providers.lab.limits]\nconcurrency = 6", wait=10.0)
        async with sidecars(tmp_path, text) as (ports, _):
            flood = Flood()
            await flood.run(ports, 6, most=600)
            assert flood.statuses == {200: 600}
            assert provider.most <= 6
            assert provider.most >= 5


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_redis_killed_started_emptied_and_stopped_is_an_error_to_nobody(store: Redis, tmp_path: Path) -> None:
    limits = "requests_per_minute = 10_000_000\ntokens_per_minute = 1_000_000_000\nconcurrency = 64"
    async with answering(0.002) as provider:
        text = file(provider.port, store.url, limits, of_provider="[providers.lab.limits]\nconcurrency = 64")
        async with sidecars(tmp_path, text) as (ports, _):
            flood, loop = Flood(), asyncio.get_running_loop()
            load = asyncio.create_task(flood.run(ports, 6))
            await asyncio.sleep(1.0)
            calm = flood.slowest(loop.time() - 1.0, loop.time())
            troubles: dict[str, float] = {}
            for what in ("kill", "start", "flush", "pause", "go_on"):
                began = loop.time()
                if what == "flush":
                    await asyncio.to_thread(store.ask, "FLUSHALL")
                else:
                    await asyncio.to_thread(getattr(store, what))
                if what in ("kill", "pause"):
                    for port in ports:
                        await connected(port, alive=False)
                else:
                    for port in ports:
                        await connected(port)
                await asyncio.sleep(0.4)
                troubles[what] = flood.slowest(began, loop.time())
            flood.stop = True
            await load
            assert set(flood.statuses) == {200}
            assert sum(flood.statuses.values()) > 500
            # Beside what the same load waits for anyway, on a machine that has others to serve.
            assert max(troubles.values()) <= 0.05 + 2 * calm + 0.1, (troubles, calm)
            for port in ports:
                found = await connected(port)
                assert found["local_decisions"] > 0
                assert found["calls"]["lost"] > 0
            async with asyncio.timeout(15):
                while await asyncio.to_thread(live, store, ("caller:web", "provider:lab")):
                    await asyncio.sleep(0.05)
            for port in ports:
                assert {each["running"] for each in (await asyncio.to_thread(status, port))["limits"]} == {0}


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_a_sidecar_that_is_killed_gives_its_slots_back(store: Redis, tmp_path: Path) -> None:
    async with answering(60.0) as provider:
        text = file(provider.port, store.url, "concurrency = 4", wait=20.0)
        async with sidecars(tmp_path, text) as (ports, processes):
            dying, waiting = Flood(), Flood()
            held = asyncio.create_task(dying.run(ports[:1], 4, most=4))
            async with asyncio.timeout(10):
                while provider.running < 4:
                    await asyncio.sleep(0.01)
            provider.seconds = 0.0
            began = asyncio.get_running_loop().time()
            asking = asyncio.create_task(waiting.run(ports[1:], 1, most=1))
            await asyncio.sleep(1.5)
            assert not asking.done()  # they are renewed while it lives
            processes[0].child.send_signal(signal.SIGKILL)
            await asking
            assert waiting.statuses == {200: 1}
            assert 3.0 < asyncio.get_running_loop().time() - began < 12.0
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await held


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_workers_of_one_sidecar_count_together(store: Redis, tmp_path: Path) -> None:
    async with answering() as provider:
        text = file(provider.port, store.url, "requests_per_minute = 100", workers=2)
        async with sidecars(tmp_path, text, 1) as (ports, processes):
            async with asyncio.timeout(10):
                while (await connected(ports[0]))["sidecars"] < 2:
                    await asyncio.sleep(0.02)
            flood = Flood()
            await flood.run(ports, 8, most=400)
            assert 100 <= flood.statuses[200] <= 100 + 2 + (flood.last - flood.first) * 100 / 60
            assert await asyncio.to_thread(processes[0].end) == 0
            assert not any("warning" in line for line in processes[0].told)


async def test_a_store_that_is_not_there_stops_nobody(tmp_path: Path) -> None:
    async with answering() as provider:
        text = file(provider.port, "redis://127.0.0.1:9", "requests_per_minute = 50")
        written(tmp_path / "sidecar.toml", text)
        with started("serve", folder=tmp_path, env=ENV, covered=False) as process:
            port = await asyncio.to_thread(up, process)
            flood = Flood()
            await flood.run([port], 2, most=60)
            assert flood.statuses[200] in (50, 51, 52)
            assert flood.slowest(0.0, 1e18) < 1.0

            def ready() -> int:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                    return int(answer.status)

            assert await asyncio.to_thread(ready) == 200
            assert (await connected(port, alive=False))["local_decisions"] == 60


async def test_every_form_counts_with_all_the_others(store: Redis) -> None:
    """A server, a middleware in somebody else's, and a transport, asked and closed: nothing is left of them."""
    async with nothing_left(), Simulator() as simulator, contextlib.AsyncExitStack() as stack:
        config = msgspec.structs.replace(
            config_for(simulator),
            callers={"web": caller(requests_per_minute=6, tokens_per_minute=1_000_000, concurrency=5)},
            store=Store(url=place(store.url)),
        )
        doors = [await stack.enter_async_context(door(name, config)) for name in FEW]
        statuses: list[int] = []
        for way in doors:
            async with way.async_() as client:
                for _ in range(4):
                    reply = await client.post(f"{way.url}/v1/chat/completions", json=ASKED, headers=BEARER)
                    statuses.append(reply.status_code)
        client = doors[-1].sync()
        url = f"{doors[-1].url}/v1/chat/completions"
        reply = await asyncio.to_thread(client.post, url, json=ASKED, headers=BEARER)
        statuses.append(reply.status_code)
        assert statuses == [200] * 6 + [429] * 7
        assert store.ask("ZCARD", keys("caller:web").leases) == 0
