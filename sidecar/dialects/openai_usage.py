"""Tokens as OpenAI's dialects count them, and the meters that find the count in passing bytes."""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

import msgspec

from sidecar.dialects.lenient import mended
from sidecar.dialects.neutral import NOTHING, Fault, says
from sidecar.dialects.openai_errors import BROKEN_OFF, read_fault
from sidecar.types import Usage
from sidecar.wire import sse

_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
# [DONE] at the head of a line only, for a text may hold the word; a reason with something in it, for some send "".
_DONE: Final = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_ENDING: Final = re.compile(rb'(?:^|[\r\n])data: ?\[DONE\]|"finish_reason"\s*:\s*"[^"]')
_REASON: Final = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
# Where a delta says something. Content may be a list of parts; reasoning goes by many names.
_SAYS: Final = frozenset(
    (
        "content", "refusal", "reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "function_call",
        "audio", "images", "annotations",
    )
)  # fmt: skip
_TAIL_BYTES: Final = 64 * 1024
_MOST_TOKENS: Final = 1 << 53  # what a float counts exactly; more is no count of tokens


class _PromptDetails(msgspec.Struct):
    cached_tokens: float | None = None
    cache_write_tokens: float | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: float | None = None


class WireUsage(msgspec.Struct):
    """`usage` as the compatible providers send it; counts are floats at some of them."""

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: float | None = None  # DeepSeek
    cached_tokens: float | None = None  # Together, Moonshot
    num_cached_tokens: float | None = None  # Mistral
    cache_creation_input_tokens: float | None = None  # gateways before Anthropic
    reasoning_tokens: float | None = None  # Perplexity

    def neutral(self) -> Usage:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        prompt = int(prompt) if prompt is not None and 0 <= prompt < _MOST_TOKENS else 0  # _count, without the call
        completion = int(completion) if completion is not None and 0 <= completion < _MOST_TOKENS else 0
        told = self.prompt_cache_hit_tokens or self.cached_tokens or self.num_cached_tokens
        written, reason = self.cache_creation_input_tokens, self.reasoning_tokens
        if (details := self.prompt_tokens_details) is not None:
            told, written = details.cached_tokens or told, details.cache_write_tokens or written
        if (inner := self.completion_tokens_details) is not None:
            reason = inner.reasoning_tokens or reason
        if not (told or written or reason):
            return Usage(input=prompt, output=completion)
        cached, reasoning = _count(told), _count(reason)
        # xAI counts reasoning outside of completion_tokens; its total tells (prompt + completion + reasoning).
        if reasoning and _count(self.total_tokens) == prompt + completion + reasoning:
            completion += reasoning
        if cached > prompt:  # cannot be a part of it, so it is beside it (seen at xAI)
            prompt += cached
        return Usage(
            input=prompt,
            output=completion,
            cached=cached,
            cache_write=_count(written),
            reasoning=reasoning,
        )


def _count(value: float | None) -> int:
    return int(value) if value is not None and 0 <= value < _MOST_TOKENS else 0


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = NOTHING


class _Metered(msgspec.Struct):
    usage: msgspec.Raw = NOTHING
    x_groq: _Groq | None = None


class _Chunk(_Metered):
    choices: list[msgspec.Raw] | None = None


class _Ending(msgspec.Struct):
    index: int | None = None
    finish_reason: Any = None


class _Endings(msgspec.Struct):
    choices: list[_Ending] | None = None


class _Measured(msgspec.Struct):
    usage: WireUsage | None = None
    x_groq: Any = None
    error: Any = None
    object: Any = None


_measured = msgspec.json.Decoder(_Measured)
_metered = msgspec.json.Decoder(_Metered)
_chunk = msgspec.json.Decoder(_Chunk)
_any = msgspec.json.Decoder()
_endings = msgspec.json.Decoder(_Endings)
_usage = msgspec.json.Decoder(WireUsage | None)


