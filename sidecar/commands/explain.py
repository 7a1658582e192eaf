"""`sidecar explain`: the plan that a model name gets."""

from __future__ import annotations

import sys

from sidecar import routing
from sidecar.commands.telling import Options, fail, loaded
from sidecar.errors import SidecarError


def run(options: Options) -> int:
    found = loaded(options.config)
    if found is None:
        return 2
    try:
        lines = routing.explain(routing.build(found.config), options.model, options.dialect)
    except SidecarError as error:
        return fail(error.message, 1)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
