"""What fault tests stand on: ports that fail in known ways, and the proof that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port whose backlog is full: a SYN sent to it is never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listening.getsockname())
            yield listening.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def sockets() -> set[str]:
    """The sockets that this process has open, by their inode."""
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@asynccontextmanager
async def nothing_left(seconds: float = 1.0) -> AsyncIterator[None]:
    """After the block there are no more tasks and sockets than before (closing takes a few rounds)."""
    tasks = asyncio.all_tasks()
    before = sockets()
    yield
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        left = [*(asyncio.all_tasks() - tasks), *(sockets() - before)]
        if not left:
            return
        assert asyncio.get_running_loop().time() < deadline, f"left behind: {left}"
        await asyncio.sleep(0.002)
