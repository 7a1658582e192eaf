"""The table of providers: one frozen row each, no code. What a row does not name passes through untouched.

Facts: base URLs, paths and authentication as the providers document them; renames and drops only where a provider is
documented to refuse the member. A 41st OpenAI-compatible provider is one row here (and is in the conformance suite by it).
"""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from sidecar import config
from sidecar.types import Auth, Headers, Origin, PoolLimits, Scheme, Timeouts, Tls, Upstream

Capability = Literal["chat", "stream", "tools", "vision", "embeddings", "completions", "messages"]


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `speaks`: dialect and the path behind the base URL where it is spoken, the preferred one first."""

    name: str
    base_url: str  # "" = to be configured
    speaks: tuple[tuple[str, str], ...]
    auth: Literal["bearer", "x-api-key"] = "bearer"
    needs_key: bool = True
    known: tuple[str, ...] = ()  # patterns of model names that are this provider's, when asked for bare
    headers: tuple[tuple[str, str], ...] = ()  # sent unless the client sends its own
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    stream_usage: bool = True  # understands stream_options.include_usage
    capabilities: tuple[Capability, ...] = ("chat", "stream", "tools")


_CHAT: Final = ("chat", "/chat/completions")
_TEXT: Final = ("completions", "/completions")
_VECTORS: Final = ("embeddings", "/embeddings")

BUILT_IN: Final[tuple[Provider, ...]] = (
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        known=("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "text-embedding-*", "davinci-*", "babbage-*", "codex-*"),
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
    Provider(
        name="anthropic",
        base_url="https://api.anthropic.com",
        speaks=(("messages", "/v1/messages"), ("count_tokens", "/v1/messages/count_tokens")),
        auth="x-api-key",
        known=("claude-*",),
        headers=(("anthropic-version", "2023-06-01"),),
        capabilities=("messages", "stream", "tools", "vision"),
    ),
    Provider(
        name="xai",
        base_url="https://api.x.ai/v1",
        speaks=(_CHAT,),
        known=("grok-*",),
        capabilities=("chat", "stream", "tools", "vision"),
    ),
    Provider(
        name="openrouter",
        base_url="https://openrouter.ai/api/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        stream_usage=False,  # sends usage always; the member is a deprecated no-op there
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
    Provider(name="blackbox", base_url="https://api.blackbox.ai", speaks=(_CHAT,)),
    Provider(
        name="groq",
        base_url="https://api.groq.com/openai/v1",
        speaks=(_CHAT, _VECTORS),
        capabilities=("chat", "stream", "tools", "vision", "embeddings"),
    ),
    Provider(
        name="mistral",
        base_url="https://api.mistral.ai/v1",
        speaks=(_CHAT, _VECTORS),
        known=("mistral-*", "ministral-*", "magistral-*", "codestral-*", "devstral-*", "pixtral-*", "voxtral-*"),
        rename=(("max_completion_tokens", "max_tokens"), ("seed", "random_seed")),
        drop=("logit_bias", "user", "store"),  # unknown members are refused with 422
        capabilities=("chat", "stream", "tools", "vision", "embeddings"),
    ),
    Provider(
        name="deepseek",
        base_url="https://api.deepseek.com",
        speaks=(_CHAT,),
        known=("deepseek-*",),
    ),
    Provider(
        name="together",
        base_url="https://api.together.ai/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
    Provider(
        name="fireworks",
        base_url="https://api.fireworks.ai/inference/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        known=("accounts/fireworks/*",),
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
    Provider(
        name="perplexity",
        base_url="https://api.perplexity.ai",
        speaks=(_CHAT,),
        known=("sonar*",),
        stream_usage=False,  # sends usage on every chunk
        capabilities=("chat", "stream"),
    ),
    Provider(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        speaks=(_CHAT, _TEXT),
        capabilities=("chat", "stream", "tools", "completions"),
    ),
    Provider(
        name="nvidia",
        base_url="https://integrate.api.nvidia.com/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        capabilities=("chat", "stream", "tools", "embeddings", "completions"),
    ),
    Provider(
        name="huggingface",
        base_url="https://router.huggingface.co/v1",
        speaks=(_CHAT,),
        capabilities=("chat", "stream", "tools", "vision"),
    ),
    Provider(
        name="ollama",
        base_url="http://127.0.0.1:11434/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        needs_key=False,
        capabilities=("chat", "stream", "tools", "embeddings", "completions"),
    ),
    Provider(
        name="vllm",
        base_url="http://127.0.0.1:8000/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        needs_key=False,
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
    Provider(
        name="llamacpp",
        base_url="http://127.0.0.1:8080/v1",
        speaks=(_CHAT, _TEXT, _VECTORS),
        needs_key=False,
        capabilities=("chat", "stream", "tools", "embeddings", "completions"),
    ),
    Provider(
        name="openai-compatible",
        base_url="",
        speaks=(_CHAT, _TEXT, _VECTORS),
        needs_key=False,
        capabilities=("chat", "stream", "tools", "vision", "embeddings", "completions"),
    ),
)
ALIASES: Final = {"grok": "xai"}  # other names a row goes by
ROWS: Final = {row.name: row for row in BUILT_IN} | {
    alias: row for alias, name in ALIASES.items() for row in BUILT_IN if row.name == name
}
_UNARY_FIRST_BYTE_SECONDS: Final = 590.0  # below the 600 s at which the SDKs give up, so that we answer and not they


def resolve(name: str, table: config.Provider) -> Upstream:
    """A configured provider in the form the spine uses: its row under its table, and its key.

    Raises KeyError for a kind that is no row, ValueError when there is no base URL; `config.load` has refused both before.
    """
    row = ROWS[table.kind or name]
    base_url = (table.base_url or row.base_url).rstrip("/")
    origin, host, base_path = _origin(name, base_url, table)
    key = table.api_key
    caller_key = key is not None and key.source == "caller"
    header, prefix = (b"authorization", b"Bearer ") if row.auth == "bearer" else (b"x-api-key", b"")
    secret = key.secret if key is not None else None
    missing = None
    if secret is None and not caller_key:
        if key is not None:
            missing = key.missing or "its key is not there"
        elif row.needs_key:
            missing = f"set api_key in [providers.{name}]"
    return Upstream(
        name=name,
        kind=row.name,
        origin=origin,
        host=host,
        paths={dialect: base_path + path for dialect, path in row.speaks},
        auth=Auth(header=header, prefix=prefix, secret=secret) if secret is not None else None,
        auth_header=header,
        auth_prefix=prefix,
        forward_caller_key=caller_key,
        missing_key=missing,
        headers=_headers(row, table),
        drop=frozenset((*row.drop, *table.drop)),
        rename=(*row.rename, *table.rename.items()),
        stream_usage=row.stream_usage,
        timeouts=_timeouts(table.timeouts),
        pool=PoolLimits(
            max_connections=table.pool.max_connections,
            keepalive_seconds=table.pool.keepalive_seconds,
            max_age_seconds=table.pool.max_age_seconds,
        ),
        requests_per_minute=table.limits.requests_per_minute,
        concurrency=table.limits.concurrency,
    )


def _origin(name: str, base_url: str, table: config.Provider) -> tuple[Origin, bytes, str]:
    """Where a base URL leads, its Host header, and the path all its endpoints share."""
    tls = Tls(ca=table.tls_ca, verify=table.tls_verify)
    if base_url.startswith("unix:"):  # unix:/path/of.sock, or unix:/path/of.sock:/v1
        path, _, base_path = base_url.removeprefix("unix:").partition(":")
        return Origin(name=name, scheme="http", host="localhost", port=0, unix=path, tls=tls), b"localhost", base_path
    parts = urlsplit(base_url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError(f"provider {name} needs a base_url")
    scheme: Scheme = "https" if parts.scheme == "https" else "http"
    port = parts.port or (443 if scheme == "https" else 80)
    origin = Origin(name=name, scheme=scheme, host=parts.hostname, port=port, proxy=table.proxy, tls=tls)
    return origin, parts.netloc.encode(), parts.path


def _headers(row: Provider, table: config.Provider) -> Headers:
    own = {name.lower(): value for name, value in (*row.headers, *table.headers.items())}
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in own.items()]


def _timeouts(table: config.Timeouts) -> Timeouts:
    changed = table.first_byte_seconds != config.Timeouts().first_byte_seconds
    return Timeouts(
        connect=table.connect_seconds,
        first_byte=table.first_byte_seconds,
        first_byte_unary=table.first_byte_seconds if changed else _UNARY_FIRST_BYTE_SECONDS,
        idle=table.idle_seconds,
        total=table.total_seconds,
    )
