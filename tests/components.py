"""Components that some tests need and not every machine has: without one they skip, saying why."""

from __future__ import annotations

import os

import pytest


def require(name: str, found: object) -> None:
    """Skip the test where a component is missing; fail it where all are said to be there (`.ci/run` says so)."""
    if found:
        return
    if os.environ.get("SIDECAR_REQUIRE_COMPONENTS") == "1":
        pytest.fail(f"{name} is not there, and SIDECAR_REQUIRE_COMPONENTS=1")
    pytest.skip(f"{name} is not there")
