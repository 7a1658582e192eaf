"""What an option takes, in words."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from sidecar.config.wanted import kind, wanted


@pytest.mark.parametrize(
    ("type_", "words"),
    [
        (Annotated[int, Meta(ge=1, le=256)], "a whole number from 1 to 256"),
        (Annotated[int, Meta(ge=1, le=256)] | None, "a whole number from 1 to 256"),
        (Annotated[float, Meta(gt=0, le=86400)], "a number over 0 and at most 86400"),
        (Annotated[float, Meta(ge=0, le=3.5)], "a number from 0 to 3.5"),
        (Literal["info", "off"], '"info" or "off"'),
        (bool, "true or false"),
        (str | None, "a string"),
        (Annotated[str, Meta(description="d")], "a string"),
    ],
)
def test_types(type_: Any, words: str) -> None:
    assert wanted(type_) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "true"),
        (-1, "-1"),
        (0.5, "0.5"),
        (10**50, "a number of so many digits"),
        ("sk-secret", "a string"),
        ([], "an array"),
        ({}, "a table"),
        (date(2026, 1, 1), "a date or time"),
    ],
)
def test_what_stands_there_instead(value: object, words: str) -> None:
    assert kind(value) == words
