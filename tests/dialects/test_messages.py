"""Whole messages that are none, or errors. Those that are answers are in tests/golden."""

from __future__ import annotations

import orjson
import pytest

from sidecar.dialects import messages
from sidecar.dialects.neutral import Reply, Text
from sidecar.errors import ErrorInAnswer, UpstreamProtocol


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the provider's answer is not a message"),
        (b"upstream is down", "the provider's answer is not a message"),
        (b"{}", "the provider's answer is not a message"),
        (b'{"content":"text"}', "the provider's answer is not a message"),
        (b'{"content":[{"type":"tool_use"}]}', "the provider's answer is not a message"),
        (b'{"content":[{"type":"text","text":"\xff"}]}', "the provider's answer is not a message"),
    ],
)
def test_no_answer(data: bytes, message: str) -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        messages.read_reply(data)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (b'{"type":"api_error","message":"no"}', 500, "api_error"),
        (b'{"type":"overloaded_error","message":"no"}', 529, "overloaded_error"),
        (b'{"type":"rate_limit_error","message":"no"}', 429, "rate_limit_error"),
        (
            b'{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}',
            400,
            "context_length_exceeded",
        ),
        (b'{"message":"no","code":403}', 403, None),
        (b'{"message":"invalid x-api-key"}', 401, None),
        (b'"Too Many Requests"', 429, None),
    ],
)
@pytest.mark.parametrize("body", [b'{"type":"error","error":%b}', b'{"error":%b}'])
def test_an_error_in_an_answer_has_the_status_that_it_means(
    body: bytes, error: bytes, status: int, code: str | None
) -> None:
    with pytest.raises(ErrorInAnswer) as caught:
        messages.read_reply(body % error)
    assert (caught.value.status, caught.value.their_code) == (status, code)
    assert caught.value.retryable is (status != 400)


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
