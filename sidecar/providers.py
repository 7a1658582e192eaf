"""The table of providers: one frozen row each, no code. What a row does not name passes through untouched.

Facts: base URLs, paths and authentication as the providers document them; renames and drops only where a provider is
documented to refuse the member. Another OpenAI-compatible provider is one row here, and its key's variable in
config/structs.py; it is in the conformance suite by that.
"""

from __future__ import annotations

import re
from typing import Final, Literal, cast
from urllib.parse import urlsplit

import msgspec

from sidecar import config
from sidecar.secret import Secret
from sidecar.types import Auth, Headers, Origin, PoolLimits, Scheme, Timeouts, Tls, Upstream

Capability = Literal["chat", "stream", "tools", "vision", "embeddings", "completions", "messages", "count_tokens"]


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `speaks`: dialect and the path behind the base URL where it is spoken, the preferred one first.

    `drop` has members that the provider is documented to refuse, and whose absence its answer does not show: what asks
    for something in the answer (logprobs, n) passes, so that the provider itself says that it does not do it.
    """

    name: str
    base_url: str  # "" = to be configured
    speaks: tuple[tuple[str, str], ...]
    auth: Literal["bearer", "x-api-key", "api-key"] = "bearer"
    needs_key: bool = True
    known: tuple[str, ...] = ()  # patterns of model names that are this provider's, when asked for bare
    headers: tuple[tuple[str, str], ...] = ()  # sent unless the client sends its own
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    stream_usage: bool = True  # understands stream_options.include_usage, and tells usage in a stream only with it
    prefill: Literal["", "plain", "prefix"] = ""  # a last message of the assistant is gone on with: as it is, or marked
    offers: tuple[Capability, ...] = ()  # within the dialects that it speaks

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What tests/conformance holds the row to."""
        return (*(cast("Capability", dialect) for dialect, _ in self.speaks), *self.offers)


_CHAT: Final = ("chat", "/chat/completions")
_TEXT: Final = ("completions", "/completions")
_VECTORS: Final = ("embeddings", "/embeddings")
_ALL: Final = (_CHAT, _TEXT, _VECTORS)
_TALKS: Final[tuple[Capability, ...]] = ("stream", "tools")
_SEES: Final[tuple[Capability, ...]] = ("stream", "tools", "vision")

