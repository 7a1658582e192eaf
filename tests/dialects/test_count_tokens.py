"""The estimate of a prompt's tokens: grows with the text, and images do not make it explode."""

from __future__ import annotations

import orjson

from sidecar.dialects import count_tokens
from sidecar.wire import body


def _count(request: dict[str, object]) -> int:
    data = count_tokens.local(body.envelope(orjson.dumps(request)))
    assert data is not None
    counted = orjson.loads(data)
    assert list(counted) == ["input_tokens"]
    return int(counted["input_tokens"])


def test_text_counts() -> None:
    words = "The quick brown fox jumps over the lazy dog. " * 100  # 1000 tokens, or a few more
    counted = _count({"model": "m", "messages": [{"role": "user", "content": words}]})
    assert 1000 <= counted <= 2000
    assert _count({"model": "m", "system": words, "messages": [{"role": "user", "content": words}]}) > counted


def test_tools_count_and_other_members_do_not() -> None:
    plain = _count({"model": "m", "messages": []})
    assert _count({"model": "m", "messages": [], "metadata": {"user_id": "x" * 900}}) == plain
    assert _count({"model": "m", "messages": [], "tools": [{"name": "f", "input_schema": {}}]}) > plain


def test_images_count_flat() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0K" * 100_000}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    assert 1000 < _count({"model": "m", "messages": [message]}) < 3000


def test_never_nothing() -> None:
    assert _count({"model": "m"}) == 1
