"""Watching files: whatever changes them is seen, what is half written is waited for, and the loop never reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sidecar.commands import watch as module
from sidecar.commands.watch import Files, Watch
from sidecar.config import stamp

pytestmark = pytest.mark.anyio


class Reader:
    """Reads a file when asked to; the loop hears what it read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.threads: set[int] = set()

    def files(self) -> Files:
        return {str(self.file): stamp(str(self.file))}

    def read(self) -> tuple[Callable[[], None], Files]:
        self.threads.add(threading.get_ident())
        files = self.files()
        text = self.file.read_text() if self.file.exists() else "absent"
        return lambda: self.heard.put_nowait(text), files

    async def next(self) -> str:
        async with asyncio.timeout(5):
            return await self.heard.get()

    async def until(self, text: str) -> None:
        """It may be read in between, where writing takes its time."""
        for _ in range(20):
            if await self.next() == text:
                return
        raise AssertionError(f"{text!r} was not read")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.01)
    (tmp_path / "file").write_text("one")
    return Reader(tmp_path / "file")


@pytest.fixture
async def watch(reader: Reader) -> AsyncIterator[Watch]:
    watch = Watch(reader.read, await asyncio.to_thread(reader.files))
    watch.start(asyncio.get_running_loop())
    yield watch
    watch.stop()
    assert watch._thread is not None
    watch._thread.join(5)
    assert not watch._thread.is_alive()


async def test_each_way_of_changing_a_file_is_seen(reader: Reader, watch: Watch, tmp_path: Path) -> None:
    reader.file.write_text("two")
    await reader.until("two")
    (tmp_path / "new").write_text("six")  # as long, and moved over it, as careful editors do
    (tmp_path / "new").rename(reader.file)
    await reader.until("six")
    reader.file.chmod(0o600)
    await reader.until("six")
    reader.file.unlink()
    await reader.until("absent")
    (tmp_path / "real").write_text("linked")
    reader.file.symlink_to("real")
    await reader.until("linked")


async def test_the_swap_of_a_link_above_it_is_seen(reader: Reader, tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}/file").write_text(version)
    (tmp_path / "..data").symlink_to("..1")
    reader.file.unlink()
    reader.file.symlink_to("..data/file")
    watch = Watch(reader.read, await asyncio.to_thread(reader.files))
    watch.start(asyncio.get_running_loop())
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert await reader.next() == "2"
    watch.stop()


async def test_it_is_read_again_at_once_when_asked(reader: Reader, watch: Watch) -> None:
    watch.now()
    assert await reader.next() == "one"


async def test_reading_is_not_done_by_the_loop(reader: Reader, watch: Watch) -> None:
    watch.now()
    await reader.next()
    assert threading.get_ident() not in reader.threads


async def test_a_change_that_goes_on_is_waited_for(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(1, 1, 1, 1), (1, 1, 2, 2), (1, 1, 3, 3)]  # it grows, then stays
    looked = 0

    def growing(_: str) -> tuple[int, int, int, int]:
        nonlocal looked
        looked += 1
        return seen[min(looked, len(seen)) - 1]

    def read() -> tuple[Callable[[], None], Files]:
        at = looked
        return lambda: reader.heard.put_nowait(str(at)), {"file": seen[-1]}

    monkeypatch.setattr(module, "stamp", growing)
    watch = Watch(read, {"file": None})
    watch.start(asyncio.get_running_loop())
    assert await reader.next() == "4"
    watch.stop()


async def test_nothing_is_read_while_nothing_changes(reader: Reader, watch: Watch) -> None:
    await asyncio.sleep(0.1)
    assert reader.heard.empty()


async def test_when_the_loop_has_ended_meanwhile_nothing_breaks(reader: Reader) -> None:
    watch = Watch(reader.read, await asyncio.to_thread(reader.files))
    ended = asyncio.new_event_loop()
    ended.close()
    watch.start(ended)
    watch.now()
    watch.stop()
    assert watch._thread is not None
    watch._thread.join(5)
    assert not watch._thread.is_alive()


def test_what_has_changed_before_it_starts_is_caught_up_with(reader: Reader) -> None:
    told: list[str] = []

    def read() -> tuple[Callable[[], None], Files]:
        text = reader.file.read_text()
        return lambda: told.append(text), reader.files()

    watch = Watch(read, reader.files())
    watch.catch_up()
    reader.file.write_text("and more")
    watch.catch_up()
    watch.catch_up()
    assert told == ["and more"]
