"""The sidecar in a container of 80 MB, and far more sent to it than that: it refuses in time, and is never killed."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from tests.commands.process import environment
from tests.containers import Container, container
from tests.faults.stand import Reply, closing, post, read

MB = 1000 * 1000
LIMIT = 80 * 1024 * 1024
CONFIG = """
[server]
listen = ["127.0.0.1:0"]
[providers.lab]
kind = "openai-compatible"
base_url = "http://127.0.0.1:{port}/v1"
[providers.claude]
kind = "anthropic"
base_url = "http://127.0.0.1:{port}"
api_key = "env:CLAUDE_KEY"
[models]
chat = {{ targets = ["lab/m"] }}
translated = {{ targets = ["claude/m"] }}
[log]
level = "off"
"""
ANSWER = msgspec.json.encode(
    {"id": "a", "object": "chat.completion", "created": 1, "model": "m",
     "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
     "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn",
     "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "input_tokens": 1, "output_tokens": 1}}
)  # fmt: skip
THINKS_SECONDS = 0.7  # in which the bodies of all that it is asked are held


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Of the test's own end: the one that sends large bodies without copying them again and again."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


class Provider:
    """Takes whatever it is sent, thinks, and answers."""

    def __init__(self) -> None:
        self.asked = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                while left:
                    left -= len(await reader.read(min(left, 1 << 18)))
                self.asked += 1
                await asyncio.sleep(THINKS_SECONDS)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
                writer.write(b"content-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
        writer.close()


@contextlib.asynccontextmanager
async def running(box: Container, folder: Path, upstream: int) -> AsyncIterator[tuple[int, subprocess.Popen[bytes]]]:
    """The sidecar in the box: its port, and its process."""
    file = folder / "sidecar.toml"
    file.write_text(CONFIG.format(port=upstream))
    file.chmod(0o600)
    process = subprocess.Popen(
        box.words(sys.executable, "-m", "sidecar", "serve", "--config", str(file)),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment({"CLAUDE_KEY": "sk-claude"}, covered=False),
    )
    try:
        assert process.stderr is not None
        line = await asyncio.to_thread(process.stderr.readline)
        yield int(line.rpartition(b":")[2]), process
    finally:
        process.kill()
        process.communicate()


async def asked(port: int, request: bytes) -> Reply:
    """Read while it is being sent: a refusal does not wait for all of it. One that is cut has the status 0."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b""
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                data += piece
    finally:
        writer.transport.abort()
    return read(data) if data else Reply(0, [], b"", ended=False)


def chat(size: int, model: str = "chat") -> bytes:
    return post(
        "/v1/chat/completions",
        b'{"model":"%b","max_tokens":9,"messages":[{"role":"user","content":"%b"}]}' % (model.encode(), b"x" * size),
    )


async def flooded(port: int, request: bytes, times: int) -> Counter[str]:
    """How so many at once fared, by status; each refusal says what it is, and when to come again.

    Who sends on for longer than the server listens to what it has refused may be cut: all of us are one process here.
    """
    request = closing(request)  # once: all of them send the same bytes
    replies = await asyncio.gather(*(asked(port, request) for _ in range(times)))
    for reply in replies:
        if reply.status == 503:
            assert reply.json["error"]["code"] == "sidecar_overloaded", reply.body
            assert reply.get(b"retry-after") == b"1"
    return Counter(str(reply.status or "cut") for reply in replies)


async def memory_of(port: int) -> dict[str, int]:
    reply = await asked(port, closing(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    found: dict[str, int] = reply.json["memory"]
    return found


@pytest.mark.timeout(60)
async def test_a_container_of_80_mb_is_never_killed_whatever_is_sent_to_it(tmp_path: Path) -> None:
    with container(LIMIT) as box:
        provider = Provider()
        async with provider.serving() as upstream, running(box, tmp_path, upstream) as (port, process):
            assert (await memory_of(port))["limit_bytes"] == LIMIT
            # 200 MB at once, of which there is room for a few; what is refused costs its provider nothing
            told = await flooded(port, chat(2 * MB), 100)
            assert told["200"] == provider.asked >= 3
            assert told["503"] > 10 * told["cut"]
            # what is translated is held twice; then too many that are short
            for request, times in ((chat(4 * MB, "translated"), 12), (chat(60_000), 600)):
                told = await flooded(port, request, times)
                assert {"200", "503"} <= set(told) <= {"200", "503", "cut"}
            # one that there is never room for is told so by its length
            assert await flooded(port, post("/v1/chat/completions", b"{", length=20 * MB), 4) == {"413": 4}
            assert process.poll() is None
            assert box.killed == 0
            async with asyncio.timeout(10):  # and nothing of it is left
                while (found := await memory_of(port))["bodies_bytes"] or found["level"]:
                    await asyncio.sleep(0.1)
            assert (await asked(port, closing(chat(10)))).status == 200
            assert box.used < LIMIT
