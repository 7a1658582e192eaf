"""10 000 streams open at once on one worker: each is silent, then gets one event, then ends; counted exactly.

Every stream has its own number, which its client sends and its provider says in every event: what comes to the wrong
client, comes twice or does not come is seen. The provider is a process of its own, for its descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import msgspec
import uvloop

from benchmarks import harness
from benchmarks.bench_stream import REQUEST, body

STREAMS: Final = 10_000
MEMORY_BAR: Final = 25.0  # KB a stream
AT_ONCE: Final = 100  # that begin together
SILENT_SECONDS: Final = 5.0
SECONDS: Final = 240.0  # the most that any phase may take
SPARE: Final = 64  # descriptors of the sidecar that are no stream's
CONFIG: Final = (
    harness.SIDECAR.replace("[providers.openai]\n", f"max_connections = {STREAMS + 100}\n[providers.openai]\n")
    .replace("[callers.bench]", f"[providers.openai.pool]\nmax_connections = {STREAMS + 100}\n[callers.bench]")
    .replace('models = ["openai/*"]', 'models = ["openai/*", "alike"]')
    + '[models.alike]\ntargets = ["openai/sim-large"]\ncoalesce = true\n'
)
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)\r\n")
NUMBER: Final = re.compile(rb"stream (\d+)")
EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"%b of %d"},"finish_reason":%b}]}\n\n'
)
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE: Final = b"data: [DONE]\n\n"
SAID: Final = {"begin": (b"begin", b"null"), "event": (b"event", b"null"), "end": (b"end", b'"stop"')}


def said(what: str, number: int) -> bytes:
    """What a stream says at its beginning, in its middle and at its end."""
    word, reason = SAID[what]
    return EVENT % (word, number, reason) + (DONE if what == "end" else b"")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Provider(asyncio.Protocol):
    """Begins a stream for each request; its going on is told from outside."""

    def __init__(self, streams: dict[int, Provider]) -> None:
        self._streams = streams
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, sent = self._data.partition(b"\r\n\r\n")
        length, number = LENGTH.search(head + b"\r\n"), NUMBER.search(sent)
        if length is not None and number is not None and len(sent) >= int(length[1]):
            self._data = b""
            self._streams[int(number[1])] = self
            self.transport.write(HEAD + chunk(said("begin", int(number[1]))))


async def provide() -> None:
    """The provider's process: tells its port, and does to every stream what a line says; tells how many those were."""
    streams: dict[int, Provider] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(streams), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    while (line := await loop.run_in_executor(None, sys.stdin.readline)) and (what := line.strip()) in SAID:
        for number, stream in streams.items():
            stream.transport.write(chunk(said(what, number)) + (b"0\r\n\r\n" if what == "end" else b""))
        print(len(streams), flush=True)


