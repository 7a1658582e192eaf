"""OpenAI's legacy text completions: relayed in their own words, never translated."""

from sidecar.dialects.openai import (
    ask_usage,
    meter,
    nothing as local,
    read_error,
    read_view,
    write_error,
    write_stream_error,
)

__all__ = ["ask_usage", "local", "meter", "read_error", "read_view", "write_error", "write_stream_error"]
