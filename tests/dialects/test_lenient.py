"""Halves of surrogate pairs in what providers send."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.dialects import CONVERSATIONS
from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import TextDelta
from sidecar.wire import sse

_string = msgspec.json.Decoder(str)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (rb'"a"', "a"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"\uDE00a"', "\ufffda"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'"\"\ud83d\n"', '"\ufffd\n'),
    ],
)
def test_halves(data: bytes, text: str) -> None:
    assert _string.decode(mended(data)) == text


@pytest.mark.parametrize(
    "data", [b"", b"5", b'"', rb'"\x"', b"\xff", rb'"\ud83', b'"\\', rb'"\\ud83d"', rb'"\ud83d\ude00"']
)
def test_everything_else_stays(data: bytes) -> None:
    assert mended(data) == data


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("chat", rb'{"id":"1","choices":[{"delta":{"content":"\ud83d"}}]}'),
        ("messages", rb'{"type":"content_block_delta","delta":{"type":"text_delta","text":"\ud83d"}}'),
    ],
)
def test_a_stream_goes_on(name: str, event: bytes) -> None:
    assert TextDelta("\ufffd") in CONVERSATIONS[name].stream_reader().feed([sse.Event("", event)])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat", rb'{"choices":[{"message":{"content":"\ud83d"}}]}'),
        (
            "chat",
            rb'{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{\"a\":\"\ud83d\"}"}}]}}]}',
        ),
        ("messages", rb'{"content":[{"type":"text","text":"\ud83d"}]}'),
    ],
)
def test_a_whole_answer_is_read(name: str, data: bytes) -> None:
    assert b"\xef\xbf\xbd" in CONVERSATIONS[name].write_reply(CONVERSATIONS[name].read_reply(data))
