"""`sidecar simulate`: the simulated provider alone."""

from __future__ import annotations

from sidecar import simulator
from sidecar.commands.telling import Options, fail


def run(options: Options) -> int:
    try:
        settings = simulator.settings_from(options)
    except ValueError as error:
        return fail(str(error), 2)
    try:
        return simulator.run(settings)
    except OSError as error:
        return fail(f"cannot listen: {(error.strerror or str(error)).lower()}", 1)
