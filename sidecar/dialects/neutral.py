"""The neutral form of conversations, through which dialects are translated (hub and spoke), and what a dialect is.

Numbers and JSON that only pass through stay as the bytes they were (`msgspec.Raw`, or JSON text): no float rounds them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from sidecar.errors import ErrorInAnswer
from sidecar.types import Envelope, Usage, View
from sidecar.wire import body
from sidecar.wire.sse import Event

NOTHING: Final = msgspec.Raw(b"")  # default of a wire struct's Raw members: msgspec does not decode `Raw | None`

Role = Literal["system", "user", "assistant"]
Stop = Literal["stop", "length", "tool_calls", "content_filter"]


def sent(raw: msgspec.Raw) -> msgspec.Raw | None:
    """A wire struct's Raw member, or None when it was not sent or is null."""
    return raw if bytes(raw) not in (b"", b"null") else None


_UNTOLD: Final = re.compile(r"[^A-Za-z0-9_.:()\[\] -]")  # in the header that names what was dropped
_MOST_NAMES: Final = 32
_MOST_CHARACTERS: Final = 80  # of a name
_WORDS: Final = 1024  # of an error's message are read
_LABELS = frozenset(("type", "format", "id", "index", "role"))  # what a piece is, not what it says


def says(value: Any) -> bool:
    """Whether a piece of a streamed answer, as decoded JSON, holds anything to read: a text that is not empty."""
    if isinstance(value, str):
        return value != ""
    if isinstance(value, dict):
        return any(says(member) for name, member in value.items() if name not in _LABELS)
    return isinstance(value, list) and any(map(says, value))


class Text(msgspec.Struct):
    text: str
    cache: msgspec.Raw | None = None  # a cache marker, where the source has one


class Image(msgspec.Struct):
    """Bytes in base64 with their media type, or a URL that the provider fetches (never we)."""

    media_type: str = ""
    data: str = ""
    url: str = ""


class Document(msgspec.Struct):
    """A file: base64 with media type, plain text, a URL, or a provider's own file id."""

    media_type: str = ""
    data: str = ""
    text: str = ""
    url: str = ""
    file_id: str = ""
    title: str = ""


class Thinking(msgspec.Struct):
    """Reasoning. With a signature it is its maker's to check, and goes back to it unchanged."""

    text: str
    signature: str = ""


class Redacted(msgspec.Struct):
    data: str


class ToolUse(msgspec.Struct):
    """A call: `arguments` is JSON text, an object."""

    id: str
    name: str
    arguments: str


class ToolResult(msgspec.Struct):
    id: str
    parts: list[Text | Image | Document]
    is_error: bool = False


Part = Text | Image | Document | Thinking | Redacted | ToolUse | ToolResult


class Turn(msgspec.Struct):
    role: Role
    parts: list[Part]


class Tool(msgspec.Struct):
    name: str
    description: str | None = None
    schema: msgspec.Raw | None = None
    strict: bool | None = None
    cache: msgspec.Raw | None = None


class Choice(msgspec.Struct):
    """Which tool must be used: auto, any (one at least), none, or the one named."""

    mode: Literal["auto", "any", "none", "tool"]
    name: str = ""


class Format(msgspec.Struct):
    """The form of the answer: a JSON object, or JSON after a schema."""

    schema: msgspec.Raw | None = None
    name: str = "response"
    strict: bool | None = None
    description: str | None = None


class Ask(msgspec.Struct, kw_only=True):
    """A request for a conversation's next turn."""

    model: str
    turns: list[Turn]
    system: list[Text] = []
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: msgspec.Raw | None = None
    top_p: msgspec.Raw | None = None
    top_k: msgspec.Raw | None = None
    stop: list[str] = []
    tools: list[Tool] = []
    choice: Choice | None = None
    parallel: bool | None = None
    effort: str | None = None  # none, minimal, low, medium, high, xhigh, max
    budget: int | None = None  # tokens of thinking
    format: Format | None = None
    user: str | None = None
    service_tier: str | None = None
    extra: Envelope = {}  # members that the source dialect does not know: they pass
    dropped: list[str] = []  # members that were asked for and have no neutral form


class Written(msgspec.Struct):
    """A request in a dialect. `dropped`: what was asked for and cannot be said there."""

    members: Envelope
    dropped: tuple[str, ...] = ()