def read_usage(raw: msgspec.Raw | bytes) -> Usage | None:
    """`usage` as it stands in an answer, or nothing when it is none: counts never spoil an answer."""
    try:
        usage = _usage.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return usage.neutral() if usage is not None else None


def _usage_of(chunk: _Metered) -> Usage | None:
    return read_usage(chunk.usage) or (read_usage(chunk.x_groq.usage) if chunk.x_groq is not None else None)


def write_usage(usage: Usage) -> dict[str, object]:
    """`usage` as OpenAI sends it."""
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


# -- meters


def has_content(data: bytes) -> bool:
    """Whether a chunk holds the first of an answer: anything that is said, a call, or the reason why it ends."""
    if not data.startswith((b"{", b" ", b"\t")):  # as [DONE]: there may be thousands, and each is looked at
        return False
    try:
        chunk = _any.decode(mended(data))
        choices = chunk.get("choices") if isinstance(chunk, dict) and not chunk.get("error") else None
        return isinstance(choices, list) and any(_speaks(choice) for choice in choices if isinstance(choice, dict))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # [DONE], or what no client can read


def _speaks(choice: dict[str, Any]) -> bool:
    reason = choice.get("finish_reason")
    if reason in BROKEN_OFF or choice.get("error"):
        return False
    if reason or choice.get("text"):
        return True
    delta = choice.get("delta") or choice.get("message")
    if not isinstance(delta, dict):
        return False
    return any(value and (name == "tool_calls" or (name in _SAYS and says(value))) for name, value in delta.items())


