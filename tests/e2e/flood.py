"""Many requests at several sidecars at once, to be counted: a provider that answers at once, clients that only count.

All of it is bytes on connections that stay open: the test's process must not be what is waited for.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

from tests.e2e.doors import CALLER_KEY

_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_USED: Final = re.compile(rb'"max_tokens":(\d+)')


def answer(output: int) -> bytes:
    body = (
        b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
        b'"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":%d,'
        b'"total_tokens":%d}}' % (output, 10 + output)
    )
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Provider:
    """`seconds` each takes; `share` of `max_tokens` is written. Counts what it is asked, and how many at once."""

    def __init__(self, seconds: float = 0.0, share: float = 1.0) -> None:
        self.seconds = seconds
        self.share = share
        self.port = 0
        self.asked = 0
        self.tokens = 0
        self.running = 0
        self.most = 0

    def begin(self, data: bytes) -> bytes:
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        found = _USED.search(data)
        output = int(int(found[1]) * self.share) if found else 5
        self.tokens += 10 + output
        return answer(output)


class _Answering(asyncio.Protocol):
    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        whole = _whole(self._data)
        if whole is not None:
            reply = self._provider.begin(self._data)
            self._data = self._data[whole:]
            if self._provider.seconds:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._provider.seconds, self._end, reply)
            else:
                self._end(reply)

    def _end(self, reply: bytes) -> None:
        self._timer = None
        self._provider.running -= 1
        self._transport.write(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._provider.running -= 1


@asynccontextmanager
async def answering(seconds: float = 0.0, share: float = 1.0) -> AsyncIterator[Provider]:
    made = Provider(seconds, share)
    server = await asyncio.get_running_loop().create_server(lambda: _Answering(made), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def _whole(data: bytes) -> int | None:
    """The length of the message that data begins with, if all of it is here."""
    head, blank, body = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    if not blank or length is None or len(body) < int(length[1]):
        return None
    return len(head) + 4 + int(length[1])


def request(max_tokens: int = 5) -> bytes:
    body = b'{"model":"lab/m","max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}' % max_tokens
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (CALLER_KEY.encode(), len(body), body)
    )


class Flood:
    """How requests fared: `statuses`, and for each answer when it came and how long it took, in seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.took: list[tuple[float, float]] = []
        self.first = 0.0
        self.last = 0.0  # when the last was refused or let in
        self.left = 0
        self.stop = False

    async def run(self, ports: list[int], connections: int, *, most: int = 1 << 60, max_tokens: int = 5) -> None:
        """From so many connections to each port, one after another, until `most` or `stop`."""
        self.left = most
        loop = asyncio.get_running_loop()
        self.first = loop.time()
        wanted = request(max_tokens)
        await asyncio.gather(*(self._one(port, wanted) for port in ports for _ in range(connections)))

    async def _one(self, port: int, wanted: bytes) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while self.left > 0 and not self.stop:
                self.left -= 1
                began = loop.time()
                writer.write(wanted)
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                assert length is not None, head
                await reader.readexactly(int(length[1]))
                self.last = loop.time()
                self.took.append((began, self.last - began))
                self.statuses[int(head[9:12])] += 1
        finally:
            writer.close()

    def slowest(self, since: float, until: float) -> float:
        return max((took for began, took in self.took if since <= began < until), default=0.0)
