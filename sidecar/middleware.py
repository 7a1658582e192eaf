"""The sidecar inside another ASGI app: everything below a prefix is ours, the rest is the app's."""

from __future__ import annotations

import os
from typing import Final

from sidecar.app import Sidecar, below
from sidecar.config import Config
from sidecar.types import ASGIApp, Message, Receive, Scope, Send

_CLOSING: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed")


class SidecarMiddleware:
    """`SidecarMiddleware(app, config, prefix="/llm")`: serves `/llm/v1/...`. The app's lifespan closes its connections.

    `config`: a Config, a path, or nothing for zero-config. Raises ConfigError, and ValueError for a prefix without a
    slash.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config | str | os.PathLike[str] | None = None,
        *,
        prefix: str = "/llm",
    ) -> None:
        prefix = prefix.rstrip("/")
        if not prefix.startswith("/"):
            raise ValueError(f"the prefix {prefix!r} must begin with a slash, and be more than one")
        self.sidecar = Sidecar(config)
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(scope, receive, send)
        root: str = scope.get("root_path", "")
        path: str = scope["path"]
        asked = below(path, root)
        if asked != self._prefix and not asked.startswith(self._prefix + "/"):
            return await self._app(scope, receive, send)
        # As an app mounted at the prefix is called; some servers leave their root path out of the path.
        inner = {**scope, "root_path": root + self._prefix, "path": root + asked}
        return await self.sidecar(inner, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's own lifespan, with our closing before its last word. An app without one gets ours."""
        heard: list[Message] = []
        told = False

        async def hear() -> Message:
            heard.append(await receive())
            return heard[-1]

        async def tell(message: Message) -> None:
            nonlocal told
            told = True
            if message["type"] in _CLOSING:
                await self.sidecar.aclose()
            await send(message)

        async def hear_again() -> Message:
            return heard.pop(0) if heard else await receive()

        try:
            await self._app(scope, hear, tell)
        except Exception:
            if told:
                await self.sidecar.aclose()
            if heard:  # else it only says that it has no lifespan
                raise
        if not told:
            await self.sidecar(scope, hear_again, send)