class StreamMeter:
    """Watches a stream of chunks: finds usage by searching bytes, and decodes only the event that holds it."""

    __slots__ = ("_closed", "_hide", "_last", "fault", "started", "usage")

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide = hide_usage
        self._closed = False
        self.started = False
        self._last: deque[bytes] = deque(maxlen=8)  # the end may be followed by usage, filters' results and comments
        self.usage: Usage | None = None
        self.fault: Fault | None = None

    def feed(self, block: bytes) -> bytes:
        self._last.append(block)
        if not self.started and b"{" in block:  # until then each event is decoded
            self.started = any(has_content(event.data) for event in sse.events(block))
        if b'"error"' in block:
            self._look_for_fault(block)
        if b'"usage"' in block and _USAGE.search(block) is not None:
            return self._read_usage(block)
        return block

    def passes(self, block: bytes) -> bool:
        if block.find(b'"error"') >= 0:  # `in` first tries whether it is given a number, and takes half as long again
            return False
        if block.rfind(b'"usage"') >= 0 and block.count(b'"usage"') != block.count(b'"usage":null'):  # as most send it
            return False
        self._last.append(block)
        return True

    def start(self) -> None:
        self.started = True

    @property
    def ended(self) -> bool:
        """[DONE] came; or a finish_reason or the usage, behind which some providers leave it out."""
        return self._closed or any(_ENDING.search(block) for block in self._last)

    @property
    def closed(self) -> bool:
        """[DONE] came."""
        return any(_DONE.search(block) for block in self._last)

    def _read_usage(self, block: bytes) -> bytes:
        start = 0
        kept: list[bytes] = []
        for match in _EVENT_END.finditer(block):
            event = block[start : match.end()]
            start = match.end()
            if _USAGE.search(event) is not None and self._is_usage_only(event) and self._hide:
                # Comments beside it keep the connection alive, and may stay.
                event = b"".join([line for line in event.splitlines(keepends=True) if line.startswith(b":")])
            kept.append(event)
        kept.append(block[start:])
        return block if not self._hide else b"".join(kept)

    def _is_usage_only(self, event: bytes) -> bool:
        for found in sse.events(event):
            try:
                chunk = _chunk.decode(found.data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            usage = _usage_of(chunk)
            if usage is not None:
                self.usage = usage
                self._closed = chunk.choices == []
                return self._closed
        return False

    def _look_for_fault(self, block: bytes) -> None:
        for event in sse.events(block):
            if (fault := read_fault(event.data)) is not None:
                self.fault = fault


class ChoicesMeter(StreamMeter):
    """Watches a stream of several choices, which has ended when each of them has: one may be cut when others are done.

    So the events that end a choice are decoded; what asks for one choice is spared that.
    """

    __slots__ = ("_choices", "_finished")

    def __init__(self, *, hide_usage: bool, choices: int) -> None:
        super().__init__(hide_usage=hide_usage)
        self._choices = choices
        self._finished: set[int] = set()

    def feed(self, block: bytes) -> bytes:
        if _REASON.search(block) is not None:
            for event in sse.events(block):
                self._finish(event.data)
        return super().feed(block)

    def passes(self, block: bytes) -> bool:
        return _REASON.search(block) is None and super().passes(block)

    @property
    def ended(self) -> bool:
        """[DONE] came, or the usage behind all choices; or a finish_reason of each."""
        return self._closed or len(self._finished) >= self._choices or self.closed

    def _finish(self, data: bytes) -> None:
        try:
            chunk = _endings.decode(mended(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        for position, choice in enumerate(chunk.choices or ()):
            if choice.finish_reason:
                self._finished.add(position if choice.index is None else choice.index)


class UnaryMeter:
    """Watches one body. Of a long one it keeps both ends, 64 KiB each: nearly everywhere usage is the last member."""

    __slots__ = ("_head", "_pieces", "_size")

    def __init__(self) -> None:
        self._head = b""
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> bytes:
        self._pieces.append(block)
        self._size += len(block)
        if self._size > 2 * _TAIL_BYTES:
            data = b"".join(self._pieces)
            self._head = self._head or data[:_TAIL_BYTES]
            self._pieces = [data[-_TAIL_BYTES:]]
            self._size = _TAIL_BYTES
        return block

    def passes(self, block: bytes) -> bool:
        return False

    @property
    def usage(self) -> Usage | None:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if not self._head:
            try:
                return _usage_of(_metered.decode(data))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # not what it should be: look for it as in a long one
        return _last_usage(data) or _last_usage(self._head)

    def start(self) -> None:
        """It has."""

    @property
    def started(self) -> bool:
        return self._size > 0

    @property
    def ended(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return False

    @property
    def fault(self) -> Fault | None:
        return None if self._head else read_fault(b"".join(self._pieces))


def measure(data: bytes) -> tuple[Usage | None, Fault | None]:
    """A whole body, at once: its usage, and the error that it may be instead of an answer."""
    try:
        found = _measured.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    sound = found is not None and not found.error and found.object != "error"
    fault = None if sound else read_fault(data)
    if found is not None and found.usage is not None:
        return found.usage.neutral(), fault
    meter = UnaryMeter()  # not what it should be, or not where
    meter.feed(data)
    return meter.usage, fault


def _last_usage(data: bytes) -> Usage | None:
    """The last `usage`: a tool's arguments may have one too, but not behind it."""
    starts = [match.end() - 1 for match in _USAGE.finditer(data)]
    return read_usage(_object_at(data, starts[-1])) if starts else None


def meter(*, stream: bool, hide_usage: bool, choices: int = 1) -> StreamMeter | UnaryMeter:
    if not stream:
        return UnaryMeter()
    return ChoicesMeter(hide_usage=hide_usage, choices=choices) if choices > 1 else StreamMeter(hide_usage=hide_usage)


_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)


def _object_at(data: bytes, start: int) -> bytes:
    """The JSON object that opens at `start`, to its closing brace."""
    depth = 0
    for match in _TOKENS.finditer(data, start):
        brace = match[0]
        if brace == b"{":
            depth += 1
        elif brace == b"}":
            depth -= 1
            if depth == 0:
                return data[start : match.end()]
    return b""
