"""What passes along the spine: one struct for each thing a step takes or gives (see README, "Life of a request")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, Protocol

import msgspec

from sidecar.rates import NO_TOKENS, Left, TokenLimits
from sidecar.secret import Secret

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]  # names in lower case, in order
Sink = Callable[[bytes], Awaitable[None] | None]  # takes bytes; None, or what must be waited for before more are given
Through = Callable[[bytes, int], bool]  # takes a chunk of whole events with its frame, and its size; False: it does not
Hold = Callable[[int], object]  # told that so many bytes are to be held; may raise
Envelope = dict[str, msgspec.Raw]  # a JSON object's members, values undecoded

Scheme = Literal["http", "https"]


def freely(size: int) -> None:
    """Hold what nobody counts."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the endpoint table: what is served where, in which dialect."""

    path: str
    dialect: str  # the language its clients speak: a key of DIALECTS
    model: str | None = None  # named by the path instead of the body (Azure's deployments)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: a `[callers.X]` table, or the anonymous caller of a loopback listener. Never holds the key."""

    name: str
    models: tuple[str, ...] = ()  # names it may ask for; empty = all
    requests_per_minute: int | None = None
    concurrency: int | None = None
    priority: str = "normal"  # in a queue: high, normal or low; a request of its may ask for less
    tags: frozenset[str] = frozenset()  # that a target must have


