"""A provider that knows what it has sent to whom, and clients that hold every byte they are given against that.

The clients go on, one stream after another, while a test does to the sidecar what it is about. Nothing may be lost: a
stream ends whole, byte for byte; only where `ends` allows it, by the API's error event behind what had come so far.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

import msgspec

from sidecar.clock import now
from sidecar.config import Caller, Config, Key, Limits, Model, Provider, Server as Settings
from sidecar.secret import Secret
from tests.e2e.doors import CALLER_KEY, LAB_KEY, caller

SECONDS: Final = 15.0  # the most that one stream may take
EVENTS: Final = 8  # of one answer
_NUMBER: Final = re.compile(rb"\r\nx-storm: (\d+)\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_CHUNK: Final = re.compile(rb"([0-9a-f]+)\r\n")
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_ERROR: Final = b'data: {"error":{'
_SHUT: Final = re.compile(
    rb'data: \{"error":\{"message":"the sidecar is shutting down; ask again".*\}\}\n\n', re.DOTALL
)


class Source(asyncio.Protocol):
    """One connection to the provider: each request gets a stream of its own, whose bytes are kept under its number."""

    def __init__(self, sent: dict[int, bytes], gap: float) -> None:
        self._sent = sent
        self._gap = gap
        self._data = b""
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if blank and length is not None and len(body) >= int(length[1]):
            self._data = body[int(length[1]) :]
            number = _NUMBER.search(head + b"\r\n")
            assert number is not None, head
            self._sent[int(number[1])] = b""
            self._play(int(number[1]), events(int(number[1])), 0)

    def _play(self, number: int, pieces: list[bytes], at: int) -> None:
        """A piece of the stream, the next one a gap later. Cuts fall anywhere, inside of events too."""
        data = pieces[at]
        self._sent[number] += data
        last = at + 1 == len(pieces)
        out = (_HEAD if at == 0 else b"") + b"%x\r\n%b\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b"")
        self._transport.write(out)
        self._timer = None if last else self._loop.call_later(self._gap, self._play, number, pieces, at + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


def events(number: int) -> list[bytes]:
    """The stream of a request: its events, cut where chance has it (the same for the same number)."""
    chance = random.Random(number)
    whole = b"".join(
        b'data: {"id":"s-%d","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
        b'{"content":"%d %b \xc3\xa9"},"finish_reason":null}]}\n\n' % (number, at, b"x" * chance.randrange(200))
        for at in range(EVENTS)
    )
    whole += b'data: {"id":"s-%d","object":"chat.completion.chunk","created":1,"model":"m","choices":' % number
    whole += b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    cuts = sorted({0, len(whole), *(chance.randrange(1, len(whole)) for _ in range(EVENTS - 1))})
    return [whole[a:b] for a, b in itertools.pairwise(cuts)]


@asynccontextmanager
async def source(gap: float = 0.002) -> AsyncIterator[tuple[int, dict[int, bytes]]]:
    """The provider's port, and what it has sent, by the number of the request."""
    sent: dict[int, bytes] = {}
    server = await asyncio.get_running_loop().create_server(lambda: Source(sent, gap), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], sent
    finally:
        server.close()


def config(port: int, *, name: str = "lab", concurrency: int = 1000, others: int = 0, wait: float = 5.0) -> Config:
    """A sidecar before it. What differs between two of them is what a reload may change."""
    server = Settings(listen=("127.0.0.1:0",), drain_seconds=wait, lame_duck_seconds=0.0)
    lab = Provider(
        kind="openai-compatible",
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=Key(source="inline", secret=Secret(LAB_KEY)),
        limits=Limits(concurrency=concurrency),
    )
    more: dict[str, Caller] = {f"other-{each}": caller(f"other-key-{each}") for each in range(others)}
    models = {"fast": Model(targets=(f"{name}/m",))}
    return Config(server=server, providers={name: lab}, models=models, callers={"web": caller(), **more})


