"""`sidecar config`: the schema of the file, or what is in force."""

from __future__ import annotations

import sys

import msgspec

from sidecar.commands.telling import Options, fail, flagged, flags, loaded
from sidecar.config import effective, schema


def run(options: Options) -> int:
    if options.schema:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode() + "\n")
        return 0
    found = loaded(options.config)
    if found is None:
        return 2
    changes = flags(options)
    config, problems = flagged(found.config, changes)
    if problems:
        return fail("\n".join(problems), 2)
    shown = msgspec.structs.replace(found, config=config)
    sys.stdout.write(effective(shown, {f"server.{name}": f"--{name}" for name in changes}) + "\n")
    return 0
