"""OpenAI's legacy text completions: relayed in their own words, never translated."""

from sidecar.dialects.openai import ask_usage, nothing as local, read_view
from sidecar.dialects.openai_errors import read_error, write_error, write_stream_error
from sidecar.dialects.openai_usage import meter

__all__ = ["ask_usage", "local", "meter", "read_error", "read_view", "write_error", "write_stream_error"]
