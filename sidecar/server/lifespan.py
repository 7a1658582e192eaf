"""The app's lifespan (ASGI lifespan 2.0): told of the start and of the end, each within bounds."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sidecar.types import ASGIApp, Message

SHUTDOWN_SECONDS: Final = 10.0


class AppFailed(RuntimeError):
    """The app says that it cannot start."""


class Lifespan:
    """An app that raises or returns before it answers has no lifespan, and is served all the same."""

    def __init__(self, app: ASGIApp, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._told: list[Message] = []
        self._heard = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._receives = 0

    async def startup(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises AppFailed when the app says that it cannot start."""
        self._task = loop.create_task(self._run())
        await self._heard.wait()
        if (words := self._failed("startup")) is not None:
            raise AppFailed(f"the app did not start: {words}")

    async def shutdown(self, seconds: float = SHUTDOWN_SECONDS) -> str | None:
        """Let the app end, for a time. Answers what it says of its failing, if it does."""
        if self._task is None:
            return None
        self._stop.set()
        _, late = await asyncio.wait([self._task], timeout=seconds)
        if late:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
            return f"not done within {seconds:g} s"
        return self._failed("shutdown")

    def _failed(self, phase: str) -> str | None:
        for message in self._told:
            if message["type"] == f"lifespan.{phase}.failed":
                return str(message.get("message", "")) or "it does not say why"
        return None

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001  # ASGI: raising before an answer means that lifespan is not supported
            if self._told:
                phase = "shutdown" if self._stop.is_set() else "startup"
                self._told.append(
                    {"type": f"lifespan.{phase}.failed", "message": f"{type(error).__name__} in its lifespan"}
                )
        finally:
            self._heard.set()

    async def _receive(self) -> Message:
        self._receives += 1
        if self._receives == 1:
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        self._told.append(message)
        self._heard.set()
