"""Messages streams as state machines: typed events to neutral deltas, and deltas to typed events."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec

from sidecar.dialects.anthropic import (
    WireUsage,
    fault_in_answer,
    stop_of,
    wire_usage,
    write_stop,
    write_stream_error,
    write_usage,
)
from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import (
    NOTHING,
    Begin,
    Delta,
    Fault,
    Finish,
    RedactedDelta,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
    ToolBegin,
    ToolDelta,
)
from sidecar.wire import body, sse

_UPSTREAM = "upstream_error"


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: msgspec.Raw = NOTHING


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: Any = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = NOTHING


class _Delta(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: Any = None
    stop_sequence: Any = None
    stop_details: Any = None


class _Event(msgspec.Struct):
    type: str | None = None
    index: int | None = None
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: msgspec.Raw = NOTHING
    error: Any = None


class _Kind(msgspec.Struct):
    type: Any = None
    error: Any = None


_event = msgspec.json.Decoder(_Event)
_kind = msgspec.json.Decoder(_Kind)
_KNOWN = (
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "error",
)  # fmt: skip


class _Tool(msgspec.Struct):
    """A tool block under way: its number among the calls, and whether any piece of its input has come."""

    number: int
    given: bool = False


def _known(data: bytes) -> _Event | None:
    """An event of the API, or one without a kind; None for an unknown kind, which may look like anything.

    Raises DecodeError where it is neither.
    """
    try:
        event = _event.decode(data)
    except msgspec.ValidationError:
        kind = _kind.decode(data)
        if kind.type is None:
            return _Event(error=kind.error)
        if kind.type in _KNOWN:
            raise
        return None
    return event if event.type is None or event.type in _KNOWN else None


class StreamReader:
    """Typed events to deltas. Unknown events, blocks and deltas are passed over, as the API asks of its clients."""

    def __init__(self) -> None:
        self._ended = False
        self._begun = False
        self._usage: WireUsage | None = None
        self._stop: _Delta = _Delta()
        self._tools: dict[int, _Tool] = {}  # by block index, while open
        self._calls = 0
        self._signatures: dict[int, str] = {}  # of open blocks of thinking

    def feed(self, events: list[sse.Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if self._ended:
                break
            if event.data.startswith(b"[DONE]"):  # not of this API, but some who serve it send it
                continue
            data = mended(event.data)
            try:
                event_read = _known(data)
                if event_read is None:
                    continue
                if event_read.type is not None:
                    self._read(event_read, deltas)
                elif event_read.error:  # OpenAI's form, of a gateway before the API
                    self._ended = True
                    deltas.append(fault_in_answer(event_read.error))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._ended = True
                deltas.append(_broken("the provider's stream holds an event that is not one of its API"))
        return deltas

    def finish(self) -> list[Delta]:
        if self._ended:
            return []
        self._ended = True
        return [Fault(status=502, type=_UPSTREAM, code="provider_cut", message="the provider's stream was cut")]

    def _read(self, event: _Event, deltas: list[Delta]) -> None:
        kind, index = event.type, event.index or 0
        if kind == "content_block_delta" and event.delta is not None:
            self._delta(index, event.delta, deltas)
        elif kind == "content_block_start" and event.content_block is not None:
            self._start(index, event.content_block, deltas)
        elif kind == "content_block_stop":
            self._stop_block(index, deltas)
        elif kind == "message_start" and event.message is not None and not self._begun:
            self._begun = True
            message = event.message
            self._usage = wire_usage(message.usage)
            usage = self._usage.neutral() if self._usage is not None else None
            deltas.append(Begin(message.id or "", message.model or "", usage))
        elif kind == "message_delta":
            if (usage_now := wire_usage(event.usage)) is not None:
                self._usage = usage_now.over(self._usage)
            if event.delta is not None and event.delta.stop_reason is not None:
                self._stop = event.delta
        elif kind == "message_stop":
            self._ended = True
            deltas.append(self._finish())
        elif kind == "error":
            self._ended = True
            deltas.append(fault_in_answer(event.error))

    def _start(self, index: int, block: _Block, deltas: list[Delta]) -> None:
        if block.type == "tool_use":
            tool = self._tools[index] = _Tool(self._calls)
            self._calls += 1
            deltas.append(ToolBegin(tool.number, block.id or f"toolu_{secrets.token_hex(12)}", block.name or ""))
            given = bytes(block.input)
            if given.startswith(b"{") and given[1:-1].strip():
                tool.given = True
                deltas.append(ToolDelta(tool.number, given.decode()))
        elif block.type == "text" and block.text:
            deltas.append(TextDelta(block.text))
        elif block.type == "thinking":
            self._signatures[index] = block.signature or ""
            if block.thinking:
                deltas.append(ThinkingDelta(block.thinking))
        elif block.type == "redacted_thinking":
            deltas.append(RedactedDelta(block.data if isinstance(block.data, str) else ""))

    def _delta(self, index: int, delta: _Delta, deltas: list[Delta]) -> None:
        if delta.type == "text_delta" and delta.text:
            deltas.append(TextDelta(delta.text))
        elif delta.type == "input_json_delta" and delta.partial_json:
            tool = self._tools.get(index)
            if tool is not None:
                tool.given = True
                deltas.append(ToolDelta(tool.number, delta.partial_json))
        elif delta.type == "thinking_delta" and delta.thinking:
            deltas.append(ThinkingDelta(delta.thinking))
        elif delta.type == "signature_delta" and delta.signature:
            self._signatures[index] = delta.signature

    def _stop_block(self, index: int, deltas: list[Delta]) -> None:
        tool = self._tools.pop(index, None)
        if tool is not None and not tool.given:
            deltas.append(ToolDelta(tool.number, "{}"))
        signature = self._signatures.pop(index, None)
        if signature is not None:
            deltas.append(SignatureDelta(signature))

    def _finish(self) -> Finish:
        stop, sequence, refusal = stop_of(self._stop.stop_reason, self._stop.stop_sequence, self._stop.stop_details)
        usage = self._usage.neutral() if self._usage is not None else None
        return Finish(stop, usage, sequence, refusal)


def _broken(message: str) -> Fault:
    return Fault(status=502, type=_UPSTREAM, code="provider_protocol_error", message=message)


Kind = Literal["text", "thinking", "tool"]


class StreamWriter:
    """Deltas to typed events. One block is open at a time: what belongs to another tool waits until it closes."""

    def __init__(self) -> None:
        self.finished = False
        self._open: tuple[Kind, int] | None = None  # the open block: its kind, and the tool's number
        self._index = -1  # of the last block begun
        self._waiting: dict[int, tuple[ToolBegin, list[str]]] = {}  # tools whose block cannot begin yet, in order

    def write(self, deltas: list[Delta]) -> bytes:
        return b"".join([self._write(delta) for delta in deltas if not self.finished])

    def _write(self, delta: Delta) -> bytes:
        if isinstance(delta, TextDelta):
            return self._ensure("text") + self._delta({"type": "text_delta", "text": delta.text})
        if isinstance(delta, ToolDelta):
            return self._tool_delta(delta)
        if isinstance(delta, ToolBegin):
            return self._tool_begin(delta)
        if isinstance(delta, ThinkingDelta):
            return self._ensure("thinking") + self._delta({"type": "thinking_delta", "thinking": delta.text})
        if isinstance(delta, SignatureDelta):
            return self._ensure("thinking") + self._close(delta.signature)
        if isinstance(delta, RedactedDelta):
            return self._close_all() + self._begin({"type": "redacted_thinking", "data": delta.data}) + self._stop()
        if isinstance(delta, Begin):
            return self._message_start(delta)
        if isinstance(delta, Finish):
            return self._finish(delta)
        self.finished = True
        return write_stream_error(delta)

    def _message_start(self, begin: Begin) -> bytes:
        message: dict[str, Any] = {
            "id": message_id(begin.id),
            "type": "message",
            "role": "assistant",
            "model": begin.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": write_usage(begin.usage),
        }
        return _event_of("message_start", message=message) + _event_of("ping")

    def _finish(self, finish: Finish) -> bytes:
        self.finished = True
        delta = write_stop(finish.stop, finish.stop_sequence, finish.refusal)
        end = _event_of("message_delta", delta=delta, usage=write_usage(finish.usage)) + _event_of("message_stop")
        return self._close_all() + end

    # -- blocks

    def _ensure(self, kind: Literal["text", "thinking"]) -> bytes:
        if self._open == (kind, -1):
            return b""
        out = self._close_all()
        empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
        out += self._begin({"type": kind, **empty})
        self._open = (kind, -1)
        return out

    def _tool_begin(self, begin: ToolBegin) -> bytes:
        if self._open is not None and self._open[0] == "tool":
            self._waiting[begin.index] = (begin, [])
            return b""
        return self._close() + self._open_tool(begin)

    def _open_tool(self, begin: ToolBegin) -> bytes:
        self._open = ("tool", begin.index)
        return self._begin({"type": "tool_use", "id": begin.id, "name": begin.name, "input": {}})

    def _tool_delta(self, delta: ToolDelta) -> bytes:
        if delta.index in self._waiting:
            self._waiting[delta.index][1].append(delta.fragment)
            return b""
        if self._open != ("tool", delta.index):
            return b""  # its block has been closed by what came after; a late fragment has no place
        return self._delta({"type": "input_json_delta", "partial_json": delta.fragment})

    def _close(self, signature: str = "") -> bytes:
        """Close the open block. Thinking ends with its signature, were it empty."""
        if self._open is None:
            return b""
        thinking = self._open[0] == "thinking"
        self._open = None
        signed = self._delta({"type": "signature_delta", "signature": signature}) if thinking else b""
        return signed + self._stop()

    def _close_all(self) -> bytes:
        """Close the open block, and write the tools that waited for it, one after another."""
        out = self._close()
        for begin, fragments in self._waiting.values():
            out += self._open_tool(begin)
            if fragments:
                out += self._delta({"type": "input_json_delta", "partial_json": "".join(fragments)})
            out += self._close()
        self._waiting.clear()
        return out

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event_of("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event_of("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        return _event_of("content_block_stop", index=self._index)


def message_id(ident: str) -> str:
    """A provider's id in the form that clients of this API expect."""
    if not ident:
        return f"msg_{secrets.token_hex(12)}"
    return ident if ident.startswith("msg_") else f"msg_{ident}"


def _event_of(kind: str, **members: Any) -> bytes:
    return sse.write(body.encode({"type": kind, **members}), kind)
