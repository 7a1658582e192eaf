"""A folded stream equals the answer that was not streamed, for every answer, whatever the cuts of its stream.

The provider's side, both forms of one answer, is written here by hand: reader and writer cannot agree on a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, strategies as st

from sidecar.dialects import CONVERSATIONS
from sidecar.wire import body, sse
from tests.dialects import fold
from tests.dialects.patience import examples

Json = dict[str, Any]

_names = st.text("abcXYZ_-09", min_size=1, max_size=12)
_texts = st.text(st.characters(codec="utf-8"), max_size=20)
_filled = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _texts
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner), max_leaves=6
)
_BIG = '"big":123456789012345678901234567890,"spelled":1.50e2'  # which only text keeps
_cuts = st.lists(st.integers(1, 40), max_size=6)


@st.composite
def _arguments(draw: st.DrawFn) -> str:
    """JSON text of an object, at times with numbers that no float holds."""
    text = msgspec.json.encode(draw(st.dictionaries(_filled, _values, max_size=3))).decode()
    if draw(st.booleans()):
        text = "{" + ",".join(filter(None, [_BIG, text[1:-1]])) + "}"
    return text


def _pieces(text: str, sizes: list[int]) -> Iterator[str]:
    """A text as models stream it: in pieces, at times empty."""
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size
    yield text[at:]


def _through(source: str, target: str, stream: bytes, sizes: list[int]) -> bytes:
    """A stream, cut anywhere, translated."""
    events, reader = sse.Reader(), CONVERSATIONS[source].stream_reader()
    writer = CONVERSATIONS[target].stream_writer(include_usage=True)
    out, at = b"", 0
    for size in [*(size * 11 for size in sizes), len(stream)]:
        out += writer.write(reader.feed(events.feed(stream[at : at + size])))
        at += size
    return out + writer.write(reader.finish())


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.dialects.chat.wall", lambda: 1.0)
    monkeypatch.setattr("sidecar.dialects.chat_stream.wall", lambda: 1.0)


# -- Messages to Chat

_thinking = st.fixed_dictionaries({"type": st.just("thinking"), "thinking": _texts, "signature": _texts})
_redacted = st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": _filled})
_text = st.fixed_dictionaries({"type": st.just("text"), "text": _texts})
_tool = st.fixed_dictionaries({"type": st.just("tool_use"), "id": _names, "name": _names, "input": _arguments()})
_server = st.just({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": "{}"})
_blocks = st.lists(_thinking | _redacted | _text | _tool | _server, max_size=6)
_reasons = st.sampled_from(
    ["end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal", "some_new_reason"]
)


def _raw(block: Json) -> Json:
    return {**block, "input": msgspec.Raw(block["input"].encode())} if "input" in block else block


def _message_stream(message: Json, blocks: list[Json], sizes: list[int]) -> bytes:
    counts = message["usage"]
    start = {**message, "content": [], "stop_reason": None, "usage": {**counts, "output_tokens": 1}}
    events: list[Json] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        events += _block_events(index, block, sizes)
    delta = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": counts["output_tokens"]}})
    events.append({"type": "message_stop"})
    return b"".join(sse.write(msgspec.json.encode(event), event["type"]) for event in events)


def _block_events(index: int, block: Json, sizes: list[int]) -> Iterator[Json]:
    kind = block["type"]
    empty: Json = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}.get(kind, {})
    if "input" in block:
        empty = {"input": {}}
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}
    member = "partial_json" if "input" in block else kind
    if member != "redacted_thinking":
        name = "input_json_delta" if member == "partial_json" else f"{member}_delta"
        for piece in _pieces(block["input" if member == "partial_json" else member], sizes):
            yield {"type": "content_block_delta", "index": index, "delta": {"type": name, member: piece}}
    if kind == "thinking" and block["signature"]:
        signed = {"type": "signature_delta", "signature": block["signature"]}
        yield {"type": "content_block_delta", "index": index, "delta": signed}
    yield {"type": "content_block_stop", "index": index}


@examples(60)
@given(blocks=_blocks, reason=_reasons, tokens=st.lists(st.integers(0, 9999), min_size=4, max_size=4), sizes=_cuts)
def test_messages_to_chat(blocks: list[Json], reason: str, tokens: list[int], sizes: list[int]) -> None:
    details = {"type": "refusal", "explanation": "no"} if reason == "refusal" else None
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [_raw(block) for block in blocks],
        "stop_reason": reason,
        "stop_sequence": "END" if reason == "stop_sequence" else None,
        "stop_details": details,
        "usage": dict(zip(names, tokens, strict=True)),
    }
    reply = CONVERSATIONS["messages"].read_reply(msgspec.json.encode(message))
    whole = CONVERSATIONS["chat"].write_reply(reply)
    stream = _through("messages", "chat", _message_stream(message, blocks, sizes), sizes)
    assert fold.chat(stream) == fold.completion(whole)


# -- Chat to Messages

_call = st.fixed_dictionaries({"id": _names, "name": _names, "arguments": _arguments()})
_answers = st.fixed_dictionaries(
    {
        "reasoning_content": _texts,
        "thinking_blocks": st.lists(st.just("signed") | _filled, max_size=2, unique=True),
        "content": st.none() | _texts,
        "refusal": st.none() | _texts,
        "tool_calls": st.lists(_call, max_size=3),
    }
)
_finishes = st.sampled_from(["stop", "length", "tool_calls", "content_filter", "eos", "", None, "some_new_reason"])


def _chat_message(answer: Json) -> Json:
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in answer["tool_calls"]
    ]
    blocks = [
        {"type": "thinking", "thinking": answer["reasoning_content"], "signature": "signed"}
        if block == "signed"
        else {"type": "redacted_thinking", "data": block}
        for block in sorted(answer["thinking_blocks"], key=lambda block: block != "signed")
    ]
    return {**answer, "role": "assistant", "thinking_blocks": blocks, "tool_calls": calls or None}


def _chat_stream(message: Json, finish: str | None, usage: Json, sizes: list[int]) -> bytes:
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += ({"reasoning_content": piece} for piece in _pieces(message["reasoning_content"], sizes))
    deltas += ({"thinking_blocks": [block]} for block in message["thinking_blocks"])
    for name in ("content", "refusal"):
        deltas += ({name: piece} for piece in _pieces(message[name] or "", sizes))
    for index, call in enumerate(message["tool_calls"] or ()):
        function = call["function"]
        deltas.append(
            {"tool_calls": [{"index": index, **call, "function": {"name": function["name"], "arguments": ""}}]}
        )
        for piece in _pieces(function["arguments"], sizes):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    top: Json = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt"}
    chunks = [{**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**top, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({**top, "choices": [], "usage": usage})
    return b"".join(sse.write(msgspec.json.encode(chunk)) for chunk in chunks) + b"data: [DONE]\n\n"


@examples(60)
@given(answer=_answers, finish=_finishes, tokens=st.tuples(*[st.integers(0, 999)] * 2), sizes=_cuts)
def test_chat_to_messages(answer: Json, finish: str | None, tokens: tuple[int, int], sizes: list[int]) -> None:
    message = _chat_message(answer)
    usage = {
        "prompt_tokens": tokens[0] + 5,
        "completion_tokens": tokens[1],
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    choice = {"index": 0, "message": message, "finish_reason": finish}
    completion = {"id": "chatcmpl-1", "model": "gpt", "choices": [choice], "usage": usage}
    reply = CONVERSATIONS["chat"].read_reply(msgspec.json.encode(completion))
    whole = CONVERSATIONS["messages"].write_reply(reply)
    stream = _through("chat", "messages", _chat_stream(message, finish, usage, sizes), sizes)
    assert fold.messages(stream) == fold.message(whole)


# -- and back again

_signed = st.fixed_dictionaries({"type": st.just("thinking"), "thinking": _texts, "signature": _filled})


@examples(60)
@given(thoughts=st.lists(_signed | _redacted, max_size=4), tools=st.lists(_tool, min_size=1, max_size=3), sizes=_cuts)
def test_thinking_and_calls_come_back_as_they_went(thoughts: list[Json], tools: list[Json], sizes: list[int]) -> None:
    """Through a chat client that sends back what it was given, whole or folded from a stream."""
    blocks = [*thoughts, *({**tool, "id": f"toolu_{index}"} for index, tool in enumerate(tools))]
    usage = {"input_tokens": 1, "output_tokens": 1}
    end = {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None}
    message: Json = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "usage": usage, **end}
    message["content"] = [_raw(block) for block in blocks]
    whole = CONVERSATIONS["chat"].write_reply(CONVERSATIONS["messages"].read_reply(msgspec.json.encode(message)))
    folded = fold.chat(_through("messages", "chat", _message_stream(message, blocks, sizes), sizes))["message"]
    calls = [{"id": call.pop("id"), "type": "function", "function": call} for call in folded["tool_calls"]]
    for answer in (orjson.loads(whole)["choices"][0]["message"], {**folded, "tool_calls": calls}):
        request = {"model": "m", "messages": [{"role": "user", "content": "a"}, answer]}
        ask = CONVERSATIONS["chat"].read_request(body.envelope(msgspec.json.encode(request)))
        written = CONVERSATIONS["messages"].write_request(ask, "claude-opus-4-7").members["messages"]
        back = msgspec.json.decode(written, type=list[_Sent])[1].content
        assert [bytes(raw) for raw in back] == [_as_sent(block) for block in blocks]


def _as_sent(block: Json) -> bytes:
    """A block's bytes, its members in the API's order."""
    order = ("type", "id", "name", "input", "thinking", "signature", "data")
    return msgspec.json.encode({name: _raw(block)[name] for name in order if name in block})


class _Sent(msgspec.Struct):
    content: list[msgspec.Raw]
