"""Answers without chance in them: ids and times that are the same in every run."""

from __future__ import annotations

import pytest


@pytest.fixture
def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * (2 * size))
    monkeypatch.setattr("sidecar.dialects.chat.wall", lambda: 1_700_000_000.0)
    monkeypatch.setattr("sidecar.dialects.chat_stream.wall", lambda: 1_700_000_000.0)
