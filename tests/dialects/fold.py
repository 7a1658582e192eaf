"""Streams put together again, as a client of each API does it: what must equal the answer that was not streamed."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from sidecar.wire import sse

Folded = dict[str, Any]


def chat(data: bytes) -> Folded:
    """A chat stream as one completion, by the rules of OpenAI's SDKs."""
    found = sse.events(data)
    assert found[-1].data == b"[DONE]"
    message: Folded = {"role": None, "content": ""}
    folded: Folded = {"message": message}
    calls: dict[int, Folded] = {}
    for event in found[:-1]:
        chunk = orjson.loads(event.data)
        folded |= {name: chunk[name] for name in ("id", "model", "created")}
        if chunk.get("usage"):
            folded["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            folded["finish_reason"] = choice["finish_reason"]
            _chat_delta(choice["delta"], message, calls)
    if calls:
        message["tool_calls"] = list(calls.values())
    return folded


def _chat_delta(delta: Folded, message: Folded, calls: dict[int, Folded]) -> None:
    for name, value in delta.items():
        if name == "role":
            message["role"] = value
        elif name == "thinking_blocks":
            blocks = message.setdefault(name, [])
            for block in value:
                assert block.pop("index") == len(blocks)
                blocks.append(block)
        elif name == "tool_calls":
            for call in value:
                known = calls.setdefault(call["index"], {"id": call.get("id"), "name": "", "arguments": ""})
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"]["arguments"]
        else:
            message[name] = message.get(name, "") + value


def completion(data: bytes) -> Folded:
    """A whole completion in the form that `chat` answers."""
    value = orjson.loads(data)
    choice = value["choices"][0]
    message = {name: each for name, each in choice["message"].items() if each is not None}
    message.setdefault("content", "")
    if "tool_calls" in message:
        message["tool_calls"] = [{"id": call["id"], **call["function"]} for call in message["tool_calls"]]
    folded = {name: value[name] for name in ("id", "model", "created", "usage") if name in value}
    return {"message": message, "finish_reason": choice["finish_reason"], **folded}


def messages(data: bytes) -> Folded:
    """A Messages stream as one message, by the rules of Anthropic's SDKs, which are also checked: blocks in order, one
    open at a time, every event named, the end at the end."""
    message: Folded = {}
    blocks: list[Folded] = []
    opened: int | None = None
    found = sse.events(data)
    assert found[-1].name == "message_stop"
    for name, event_data in found:
        event = orjson.loads(event_data)
        assert event["type"] == name
        if name == "message_start":
            message = event["message"]
        elif name == "content_block_start":
            assert opened is None
            assert event["index"] == len(blocks)
            opened = event["index"]
            blocks.append({**event["content_block"], "json": ""})
        elif name == "content_block_delta":
            assert event["index"] == opened
            _block_delta(blocks[-1], event["delta"])
        elif name == "content_block_stop":
            assert event["index"] == opened
            opened = None
        elif name == "message_delta":
            assert opened is None
            message |= {**event["delta"], "usage": {**message["usage"], **event["usage"]}}
    message["content"] = [_block(block) for block in blocks]
    return message


def _block_delta(block: Folded, delta: Folded) -> None:
    kind = delta["type"]
    if kind == "text_delta":
        block["text"] += delta["text"]
    elif kind == "thinking_delta":
        block["thinking"] += delta["thinking"]
    elif kind == "signature_delta":
        block["signature"] = delta["signature"]
    else:
        assert kind == "input_json_delta"
        block["json"] += delta["partial_json"]


def _block(block: Folded) -> Folded:
    text = block.pop("json")
    if "input" in block:
        block["input"] = spelled(text or "{}")
    return block


def spelled(text: str) -> str:
    """JSON with its numbers as they were written, white space apart."""
    return msgspec.json.format(text, indent=-1)


def message(data: bytes) -> Folded:
    """A whole message in the form that `messages` answers."""
    value: Folded = orjson.loads(data)
    raws = msgspec.json.decode(data, type=_Raws)
    for block, raw in zip(value["content"], raws.content, strict=True):
        if "input" in block:
            block["input"] = spelled(bytes(raw.input).decode())
    return value


class _RawBlock(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw(b"")


class _Raws(msgspec.Struct):
    content: list[_RawBlock]