def dropped_line(names: Sequence[str]) -> bytes:
    """The header line that tells the client what it asked for and does not get. Names may hold words of its own."""
    told = [_UNTOLD.sub("?", name[:_MOST_CHARACTERS]) for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        told.append(f"and {len(names) - _MOST_NAMES} more")
    return b"x-sidecar-dropped: %b\r\n" % ", ".join(told).encode() if told else b""


def effort_of(budget: int | None) -> str | None:
    """The effort that a budget of thinking stands for, where there are no budgets."""
    if budget is None:
        return None
    return "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"


def written(members: dict[str, Any], ask: Ask, dropped: list[str]) -> Written:
    """A request out of what a dialect says itself and what it only passes on, which never speaks over it."""
    own = {name: body.raw(value) for name, value in members.items()}
    return Written({**own, **{name: raw for name, raw in ask.extra.items() if name not in own}}, tuple(dropped))


class Reply(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    model: str
    parts: list[Part]
    stop: Stop = "stop"
    stop_sequence: str | None = None
    refusal: str | None = None
    usage: Usage | None = None


# -- pieces of a streamed answer, in the order in which they may come: Begin, then the others, then Finish or Fault


class Begin(msgspec.Struct):
    id: str
    model: str
    usage: Usage | None = None


class TextDelta(msgspec.Struct):
    text: str


class ThinkingDelta(msgspec.Struct):
    text: str


class SignatureDelta(msgspec.Struct):
    """The end of a block of thinking, with its signature."""

    signature: str


class RedactedDelta(msgspec.Struct):
    data: str


class ToolBegin(msgspec.Struct):
    index: int  # counts the calls of the answer, from 0
    id: str
    name: str


class ToolDelta(msgspec.Struct):
    index: int
    fragment: str  # of the JSON text of the arguments


class Finish(msgspec.Struct):
    stop: Stop
    usage: Usage | None = None
    stop_sequence: str | None = None
    refusal: str | None = None


class Fault(msgspec.Struct, kw_only=True):
    """An error, as any dialect can word it. `code`: the provider's own, or of our vocabulary."""

    status: int
    message: str
    type: str = ""
    code: str | None = None
    param: str | None = None
    request_id: str | None = None
    retry_after: float | None = None


# What the words of an error mean, where it has no code that says so: looked for in this order.
_MEANINGS: Final = tuple(
    (re.compile(words, re.IGNORECASE), status)
    for words, status in (
        (r"rate.?limit|too many requests|quota|throttl", 429),
        (r"context.?(?:length|window)|maximum context|(?:prompt|input) is too long|too many tokens", 400),
        (r"api.?key|unauthori[sz]ed|unauthenticated|authentication|credentials", 401),
        (r"permission denied|forbidden|access denied", 403),
        (r"model.{0,200}(?:not found|does not exist)", 404),
        (r"overloaded|at capacity|unavailable|\bbusy\b", 503),
        (r"timed? ?out", 504),
    )
)


def meant(message: str) -> int | None:
    """The status that an error would have had, by its words."""
    return next((status for words, status in _MEANINGS if words.search(message[:_WORDS])), None)


def instead(fault: Fault) -> ErrorInAnswer:
    """The error to raise where an answer was one."""
    return ErrorInAnswer(fault.message, status=fault.status, their_code=fault.code, param=fault.param)


Delta = Begin | TextDelta | ThinkingDelta | SignatureDelta | RedactedDelta | ToolBegin | ToolDelta | Finish | Fault


class Meter(Protocol):
    """Watches the bytes of one answer. It never raises: what it cannot read goes by unmeasured."""

    def feed(self, block: bytes) -> bytes:
        """Whole events (or any piece of a unary body) in; what to send on out: the same object, less a hidden event."""
        ...

    def passes(self, block: bytes) -> bool:
        """Do these whole events hold nothing that has to be read? Then they have been taken note of; else `feed` them.

        Asked once it has started. What frames them (a line before, a line end behind) may still be about them.
        """
        ...

    @property
    def usage(self) -> Usage | None: ...

    @property
    def started(self) -> bool:
        """The first content has come: text, thinking, a refusal, a call, why the answer stopped.

        Not what comes before any: a role, a ping, an empty piece, usage; nor an error, which is a fault. So a stream
        that ends without it was no answer. A body that comes whole has started with its first byte.
        """
        ...

    def start(self) -> None:
        """Take it as started, whatever comes: nobody holds the stream any more, and looking costs time."""
        ...

    @property
    def ended(self) -> bool:
        """The answer has ended as its API says, or as providers of it leave it."""
        ...

    @property
    def closed(self) -> bool:
        """The API's own last word has come: nothing may follow."""
        ...

    @property
    def fault(self) -> Fault | None:
        """The error inside the answer, with the status that its words mean."""
        ...


class StreamReader(Protocol):
    def feed(self, events: list[Event]) -> list[Delta]: ...

    def finish(self) -> list[Delta]:
        """The end of the bytes: what was held back, and a Fault if the answer had not ended."""
        ...


class StreamWriter(Protocol):
    @property
    def finished(self) -> bool:
        """The last event has been written; nothing more may be."""
        ...

    def write(self, deltas: list[Delta]) -> bytes: ...


class Dialect(Protocol):
    """A wire language, as far as relaying needs it. A module is one: its functions are these."""

    def read_view(self, members: Envelope) -> View:
        """The few members the spine needs. Raises BodyInvalid."""
        ...

    def ask_usage(self, members: Envelope) -> bool:
        """Make a streamed answer tell its usage. True when the client had not asked, so that the event is hidden."""
        ...

    def choices(self, members: Envelope) -> int:
        """How many answers are asked for at once: a stream has ended when each of them has."""
        ...

    def meter(self, *, stream: bool, hide_usage: bool, choices: int = 1) -> Meter: ...

    def measure(self, data: bytes) -> tuple[Usage | None, Fault | None]:
        """A whole body, at once: its usage, and the error that it may be instead of an answer. Never raises."""
        ...

    def read_error(self, status: int, data: bytes) -> Fault: ...

    def write_error(self, fault: Fault) -> bytes: ...

    def write_stream_error(self, fault: Fault) -> bytes: ...

    def local(self, members: Envelope) -> bytes | None:
        """An answer that needs no provider, where there is one."""
        ...


class Conversation(Dialect, Protocol):
    """A dialect that has a neutral form, so that it can be translated from and to."""

    def read_request(self, members: Envelope) -> Ask:
        """Raises BodyInvalid naming the JSON path, Unsupported for what has no neutral form and cannot be left out."""
        ...

    def write_request(self, ask: Ask, model: str) -> Written: ...

    def read_reply(self, data: bytes) -> Reply:
        """Raises UpstreamProtocol when it is none, ErrorInAnswer when it is an error."""
        ...

    def write_reply(self, reply: Reply) -> bytes: ...

    def stream_reader(self) -> StreamReader: ...

    def stream_writer(self, *, include_usage: bool) -> StreamWriter: ...