class View(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The few fields of a request that the spine itself needs."""

    model: str
    stream: bool = False
    include_usage: bool = False  # the client asks for a usage event in its stream
    max_tokens: int | None = None


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """How an origin is trusted. `ca`: a PEM file instead of the system's roots and certifi's."""

    ca: str | None = None
    verify: bool = True


class Origin(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """Where a connection goes: the pool's key, a bulkhead each. `name` is the provider's, so that none share."""

    name: str
    scheme: Scheme
    host: str
    port: int
    unix: str | None = None  # path of a unix socket to dial instead of host and port
    proxy: str | None = None  # http://[user:password@]host:port, for CONNECT; None = from the environment, "" = none
    tls: Tls = Tls()


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, each absolute from its start: bytes that trickle do not extend it (but for `idle`, between bytes)."""

    connect: float = 5.0
    first_byte: float = 300.0  # of a stream
    first_byte_unary: float = 590.0  # of an answer that comes all at once
    idle: float = 120.0
    total: float = 1800.0


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """The limits of time of one attempt. `at`: the loop time at which the whole exchange is over."""

    at: float
    connect: float
    first_byte: float
    idle: float


class PoolLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The size of one origin's pool."""

    max_connections: int = 1000
    keepalive_seconds: float = 30.0
    max_age_seconds: float = 600.0
    wait_seconds: float = 3.0  # how long a request may wait for a connection when all are busy


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    """A credential header to be written: `header: prefix + secret`."""

    header: bytes
    prefix: bytes
    secret: Secret


class Outbound(msgspec.Struct, frozen=True, gc=False):
    """A request to a provider, ready for the wire but for the credential, which is revealed only there."""

    origin: Origin
    method: bytes
    path: bytes  # the request target: path and query as sent
    lines: bytes  # of its headers, without content-length and the credential
    auth: Auth | None
    body: bytes
    more: tuple[bytes | memoryview, ...] = ()  # of a body that is too long to be copied: what comes behind `body`


class Inbound(Protocol):
    """A provider's answer whose head has come. Owned by the spine until the last byte has gone."""

    status: int
    headers: Headers
    index: dict[bytes, bytes]  # the headers by name; of a repeated one the last

    def whole(self) -> bytes | None:
        """The whole body, if all of it came together with the head."""
        ...

    def here(self) -> bytes:
        """What has come of the body already, which may be nothing."""
        ...

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its framed end. Raises UpstreamCut, UpstreamTimeout, UpstreamProtocol."""
        ...

    async def pump(self, sink: Sink, through: Through | None = None) -> Awaitable[None] | None:
        """Give what comes to `sink`, in the very call that brings it, until the framed end. Raises as `read` does.

        `through` is asked first, where exactly one chunk came. Where `sink` answers something to wait for, that is
        answered, and the caller pumps on when it has waited.
        """
        ...

    def interrupt(self) -> None:
        """Let whoever pumps go on, although nothing has come: its `pump` answers ENOUGH (drive.py)."""
        ...

    def unread(self, data: bytes) -> None:
        """Put bytes that were read back before those that are still to be read."""
        ...

    def close(self) -> None:
        """Give the connection back if the answer ended at its framed end, else close it. May be called twice."""
        ...


class Pipe(Protocol):
    """A connection to a client whose answer is chunked (RFC 9112 7.1)."""

    pass_on: Callable[[bytes], object] | None  # send at once; None while it does not take what it is sent
    unflushed: bytes  # to be sent before


class Client(Protocol):
    """Whoever asks, as the spine sees it: our own server's exchange, or any ASGI server's behind `asgi.Client`."""

    headers: Headers
    index: dict[bytes, bytes]  # the headers by name; of a repeated one the last
    query: bytes  # of the request target, without the question mark
    notes: dict[str, Any]  # of the spine's, kept for every request with the same head
    stay: bool  # set by the spine: its exchange goes on without it

    @property
    def gone(self) -> bool:
        """It has left: nobody reads what is answered."""
        ...

    def body(self, most: int) -> bytes | None:
        """The whole body, if it is here already. Raises BodyTooLarge."""
        ...

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        """The whole body. Raises BodyTooLarge above `most` bytes, ClientGone, and what `hold` does.

        `hold`: told how long it is, where that is declared, before more of it is read; else how much has come.
        """
        ...

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The head, with the first bytes of the body. What it answers, if anything, is to be waited for.

        `lines`: more headers, in the form of the wire. A content-length is written where there is no more to come.
        """
        ...

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        """The next bytes. What it answers, if anything, is to be waited for: the client does not read."""
        ...

    def pipe(self) -> Pipe | None:
        """Where chunks of the answer may be written as they are framed, until its end; None where they may not be."""
        ...


class Usage(msgspec.Struct, kw_only=True, gc=False):
    """Tokens as counted by the provider. `input` and `output` are totals; the others are parts of them."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False

    def plus(self, other: Usage) -> Usage:
        """Of both together."""
        return Usage(
            input=self.input + other.input,
            output=self.output + other.output,
            cached=self.cached + other.cached,
            cache_write=self.cache_write + other.cache_write,
            reasoning=self.reasoning + other.reasoning,
            estimated=self.estimated or other.estimated,
        )


class Outcome(msgspec.Struct, gc=False):
    """How the relay of an answer went. Times are of the monotonic clock, in seconds."""

    started: float = 0.0
    bytes_sent: int = 0
    first_byte_at: float | None = None  # when the head was made to go: from here on there is no other target
    waited: float = 0.0  # seconds spent waiting for the provider, up to the first byte
    complete: bool = False


class Record(msgspec.Struct, gc=False):
    """What is known of one exchange when it is over: in this form a line of the access log. Never content."""

    time: float | str = 0.0  # of its end, by the monotonic clock; in the log by the calendar
    event: str = "exchange"
    request_id: str = msgspec.field(name="id", default="")
    endpoint: str = ""
    caller: str = ""
    asked_model: str = ""
    provider: str = ""
    model: str = ""
    status: int = 0
    error: str = ""  # code of the vocabulary in errors.py
    attempts: int = 0
    stream: bool = False
    seconds: float = 0.0
    first_byte_seconds: float | None = None
    overhead_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    continued: int = 0  # times that another target went on with a stream that had broken off
    cache: str = "off"  # hit, stale, miss, coalesced; renew: asked for behind one that was stale
    saved_input_tokens: int | None = None  # of a cached answer: nobody was asked for them again
    saved_output_tokens: int | None = None


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A configured provider, resolved once: its row, its table, its key, all in the form the spine uses."""

    name: str  # the `[providers.X]` table
    kind: str  # the built-in row it is of
    origin: Origin
    host: bytes  # the Host header: authority of the base URL
    paths: dict[
        str, str
    ]  # dialect -> path (base URL's path included) where it is served, e.g. "chat": "/v1/chat/completions"
    auth: Auth | None  # None: no credential is sent
    auths: tuple[Auth, ...] = ()  # of each of its keys; `auth` is the first
    auth_header: bytes = b"authorization"  # for a caller's own key, forwarded with `api_key = "caller"`
    auth_prefix: bytes = b"Bearer "
    forward_caller_key: bool = False
    missing_key: str | None = None  # why there is no key ("OPENAI_API_KEY is not set"), when one is needed
    headers: Headers = []
    secrets: tuple[Secret, ...] = ()  # among their values
    drop: frozenset[str] = frozenset()  # body members not sent
    rename: tuple[tuple[str, str], ...] = ()  # body members sent under another name
    prefill: Literal["", "plain", "prefix"] = ""  # whether a last message of the assistant is gone on with, and by what
    stream_usage: bool = True  # understands `stream_options.include_usage`
    timeouts: Timeouts = Timeouts()
    pool: PoolLimits = PoolLimits()
    requests_per_minute: int | None = None
    tokens: TokenLimits = NO_TOKENS
    concurrency: int | None = None

    def __repr__(self) -> str:
        """Without the values of headers, which may be secrets."""
        return f"<Upstream {self.name} {self.kind} at {self.origin.host}:{self.origin.port}>"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan: this model at this provider, in this dialect."""

    upstream: Upstream
    model: str  # the name the provider knows
    dialect: str  # the one it will be asked in; the client's own whenever the provider speaks it
    path: bytes  # where
    raw_model: msgspec.Raw  # the name as JSON
    stamp: bytes  # header lines of its answers: what is the same for each
    why: str = ""  # one clause for `sidecar explain`
    key: str = ""  # provider/model: whose health it has
    weight: int = 1
    order: int = 0  # lower ones are tried first
    params: tuple[tuple[str, msgspec.Raw], ...] = ()  # members of the body that it sets, whatever the client sent
    tags: frozenset[str] = frozenset()  # its own and its provider's


class Permit(Protocol):
    """Leave to go on. Held to the last byte, then given back, exactly once."""

    def release(self) -> None: ...


class Counting(Protocol):
    """The limits of one caller, provider or model (limits.Counter)."""

    tokens: Any  # limits of them, None where there are none: then it is its own permit
    usual: float  # tokens of an answer that nobody has bounded

    def enter(self, now: float, input: int = 0, output: int = 0) -> Permit | Refused | None:
        """Leave for one request now, or not; None where it may `wait`. A refusal takes nothing.

        `input`, `output`: a guess at its tokens, where there are limits of them; the permit is to be settled then.
        """
        ...

    def forgo(self, decision: Permit | Refused | None) -> None:
        """As if it had not been asked to `enter`, in the moment in which it answered this."""
        ...

    def release(self) -> None:
        """Give back what `enter` gave, where it gave itself."""
        ...

    def wait(
        self, now: float, rank: int, cost: float, patience: float, input: int = 0, output: int = 0
    ) -> Wait | Refused:
        """A place in the queue, unless it would wait in vain. `rank`: 0 goes first. `cost`: 0 to 1. In seconds."""
        ...

    def left(self, now: float) -> list[Left]:
        """What there is of each rate."""
        ...


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Not now: at the latest in `seconds` the answer is another. `ticket` is the place in the queue."""

    seconds: float
    ticket: Any


class Refused(msgspec.Struct, frozen=True, gc=False):
    """No. `scope` says whose limit ("caller:web"), `limit` which: "concurrency", or the name of a rate's option."""

    scope: str
    limit: str
    retry_after: float  # seconds, exact
