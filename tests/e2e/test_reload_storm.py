"""Thousands of reloads while clients stream: no stream is cut, no byte lost, nothing of old configurations is kept.

In the ordinary run there are few of each; `pytest -m storm` does the 10 000.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sidecar.app import Sidecar
from sidecar.config import Config
from sidecar.exchange import Spine
from sidecar.server import Server
from tests.commands.process import Process, started
from tests.config.files import written
from tests.e2e.doors import CALLER_KEY
from tests.e2e.storm import Load, config, source, under
from tests.faults.ground import nothing_left

FEW, MANY = 300, 10_000
SIGNALS_FEW, SIGNALS_MANY = 15, 1_000


def changes(one: int, two: int) -> Iterator[Config]:
    """Configurations that differ in whatever a reload may change: providers and where they are, limits, callers."""
    while True:
        yield config(one, concurrency=500)
        yield config(two, name="other", others=3)
        yield config(two, others=1)
        yield config(one, name="other", concurrency=100)


async def _reload(count: int) -> None:
    async with nothing_left(), source() as (one, sent), source() as (two, more):
        app = Sidecar(config(one))
        async with Server(app, app.config.server, log=app.note) as server:
            port = int(server.addresses[0].rpartition(":")[2])
            both = _Both(sent, more)
            load = Load(sent=both, port=lambda: port)
            sequence = changes(one, two)

            async def storm() -> None:
                for _ in range(count):
                    app.reload(next(sequence))
                    await asyncio.sleep(0.001)

            await under(load, storm)
            assert load.whole > 24
            assert (load.shut, load.refused, load.unheard, load.stale) == (0, 0, 0, 0)
            assert sent, "the first provider was asked"
            assert more, "and so was the second"
            print(f"{count} reloads, {load.whole} streams whole")
        gc.collect()
        assert [id(each) for each in gc.get_objects() if type(each) is Spine] == [id(app._spine)]
        assert repr(app._limits) == "<Limits 0 running, 0 waiting>"


class _Both(dict[int, bytes]):
    """What either of two providers has sent."""

    def __init__(self, *sent: dict[int, bytes]) -> None:
        self._sent = sent

    def __missing__(self, number: int) -> bytes:
        return next(each[number] for each in self._sent if number in each)


async def test_reloads_under_streams_lose_no_byte() -> None:
    await _reload(FEW)


@pytest.mark.storm
@pytest.mark.timeout(600)
async def test_ten_thousand_reloads_under_streams_lose_no_byte() -> None:
    await _reload(MANY)


# -- the process, by signals


def _file(port: int, number: int) -> str:
    """A configuration as a file. Each fifth is no good, and changes nothing."""
    return (
        '[server]\nlisten = "127.0.0.1:0"\nlame_duck_seconds = 0\n'
        f'[providers.lab]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        f'[models]\nfast.targets = "lab/m"\nv{number}.targets = "lab/m"\n'
        f'[callers.web]\nkey = "env:KEY"\n{"nonsense" if number % 5 == 4 else ""}\n'
    )


async def _signal(folder: Path, count: int) -> None:
    async with source() as (port, sent):
        file = written(folder / "sidecar.toml", _file(port, 0))
        with started(folder=folder, env={"KEY": CALLER_KEY}, covered=False) as process:
            address = await asyncio.to_thread(_up, process)
            load = Load(sent=sent, port=lambda: address)

            async def storm() -> None:
                for number in range(1, count + 1):
                    written(folder / "next", _file(port, number)).replace(file)
                    process.child.send_signal(signal.SIGHUP)
                    told = await asyncio.to_thread(_reloaded, process)
                    assert told["ok"] is (number % 5 != 4), told

            await under(load, storm)
            assert (load.shut, load.refused, load.unheard, load.stale) == (0, 0, 0, 0)
            print(f"{count} reloads by signal, {load.whole} streams whole")
            assert await asyncio.to_thread(process.end) == 0


def _up(process: Process) -> int:
    address = process.line("sidecar listens on ").split()[3].rstrip(",")
    return int(address.rpartition(":")[2])


def _reloaded(process: Process) -> dict[str, object]:
    """What the log says of the next reload, with whatever exchanges between."""
    assert process.child.stderr is not None
    for line in process.child.stderr:
        if '"event":"reload"' in line:
            found: dict[str, object] = msgspec.json.decode(line)
            return found
    raise AssertionError("it has ended")


async def test_signals_to_a_process_under_streams_lose_no_byte(tmp_path: Path) -> None:
    await _signal(tmp_path, SIGNALS_FEW)


@pytest.mark.storm
@pytest.mark.timeout(600)
async def test_a_thousand_signals_to_a_process_under_streams_lose_no_byte(tmp_path: Path) -> None:
    await _signal(tmp_path, SIGNALS_MANY)
