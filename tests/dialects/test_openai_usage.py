"""Tokens as the compatible providers count them, and the meters that find them."""

from __future__ import annotations

import orjson
import pytest

from sidecar.dialects.neutral import Fault
from sidecar.dialects.openai_usage import ChoicesMeter, StreamMeter, UnaryMeter, meter, read_usage, write_usage
from sidecar.types import Usage
from sidecar.wire import sse

USAGE = b'{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12}'
COUNTED = Usage(input=10, output=2)
BIG = 200 * 1024


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (USAGE, COUNTED),
        (
            b'{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":4,'
            b'"cache_write_tokens":3},"completion_tokens_details":{"reasoning_tokens":2}}',
            Usage(input=10, output=5, cached=4, cache_write=3, reasoning=2),
        ),
        (  # xAI: reasoning is beside the completion
            b'{"prompt_tokens":10,"completion_tokens":5,"total_tokens":35,"completion_tokens_details":{"reasoning_tokens":20}}',
            Usage(input=10, output=25, reasoning=20),
        ),
        (  # xAI: cached beside the prompt
            b'{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":30}}',
            Usage(input=40, output=5, cached=30),
        ),
        (
            b'{"prompt_tokens":10,"completion_tokens":5,"prompt_cache_hit_tokens":4}',
            Usage(input=10, output=5, cached=4),
        ),
        (b'{"prompt_tokens":10,"completion_tokens":5,"cached_tokens":4}', Usage(input=10, output=5, cached=4)),
        (b'{"prompt_tokens":10,"completion_tokens":5,"num_cached_tokens":4}', Usage(input=10, output=5, cached=4)),
        (b'{"prompt_tokens":10,"cache_creation_input_tokens":4}', Usage(input=10, cache_write=4)),
        (b'{"prompt_tokens":10.0,"completion_tokens":2.0}', COUNTED),
        (b'{"prompt_tokens":8,"total_tokens":8}', Usage(input=8)),  # embeddings
        (b'{"prompt_tokens":1e300,"completion_tokens":-5}', Usage()),
        (b'{"prompt_tokens":1e999}', None),
        (b'{"prompt_tokens":"many"}', None),
        (b"null", None),
        (b"", None),
        (b"[]", None),
    ],
)
def test_read_usage(data: bytes, usage: Usage | None) -> None:
    assert read_usage(data) == usage


def test_write_usage() -> None:
    written = write_usage(Usage(input=10, output=5, cached=4, cache_write=3, reasoning=2))
    assert orjson.loads(orjson.dumps(written)) == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


# -- streams

CONTENT = b'data: {"choices":[{"delta":{"content":"a \\"usage\\": {1} [DONE]"},"finish_reason":null}],"usage":null}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
LAST = b'data: {"choices":[],"usage":%b}\n\n' % USAGE
DONE = b"data: [DONE]\n\n"


def test_usage_of_a_stream() -> None:
    watching = StreamMeter(hide_usage=False)
    for block in (CONTENT, FINISH, LAST, DONE):
        assert watching.feed(block) is block
    assert watching.usage == COUNTED


def test_usage_of_groq_and_on_the_last_chunk() -> None:
    watching = StreamMeter(hide_usage=True)
    block = (
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"r","usage":%b}}\n\n' % USAGE
    )
    assert watching.feed(block) == block  # there is more in it than usage
    assert watching.usage == COUNTED


@pytest.mark.parametrize(
    ("block", "left"),
    [
        (LAST, b""),
        (CONTENT + LAST + DONE, CONTENT + DONE),
        (b": ping\n" + LAST + DONE, b": ping\n" + DONE),
        (LAST.replace(b"\n", b"\r\n") + DONE, DONE),
        (LAST.replace(b"\n", b"\r") + DONE, DONE),
        (b"id: 1\r\nevent: chunk\r\n" + LAST.replace(b"\n", b"\r\n") + DONE, DONE),
        (CONTENT, CONTENT),
    ],
)
def test_usage_that_was_not_asked_for_is_hidden(block: bytes, left: bytes) -> None:
    assert StreamMeter(hide_usage=True).feed(block) == left