class Client(asyncio.Protocol):
    """Asks for one stream, and keeps what comes of it; `has` is called with each piece."""

    def __init__(self, request: bytes, has: Callable[[Client], None]) -> None:
        self._request = request
        self._has = has
        self.got = b""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.got += data
        self._has(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def request(number: int, *, alike: bool) -> bytes:
    """Of 2 KB, with the stream's number in it; those that are alike have one number, and one model that joins them."""
    data = harness.body(stream=True).replace(b"x" * 20, b"%-20b" % (b"stream %d" % number), 1)
    if alike:
        data = data.replace(harness.MODEL.encode(), b"alike")
    return REQUEST.format(key=harness.KEY, length=len(data)).encode() + data


def numbers(streams: int, descriptors: int) -> list[int]:
    """The number of each stream. Where one has too few descriptors for all, some are alike (0): those share one."""
    alike = max(2 * streams + SPARE - descriptors, 0)
    return [0] * (alike + 1 if alike else 0) + list(range(1, streams - (alike + 1 if alike else 0) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 000 streams")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # of all processes
    if options.provider:
        uvloop.run(provide())
        return 0
    streams = STREAMS // 10 if options.quick else STREAMS
    if streams * 1.9 > hard:
        print(f"bench_idle: {2 * streams + SPARE} descriptors are needed, and {hard} allowed")
        return 1
    wanted = numbers(streams, hard)
    core = str(harness.cores()[1])
    command = ["taskset", "-c", core, sys.executable, "-m", "benchmarks.bench_idle", "--provider"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as provider:
        assert provider.stdin is not None
        assert provider.stdout is not None
        port = int(provider.stdout.readline())
        with harness.parts(["sidecar"], upstream=port, config=CONFIG) as parts:
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {harness.cores()[1]})
            found = uvloop.run(Run(provider, parts["sidecar"], wanted).all())
            os.sched_setaffinity(0, everywhere)
        provider.stdin.close()
    alike = wanted.count(0)
    about = (
        f"{streams} streams, {AT_ONCE} begun at a time, requests of 2 KB; silent for {SILENT_SECONDS:g} s; then one "
        f"event each, then the end; one worker"
    )
    if alike:
        about += (
            f"; for want of descriptors ({hard} are allowed) {alike} of them are alike, and share one connection up"
        )
    return harness.report("bench_idle", about, [found], checks(found, streams), options.json)


def checks(found: dict[str, Any], streams: int) -> dict[str, bool]:
    memory = found["KB/stream"]
    return {
        f"{found['open']} of {streams} streams open at once": found["open"] == streams,
        f"{found['got their event']} of {streams} got their event while all were open": found["got their event"]
        == streams,
        f"{found['ended']} of {streams} ended properly, every byte as it should be": found["ended"] == streams,
        f"{found['accounted']} of {streams} accounted for": found["accounted"] == streams,
        f"an open stream, of {streams}: {memory:.1f} KB <= {MEMORY_BAR:.0f}": memory <= MEMORY_BAR,
    }


class Run:
    """The streams of one run, all under one clock."""

    def __init__(self, provider: subprocess.Popen[str], part: harness.Part, wanted: list[int]) -> None:
        self._provider = provider
        self._part = part
        self._wanted = wanted
        self._clients: list[Client] = []
        self._event = asyncio.Event()  # something has come
        self._left = 0  # clients that have not got what is waited for
        self._what = b""

    async def all(self) -> dict[str, Any]:
        await self._open([10**9])  # what is made with the first request is nobody's
        await asyncio.sleep(1.0)
        idle = self._part.rss_mb()
        first, self._clients = self._clients, []
        began = time.perf_counter()
        await self._open(self._wanted)
        opened = time.perf_counter() - began
        still_open = sum(not client.lost for client in self._clients)
        await asyncio.sleep(1.0)
        full, cpu = self._part.rss_mb(), self._part.cpu_seconds()
        await asyncio.sleep(SILENT_SECONDS)
        cpu = self._part.cpu_seconds() - cpu
        self._clients += first
        got, event_seconds = await self._all_get("event")
        ended, end_seconds = await self._all_get("end")
        await asyncio.sleep(1.0)
        return {
            "open": still_open,
            "KB/stream": (full - idle) * 1024 / len(self._wanted),
            "RSS MB": full,
            "opened in s": opened,
            "CPU while silent": cpu / SILENT_SECONDS,
            "got their event": got,
            "in s": event_seconds,
            "ended": ended,
            "in s ": end_seconds,
            "accounted": self._accounted() - len(first),
        }

    async def _open(self, wanted: list[int]) -> None:
        loop = asyncio.get_running_loop()
        self._what = SAID["begin"][0]
        for at in range(0, len(wanted), AT_ONCE):
            some = wanted[at : at + AT_ONCE]
            self._left = len(some)
            for number in some:
                client = Client(request(number, alike=number == 0), self._has)
                await loop.create_connection(partial(_same, client), "127.0.0.1", self._part.port)
                self._clients.append(client)
            await self._until_all()

    async def _all_get(self, what: str) -> tuple[int, float]:
        """How many have exactly what they should have by then, of those that are wanted; and how soon."""
        self._what, self._left = SAID[what][0], len(self._clients)
        assert self._provider.stdin is not None
        assert self._provider.stdout is not None
        began = time.perf_counter()
        self._provider.stdin.write(f"{what}\n")
        self._provider.stdin.flush()
        await self._until_all()
        took = time.perf_counter() - began
        self._provider.stdout.readline()
        steps = list(SAID)[: list(SAID).index(what) + 1]
        right = 0
        for client, number in zip(self._clients, self._wanted, strict=False):
            whole = client.got.endswith(b"\r\n0\r\n\r\n") or what != "end"
            right += whole and body(client.got) == b"".join(said(step, number) for step in steps)
        return right, took

    def _has(self, client: Client) -> None:
        word = b'"content":"%b of ' % self._what
        if word in client.got[-600:] and (self._what != b"end" or client.got.endswith(b"0\r\n\r\n")):
            self._left -= 1
            if self._left <= 0:
                self._event.set()

    async def _until_all(self) -> None:
        """What does not come in time is missing in the counts."""
        try:
            async with asyncio.timeout(SECONDS):
                while self._left > 0:
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            print(f"bench_idle: {self._left} streams have not got their {self._what.decode()}")

    def _accounted(self) -> int:
        """Exchanges that are over, by the sidecar's own count."""
        url = f"http://127.0.0.1:{self._part.port}/status"
        asked = urllib.request.Request(url, headers={"authorization": f"Bearer {harness.KEY}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(msgspec.json.decode(answer.read())["requests"]["total"])


def _same(client: Client) -> Client:
    return client


if __name__ == "__main__":
    sys.exit(main())
