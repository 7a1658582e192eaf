"""Whole messages that are none, or errors. Those that are answers are in tests/golden."""

from __future__ import annotations

import orjson
import pytest

from sidecar.dialects import messages
from sidecar.dialects.neutral import Reply, Text
from sidecar.errors import UpstreamProtocol


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the provider's answer is not a message"),
        (b"upstream is down", "the provider's answer is not a message"),
        (b"{}", "the provider's answer is not a message"),
        (b'{"content":"text"}', "the provider's answer is not a message"),
        (b'{"content":[{"type":"tool_use"}]}', "the provider's answer is not a message"),
        (b'{"content":[{"type":"text","text":"\xff"}]}', "the provider's answer is not a message"),
        (b'{"type":"error","error":{"type":"api_error","message":"no"}}', "the provider answered with an error: no"),
    ],
)
def test_no_answer(data: bytes, message: str) -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        messages.read_reply(data)
    assert caught.value.message == message


def test_the_least_of_an_answer() -> None:
    assert messages.read_reply(b'\n{"content":[{"type":"text","text":"a"}],"id":5}') == Reply(
        id="", model="", parts=[Text("a")]
    )


def test_an_answer_without_usage_counts_nothing() -> None:
    written = orjson.loads(messages.write_reply(Reply(id="1", model="m", parts=[])))
    assert written["usage"] == {
        "input_tokens": 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }


def test_machines() -> None:
    assert messages.stream_reader().finish()
    assert not messages.stream_writer(include_usage=True).finished
