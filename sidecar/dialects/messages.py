"""Anthropic's Messages: the dialect's functions, and whole answers to and from the neutral form.

Requests are read in messages_read.py and written in messages_write.py, streams are in messages_stream.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.dialects.anthropic import (
    ask_usage,
    choices,
    fault_in_answer,
    measure,
    meter,
    nothing as local,
    read_error,
    read_usage,
    read_view,
    stop_of,
    write_error,
    write_stop,
    write_stream_error,
    write_usage,
)
from sidecar.dialects.lenient import mended
from sidecar.dialects.messages_read import read_block, read_request
from sidecar.dialects.messages_stream import StreamReader, StreamWriter, message_id
from sidecar.dialects.messages_write import write_call, write_redacted, write_request, write_thinking
from sidecar.dialects.neutral import NOTHING, Part, Redacted, Reply, Text, Thinking, ToolUse, instead
from sidecar.errors import BodyInvalid, Unsupported, UpstreamProtocol
from sidecar.wire import body

__all__ = [
    "ask_usage",
    "choices",
    "local",
    "measure",
    "meter",
    "read_error",
    "read_reply",
    "read_request",
    "read_view",
    "stream_reader",
    "stream_writer",
    "write_error",
    "write_reply",
    "write_request",
    "write_stream_error",
]


class _Answer(msgspec.Struct):
    type: Any = None
    id: Any = None
    model: Any = None
    content: list[msgspec.Raw] | None = None
    stop_reason: Any = None
    stop_sequence: Any = None
    stop_details: Any = None
    usage: msgspec.Raw = NOTHING
    error: Any = None


_answer = msgspec.json.Decoder(_Answer)


def read_reply(data: bytes) -> Reply:
    """A message in neutral form. Raises UpstreamProtocol when it is none, ErrorInAnswer when it is an error."""
    try:
        answer = _answer.decode(mended(data).lstrip())
        if answer.type == "error" or (answer.error and answer.content is None):
            raise instead(fault_in_answer(answer.error))
        if answer.content is None:
            raise UpstreamProtocol("the provider's answer is not a message")
        found = [read_block(raw, "content", []) for raw in answer.content]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BodyInvalid, Unsupported):
        raise UpstreamProtocol("the provider's answer is not a message") from None
    stop, sequence, refusal = stop_of(answer.stop_reason, answer.stop_sequence, answer.stop_details)
    return Reply(
        id=answer.id if isinstance(answer.id, str) else "",
        model=answer.model if isinstance(answer.model, str) else "",
        parts=[part for part in found if part is not None],
        stop=stop,
        stop_sequence=sequence,
        refusal=refusal,
        usage=read_usage(answer.usage),
    )


def write_reply(reply: Reply) -> bytes:
    """A neutral answer as a message."""
    return body.encode(
        {
            "id": message_id(reply.id),
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [_write_part(part) for part in reply.parts],
            **write_stop(reply.stop, reply.stop_sequence, reply.refusal),
            "usage": write_usage(reply.usage),
        }
    )


def _write_part(part: Part) -> dict[str, Any]:
    """A block of an answer. What no answer holds (a result, an image) has none to be written as."""
    if isinstance(part, Thinking):
        return write_thinking(part)
    if isinstance(part, Redacted):
        return write_redacted(part)
    if isinstance(part, ToolUse):
        return write_call(part)
    return {"type": "text", "text": part.text if isinstance(part, Text) else ""}


def stream_reader() -> StreamReader:
    return StreamReader()


def stream_writer(*, include_usage: bool) -> StreamWriter:
    return StreamWriter()
