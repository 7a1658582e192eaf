"""A served app as a process: `python -m tests.server.process '{"settings": {...}}'`. What it does, it prints."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import msgspec

from sidecar.config import Server as Settings
from sidecar.server import Served, run
from sidecar.types import Receive, Scope, Send
from tests.server.apps import HEAD_200, answer, body_of


def say(*words: object) -> None:
    """One write a line: workers share the pipe."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


class App:
    """`/pid`; `/die`; `/stream`: one event, and another when the deadline or a file named in the query ends it."""

    def __init__(self, *, fails: str) -> None:
        self._fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["path"] == "/stream":
            await self._stream(scope["query_string"].decode(), receive, send)
        elif scope["path"] == "/die":
            os._exit(7)
        else:
            await answer(send, b"%d" % os.getpid())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if self._fails == "dies":
            os._exit(9)
        if self._fails == "hangs":
            say("hangs", os.getpid())
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            await asyncio.Event().wait()
        if self._fails:
            await send({"type": "lifespan.startup.failed", "message": self._fails})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        say("ended", os.getpid())
        await send({"type": "lifespan.shutdown.complete"})

    async def _stream(self, until: str, receive: Receive, send: Send) -> None:
        await body_of(receive)
        await send(dict(HEAD_200))
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        last = b"done"
        try:
            while not (until and os.path.exists(until)):
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            last = b"error"
        await send({"type": "http.response.body", "body": last})


class Wanted(msgspec.Struct):
    settings: Settings
    fails: str = ""
    last_seconds: float | None = None


def main() -> int:
    wanted = msgspec.json.decode(sys.argv[1], type=Wanted)
    if wanted.last_seconds is not None:
        vars(sys.modules["sidecar.server.run"])["_LAST_SECONDS"] = wanted.last_seconds

    def made() -> Served:
        return Served(
            app=App(fails=wanted.fails),
            on_ready=lambda addresses: say("ready", os.getpid(), *addresses),
            on_drain=lambda: say("drain", os.getpid()),
            on_reload=lambda: say("reload", os.getpid()),
        )

    try:
        return run(made, wanted.settings)
    except OSError as error:
        sys.stderr.write(f"{error.strerror}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
