"""OpenAI's embeddings: relayed in their own words, never translated; there is no stream."""

from __future__ import annotations

from sidecar.dialects.openai import choices, nothing as local, read_view
from sidecar.dialects.openai_errors import read_error, write_error, write_stream_error
from sidecar.dialects.openai_usage import measure, meter
from sidecar.types import Envelope

__all__ = [
    "ask_usage",
    "choices",
    "local",
    "measure",
    "meter",
    "read_error",
    "read_view",
    "write_error",
    "write_stream_error",
]


def ask_usage(members: Envelope) -> bool:
    return False
