"""What providers and clients say to each other in these tests, and the four ways an answer may take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import pytest

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"

CHAT_EVENTS: Final = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":" tw\xc3\xb6"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)
MESSAGES_EVENTS: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":1}}}'
    b"\n\n"
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":"one"}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":" tw\xc3\xb6"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":2}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
CHAT_BODY: Final = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"one tw\xc3\xb6"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
)
MESSAGES_BODY: Final = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"m",'
    b'"content":[{"type":"text","text":"one tw\xc3\xb6"}],"stop_reason":"end_turn","stop_sequence":null,'
    b'"usage":{"input_tokens":3,"output_tokens":2}}'
)


@dataclass(frozen=True)
class Dialect:
    """How a language says things: a streamed answer, a whole one, its end, an error in a stream."""

    path: str
    events: tuple[bytes, ...]
    body: bytes
    done: bytes
    fault: re.Pattern[bytes]


CHAT: Final = Dialect(
    "/v1/chat/completions", CHAT_EVENTS, CHAT_BODY, b"data: [DONE]", re.compile(rb'\n\ndata: (\{"error":\{.*\})\n\n$')
)
MESSAGES: Final = Dialect(
    "/v1/messages",
    MESSAGES_EVENTS,
    MESSAGES_BODY,
    b"message_stop",
    re.compile(rb'\n\nevent: error\ndata: (\{"type":"error",.*\})\n\n$'),
)


@dataclass(frozen=True)
class Way:
    """A client's language, and the provider's."""

    ours: Dialect
    theirs: Dialect
    model: str

    @property
    def path(self) -> str:
        return self.ours.path

    @property
    def same(self) -> bool:
        return self.ours is self.theirs

    def stream(self, events: int | None = None) -> bytes:
        """The provider's streamed answer, chunked: the head and so many events, or all of it."""
        sent = self.theirs.events[:events]
        return head() + b"".join(map(chunk, sent)) + (LAST if events is None else b"")

    def whole(self) -> bytes:
        """The provider's answer in one body."""
        return reply(self.theirs.body)


WAYS: Final = {
    "chat": Way(CHAT, CHAT, "lab/m"),
    "messages": Way(MESSAGES, MESSAGES, "claude/m"),
    "chat from messages": Way(CHAT, MESSAGES, "claude/m"),
    "messages from chat": Way(MESSAGES, CHAT, "lab/m"),
}
EVERY_WAY: Final = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
BOTH: Final = pytest.mark.parametrize("stream", [True, False], ids=["stream", "unary"])
LAST: Final = b"0\r\n\r\n"


def head(*lines: bytes, status: bytes = b"200 OK", kind: bytes = EVENTS, framing: bytes | None = None) -> bytes:
    """A provider's head, chunked unless `framing` says otherwise."""
    lines = (b"content-type: " + kind, b"transfer-encoding: chunked" if framing is None else framing, *lines)
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines if line) + b"\r\n"


def reply(body: bytes, *lines: bytes, status: bytes = b"200 OK", kind: bytes = JSON) -> bytes:
    """A provider's answer with a content-length."""
    return head(*lines, status=status, kind=kind, framing=b"content-length: %d" % len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
