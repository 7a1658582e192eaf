"""OpenAI's legacy text completions: relayed in their own words, never translated."""

from __future__ import annotations

import msgspec

from sidecar.dialects import openai
from sidecar.dialects.openai import ask_usage, nothing as local, read_view
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

_prompts = msgspec.json.Decoder(list[str | list[int]])


def choices(members: Envelope) -> int:
    """`n` for each prompt: there may be a list of them."""
    asked = openai.choices(members)
    raw = members.get("prompt")
    if raw is None or not bytes(raw).startswith(b"["):
        return asked
    try:
        return asked * max(len(_prompts.decode(raw)), 1)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return asked  # the tokens of one prompt, or what is the provider's to refuse
