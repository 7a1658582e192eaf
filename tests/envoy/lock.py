"""What of requirements.lock the image needs. `python -m tests.envoy.lock` writes envoy/requirements.lock anew."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP: Final = Path(__file__).parents[2]
WHOLE: Final = TOP / "requirements.lock"
PART: Final = TOP / "envoy" / "requirements.lock"
_HEAD: Final = "# The part of ../requirements.lock that the image needs. Made anew by `python -m tests.envoy.lock`.\n"
_BLOCK: Final = re.compile(r"^([a-z0-9.-]+)==.*\n(?: .*\n)+", re.MULTILINE)


def needed(name: str, seen: set[str]) -> set[str]:
    """A distribution's name with those that it needs, on whatever system, without extras."""
    if name in seen:
        return seen
    seen.add(name)
    try:
        wanted = requires(name) or []
    except PackageNotFoundError:  # of another system or version of Python
        return seen
    for each in map(Requirement, wanted):
        if "extra" not in str(each.marker or ""):
            needed(canonicalize_name(each.name), seen)
    return seen


def part(whole: str) -> str:
    names = needed("llm-sidecar", set())
    return _HEAD + "".join(block[0] for block in _BLOCK.finditer(whole) if block[1] in names)


if __name__ == "__main__":
    PART.write_text(part(WHOLE.read_text()))
