"""`sidecar serve`: the app on the product's own server, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from sidecar.app import Sidecar
from sidecar.commands.banner import banner
from sidecar.commands.telling import Options, fail, flagged, flags, loaded, warn
from sidecar.commands.watch import Files, Watch
from sidecar.config import Config, ConfigError, Loaded, examine, unshared
from sidecar.server import Served, run as run_server

_LIVE: Final = ("allow_origins", "max_body_bytes")  # of [server]: asked anew for every request


def run(options: Options) -> int:
    found = loaded(options.config, so="; nothing was started")
    if found is None:
        return 2
    changes = flags(options)
    config, problems = flagged(found.config, changes)
    if problems:
        return fail("\n".join(problems), 2)
    warn(found.warnings)
    if options.workers is not None and (words := unshared(config)) is not None:
        sys.stderr.write(f"warning: --workers: {words}\n")
    token = os.eventfd(1, os.EFD_NONBLOCK)
    try:
        return run_server(lambda: _Worker(found, config, options.config, changes, token).served(), config.server)
    except OSError as error:
        return fail(error.strerror or str(error), 1)


class _Worker:
    """One process that serves: the app, its log, and its reload.

    `token`: what the first worker to be ready takes, and then tells where they listen, for all of them.
    """

    def __init__(self, found: Loaded, config: Config, path: str | None, changes: dict[str, Any], token: int) -> None:
        self._app = Sidecar(config, guard=True)
        self._config = config
        self._path = path
        self._changes = changes
        self._token = token
        self._watch = Watch(self._read, found.files)

    def served(self) -> Served:
        self._watch.catch_up()
        return Served(
            app=self._app,
            on_ready=self._ready,
            on_drain=self._drain,
            on_reload=self._watch.now,
            log=self._app.note,
        )

    def _ready(self, addresses: list[str]) -> None:
        if self._config.log.level != "off":
            self._app.open_log()
        self._watch.start(asyncio.get_running_loop())
        with contextlib.suppress(BlockingIOError):  # another was first
            os.eventfd_read(self._token)
            sys.stderr.write("\n".join(banner(self._config, addresses)) + "\n")
            sys.stderr.flush()

    def _drain(self) -> None:
        self._watch.stop()
        self._app.drain()

    def _read(self) -> tuple[Callable[[], None], Files]:
        """The configuration again: what to do with it on the loop, and what it was read from."""
        try:
            found = examine(self._path)
        except ConfigError as error:
            why = str(error)
            return lambda: self._tell({"event": "reload", "ok": False, "why": why}), error.files
        config, problems = flagged(found.config, self._changes)
        if problems:
            return lambda: self._tell({"event": "reload", "ok": False, "why": "; ".join(problems)}), found.files
        event = {"event": "reload", "ok": True, "warnings": [str(warning) for warning in found.warnings]}
        if later := _needs_restart(self._config, config):
            event["needs_restart"] = later
        return lambda: self._swap(config, event), found.files

    def _swap(self, config: Config, event: dict[str, Any]) -> None:
        self._app.reload(config)
        self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        if self._config.log.level != "off":
            self._app.note(event)
        elif not event["ok"]:
            sys.stderr.write(f"sidecar: the configuration was not reloaded:\n{event['why']}\n")


def _needs_restart(running: Config, changed: Config) -> list[str]:
    """The options that were changed and that only a start reads."""
    return [
        f"{table}.{name}"
        for table in ("server", "log", "store")
        for name in getattr(running, table).__struct_fields__
        if name not in _LIVE and getattr(getattr(running, table), name) != getattr(getattr(changed, table), name)
    ]
