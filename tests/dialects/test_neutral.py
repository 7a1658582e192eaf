"""The neutral form's own functions."""

from __future__ import annotations

import msgspec

from sidecar.dialects.neutral import NOTHING, Ask, effort_of, says, sent, written


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
