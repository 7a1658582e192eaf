"""The tables of the file as frozen structs. Every default and every bound stands here and only here."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from sidecar.config.addresses import shown_url
from sidecar.config.stores import MEMORY, Place
from sidecar.secret import Secret

# Where a provider's key is looked for when its table names none, and what zero-config goes by.
KEY_VARIABLES: Final = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "google": "GEMINI_API_KEY",
    "xai": "XAI_API_KEY",
    "grok": "XAI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "blackbox": "BLACKBOX_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "cohere": "COHERE_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "together": "TOGETHER_API_KEY",
    "fireworks": "FIREWORKS_API_KEY",
    "perplexity": "PERPLEXITY_API_KEY",
    "cerebras": "CEREBRAS_API_KEY",
    "nvidia": "NVIDIA_API_KEY",
    "huggingface": "HF_TOKEN",
    "alibaba": "DASHSCOPE_API_KEY",
    "dashscope": "DASHSCOPE_API_KEY",
    "moonshot": "MOONSHOT_API_KEY",
    "kimi": "MOONSHOT_API_KEY",
    "zai": "ZAI_API_KEY",
    "minimax": "MINIMAX_API_KEY",
    "stepfun": "STEPFUN_API_KEY",
    "writer": "WRITER_API_KEY",
    "inception": "INCEPTION_API_KEY",
    "upstage": "UPSTAGE_API_KEY",
    "voyage": "VOYAGE_API_KEY",
    "sambanova": "SAMBANOVA_API_KEY",
    "deepinfra": "DEEPINFRA_API_KEY",
    "novita": "NOVITA_API_KEY",
    "nebius": "NEBIUS_API_KEY",
    "siliconflow": "SILICONFLOW_API_KEY",
    "baseten": "BASETEN_API_KEY",
    "friendli": "FRIENDLI_TOKEN",
    "scaleway": "SCALEWAY_API_KEY",
    "ovhcloud": "OVHCLOUD_API_KEY",
    "wandb": "WANDB_API_KEY",
    "chutes": "CHUTES_API_KEY",
    "venice": "VENICE_API_KEY",
    "poe": "POE_API_KEY",
    "vercel": "AI_GATEWAY_API_KEY",
    "requesty": "REQUESTY_API_KEY",
}
KEYLESS: Final = ("ollama", "vllm", "sglang", "llamacpp", "lmstudio", "openai-compatible")
PLACELESS: Final = ("azure", "openai-compatible")  # have no base URL of their own, so that a table must give one
KINDS: Final = (*KEY_VARIABLES, *KEYLESS)
LIMITS: Final = (  # the options that are one, of providers, models and callers
    "requests_per_minute",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "concurrency",
)

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Rate = Annotated[int, Meta(ge=1, le=1_000_000_000)]
File = Annotated[str, Meta(description="a path; a relative one is relative to the folder of this file")]
Kilobytes = Annotated[int, Meta(ge=1024, le=1024 * 1024)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: closed, frozen, an option a field."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key by reference. `source`: what the file says (env:NAME, file:/path, caller, sha256:...), or "inline"."""

    source: str
    secret: Secret | None = None  # None: it is missing, or the caller's own, or only its digest is kept
    digest: bytes | None = None  # SHA-256, of callers' keys
    missing: str | None = None  # why there is no secret, in words for a person

    def __repr__(self) -> str:
        return f"Key({self.shown!r})"

    @property
    def shown(self) -> str:
        """Its source, to be shown: of a digest stars, since a weak key could be guessed from it."""
        return "sha256:**********" if self.source.startswith("sha256:") else self.source


class Timeouts(Table, frozen=True):
    """[timeouts], [providers.X.timeouts]: seconds, each absolute."""

    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 300.0
    idle_seconds: Seconds = 120.0
    total_seconds: Seconds = 1800.0


class Pool(Table, frozen=True):
    """[pool], [providers.X.pool]: connections to one provider."""

    max_connections: Count = 1000
    keepalive_seconds: Seconds = 30.0
    max_age_seconds: Seconds = 600.0


class Limits(Table, frozen=True):
    """[providers.X.limits]: what this process may ask of a provider.

    `adaptive` is off by default: it begins with a guess, and must not refuse what a provider would have taken unasked.
    """

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    input_tokens_per_minute: Rate | None = None
    output_tokens_per_minute: Rate | None = None
    concurrency: Count | None = None
    adaptive: bool = False


class Breaker(Table, frozen=True):
    """[breaker], [providers.X.breaker]: when a target that fails is left alone, and for how long."""

    consecutive_failures: Count = 5
    open_seconds: Seconds = 1.0
    max_open_seconds: Seconds = 60.0


class Retry(Table, frozen=True):
    """[retry]: a second try at the same target, before a byte has gone to the client. Clients retry themselves, too."""

    attempts: Annotated[int, Meta(ge=0, le=10)] = 1
    base_seconds: Seconds = 0.25
    cap_seconds: Seconds = 4.0
    max_wait_seconds: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    budget_percent: Percent = 20.0
    budget_minimum: Annotated[int, Meta(ge=0, le=1_000_000)] = 3


class Queue(Table, frozen=True):
    """[queue]: requests that wait for a limit on concurrency. `length`: for each limit, by default as many as it.

    By class, then by arrival, the short before the long; no class waits longer than `wait_seconds`.
    """

    length: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    wait_seconds: Annotated[float, Meta(ge=0, le=3600)] = 3.0


