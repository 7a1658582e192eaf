"""`sidecar serve` that is replaced, loses a worker, or ends, under streams: who is promised a byte gets it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.commands.process import Process, started
from tests.config.files import written
from tests.e2e.doors import CALLER_KEY
from tests.e2e.storm import Load, events, request, source, unchunked, under

ENV = {"KEY": CALLER_KEY}


def file(port: int, *, lame_duck: float = 0.0) -> str:
    return (
        f'[server]\nlisten = "127.0.0.1:0"\nlame_duck_seconds = {lame_duck}\n'
        f'[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        '[models]\nfast.targets = "lab/m"\n[callers.web]\nkey = "env:KEY"\n[log]\nlevel = "off"\n'
    )


def up(process: Process) -> int:
    """The port it listens on, once it is ready."""
    return int(process.line("sidecar listens on ").split()[3].rstrip(",").rpartition(":")[2])


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_one_process_hands_its_socket_to_the_next(tmp_path: Path, workers: str) -> None:
    """Each is ended once the next is ready, without a lame-duck time: nobody may notice."""
    async with source() as (provider, sent):
        written(tmp_path / "sidecar.toml", file(provider))
        with socket.socket() as listening, contextlib.ExitStack() as processes:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            address = listening.getsockname()[1]

            async def another() -> Process:
                words = ("serve", "--workers", workers, "--listen", f"fd:{listening.fileno()}")
                process = processes.enter_context(
                    started(*words, folder=tmp_path, env=ENV, covered=False, fds=(listening.fileno(),))
                )
                assert await asyncio.to_thread(up, process) == address
                return process

            load = Load(sent=sent, port=lambda: address)
            last = await another()

            async def replace() -> None:
                nonlocal last
                for _ in range(2):
                    after = await another()
                    assert await asyncio.to_thread(last.end) == 0
                    last = after
                    before = load.whole
                    while load.whole < before + 24:
                        await asyncio.sleep(0.002)

            await under(load, replace)
            assert (load.shut, load.refused, load.unheard) == (0, 0, 0)
            assert await asyncio.to_thread(last.end) == 0


async def test_a_workers_death_costs_only_its_own_requests(tmp_path: Path) -> None:
    async with source(gap=0.05) as (provider, sent):
        written(tmp_path / "sidecar.toml", file(provider))
        with started("serve", "--workers", "2", folder=tmp_path, env=ENV, covered=False) as process:
            port = await asyncio.to_thread(up, process)
            streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(24)]
            for number, (_, writer) in enumerate(streams):
                writer.write(request(number, keep=False))
            heads = [await reader.readuntil(b"\r\n\r\n") for reader, _ in streams]
            assert all(head.startswith(b"HTTP/1.1 200 ") for head in heads)
            victim, other = _workers(process.child.pid)
            doomed = _clients(victim, port)
            assert doomed | _clients(other, port) == {writer.get_extra_info("sockname")[1] for _, writer in streams}
            os.kill(victim, signal.SIGKILL)
            cut = 0
            for number, (reader, writer) in enumerate(streams):
                data, ended = unchunked(await _rest(reader))
                if writer.get_extra_info("sockname")[1] in doomed:
                    cut += 1
                    assert not ended
                    assert sent[number].startswith(data)
                else:
                    assert (data, ended) == (b"".join(events(number)), True)
                writer.close()
            assert 0 < cut == len(doomed) < 24
            load = Load(sent=sent, port=lambda: port)
            await under(load, lambda: asyncio.sleep(0), clients=4, keep=2)  # by whichever worker
            assert await asyncio.to_thread(process.end) == 0
    assert f"(pid {victim}) ended with -9; another begins in 0.1 s" in "".join(process.told)


async def test_who_takes_a_dead_workers_place_has_the_configuration_of_now(tmp_path: Path) -> None:
    toml = written(tmp_path / "sidecar.toml", file(1))
    with started("serve", "--workers", "2", folder=tmp_path, env=ENV, covered=False) as process:
        port = await asyncio.to_thread(up, process)
        written(toml, file(1).replace("fast", "new"))
        for pid in _workers(process.child.pid):
            os.kill(pid, signal.SIGKILL)
        answer: httpx.Response | None = None
        async with asyncio.timeout(5):
            while answer is None:
                with contextlib.suppress(httpx.TransportError):
                    answer = await _get(port, "/v1/models")
        assert [each["id"] for each in answer.json()["data"]] == ["new", "lab/m"]
        assert await asyncio.to_thread(process.end) == 0


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the end, be it a reset."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(65536):
            got += data
    return got


def _workers(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _clients(pid: int, port: int) -> set[int]:
    """The ports of the clients that a process serves at its own port."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    held = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = f":{port:04X}"
    return {
        int(row[2].partition(":")[2], 16) for row in rows if row[1].endswith(ours) and row[9] in held and row[3] == "01"
    }


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_health_says_what_it_means(tmp_path: Path, workers: str) -> None:
    """Ready from the first answer on; from SIGTERM on not ready, yet alive, started, and serving to the end."""
    async with source(gap=0.15) as (provider, sent):
        written(tmp_path / "sidecar.toml", file(provider, lame_duck=0.8))
        with started("serve", "--workers", workers, folder=tmp_path, env=ENV, covered=False) as process:
            port = await asyncio.to_thread(up, process)
            assert await _health(port) == {"/livez": 200, "/readyz": 200, "/startupz": 200}
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(0, keep=True))
            await reader.readuntil(b"\r\n\r\n")
            process.child.send_signal(signal.SIGTERM)
            async with asyncio.timeout(0.7):
                while (told := await _health(port))["/readyz"] == 200:
                    await asyncio.sleep(0.01)
            assert told == {"/livez": 200, "/readyz": 503, "/startupz": 200}
            assert (await _get(port, "/v1/models")).headers["connection"] == "close"
            data, ended = unchunked(await _rest(reader))
            assert (data, ended) == (sent[0], True)
            writer.close()
            with pytest.raises(httpx.ConnectError):
                await _get(port, "/livez")
            assert await asyncio.to_thread(process.child.wait, 5) == 0


async def test_before_it_is_ready_nobody_is_answered(tmp_path: Path) -> None:
    """Not even at /livez: a socket that is inherited keeps its clients, and the first answer says ready."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        written(tmp_path / "sidecar.toml", file(1))
        asked = asyncio.create_task(_health(listening.getsockname()[1]))
        await asyncio.sleep(0.02)
        assert not asked.done()
        words = ("serve", "--listen", f"fd:{listening.fileno()}")
        with started(*words, folder=tmp_path, env=ENV, covered=False, fds=(listening.fileno(),)) as process:
            assert await asked == {"/livez": 200, "/readyz": 200, "/startupz": 200}
            assert await asyncio.to_thread(process.end) == 0


async def _health(port: int) -> dict[str, int]:
    paths = ("/livez", "/readyz", "/startupz")
    return {path: (await _get(port, path)).status_code for path in paths}


async def _get(port: int, path: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        return await client.get(f"http://127.0.0.1:{port}{path}", headers={"x-api-key": CALLER_KEY})
