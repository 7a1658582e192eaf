"""What commands have in common: finding the configuration, telling its faults, and the flags that go over it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from sidecar.config import Config, ConfigError, Fault, Loaded, address_problem, examine, exposed

Options = argparse.Namespace


def loaded(path: str | None, *, so: str = "") -> Loaded | None:
    """The configuration, or None when its faults have been told. `so`: what follows from them."""
    try:
        return examine(path)
    except ConfigError as error:
        for fault in error.faults:
            sys.stderr.write(f"{fault}\n")
        count = len(error.faults)
        sys.stderr.write(f"{count} fault{'s' if count > 1 else ''}{so}\n")
        return None


def warn(warnings: list[Fault]) -> None:
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


def fail(message: str, code: int) -> int:
    sys.stderr.write(f"sidecar: {message}\n")
    return code


def flags(options: Options) -> dict[str, Any]:
    """The options of [server] that are set by flags of `serve`."""
    changes: dict[str, Any] = {}
    if options.listen:
        changes["listen"] = tuple(options.listen)
    if options.workers is not None:
        changes["workers"] = options.workers
    return changes


def flagged(config: Config, changes: dict[str, Any]) -> tuple[Config, list[str]]:
    """A configuration with flags over it, and what is wrong with them, in the words that the file would be told."""
    server = msgspec.structs.replace(config.server, **changes)
    problems = [problem for address in server.listen if (problem := address_problem(address))]
    if not problems and not config.callers:
        problems = [found for each in server.listen if (found := exposed(each, server.socket_mode))]
    if not 1 <= server.workers <= 256:
        problems.append("--workers takes a number from 1 to 256")
    return msgspec.structs.replace(config, server=server), problems