@pytest.mark.parametrize(
    ("blocks", "ended"),
    [
        ([CONTENT], False),
        ([CONTENT, DONE], True),
        ([CONTENT, DONE.replace(b"\n", b"\r\n")], True),
        ([CONTENT + DONE], True),
        ([FINISH, b": late\n\n"], True),
        ([CONTENT, LAST], True),
        ([b'data: {"choices":[{"delta":{},"finish_reason":""}]}\n\n'], False),
        ([], False),
    ],
)
def test_ended(blocks: list[bytes], ended: bool) -> None:
    watching = StreamMeter(hide_usage=False)
    for block in blocks:
        watching.feed(block)
    assert watching.ended is ended


ROLE = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}'


def _delta(delta: bytes) -> bytes:
    return b'{"choices":[{"index":0,"delta":%b,"finish_reason":null}]}' % delta


@pytest.mark.parametrize(
    "data",
    [
        _delta(b'{"role":"assistant","content":"a"}'),
        _delta(b'{"content":" "}'),
        _delta(rb'{"content":"\ud83d"}'),  # half of a pair
        _delta(b'{"content":[{"type":"thinking","thinking":[{"type":"text","text":"a"}]}]}'),  # Mistral
        _delta(b'{"refusal":"no"}'),
        _delta(b'{"role":"assistant","content":null,"reasoning":"a"}'),
        _delta(b'{"content":"","reasoning_content":"a"}'),
        _delta(b'{"content":"","reasoning_details":[{"type":"reasoning.encrypted","data":"gAAA"}]}'),
        _delta(b'{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}'),
        _delta(b'{"function_call":{"name":"f","arguments":""}}'),
        _delta(b'{"content":null,"audio":{"id":"a","data":"AAAA"}}'),
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b'{"choices":[{"index":0,"finish_reason":"content_filter"}]}',
        b'{"choices":[{"index":0,"text":"a"}]}',
        b'{"choices":[null,{"index":1,"delta":{"content":"a"}}]}',
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"a"}}]}',
    ],
)
def test_a_stream_starts_with_content(data: bytes) -> None:
    apart, together = (StreamMeter(hide_usage=False) for _ in range(2))
    for block in (b": ping\n\n", sse.write(ROLE)):
        apart.feed(block)
    assert not apart.started
    apart.feed(sse.write(data))
    together.feed(b": ping\n\n" + sse.write(ROLE) + sse.write(data) + DONE)
    assert apart.started
    assert together.started
    assert apart.fault is None


@pytest.mark.parametrize(
    "data",
    [
        ROLE,
        _delta(b'{"role":"assistant","content":null,"refusal":null,"tool_calls":[],"reasoning":"","channel":"final"}'),
        _delta(b'{"reasoning_details":[{"type":"reasoning.text","text":"","format":"unknown","index":0}]}'),
        _delta(b'{"content":[{"type":"text","text":""}]}'),
        _delta(b"null"),
        _delta(b'"a"'),
        b'{"choices":[],"prompt_filter_results":[{"prompt_index":0}]}',  # Azure
        b'{"choices":[{"index":0,"finish_reason":null,"content_filter_results":{"hate":{"severity":"safe"}}}]}',
        b'{"choices":[{"index":0,"text":"","finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{"content":""},"finish_reason":""}]}',
        b'{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}',
        b'{"choices":[{"index":0,"delta":{"content":"a"},"error":{"message":"no"}}]}',
        b'{"error":{"message":"no"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}',
        b'{"object":"error","message":"no"}',
        b'{"choices":[],"usage":%b}' % USAGE,
        b'{"choices":null}',
        b'{"choices":{}}',
        b"[]",
        b"{",
        b"[" * 100_000,
        _delta(b'{"content":%b%b}' % (b"[" * 900, b"]" * 900)),
        b"[DONE]",
    ],
)
def test_what_comes_before_content_is_no_start(data: bytes) -> None:
    watching = meter(stream=True, hide_usage=True, choices=2)
    watching.feed(sse.write(data))
    assert not watching.started


