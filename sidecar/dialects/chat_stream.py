"""Chat Completions streams as state machines: chunks to neutral deltas, and deltas to chunks."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sidecar.clock import wall
from sidecar.dialects.neutral import (
    Begin,
    Delta,
    Fault,
    Finish,
    Redacted,
    RedactedDelta,
    SignatureDelta,
    Stop,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolBegin,
    ToolDelta,
)
from sidecar.dialects.openai import WireUsage, fault_in, write_stream_error, write_usage
from sidecar.types import Usage
from sidecar.wire import body, sse

_STOPS: Final[dict[str, Stop]] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "length": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def stop_of(reason: str | None, *, calls: bool) -> Stop:
    """Neutral word for a finish_reason. Some providers say "stop", or nothing, when tools are called."""
    if calls and reason in (None, "", "stop"):
        return "tool_calls"
    return _STOPS.get(reason or "stop", "stop")


def finish_reason(stop: Stop) -> str:
    return stop


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | msgspec.Raw | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking_blocks: list[msgspec.Raw] | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class StreamReader:
    """Chunks to deltas. Tool calls are told apart by `index`; a call begins when its name is known."""

    def __init__(self) -> None:
        self._begun = False
        self._ended = False
        self._usage: Usage | None = None
        self._reason: str | None = None
        self._refusal = ""
        self._calls: dict[int, tuple[int, str | None]] = {}  # their index -> ours, id
        self._early: dict[int, tuple[str | None, list[str]]] = {}  # fragments that came before a name

    def feed(self, events: list[sse.Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if self._ended:
                break
            self._event(event.data, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Without [DONE]: fine behind a finish_reason (some leave it out), else a cut."""
        if self._ended:
            return []
        if self._reason is not None:
            return [self._finish()]
        self._ended = True
        return [Fault(status=502, type="upstream_error", code="provider_cut", message="the provider's stream was cut")]

    def _event(self, data: bytes, deltas: list[Delta]) -> None:
        if data.startswith(b"[DONE]"):
            if self._reason is None and not self._begun:
                return
            deltas.append(self._finish())
            return
        if (message := fault_in(data)) is not None:
            self._ended = True
            deltas.append(Fault(status=502, type="upstream_error", code="provider_error_in_answer", message=message))
            return
        try:
            chunk = _chunk.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._ended = True
            text = "the provider's stream holds an event that is not a chunk"
            deltas.append(Fault(status=502, type="upstream_error", code="provider_protocol_error", message=text))
            return
        if not self._begun:
            self._begun = True
            deltas.append(Begin(chunk.id or "", chunk.model or ""))
        if chunk.usage is not None:
            self._usage = chunk.usage.neutral()
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._choice(choice, deltas)

    def _choice(self, choice: _Choice, deltas: list[Delta]) -> None:
        delta = choice.delta
        if delta is not None:
            if reasoning := delta.reasoning_content or delta.reasoning:
                deltas.append(ThinkingDelta(reasoning))
            if delta.content:
                deltas.append(TextDelta(delta.content))
            if delta.refusal:
                self._refusal += delta.refusal
            for position, call in enumerate(delta.tool_calls or ()):
                self._call(call, position, deltas)
        if choice.finish_reason is not None:
            self._reason = choice.finish_reason

    def _call(self, call: _Call, position: int, deltas: list[Delta]) -> None:
        theirs = call.index if call.index is not None else position
        name = call.function.name if call.function is not None else None
        fragment = _fragment(call.function)
        known = self._calls.get(theirs)
        if known is not None and call.id and known[1] and call.id != known[1] and name:
            known = None  # the same index under another id is another call (seen at llama.cpp)
        if known is None:
            early_id, early = self._early.pop(theirs, (None, []))
            ident = call.id or early_id
            if not name:
                self._early[theirs] = (ident, [*early, fragment])
                return
            ours = len({index for index, _ in self._calls.values()}) if theirs not in self._calls else self._next()
            self._calls[theirs] = known = (ours, ident)
            deltas.append(ToolBegin(ours, ident or f"call_{ours}", name))
            fragment = "".join([*early, fragment])
        if fragment:
            deltas.append(ToolDelta(known[0], fragment))

    def _next(self) -> int:
        return max(index for index, _ in self._calls.values()) + 1

    def _finish(self) -> Finish:
        self._ended = True
        stop = stop_of(self._reason, calls=bool(self._calls))
        return Finish(stop, self._usage, refusal=self._refusal or None)


def _fragment(function: _Function | None) -> str:
    """Arguments are JSON text in pieces; Mistral may send the object itself."""
    if function is None or function.arguments is None:
        return ""
    return function.arguments if isinstance(function.arguments, str) else bytes(function.arguments).decode()


class StreamWriter:
    """Deltas to chunks: a role first, then content, then the finish, usage if asked for, and [DONE]."""

    def __init__(self, *, include_usage: bool) -> None:
        self.finished = False
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}
        self._thinking: list[str] = []
        self._usage: Usage | None = None

    def write(self, deltas: list[Delta]) -> bytes:
        return b"".join([self._write(delta) for delta in deltas if not self.finished])

    def _write(self, delta: Delta) -> bytes:
        if isinstance(delta, TextDelta):
            return self._chunk({"content": delta.text})
        if isinstance(delta, ToolDelta):
            call = {"index": delta.index, "function": {"arguments": delta.fragment}}
            return self._chunk({"tool_calls": [call]})
        if isinstance(delta, ToolBegin):
            function = {"name": delta.name, "arguments": ""}
            call = {"index": delta.index, "id": delta.id, "type": "function", "function": function}
            return self._chunk({"tool_calls": [call]})
        if isinstance(delta, ThinkingDelta):
            self._thinking.append(delta.text)
            return self._chunk({"reasoning_content": delta.text})
        if isinstance(delta, SignatureDelta):
            block = Thinking("".join(self._thinking), delta.signature)
            self._thinking.clear()
            return self._chunk({"thinking_blocks": [_block(block)]}) if delta.signature else b""
        if isinstance(delta, RedactedDelta):
            return self._chunk({"thinking_blocks": [_block(Redacted(delta.data))]})
        if isinstance(delta, Begin):
            return self._begin(delta)
        if isinstance(delta, Finish):
            return self._finish(delta)
        self.finished = True
        return write_stream_error(delta)

    def _begin(self, begin: Begin) -> bytes:
        ident = begin.id if begin.id.startswith("chatcmpl-") else f"chatcmpl-{begin.id}"
        self._head = {
            "id": ident,
            "object": "chat.completion.chunk",
            "created": int(wall()),
            "model": begin.model,
        }
        self._usage = begin.usage
        return self._chunk({"role": "assistant", "content": ""})

    def _finish(self, finish: Finish) -> bytes:
        self.finished = True
        out = b""
        if finish.refusal is not None:
            out += self._chunk({"refusal": finish.refusal})
        out += self._chunk({}, finish_reason(finish.stop))
        usage = finish.usage or self._usage
        if self._include_usage and usage is not None:
            out += sse.write(body.encode({**self._head, "choices": [], "usage": write_usage(usage)}))
        return out + sse.write(b"[DONE]")

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return sse.write(body.encode(chunk))


def _block(block: Thinking | Redacted) -> dict[str, str]:
    if isinstance(block, Redacted):
        return {"type": "redacted_thinking", "data": block.data}
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}