class Load(msgspec.Struct, kw_only=True):
    """What the clients have come to so far. `lost`: what should not have happened, in words."""

    sent: dict[int, bytes]
    port: Callable[[], int]
    whole: int = 0
    shut: int = 0  # ended by the error event of a sidecar that stops
    refused: int = 0  # told in an answer of its own to ask again
    unheard: int = 0  # nobody listened, or a kept connection was closed before it asked: not a byte was promised
    stale: int = 0
    lost: list[str] = []
    stopped: bool = False
    numbers: itertools.count[int] = msgspec.field(default_factory=itertools.count)

    async def client(self, *, keep: bool, again: bool) -> None:
        """One stream after another, on a kept connection or one each. `again`: even while nobody listens."""
        way: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stopped:
            reused = way is not None
            try:
                way = way or await asyncio.open_connection("127.0.0.1", self.port())
            except OSError as error:
                self.unheard += 1
                if not again:
                    self.lost.append(f"connect: {error!r}")
                await asyncio.sleep(0.002)
                continue
            number = next(self.numbers)
            got = b""
            try:
                way[1].write(request(number, keep=keep))
                async with asyncio.timeout(SECONDS):
                    while not over(got):
                        data = await way[0].read(65536)
                        if not data:
                            break
                        got += data
            except OSError as error:
                if got or not reused:
                    self.lost.append(f"{number}: {error!r} after {len(got)} bytes")
            kept = self._judge(number, got, reused=reused, again=again) and keep
            if not kept:
                way[1].close()
                way = None
        if way is not None:
            way[1].close()

    def _judge(self, number: int, got: bytes, *, reused: bool, again: bool) -> bool:
        """Hold an answer against what was sent. True when its connection may be used again."""
        if not got:
            self.stale += reused
            self.unheard += not reused
            if not reused and not again:
                self.lost.append(f"{number}: closed without an answer")
            return False
        head, _, body = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            self.refused += 1
            if not head.startswith(b"HTTP/1.1 503 ") or not again:
                self.lost.append(f"{number}: {got[:300]!r}")
            return False
        data, ended = unchunked(body)
        sent = self.sent[number]
        if ended and data == sent and data.endswith(b"data: [DONE]\n\n"):
            self.whole += 1
            return b"\r\nconnection: close" not in head
        at = data.find(_ERROR)
        if again and ended and at >= 0 and _whole_events(sent, data[:at]) and _SHUT.fullmatch(data, at):
            self.shut += 1
        else:
            self.lost.append(f"{number}: {len(data)} bytes of {len(sent)}, ended: {ended}: ...{data[-200:]!r}")
        return False


def _whole_events(sent: bytes, got: bytes) -> bool:
    """What came before an error: what was sent, up to the end of an event."""
    return sent.startswith((got, got.removesuffix(b"\n\n")))


def request(number: int, *, keep: bool) -> bytes:
    """A request for a stream, whose number the provider keeps its bytes under."""
    body = b'{"model":"fast","stream":true,"stream_options":{"include_usage":true},"messages":[]}'
    close = b"" if keep else b"connection: close\r\n"
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\nx-storm: %d\r\n%bcontent-length: %d\r\n\r\n%b"
        % (CALLER_KEY.encode(), number, close, len(body), body)
    )


def over(got: bytes) -> bool:
    """An answer has come to the end that its framing says."""
    head, blank, body = got.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    if blank and length is not None:
        return len(body) >= int(length[1])
    return got.endswith(b"\r\n0\r\n\r\n")


def unchunked(body: bytes) -> tuple[bytes, bool]:
    """What came in chunks, and whether it ended with the last one, and nothing behind it."""
    pieces, at = list[bytes](), 0
    while (match := _CHUNK.match(body, at)) is not None:
        size = int(match[1], 16)
        if not size:
            return b"".join(pieces), body[at:] == b"0\r\n\r\n"
        pieces.append(body[match.end() : match.end() + size])
        at = match.end() + size + 2
    return b"".join(pieces), False


async def under(
    load: Load, work: Callable[[], Awaitable[None]], *, clients: int = 12, keep: int = 6, again: bool = False
) -> None:
    """Do the work while clients stream, `keep` of them on kept connections; then let them come to their ends."""
    async with asyncio.TaskGroup() as group:
        for each in range(clients):
            group.create_task(load.client(keep=each < keep, again=again))
        try:
            began = now()
            while load.whole < clients:  # all are under way
                assert now() - began < SECONDS, load
                await asyncio.sleep(0.002)
            await work()
        finally:
            load.stopped = True
    assert not load.lost, (len(load.lost), load.lost[:5])
