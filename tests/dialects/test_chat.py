"""Whole chat answers that are none, or errors. Those that are answers are in tests/golden."""

from __future__ import annotations

import orjson
import pytest

from sidecar.dialects import chat
from sidecar.dialects.neutral import Reply, Text, Thinking, ToolUse
from sidecar.errors import ErrorInAnswer, UpstreamProtocol


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the provider's answer is not a chat completion"),
        (b"upstream is down", "the provider's answer is not a chat completion"),
        (b"[]", "the provider's answer is not a chat completion"),
        (b'{"choices":"odd"}', "the provider's answer is not a chat completion"),
        (b'{"choices":[{"message":{"content":"\xff"}}]}', "the provider's answer is not a chat completion"),
        (b"{}", "the provider answered without a message"),
        (b'{"choices":[]}', "the provider answered without a message"),
        (b'{"choices":[{"finish_reason":"stop"}]}', "the provider answered without a message"),
    ],
)
def test_no_answer(data: bytes, message: str) -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        chat.read_reply(data)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("data", "status", "code", "message"),
    [
        (b'{"error":{"message":"no","code":502}}', 502, "502", "no"),
        (
            b'{"error":{"message":"no","type":"rate_limit_error"},"choices":"odd"}',
            429,
            "provider_error_in_answer",
            "no",
        ),
        (b'{"error":{"message":"no","code":"context_length_exceeded"}}', 400, "context_length_exceeded", "no"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}', 503, "provider_error_in_answer", "no"),
        (b'{"choices":[{"error":{"message":"no","code":429}}]}', 429, "429", "no"),
        (
            b'{"choices":[{"message":{},"finish_reason":"error"}]}',
            502,
            "provider_error_in_answer",
            "the provider broke off its answer: error",
        ),
        (b'{"detail":"Unauthorized"}', 401, "provider_error_in_answer", "Unauthorized"),
        (b'{"error":{"message":"\\ud83d","code":401}}', 401, "401", "\ufffd"),
    ],
)
def test_an_error_in_an_answer_has_the_status_that_it_means(data: bytes, status: int, code: str, message: str) -> None:
    with pytest.raises(ErrorInAnswer) as caught:
        chat.read_reply(data)
    error = caught.value
    assert (error.status, error.their_code, error.message) == (status, code, message)
    assert error.retryable is (status != 400)


def test_empty_lines_before_an_answer() -> None:
    reply = chat.read_reply(b'\n\n \n{"id":"1","choices":[{"message":{"content":"a"}}]}')
    assert reply.parts == [Text("a")]
    assert reply.usage is None


def test_names_that_are_none() -> None:
    """Snowflake's gateway sends an empty function_call with every message."""
    reply = chat.read_reply(
        b'{"choices":[{"message":{"content":"","refusal":"","function_call":{"name":"","arguments":""}}}]}'
    )
    assert reply.parts == []
    assert reply.stop == "stop"


def test_function_call_of_old() -> None:
    reply = chat.read_reply(
        b'{"choices":[{"message":{"function_call":{"name":"f","arguments":"{}"}},"finish_reason":"function_call"}]}'
    )
    (call,) = reply.parts
    assert isinstance(call, ToolUse)
    assert (call.name, call.arguments, reply.stop) == ("f", "{}", "tool_calls")


@pytest.mark.parametrize("arguments", ["[1]", "5", '{"cut": "of', "plain words"])
def test_arguments_that_are_no_object(arguments: str) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    reply = chat.read_reply(orjson.dumps({"choices": [{"message": {"tool_calls": [call]}}]}))
    (part,) = reply.parts
    assert isinstance(part, ToolUse)
    assert orjson.loads(part.arguments) == {"_raw": arguments}


def test_unsigned_thinking_is_no_block() -> None:
    reply = Reply(id="1", model="m", parts=[Thinking("a"), Text("b")])
    message = orjson.loads(chat.write_reply(reply))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "b", "refusal": None, "reasoning_content": "a"}


def test_machines() -> None:
    assert chat.stream_reader().finish()
    assert not chat.stream_writer(include_usage=True).finished
