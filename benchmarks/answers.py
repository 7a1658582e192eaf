"""Whether an answer is right: what it says, whoever wrote its JSON. A wrong answer is not a fast answer."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from benchmarks.bench_stream import body as unchunked


class _Part(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Part = _Part()
    delta: _Part = _Part()
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    total_tokens: int = 0


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class Said(NamedTuple):
    """What must be the same through every proxy."""

    content: str
    finish: str
    tokens: int


_decoder = msgspec.json.Decoder(_Chat)


def whole(data: bytes) -> Said | None:
    """What a body of JSON says; None where it is no answer."""
    try:
        chat = _decoder.decode(data)
    except msgspec.MsgspecError:
        return None
    return _said([chat])


def stream(data: bytes) -> Said | None:
    """What a body of events says; None where it is no answer, or not all of one."""
    events = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event.startswith(b"data: ")]
    if not events or events.pop() != b"[DONE]":
        return None
    try:
        return _said([_decoder.decode(event) for event in events])
    except msgspec.MsgspecError:
        return None


def _said(chats: list[_Chat]) -> Said | None:
    choices = [chat.choices[0] for chat in chats if chat.choices]
    finish = [choice.finish_reason for choice in choices if choice.finish_reason]
    tokens = [chat.usage.total_tokens for chat in chats if chat.usage is not None]
    if len(finish) != 1 or not tokens:
        return None
    return Said("".join(each.message.content or each.delta.content or "" for each in choices), finish[0], tokens[-1])


def body_of(answer: bytes) -> bytes:
    """The body of an HTTP answer as it came, chunked or not; b"" where its status is not 200."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return b""
    return unchunked(answer) if b"\r\ntransfer-encoding: chunked" in head.lower() else rest
