"""The sidecar inside another ASGI app: everything below a prefix is ours, the rest is the app's."""

from __future__ import annotations

import os
from typing import Final

from sidecar.app import Sidecar
from sidecar.config import Config
from sidecar.types import ASGIApp, Message, Receive, Scope, Send

_CLOSING: Final = ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed")


class SidecarMiddleware:
    """`SidecarMiddleware(app, config, prefix="/llm")`: serves `/llm/v1/...`, and closes its connections with the app's lifespan.

    `config`: a Config, a path, or nothing for zero-config. Raises ConfigError, and ValueError for a prefix without a slash.
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
        kind = scope["type"]
        if kind == "lifespan":
            return await self._lifespan(scope, receive, send)
        root: str = scope.get("root_path", "")
        path: str = scope["path"]
        below = path[len(root) :] if root and path.startswith(root) else path
        if below == self._prefix or below.startswith(self._prefix + "/"):
            return await self.sidecar(_below(scope, root, self._prefix), receive, send)
        return await self._app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's own lifespan, with our closing before its last word. An app without one gets ours."""
        begun = False

        async def hear() -> Message:
            nonlocal begun
            message = await receive()
            begun = True
            return message

        async def tell(message: Message) -> None:
            if message["type"] in _CLOSING:
                await self.sidecar.aclose()
            await send(message)

        try:
            await self._app(scope, hear, tell)
        except Exception:
            if begun:
                await self.sidecar.aclose()
                raise
            await self.sidecar(scope, receive, send)


def _below(scope: Scope, root: str, prefix: str) -> Scope:
    """The scope as an app mounted at the prefix sees it (ASGI: `root_path`)."""
    return {**scope, "root_path": root + prefix}