BUILT_IN: Final[tuple[Provider, ...]] = (
    Provider(
        name="openai",
        base_url="https://api.openai.com/v1",
        speaks=_ALL,
        known=(
            "gpt-*",
            "chatgpt-*",
            "o1*",
            "o3*",
            "o4*",
            "text-embedding-*",
            "davinci-*",
            "babbage-*",
            "codex-*",
            "ft:*",
        ),
        offers=_SEES,
    ),
    Provider(
        name="anthropic",
        prefill="plain",
        base_url="https://api.anthropic.com",
        speaks=(("messages", "/v1/messages"), ("count_tokens", "/v1/messages/count_tokens")),
        auth="x-api-key",
        known=("claude-*",),
        headers=(("anthropic-version", "2023-06-01"),),
        offers=_SEES,
    ),
    # https://RESOURCE.openai.azure.com/openai/v1, where a model is the name of a deployment; or the classic form
    # https://RESOURCE.openai.azure.com/openai/deployments/{model}?api-version=2024-10-21
    Provider(name="azure", base_url="", speaks=_ALL, auth="api-key", offers=_SEES),
    Provider(
        name="gemini",  # by its OpenAI-compatible endpoint
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        speaks=(_CHAT, _VECTORS),
        known=("gemini-*",),
        offers=_SEES,
    ),
    Provider(name="xai", base_url="https://api.x.ai/v1", speaks=(_CHAT,), known=("grok-*",), offers=_SEES),
    Provider(
        name="openrouter",
        prefill="plain",
        base_url="https://openrouter.ai/api/v1",
        speaks=_ALL,
        stream_usage=False,  # sends usage always; the member is a deprecated no-op there
        offers=_SEES,
    ),
    Provider(name="blackbox", base_url="https://api.blackbox.ai", speaks=(_CHAT,), offers=_TALKS),
    Provider(
        name="groq",
        base_url="https://api.groq.com/openai/v1",
        speaks=(_CHAT, _VECTORS),
        drop=("logit_bias",),  # 400 (its page on OpenAI compatibility)
        offers=_SEES,
    ),
    Provider(
        name="mistral",
        prefill="prefix",
        base_url="https://api.mistral.ai/v1",
        speaks=(_CHAT, _VECTORS),
        known=("mistral-*", "ministral-*", "magistral-*", "codestral-*", "devstral-*", "pixtral-*", "voxtral-*"),
        rename=(("max_completion_tokens", "max_tokens"), ("seed", "random_seed")),
        drop=("logit_bias", "user", "store"),  # unknown members are refused with 422
        offers=_SEES,
    ),
    Provider(
        name="cohere",  # by its compatibility API
        base_url="https://api.cohere.ai/compatibility/v1",
        speaks=(_CHAT, _VECTORS),
        known=("command-*", "c4ai-*", "embed-*"),
        stream_usage=False,
        drop=("stream_options",),  # refused
        offers=_TALKS,
    ),
    Provider(
        name="deepseek",
        prefill="prefix",
        base_url="https://api.deepseek.com",
        speaks=(_CHAT, ("completions", "/beta/completions")),
        known=("deepseek-*",),
        offers=_TALKS,
    ),
    Provider(name="together", base_url="https://api.together.ai/v1", speaks=_ALL, offers=_SEES),
    Provider(
        name="fireworks",
        base_url="https://api.fireworks.ai/inference/v1",
        speaks=_ALL,
        known=("accounts/fireworks/*",),
        offers=_SEES,
    ),
    Provider(
        name="perplexity",
        base_url="https://api.perplexity.ai",
        speaks=(_CHAT, ("embeddings", "/v1/embeddings")),
        known=("sonar*", "pplx-*"),
        stream_usage=False,  # sends usage on every chunk
        offers=("stream",),
    ),
    Provider(
        name="cerebras",
        base_url="https://api.cerebras.ai/v1",
        speaks=(_CHAT, _TEXT),
        drop=("frequency_penalty", "presence_penalty", "logit_bias"),  # refused
        offers=_TALKS,
    ),
    Provider(name="nvidia", base_url="https://integrate.api.nvidia.com/v1", speaks=_ALL, offers=_TALKS),
    Provider(name="huggingface", base_url="https://router.huggingface.co/v1", speaks=(_CHAT, _TEXT), offers=_SEES),
    Provider(
        name="alibaba",
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        speaks=(_CHAT, _VECTORS),
        known=("qwen*", "qwq*", "qvq*"),
        offers=_SEES,
    ),
    Provider(
        name="moonshot",
        base_url="https://api.moonshot.ai/v1",
        speaks=(_CHAT,),
        known=("kimi-*", "moonshot-*"),
        offers=_SEES,
    ),
    Provider(name="zai", base_url="https://api.z.ai/api/paas/v4", speaks=(_CHAT,), known=("glm-*",), offers=_SEES),
    Provider(
        name="minimax", base_url="https://api.minimax.io/v1", speaks=(_CHAT,), known=("MiniMax-*",), offers=_TALKS
    ),
    Provider(name="stepfun", base_url="https://api.stepfun.com/v1", speaks=(_CHAT,), known=("step-*",), offers=_SEES),
    Provider(
        name="writer",
        base_url="https://api.writer.com/v1",
        speaks=(("chat", "/chat"),),
        known=("palmyra-*",),
        offers=_TALKS,
    ),
    Provider(
        name="inception",
        base_url="https://api.inceptionlabs.ai/v1",
        speaks=(_CHAT,),
        known=("mercury*",),
        offers=_TALKS,
    ),
    Provider(
        name="upstage", base_url="https://api.upstage.ai/v1/solar", speaks=(_CHAT,), known=("solar-*",), offers=_TALKS
    ),
    Provider(
        name="voyage",
        base_url="https://api.voyageai.com/v1",
        speaks=(_VECTORS,),
        known=("voyage-*",),
        rename=(("dimensions", "output_dimension"),),
    ),
    # hosts of many makers' models, and gateways to them
    Provider(name="sambanova", base_url="https://api.sambanova.ai/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    Provider(name="deepinfra", base_url="https://api.deepinfra.com/v1/openai", speaks=_ALL, offers=_SEES),
    Provider(name="novita", base_url="https://api.novita.ai/openai", speaks=(_CHAT, _TEXT), offers=_SEES),
    Provider(name="nebius", base_url="https://api.tokenfactory.nebius.com/v1", speaks=_ALL, offers=_SEES),
    Provider(name="siliconflow", base_url="https://api.siliconflow.com/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    Provider(name="baseten", base_url="https://inference.baseten.co/v1", speaks=(_CHAT,), offers=_TALKS),
    Provider(name="friendli", base_url="https://api.friendli.ai/serverless/v1", speaks=(_CHAT, _TEXT), offers=_TALKS),
    Provider(name="scaleway", base_url="https://api.scaleway.ai/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    Provider(
        name="ovhcloud",
        base_url="https://oai.endpoints.kepler.ai.cloud.ovh.net/v1",
        speaks=(_CHAT, _VECTORS),
        offers=_SEES,
    ),
    Provider(name="wandb", base_url="https://api.inference.wandb.ai/v1", speaks=(_CHAT,), offers=_TALKS),
    Provider(name="chutes", base_url="https://llm.chutes.ai/v1", speaks=(_CHAT, _TEXT), offers=_TALKS),
    Provider(name="venice", base_url="https://api.venice.ai/api/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    Provider(name="poe", base_url="https://api.poe.com/v1", speaks=(_CHAT,), offers=_SEES),
    Provider(name="vercel", base_url="https://ai-gateway.vercel.sh/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    Provider(name="requesty", base_url="https://router.requesty.ai/v1", speaks=(_CHAT, _VECTORS), offers=_SEES),
    # model servers of your own
    Provider(
        name="ollama",
        prefill="plain",
        base_url="http://127.0.0.1:11434/v1",
        speaks=_ALL,
        needs_key=False,
        offers=_TALKS,
    ),
    Provider(
        name="vllm", prefill="plain", base_url="http://127.0.0.1:8000/v1", speaks=_ALL, needs_key=False, offers=_SEES
    ),
    Provider(
        name="sglang", prefill="plain", base_url="http://127.0.0.1:30000/v1", speaks=_ALL, needs_key=False, offers=_SEES
    ),
    Provider(
        name="llamacpp",
        prefill="plain",
        base_url="http://127.0.0.1:8080/v1",
        speaks=_ALL,
        needs_key=False,
        offers=_TALKS,
    ),
    Provider(
        name="lmstudio",
        prefill="plain",
        base_url="http://127.0.0.1:1234/v1",
        speaks=_ALL,
        needs_key=False,
        offers=_SEES,
    ),
    Provider(
        name="openai-compatible",
        prefill="plain",
        base_url="",
        speaks=_ALL,
        needs_key=False,
        offers=_SEES,
    ),
)
ALIASES: Final = {
    "grok": "xai",
    "google": "gemini",
    "kimi": "moonshot",
    "dashscope": "alibaba",
}  # other names a row goes by
ROWS: Final = {row.name: row for row in BUILT_IN} | {
    alias: row for alias, name in ALIASES.items() for row in BUILT_IN if row.name == name
}
_UNARY_FIRST_BYTE_SECONDS: Final = 590.0  # below the 600 s at which the SDKs give up, so that we answer and not they


def resolve(name: str, table: config.Provider) -> Upstream:
    """A configured provider in the form the spine uses: its row under its table, and its key.

    Raises KeyError for a kind that is no row, ValueError without a base URL; `config.load` has refused both before.
    """
    row = ROWS[table.kind or name]
    origin, host, base_path, query = _origin(name, table.base_url or row.base_url, table)
    keys = table.api_keys or (() if table.api_key is None else (table.api_key,))
    caller_key = any(key.source == "caller" for key in keys)
    header, prefix = (b"authorization", b"Bearer ") if row.auth == "bearer" else (row.auth.encode(), b"")
    auths = tuple(Auth(header=header, prefix=prefix, secret=key.secret) for key in keys if key.secret is not None)
    missing = None
    if not auths and not caller_key:
        if keys:
            missing = "; ".join(key.missing or "its key is not there" for key in keys)
        elif row.needs_key:
            missing = f"set api_key in [providers.{name}]"
    return Upstream(
        name=name,
        kind=row.name,
        origin=origin,
        host=host,
        paths={dialect: base_path + path + query for dialect, path in row.speaks},
        auth=auths[0] if auths else None,
        auths=auths,
        auth_header=header,
        auth_prefix=prefix,
        forward_caller_key=caller_key,
        missing_key=missing,
        headers=_headers(row, table),
        secrets=tuple(Secret(value) for name, value in table.headers.items() if _SECRET_NAME.search(name)),
        drop=frozenset((*row.drop, *table.drop)),
        rename=(*row.rename, *table.rename.items()),
        prefill=row.prefill,
        stream_usage=row.stream_usage,
        timeouts=_timeouts(table.timeouts),
        pool=PoolLimits(
            max_connections=table.pool.max_connections,
            keepalive_seconds=table.pool.keepalive_seconds,
            max_age_seconds=table.pool.max_age_seconds,
        ),
        requests_per_minute=table.limits.requests_per_minute,
        tokens=config.token_limits(table.limits),
        concurrency=table.limits.concurrency,
    )


def _origin(name: str, base_url: str, table: config.Provider) -> tuple[Origin, bytes, str, str]:
    """Where a base URL leads, its Host header, and what all its endpoints have before and behind their own path."""
    tls = Tls(ca=table.tls_ca, verify=table.tls_verify)
    if base_url.startswith("unix:"):  # unix:/path/of.sock, or unix:/path/of.sock:/v1
        socket, _, path = base_url.removeprefix("unix:").partition(":")
        origin = Origin(name=name, scheme="http", host="localhost", port=0, unix=socket, tls=tls)
        return origin, b"localhost", path.rstrip("/"), ""
    parts = urlsplit(base_url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError(f"provider {name} needs a base_url")
    scheme: Scheme = "https" if parts.scheme == "https" else "http"
    port = parts.port or (443 if scheme == "https" else 80)
    origin = Origin(name=name, scheme=scheme, host=parts.hostname, port=port, proxy=table.proxy, tls=tls)
    return origin, parts.netloc.encode(), parts.path.rstrip("/"), f"?{parts.query}" if parts.query else ""


_SECRET_NAME: Final = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


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
