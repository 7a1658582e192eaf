"""What OpenAI's dialects (chat, completions, embeddings) have in common: the view, and the asking for usage."""

from __future__ import annotations

import msgspec

from sidecar.errors import BodyInvalid
from sidecar.types import Envelope, View
from sidecar.wire import body

# What policy reads, and so in no other spelling; and what else is usual, so that most requests need no closer look.
_READ = frozenset(("model", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens"))
_USUAL = _READ.union(
    ("messages", "prompt", "input", "temperature", "top_p", "stop", "seed", "user", "tools", "tool_choice"),
    ("parallel_tool_calls", "response_format", "reasoning_effort", "encoding_format", "dimensions"),
    ("frequency_penalty", "presence_penalty", "top_k", "logprobs", "metadata", "reasoning", "verbosity", "store"),
)
_OPTIONS_READ = frozenset(("include_usage",))
_count = msgspec.json.Decoder(int)
_text = msgspec.json.Decoder(str)


def read_view(members: Envelope) -> View:
    """Model, stream, usage event, token bound. Raises BodyInvalid naming the member."""
    if not _USUAL.issuperset(members):
        body.check_names(members, _READ)
    raw_model = members.get("model")
    if raw_model is None:
        raise BodyInvalid("the member 'model' is missing", param="model")
    try:  # as body.text does, without the call
        model = _text.decode(raw_model)
    except msgspec.DecodeError:
        model = body.text(raw_model, "model")
    if not model:
        raise BodyInvalid("the member 'model' is empty", param="model")
    raw_stream = members.get("stream")
    stream = raw_stream is not None and bytes(raw_stream) != b"false" and body.flag(raw_stream, "stream")
    include = False
    if stream and (options := members.get("stream_options")) is not None:
        include = bool((body.view(options, _StreamOptions | None, "stream_options") or _StreamOptions()).include_usage)
    limit: int | None = None
    if "max_completion_tokens" in members or "max_tokens" in members:
        for name in ("max_completion_tokens", "max_tokens"):
            if limit is None and (raw := members.get(name)) is not None:
                limit = body.view(raw, int | None, name)
    return View(model=model, stream=stream, include_usage=include, max_tokens=limit)


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


def ask_usage(members: Envelope) -> bool:
    """Add `stream_options.include_usage`, other options kept as they were written."""
    raw = members.get("stream_options")
    options: Envelope = {}
    if raw is not None:
        options = body.view(raw, dict[str, msgspec.Raw] | None, "stream_options") or {}
        body.check_names(options, _OPTIONS_READ, "stream_options.")
        if bytes(options.get("include_usage", b"")) == b"true":
            return False
    options["include_usage"] = msgspec.Raw(b"true")
    members["stream_options"] = body.raw(options)
    return True


def choices(members: Envelope) -> int:
    """How many answers the request asks for. What is no count is the provider's to refuse."""
    raw = members.get("n")
    if raw is None:
        return 1
    try:
        return max(_count.decode(raw), 1)
    except msgspec.DecodeError:
        return 1


def nothing(members: Envelope) -> bytes | None:
    """These dialects have no answer that needs no provider."""
    return None
