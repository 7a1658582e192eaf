"""`sidecar check`: every fault of a configuration at once, and what there is to warn of."""

from __future__ import annotations

import sys

from sidecar.commands.telling import Options, fail, loaded, warn


def run(options: Options) -> int:
    found = loaded(options.file)
    if found is None:
        return 2
    warn(found.warnings)
    warnings = _count(len(found.warnings), "warning")
    if found.warnings and options.strict:
        return fail(f"{warnings}, and --strict was asked for", 2)
    config = found.config
    counts = [_count(len(config.providers), "provider"), _count(len(config.models), "model")]
    counts += [_count(len(config.callers), "caller"), warnings]
    sys.stdout.write(f"{found.file or 'the environment'}: ok ({', '.join(counts)})\n")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
