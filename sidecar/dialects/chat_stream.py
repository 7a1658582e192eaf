"""Chat Completions streams as state machines: chunks to neutral deltas, and deltas to chunks."""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.clock import wall
from sidecar.dialects.chat_answer import (
    Answer,
    Call,
    Choice,
    Message,
    arguments,
    blocks,
    broken_off,
    call_id,
    mint,
    reasoning,
    stop_of,
    string,
    text,
)
from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import (
    Begin,
    Delta,
    Fault,
    Finish,
    Redacted,
    RedactedDelta,
    SignatureDelta,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolBegin,
    ToolDelta,
)
from sidecar.dialects.openai_errors import read_fault, write_stream_error
from sidecar.dialects.openai_usage import read_usage, write_usage
from sidecar.types import Usage
from sidecar.wire import body, sse

_chunk = msgspec.json.Decoder(Answer)
_UPSTREAM = "upstream_error"


class _Call(msgspec.Struct):
    """A call under way. It has a `number`, and has begun, when its name is known; until then its pieces wait."""

    id: str = ""
    number: int | None = None
    early: list[str] = []


class StreamReader:
    """Chunks to deltas. Tool calls are told apart by `index`; a call begins when its name is known."""

    def __init__(self) -> None:
        self._begun = False
        self._ended = False
        self._closing = False  # usage has come in a chunk of its own, behind which there is nothing
        self._usage: Usage | None = None
        self._reason: Any = None
        self._stop_sequence: str | None = None
        self._refusal = ""
        self._calls: dict[int, _Call] = {}  # by their index
        self._numbers = 0  # calls begun

    def feed(self, events: list[sse.Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if self._ended:
                break
            self._event(event.data, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Without [DONE]: fine behind a finish_reason or the usage (some leave it out), else a cut."""
        if self._ended:
            return []
        if self._reason or self._closing:
            return [self._finish()]
        self._ended = True
        return [Fault(status=502, type=_UPSTREAM, code="provider_cut", message="the provider's stream was cut")]

    def _event(self, data: bytes, deltas: list[Delta]) -> None:
        if data.startswith(b"[DONE]"):
            if self._begun:
                deltas.append(self._finish())
            return
        if (fault := read_fault(data)) is not None:
            self._fail(fault, deltas)
            return
        try:
            chunk = _chunk.decode(mended(data))
            self._read(chunk, deltas)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = "the provider's stream holds an event that is not a chunk"
            self._fail(Fault(status=502, type=_UPSTREAM, code="provider_protocol_error", message=message), deltas)

    def _read(self, chunk: Answer, deltas: list[Delta]) -> None:
        # Azure's first chunk has filters' results, and neither id nor model; the answer begins with the second.
        if not self._begun and (chunk.choices or string(chunk.id)):
            self._begun = True
            deltas.append(Begin(string(chunk.id), string(chunk.model)))
        groq = chunk.x_groq.get("usage") if isinstance(chunk.x_groq, dict) else None
        usage = read_usage(chunk.usage) or read_usage(body.encode(groq))
        if usage is not None:
            self._usage = usage
            self._closing = chunk.choices == [] and self._begun
        for choice in chunk.choices or ():
            if choice.index in (0, None):
                self._choice(choice, deltas)

    def _choice(self, choice: Choice, deltas: list[Delta]) -> None:
        if choice.delta is not None:
            self._delta(choice.delta, deltas)
        if (fault := broken_off(choice)) is not None:
            self._fail(fault, deltas)
            return
        self._reason = choice.finish_reason or self._reason
        self._stop_sequence = string(choice.stop_reason) or self._stop_sequence

    def _delta(self, delta: Message, deltas: list[Delta]) -> None:
        if thought := reasoning(delta):
            deltas.append(ThinkingDelta(thought))
        deltas += [
            RedactedDelta(block.data) if isinstance(block, Redacted) else SignatureDelta(block.signature)
            for block in blocks(delta)
        ]
        if said := text(delta):
            deltas.append(TextDelta(said))
        if refused := string(delta.refusal):
            self._refusal += refused
            deltas.append(TextDelta(refused))
        for position, call in enumerate(delta.tool_calls or ()):
            self._call(call, position, deltas)
        if delta.function_call is not None:  # OpenAI's first form of calls: one, without an id
            self._call(Call(0, None, delta.function_call), 0, deltas)

    def _call(self, call: Call, position: int, deltas: list[Delta]) -> None:
        theirs = call.index if isinstance(call.index, int) else position
        ident = call_id(call.id)
        name = string(call.function.name) if call.function is not None else ""
        fragment = arguments(call.function.arguments) if call.function is not None else ""
        known = self._calls.get(theirs)
        # The same index under another id, with a name, is another call (llama.cpp, Google's compatible API).
        if known is None or (name and ident and known.id and ident != known.id and known.number is not None):
            known = self._calls[theirs] = _Call(early=[])
        known.id = known.id or ident
        if known.number is None:
            known.early.append(fragment)
            if not name:
                return
            known.number, fragment = self._numbers, "".join(known.early)
            self._numbers += 1
            deltas.append(ToolBegin(known.number, known.id or mint("call_"), name))
        if fragment:
            deltas.append(ToolDelta(known.number, fragment))

    def _fail(self, fault: Fault, deltas: list[Delta]) -> None:
        self._ended = True
        deltas.append(fault)

    def _finish(self) -> Finish:
        self._ended = True
        stop = stop_of(self._reason, calls=self._numbers > 0, refused=bool(self._refusal))
        return Finish(stop, self._usage, self._stop_sequence if stop == "stop" else None, self._refusal or None)


class StreamWriter:
    """Deltas to chunks: a role first, then content, then the finish, usage if asked for, and [DONE]."""

    def __init__(self, *, include_usage: bool) -> None:
        self.finished = False
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}
        self._thinking: list[str] = []
        self._blocks = 0  # of thinking, written
        self._usage: Usage | None = None
        self._before, self._behind = self._around()

    def write(self, deltas: list[Delta]) -> bytes:
        return b"".join([self._write(delta) for delta in deltas if not self.finished])

    def _write(self, delta: Delta) -> bytes:
        if isinstance(delta, TextDelta):  # nearly every event: only its text differs from the one before
            return b"%b%b%b" % (self._before, body.encode(delta.text), self._behind)
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
            return self._block(block) if delta.signature else b""
        if isinstance(delta, RedactedDelta):
            return self._block(Redacted(delta.data))
        if isinstance(delta, Begin):
            return self._begin(delta)
        if isinstance(delta, Finish):
            return self._finish(delta)
        self.finished = True
        return write_stream_error(delta)

    def _begin(self, begin: Begin) -> bytes:
        self._head = {
            "id": completion_id(begin.id),
            "object": "chat.completion.chunk",
            "created": int(wall()),
            "model": begin.model,
        }
        self._usage = begin.usage
        self._before, self._behind = self._around()
        return self._chunk({"role": "assistant", "content": ""})

    def _finish(self, finish: Finish) -> bytes:
        self.finished = True
        out = b""
        if finish.refusal is not None:
            out += self._chunk({"refusal": finish.refusal})
        out += self._chunk({}, finish.stop)
        usage = finish.usage or self._usage
        if self._include_usage and usage is not None:
            out += sse.write(body.encode({**self._head, "choices": [], "usage": write_usage(usage)}))
        return out + sse.write(b"[DONE]")

    def _block(self, block: Thinking | Redacted) -> bytes:
        """Whole, with its place: OpenAI's SDK joins lists by `index`, and fails on a second entry without one."""
        self._blocks += 1
        return self._chunk({"thinking_blocks": [{"index": self._blocks - 1, **write_block(block)}]})

    def _around(self) -> tuple[bytes, bytes]:
        """A chunk's bytes before and behind its text."""
        chunk = self._chunk({"content": ""})
        at = chunk.rindex(b'"content":""') + len(b'"content":')
        return chunk[:at], chunk[at + 2 :]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return sse.write(body.encode(chunk))


def completion_id(ident: str) -> str:
    """A provider's id in the form that clients of this API expect."""
    if not ident:
        return mint("chatcmpl-")
    return ident if ident.startswith("chatcmpl-") else f"chatcmpl-{ident}"


def write_block(block: Thinking | Redacted) -> dict[str, str]:
    if isinstance(block, Redacted):
        return {"type": "redacted_thinking", "data": block.data}
    return {"type": "thinking", "thinking": block.text, "signature": block.signature}
