"""OpenAI's Chat Completions: the dialect's functions, and whole answers to and from the neutral form.

Requests are read in chat_read.py and written in chat_write.py, streams are in chat_stream.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.clock import wall
from sidecar.dialects.chat_answer import (
    Answer,
    Message,
    arguments,
    blocks,
    broken_off,
    call_id,
    mint,
    reasoning,
    stop_of,
    string,
    text,
)
from sidecar.dialects.chat_read import read_request
from sidecar.dialects.chat_stream import StreamReader, StreamWriter, completion_id, write_block
from sidecar.dialects.chat_write import write_call, write_request
from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import Part, Redacted, Reply, Text, Thinking, ToolUse, instead
from sidecar.dialects.openai import ask_usage, choices, nothing as local, read_view
from sidecar.dialects.openai_errors import read_error, read_fault, read_stray, write_error, write_stream_error
from sidecar.dialects.openai_usage import measure, meter, read_usage, write_usage
from sidecar.errors import UpstreamProtocol
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

_answer = msgspec.json.Decoder(Answer)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_reply(data: bytes) -> Reply:
    """A completion in neutral form. Raises UpstreamProtocol when it is none, ErrorInAnswer when it is an error."""
    if (fault := read_fault(data)) is not None:
        raise instead(fault)
    try:
        answer = _answer.decode(mended(data).lstrip())  # DeepSeek keeps a slow answer alive with empty lines
        choice = answer.choices[0] if answer.choices else None
        if choice is not None:
            fault = broken_off(choice)
        elif answer.choices is None:
            fault = read_stray(mended(data))
        if fault is not None:
            raise instead(fault)
        if choice is None or choice.message is None:
            raise UpstreamProtocol("the provider answered without a message")
        parts = _parts(choice.message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamProtocol("the provider's answer is not a chat completion") from None
    refusal = string(choice.message.refusal)
    stop = stop_of(choice.finish_reason, calls=any(isinstance(part, ToolUse) for part in parts), refused=bool(refusal))
    return Reply(
        id=string(answer.id),
        model=string(answer.model),
        parts=parts,
        stop=stop,
        stop_sequence=(string(choice.stop_reason) or None) if stop == "stop" else None,
        refusal=refusal or None,
        usage=read_usage(answer.usage),
    )


def _parts(message: Message) -> list[Part]:
    parts: list[Part] = [*blocks(message)]
    if not any(isinstance(part, Thinking) for part in parts) and (thought := reasoning(message)):
        parts.insert(0, Thinking(thought))
    if said := text(message) + string(message.refusal):
        parts.append(Text(said))
    for call in message.tool_calls or ():
        function = call.function
        if function is not None and (name := string(function.name)):
            parts.append(ToolUse(call_id(call.id) or mint("call_"), name, _object_text(arguments(function.arguments))))
    old = message.function_call
    if old is not None and (name := string(old.name)):
        parts.append(ToolUse(mint("call_"), name, _object_text(arguments(old.arguments))))
    return parts


def _object_text(text: str) -> str:
    """The arguments as JSON text of an object: a model may be cut off in the middle of one, or write something else."""
    try:
        _object.decode(text.strip() or "{}")
    except (msgspec.DecodeError, RecursionError):
        return body.encode({"_raw": text}).decode()
    return text.strip() or "{}"


def write_reply(reply: Reply) -> bytes:
    """A neutral answer as a chat completion."""
    texts = [part.text for part in reply.parts if isinstance(part, Text)]
    calls = [part for part in reply.parts if isinstance(part, ToolUse)]
    thoughts = [part for part in reply.parts if isinstance(part, Thinking)]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    message["refusal"] = reply.refusal
    if thought := "".join(part.text for part in thoughts):
        message["reasoning_content"] = thought
    signed = [
        write_block(part)
        for part in reply.parts
        if isinstance(part, Redacted) or (isinstance(part, Thinking) and part.signature)
    ]
    if signed:
        message["thinking_blocks"] = signed
    if calls:
        message["tool_calls"] = [write_call(call.name, call.arguments, call.id) for call in calls]
    value: dict[str, Any] = {
        "id": completion_id(reply.id),
        "object": "chat.completion",
        "created": int(wall()),
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reply.stop}],
    }
    if reply.usage is not None:
        value["usage"] = write_usage(reply.usage)
    return body.encode(value)


def stream_reader() -> StreamReader:
    return StreamReader()


def stream_writer(*, include_usage: bool) -> StreamWriter:
    return StreamWriter(include_usage=include_usage)