def _choice(index: int, reason: str | None = None, content: str = "a") -> bytes:
    choice = {"index": index, "delta": {} if reason else {"content": content}, "finish_reason": reason}
    return b"data: %b\n\n" % orjson.dumps({"choices": [choice]})


BOTH = b'data: {"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason": "length"}]}\n\n'
BOTH_UNNUMBERED = b'data: {"choices":[{"finish_reason":"stop"},{"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    ("blocks", "ended"),
    [
        ([_choice(0), _choice(1), _choice(0, "stop")], False),
        ([_choice(0), _choice(0, "stop")], False),  # the other has not even begun
        ([_choice(0), _choice(0, "stop"), _choice(0, "stop")], False),  # told twice
        ([_choice(1), _choice(1, "stop"), _choice(0, content='"finish_reason":"stop"')], False),
        ([_choice(0, "stop"), *[_choice(1)] * 20, _choice(1, "length")], True),
        ([_choice(0, "stop") + _choice(1, "stop")], True),
        ([_choice(0, "stop").replace(b"\n", b"\r\n"), _choice(1, "\\ud83d")], True),
        ([BOTH], True),
        ([BOTH_UNNUMBERED], True),
        ([_choice(0, "stop"), LAST], True),
        ([_choice(0, "stop"), DONE], True),
        ([_choice(0, "stop"), b'data: {"choices":[{"index":{},"finish_reason":"stop"}]}\n\n'], False),
        ([], False),
    ],
)
def test_several_choices_have_ended_when_each_has(blocks: list[bytes], ended: bool) -> None:
    watching = meter(stream=True, hide_usage=False, choices=2)
    for block in blocks:
        assert watching.feed(block) is block
    assert watching.ended is ended
    assert watching.closed is (DONE in blocks)


def test_usage_of_several_choices_is_hidden_too() -> None:
    watching = meter(stream=True, hide_usage=True, choices=2)
    assert watching.feed(BOTH + LAST + DONE) == BOTH + DONE
    assert watching.usage == COUNTED


def test_fault_of_a_stream() -> None:
    watching = StreamMeter(hide_usage=False)
    watching.feed(CONTENT + b'event: error\ndata: {"error":{"message":"no"}}\n\n')
    assert watching.fault == Fault(status=502, message="no", code="provider_error_in_answer")


# -- whole answers


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"message":{"tool_calls":[{"function":{"arguments":{"usage":{"a":9}}}}]}}],"usage": %b }' % USAGE,
        b'{"usage":%b,"choices":[]}' % USAGE,
        b'{"data":[{"embedding":[%b]}],"usage":%b}' % (b"0.1," * BIG, USAGE),
        b'{"usage":%b,"data":[{"embedding":[%b]}]}' % (USAGE, b"0.1," * BIG),
        b'{"choices":[{"text":"} \\" {"}],"usage":{"a":{"}":"{"},%b}' % USAGE[1:],
    ],
)
@pytest.mark.parametrize("size", [1 << 30, 16 * 1024])
def test_usage_of_a_body(data: bytes, size: int) -> None:
    watching = UnaryMeter()
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        assert watching.feed(piece) is piece
    assert watching.usage == COUNTED
    assert watching.ended
    assert watching.fault is None


def test_body_without_usage() -> None:
    watching = UnaryMeter()
    assert not watching.started
    watching.feed(b'{"usage":{"prompt_tokens":')
    assert watching.started
    assert watching.usage is None


def test_fault_of_a_body() -> None:
    watching = UnaryMeter()
    watching.feed(b'{"error":{"message":"no"}}')
    assert watching.fault == Fault(status=502, message="no", code="provider_error_in_answer")


def test_meter() -> None:
    assert type(meter(stream=True, hide_usage=False)) is StreamMeter
    assert type(meter(stream=True, hide_usage=False, choices=1)) is StreamMeter  # one choice costs what it did
    assert type(meter(stream=True, hide_usage=False, choices=2)) is ChoicesMeter
    assert isinstance(meter(stream=False, hide_usage=False), UnaryMeter)
