"""Messages streams as state machines: typed events to neutral deltas, and deltas to typed events."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from sidecar.dialects.anthropic import WireUsage, stop_of, stop_reason, write_stream_error, write_usage
from sidecar.dialects.neutral import (
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

_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Error(msgspec.Struct):
    type: str = "api_error"
    message: str = "an error without a message"


class _Message(msgspec.Struct):
    id: str = ""
    model: str = ""
    usage: WireUsage | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw | None = None


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: WireUsage | None = None
    error: _Error | None = None


_event = msgspec.json.Decoder(_Event)


class _Tool(msgspec.Struct):
    """A tool block under way: its number among the calls, and whether any piece of its input has come."""

    number: int
    given: bool = False


class StreamReader:
    """Typed events to deltas. Unknown events and deltas are passed over, as the API asks of its clients."""

    def __init__(self) -> None:
        self._ended = False
        self._usage: WireUsage | None = None
        self._stop: _Delta = _Delta()
        self._tools: dict[int, _Tool] = {}  # by block index, while open
        self._calls = 0
        self._signing: set[int] = set()  # blocks of thinking whose signature has not come

    def feed(self, events: list[sse.Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if self._ended:
                break
            try:
                decoded = _event.decode(event.data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._ended = True
                deltas.append(_broken("the provider's stream holds an event that is not JSON of its API"))
                break
            self._read(decoded, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        if self._ended:
            return []
        self._ended = True
        return [Fault(status=502, type="upstream_error", code="provider_cut", message="the provider's stream was cut")]

    def _read(self, event: _Event, deltas: list[Delta]) -> None:
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            self._delta(event.index, event.delta, deltas)
        elif kind == "content_block_start" and event.content_block is not None:
            self._start(event.index, event.content_block, deltas)
        elif kind == "content_block_stop":
            self._stop_block(event.index, deltas)
        elif kind == "message_start" and event.message is not None:
            message = event.message
            self._usage = message.usage
            deltas.append(Begin(message.id, message.model, message.usage.neutral() if message.usage else None))
        elif kind == "message_delta":
            if event.usage is not None:
                self._usage = event.usage.over(self._usage)
            if event.delta is not None:
                self._stop = event.delta
        elif kind == "message_stop":
            self._ended = True
            deltas.append(self._finish())
        elif kind == "error":
            self._ended = True
            error = event.error or _Error()
            status = _STATUS.get(error.type, 500)
            deltas.append(Fault(status=status, type="upstream_error", code=error.type, message=error.message))

    def _start(self, index: int, block: _Block, deltas: list[Delta]) -> None:
        if block.type == "tool_use":
            tool = self._tools[index] = _Tool(self._calls)
            self._calls += 1
            deltas.append(ToolBegin(tool.number, block.id, block.name))
            if block.input is not None and bytes(block.input).strip() not in (b"{}", b"null"):
                tool.given = True
                deltas.append(ToolDelta(tool.number, bytes(block.input).decode()))
        elif block.type == "text" and block.text:
            deltas.append(TextDelta(block.text))
        elif block.type == "thinking":
            self._signing.add(index)
            if block.thinking:
                deltas.append(ThinkingDelta(block.thinking))
        elif block.type == "redacted_thinking":
            deltas.append(RedactedDelta(block.data))

    def _delta(self, index: int, delta: _Delta, deltas: list[Delta]) -> None:
        if delta.type == "text_delta":
            if delta.text:
                deltas.append(TextDelta(delta.text))
        elif delta.type == "input_json_delta":
            tool = self._tools.get(index)
            if tool is not None and delta.partial_json:
                tool.given = True
                deltas.append(ToolDelta(tool.number, delta.partial_json))
        elif delta.type == "thinking_delta":
            if delta.thinking:
                deltas.append(ThinkingDelta(delta.thinking))
        elif delta.type == "signature_delta":
            self._signing.discard(index)
            deltas.append(SignatureDelta(delta.signature))

    def _stop_block(self, index: int, deltas: list[Delta]) -> None:
        tool = self._tools.pop(index, None)
        if tool is not None and not tool.given:
            deltas.append(ToolDelta(tool.number, "{}"))
        if index in self._signing:
            self._signing.discard(index)
            deltas.append(SignatureDelta(""))

    def _finish(self) -> Finish:
        stop = stop_of(self._stop.stop_reason)
        details = self._stop.stop_details
        return Finish(
            stop,
            self._usage.neutral() if self._usage is not None else None,
            self._stop.stop_sequence,
            details.explanation if details is not None and stop == "content_filter" else None,
        )


def _broken(message: str) -> Fault:
    return Fault(status=502, type="upstream_error", code="provider_protocol_error", message=message)


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
            signed = self._delta({"type": "signature_delta", "signature": delta.signature})
            return self._ensure("thinking") + signed + self._close()
        if isinstance(delta, RedactedDelta):
            return self._close() + self._begin({"type": "redacted_thinking", "data": delta.data}) + self._stop()
        if isinstance(delta, Begin):
            return self._message_start(delta)
        if isinstance(delta, Finish):
            return self._finish(delta)
        self.finished = True
        return write_stream_error(delta)

    def _message_start(self, begin: Begin) -> bytes:
        message = {
            "id": begin.id if begin.id.startswith("msg_") else f"msg_{begin.id}",
            "type": "message",
            "role": "assistant",
            "model": begin.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": write_usage(begin.usage),
        }
        return _event_of("message_start", message=message) + _event_of("ping")

    def _finish(self, finish: Finish) -> bytes:
        self.finished = True
        out = self._close(last=True)
        delta: dict[str, Any] = {"stop_reason": stop_reason(finish.stop), "stop_sequence": finish.stop_sequence}
        if finish.stop_sequence is not None:
            delta["stop_reason"] = "stop_sequence"
        return (
            out + _event_of("message_delta", delta=delta, usage=write_usage(finish.usage)) + _event_of("message_stop")
        )

    # -- blocks

    def _ensure(self, kind: Literal["text", "thinking"]) -> bytes:
        if self._open == (kind, -1):
            return b""
        block = (
            {"type": "text", "text": ""} if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        )
        out = self._close(last=True) + self._begin(block)
        self._open = (kind, -1)
        return out

    def _tool_begin(self, begin: ToolBegin) -> bytes:
        if self._open is not None and self._open[0] == "tool":
            self._waiting[begin.index] = (begin, [])
            return b""
        return self._close() + self._open_tool(begin)

    def _open_tool(self, begin: ToolBegin) -> bytes:
        out = self._begin({"type": "tool_use", "id": begin.id, "name": begin.name, "input": {}})
        self._open = ("tool", begin.index)
        return out

    def _tool_delta(self, delta: ToolDelta) -> bytes:
        if delta.index in self._waiting:
            self._waiting[delta.index][1].append(delta.fragment)
            return b""
        if self._open != ("tool", delta.index):
            return b""  # its block has been closed by what came after; a late fragment has no place
        return self._delta({"type": "input_json_delta", "partial_json": delta.fragment})

    def _close(self, *, last: bool = False) -> bytes:
        """Close the open block. With `last`, the tools that waited for it are written too, one after another."""
        if self._open is None:
            return b""
        out = b""
        if self._open[0] == "thinking":
            pass
        out += self._stop()
        self._open = None
        while last and self._waiting:
            number = next(iter(self._waiting))
            begin, fragments = self._waiting.pop(number)
            out += self._open_tool(begin)
            out += self._delta({"type": "input_json_delta", "partial_json": "".join(fragments)}) if fragments else b""
            out += self._stop()
            self._open = None
        return out

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event_of("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event_of("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        return _event_of("content_block_stop", index=self._index)


def _event_of(kind: str, **members: Any) -> bytes:
    return sse.write(body.encode({"type": kind, **members}), kind)
