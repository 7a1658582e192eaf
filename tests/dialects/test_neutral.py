"""The neutral form's own functions."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.dialects.neutral import NOTHING, Ask, dropped_line, effort_of, says, sent, written


def test_sent_tells_what_was_not_sent() -> None:
    assert sent(NOTHING) is None
    assert sent(msgspec.Raw(b"null")) is None
    raw = msgspec.Raw(b"false")
    assert sent(raw) is raw


def test_labels_say_nothing() -> None:
    assert says([{"type": "text", "text": "a"}])
    assert not says(
        [{"type": "text", "id": "1", "index": 0, "format": "f", "role": "r", "text": "", "more": [None, 5]}]
    )


def test_efforts_of_budgets() -> None:
    assert [effort_of(budget) for budget in (None, 1024, 8192, 8193)] == [None, "low", "medium", "high"]


def test_what_passes_never_speaks_over_what_is_said() -> None:
    ask = Ask(model="m", turns=[], extra={"max_tokens": msgspec.Raw(b"9"), "new": msgspec.Raw(b"1.0")})
    request = written({"max_tokens": 1}, ask, ["seed"])
    assert msgspec.json.encode(request.members) == b'{"max_tokens":1,"new":1.0}'
    assert request.dropped == ("seed",)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ((), b""),
        (("seed", "messages[2].name", "stop[4:]"), b"x-sidecar-dropped: seed, messages[2].name, stop[4:]\r\n"),
        (("tools[0] (a\r\nset-cookie: b, \u00e9)",), b"x-sidecar-dropped: tools[0] (a??set-cookie: b? ?)\r\n"),
        (("x" * 1000,), b"x-sidecar-dropped: %b\r\n" % (b"x" * 80)),
        (("a",) * 34, b"x-sidecar-dropped: %b, and 2 more\r\n" % b", ".join([b"a"] * 32)),
    ],
)
def test_what_was_dropped_is_told_in_one_plain_line(names: tuple[str, ...], line: bytes) -> None:
    assert dropped_line(names) == line