class Server(Table, frozen=True):
    """[server]"""

    listen: tuple[str, ...] = ("127.0.0.1:4000",)
    socket_mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o660
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    tls_cert: File | None = None
    tls_key: File | None = None
    allow_origins: tuple[str, ...] = ()
    max_connections: Count | None = None
    max_request_line_bytes: Kilobytes = 8192
    max_header_bytes: Kilobytes = 65536
    max_headers: Annotated[int, Meta(ge=10, le=10_000)] = 100
    max_body_bytes: Annotated[int, Meta(ge=1024, le=4 * 1024**3)] = 32 * 1024 * 1024
    header_seconds: Seconds = 10.0
    body_idle_seconds: Seconds = 15.0
    body_seconds: Seconds = 120.0
    keepalive_seconds: Seconds = 75.0
    send_stall_seconds: Seconds = 60.0
    lame_duck_seconds: Annotated[float, Meta(ge=0, le=3600)] = 3.0
    drain_seconds: Annotated[float, Meta(ge=0, le=86400)] = 25.0


class Provider(Table, frozen=True):
    """[providers.X]. `kind`: the built-in row, the table's own name by default."""

    kind: str | None = None
    base_url: str | None = None
    api_key: Key | None = None
    api_keys: tuple[Key, ...] = ()
    tags: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    tls_ca: File | None = None
    tls_verify: bool = True
    proxy: str | None = None
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    limits: Limits = Limits()
    breaker: Breaker = Breaker()

    def __repr__(self) -> str:
        """Without what may hold a secret: the values of headers, and parts of URLs."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["headers"] = dict.fromkeys(self.headers, "**********")
        shown |= {name: shown[name] and shown_url(shown[name]) for name in ("base_url", "proxy")}
        return f"Provider({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Target(Table, frozen=True):
    """An element of `targets` that says more than its name."""

    to: str
    weight: Count = 1
    order: Annotated[int, Meta(ge=0, le=1000)] = 0
    params: dict[str, Any] = {}
    tags: tuple[str, ...] = ()


Cause = Literal["any", "error", "timeout", "rate_limit", "context_window", "content_policy"]


class Model(Table, frozen=True):
    """[models.X]: a name of your own for one target or several."""

    targets: tuple[str | Target, ...]
    policy: Literal["failover", "weighted", "least-latency", "hedge"] = "failover"
    fallback_on: tuple[Cause, ...] = ("error", "timeout", "rate_limit")
    affinity_header: str | None = None
    tags: tuple[str, ...] = ()
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    input_tokens_per_minute: Rate | None = None
    output_tokens_per_minute: Rate | None = None
    hedge_after_seconds: Seconds | None = None
    hedge_budget_percent: Percent = 5.0
    coalesce: bool = False
    cache_ttl_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] | None = None
    continuation: bool = False
    keepalive_comment_seconds: Seconds | None = None
    commit_bytes: Annotated[int, Meta(ge=0, le=16 * 1024 * 1024)] = 65536
    commit_seconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0


class Caller(Table, frozen=True):
    """[callers.X]: who may ask, for what, how often. `priority`: of each request that does not ask for a lower one."""

    key: Key
    models: tuple[str, ...] = ()
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    input_tokens_per_minute: Rate | None = None
    output_tokens_per_minute: Rate | None = None
    concurrency: Count | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    tags: tuple[str, ...] = ()


class Store(Table, frozen=True):
    """[store]: where limits are counted: in each process's memory, or in a Redis that several sidecars share."""

    url: Place = MEMORY
    tls_ca: File | None = None


def token_limits(table: Limits | Caller | Model) -> tuple[int | None, int | None, int | None]:
    """Tokens a minute: in and out together, in, out."""
    return table.tokens_per_minute, table.input_tokens_per_minute, table.output_tokens_per_minute


class Cache(Table, frozen=True):
    """[cache]: whole, good answers are given again. `ttl_seconds`: absent = off, but for models that have their own."""

    ttl_seconds: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    stale_seconds: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    max_bytes: Annotated[int, Meta(ge=1024 * 1024, le=1024**4)] = 64 * 1024 * 1024
    memory_percent: Annotated[float, Meta(gt=0, le=50)] = 10.0
    temperature_max: Annotated[float, Meta(ge=0, le=2)] = 2.0
    replay: Literal["at-once", "recorded"] = "at-once"


class OnDisconnect(Table, frozen=True):
    """[on_disconnect]: what becomes of an answer whose client has left."""

    policy: Literal["cancel", "drain"] = "cancel"


class Log(Table, frozen=True):
    """[log]: one JSON line an exchange. `file`: a path, or "-" for standard error. `level`: "off" writes nothing."""

    level: Literal["info", "off"] = "info"
    file: File = "-"


class Config(Table, frozen=True):
    """The whole file. Get it from `load`, or build it in code."""

    server: Server = Server()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    callers: dict[str, Caller] = {}
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    breaker: Breaker = Breaker()
    retry: Retry = Retry()
    queue: Queue = Queue()
    cache: Cache = Cache()
    store: Store = Store()
    on_disconnect: OnDisconnect = OnDisconnect()
    log: Log = Log()
