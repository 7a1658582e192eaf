"""Readers and meters under anything: they raise what they say they raise and nothing else, and a meter never raises."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, strategies as st

from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Fault, Finish
from sidecar.errors import BodyInvalid, ErrorInAnswer, Unsupported, UpstreamProtocol
from sidecar.wire import body, sse
from tests.dialects.golden import OTHER, TRANSCRIPTS, cases
from tests.dialects.patience import examples

DEEP = 50_000
conversations = pytest.mark.parametrize("name", CONVERSATIONS)
dialects = pytest.mark.parametrize("name", DIALECTS)

# The words that readers look for, so that chance finds its way into them.
_WORDS = """
model messages role content type text tool_calls function name arguments id index choices message delta usage
finish_reason error code input tool_use_id content_block tools input_schema parameters stop thinking signature
system max_tokens stream data source url image_url file tool_choice response_format prompt_tokens
completion_tokens input_tokens details prompt_tokens_details message_start content_block_start
content_block_delta content_block_stop message_delta message_stop user assistant tool image document tool_use
tool_result redacted_thinking reasoning_details thinking_blocks function_call metadata object stop_reason
"""
_words = st.sampled_from(_WORDS.split())
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _words
    | st.text(max_size=5)
)
_json: st.SearchStrategy[Any] = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_words | st.text(max_size=3), inner, max_size=6),
    max_leaves=25,
)
_objects = st.dictionaries(_words, _json, max_size=8)


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def _mutants(draw: st.DrawFn, kind: str, name: str) -> bytes:
    """A golden case with a few of its values replaced."""
    path = draw(st.sampled_from([path for path in cases(kind) if path.parent.name == name]))
    value = body.document(path.read_bytes().replace(b"1e400", b"1"))
    for _ in range(draw(st.integers(1, 3))):
        at = value
        for _ in range(draw(st.integers(0, 4))):
            inner = [
                each for each in (at.values() if isinstance(at, dict) else at) if isinstance(each, dict | list) and each
            ]
            if not inner:
                break
            at = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
        at[key] = draw(_json)
    return _encode(value)


@conversations
@examples(80)
@given(data=st.data())
def test_requests(name: str, data: st.DataObject) -> None:
    members = {"model": "m", "messages": [], "max_tokens": 1, **data.draw(_objects)}
    _read_request(name, data.draw(_mutants("request", name) | st.just(_encode(members))))


def _read_request(name: str, data: bytes) -> None:
    with suppress(BodyInvalid, Unsupported):
        members = body.envelope(data)
        DIALECTS[name].read_view(members)
        ask = CONVERSATIONS[name].read_request(members)
        for model in ("claude-sonnet-4-5", "claude-opus-4-7", "gpt-5", "deepseek-chat", "mistral-small"):
            with suppress(BodyInvalid, Unsupported):
                body.rebuild(CONVERSATIONS[OTHER[name]].write_request(ask, model).members)


@dialects
@examples(40)
@given(members=_objects)
def test_views(name: str, members: dict[str, Any]) -> None:
    with suppress(BodyInvalid):
        envelope = body.envelope(_encode(members))
        DIALECTS[name].local(envelope)
        DIALECTS[name].read_view(envelope)
        DIALECTS[name].ask_usage(envelope)


@conversations
@examples(80)
@given(data=st.data())
def test_replies(name: str, data: st.DataObject) -> None:
    answer = data.draw(_mutants("reply", name) | _json.map(_encode) | st.binary(max_size=40))
    _meter(name, answer, stream=False)
    with suppress(UpstreamProtocol, ErrorInAnswer):
        CONVERSATIONS[OTHER[name]].write_reply(CONVERSATIONS[name].read_reply(answer))


@st.composite
def _streams(draw: st.DrawFn, name: str) -> bytes:
    """A transcript with some of its events replaced, by others or by anything."""
    path = draw(st.sampled_from([path for path in sorted(TRANSCRIPTS.glob(f"{name}_*.sse")) if "." not in path.stem]))
    events = sse.events(path.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        anything = (
            _objects.map(_encode) | _json.map(_encode) | st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b""))
        )
        at = draw(st.integers(0, len(events) - 1))
        value = draw(anything | st.sampled_from([event.data for event in events]))
        events[at] = sse.Event(events[at].name, value.replace(b"\r", b""))
    return b"".join(sse.write(event.data, event.name) for event in events)


@conversations
@examples(80)
@given(data=st.data())
def test_streams(name: str, data: st.DataObject) -> None:
    stream = data.draw(_streams(name))
    _meter(name, stream, stream=True)
    reader = CONVERSATIONS[name].stream_reader()
    deltas = reader.feed(sse.events(stream)) + reader.finish()
    assert isinstance(deltas[-1], Finish | Fault)
    assert sum(isinstance(delta, Finish | Fault) for delta in deltas) == 1
    writer = CONVERSATIONS[OTHER[name]].stream_writer(include_usage=True)
    assert writer.write(deltas)
    assert writer.finished


def _meter(name: str, data: bytes, *, stream: bool) -> None:
    meter = DIALECTS[name].meter(stream=stream, hide_usage=False)
    assert meter.feed(data) == data
    hiding = DIALECTS[name].meter(stream=stream, hide_usage=True)
    assert len(hiding.feed(data)) <= len(data)
    for each in (meter, hiding):
        assert each.usage is None or each.usage.input >= 0
        assert each.fault is None or each.fault.message
        assert each.ended in (True, False)


@dialects
@examples(60)
@given(status=st.integers(400, 599), data=st.binary(max_size=60) | _json.map(_encode))
def test_errors(name: str, status: int, data: bytes) -> None:
    fault = DIALECTS[name].read_error(status, data)
    assert fault.status == status
    assert fault.message
    for dialect in CONVERSATIONS.values():
        assert dialect.write_error(fault)
        assert dialect.write_stream_error(fault)


@conversations
@pytest.mark.parametrize(
    "opening", [b"[", b'{"a":', b'{"error":', b'{"usage":{"a":', b'{"choices":[{"message":{"content":']
)
def test_deep(name: str, opening: bytes) -> None:
    """Nesting that exhausts the stack of a decoder is bad input like any other."""
    data = opening * DEEP
    for spelled in (data, data + b"1" + data.translate(bytes.maketrans(b"[{", b"]}"), b'":aeo rusgchimnt')[::-1]):
        _meter(name, spelled, stream=False)
        _meter(name, sse.write(spelled), stream=True)
        assert DIALECTS[name].read_error(500, spelled).message
        with pytest.raises(UpstreamProtocol):
            CONVERSATIONS[name].read_reply(spelled)
        reader = CONVERSATIONS[name].stream_reader()
        deltas = reader.feed([sse.Event("", spelled)]) + reader.finish()
        assert isinstance(deltas[-1], Fault)
        with pytest.raises(BodyInvalid):
            body.envelope(spelled)


def test_deep_arguments() -> None:
    """JSON inside a string, which the envelope's bound of depth does not see."""
    deep = '{"a":' * DEEP + "1" + "}" * DEEP
    calls = [{"id": "1", "function": {"name": "f", "arguments": deep}}]
    message = {"role": "assistant", "tool_calls": calls}
    members = body.envelope(_encode({"model": "m", "messages": [message]}))
    with pytest.raises(BodyInvalid) as caught:
        CONVERSATIONS["chat"].read_request(members)
    assert caught.value.param == "messages[0].tool_calls[0].function.arguments"
    reply = CONVERSATIONS["chat"].read_reply(_encode({"choices": [{"message": message}]}))
    assert CONVERSATIONS["messages"].write_reply(reply)
