"""20 000 requests of all kinds, 2 000 of them given up by their clients: nothing is left of any (D32)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import socket
import struct
from pathlib import Path
from typing import Final, cast

import pytest
import uvloop

from sidecar.config import Log, Pool
from tests.faults.stand import Stand, ask, comes_true, post, standing
from tests.faults.test_slow_reader import resident
from tests.faults.transcripts import LAST, WAYS, chunk, head, reply as answer

REQUESTS: Final = 20_000
GIVEN_UP: Final = 0.1
AT_ONCE: Final = 24
MIB: Final = 1024 * 1024
_LENGTH: Final = re.compile(rb"(?i)content-length: *(\d+)")
_MODEL: Final = re.compile(rb'"model":"(\w+)"')


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """The loop that is served on: one run is long enough."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


def _replies() -> dict[tuple[bytes, bool, bytes], bytes]:
    """What the provider says, by path, stream and the model asked for. b"" at the end of one: it cuts there."""
    found = {}
    for way in (WAYS["chat"], WAYS["messages"]):
        path = way.theirs.path.encode().removeprefix(b"/v1")
        for stream in (True, False):
            found[path, stream, b"ok"] = way.stream() if stream else way.whole()
            found[path, stream, b"error"] = answer(b'{"error":{"message":"no","type":"x"}}', status=b"500 Oh")
            found[path, stream, b"cut"] = way.stream(3) if stream else way.whole()[:-9]
            found[path, stream, b"garbage"] = b"220 ready\r\n"
            found[path, stream, b"long"] = head() + chunk(way.theirs.events[1]) * 200 if stream else way.whole()
            found[path, stream, b"silent"] = b""
    return found


class Provider(asyncio.Protocol):
    """Answers as it is asked to. Written for speed: the soak is of the sidecar, not of its peers."""

    replies: Final = _replies()

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_, blank, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head_)
        if not blank or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        model = _MODEL.search(body)
        assert model is not None
        path = head_.split(b" ", 2)[1].removeprefix(b"/v1")
        reply = self.replies[path, b'"stream":true' in body, model[1]]
        self._transport.write(reply)
        if model[1] in (b"cut", b"garbage"):
            self._transport.close()


class Client(asyncio.Protocol):
    """A caller that keeps its connection."""

    def __init__(self) -> None:
        self.received = b""
        self._done: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self._done is not None and not self._done.done() and self._whole():
            self._done.set_result(None)

    def _whole(self) -> bool:
        head_, blank, body = self.received.partition(b"\r\n\r\n")
        if length := _LENGTH.search(head_):
            return len(body) == int(length[1])
        return bool(blank) and self.received.endswith(LAST)

    async def ask(self, request: bytes) -> int:
        self.received = b""
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done
        return int(self.received[9:12])

    async def give_up(self, request: bytes, seconds: float, *, reset: bool) -> None:
        self.transport.write(request)
        await asyncio.sleep(seconds)
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def _kinds() -> list[tuple[bytes, int]]:
    """Requests, and the status that each is answered with."""
    found = []
    for way in WAYS.values():
        provider = way.model.partition("/")[0]
        for stream in (True, False):
            found += [
                (ask(way, stream=stream, model=f"{provider}/{model}"), status)
                for model, status in (
                    *[("ok", 200)] * 6,
                    ("error", 500),
                    ("cut", 200 if stream else 502),
                    ("garbage", 502),
                )
            ]
        found += [(ask(way, model="nobody/m"), 404), (post(way.path, b'{"model":'), 400), (post(way.path, b"[]"), 400)]
    return found


def _abandoned() -> list[bytes]:
    models = ("silent", "long", "ok")
    return [
        *(ask(way, model=f"{way.model.partition('/')[0]}/{model}") for way in WAYS.values() for model in models),
        post("/v1/messages", b'{"model":', length=1000),
        b"POST /v1/chat/completions HTTP/1.1\r\nhost:",
    ]


async def _caller(stand: Stand, requests: list[int], chance: random.Random, wrong: list[str]) -> None:
    """Takes from the common pile until it is empty."""
    loop = asyncio.get_running_loop()
    kinds, abandoned = _kinds(), _abandoned()
    _, client = await loop.create_connection(Client, "127.0.0.1", stand.port)
    while requests:
        requests.pop()
        if chance.random() < GIVEN_UP:
            _, leaves = await loop.create_connection(Client, "127.0.0.1", stand.port)
            await leaves.give_up(chance.choice(abandoned), chance.random() * 0.01, reset=chance.random() < 0.5)
            continue
        request, status = chance.choice(kinds)
        if client.transport.is_closing():
            _, client = await loop.create_connection(Client, "127.0.0.1", stand.port)
        if (got := await client.ask(request)) != status:
            wrong.append(f"{got} for {request!r}, which should be {status}")
    client.transport.close()


async def _drive(stand: Stand, count: int, chance: random.Random) -> None:
    wrong: list[str] = []
    requests = list(range(count))
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(_caller(stand, requests, chance, wrong))
    assert wrong == []
    await comes_true(stand.idle, "idle", 2.0)


def _settled() -> int:
    gc.collect()
    return resident()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_nothing_is_left_of_any(tmp_path: Path) -> None:
    chance = random.Random(7)
    loop = asyncio.get_running_loop()
    provider = await loop.create_server(Provider, "127.0.0.1", 0)
    port = provider.sockets[0].getsockname()[1]
    options = {"base_url": f"http://127.0.0.1:{port}", "pool": Pool(keepalive_seconds=0.5)}
    log = tmp_path / "log"
    async with standing([], options=options, log=Log(file=str(log)), timeouts={"first_byte_seconds": 10}) as stand:
        stand.app.open_log()
        descriptors, tasks = _descriptors(), len(asyncio.all_tasks())
        sizes = []
        for _ in range(2):
            await _drive(stand, REQUESTS // 4, chance)
        sizes.append(_settled())
        for _ in range(2):
            await _drive(stand, REQUESTS // 4, chance)
        sizes.append(_settled())
        assert sizes[1] - sizes[0] < 2 * MIB, sizes
        await comes_true(lambda: _descriptors() <= descriptors and len(asyncio.all_tasks()) <= tasks, "settled", 5.0)
        assert repr(stand.app.pool).count("0 idle, 0 dialing, 0 busy, 0 waiting") == 2
    provider.close()
    await provider.wait_closed()
    lines = log.read_bytes()
    assert b'"event":"bug"' not in lines
    assert lines.count(b"\n") >= REQUESTS * 0.9
