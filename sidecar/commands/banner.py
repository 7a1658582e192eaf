"""What is told when it listens: at most ten lines, two of them to paste."""

from __future__ import annotations

import shlex
from typing import Final

from sidecar.config import Config

_MOST_NAMES: Final = 8
_EXAMPLES: Final = {  # a model that everybody may ask the provider for
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "xai": "grok-4",
    "deepseek": "deepseek-chat",
    "openrouter": "openai/gpt-4o-mini",
    "groq": "llama-3.3-70b-versatile",
    "mistral": "mistral-small-latest",
    "perplexity": "sonar",
}
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  # listened on -> where to reach it from here


def banner(config: Config, addresses: list[str]) -> list[str]:
    """Where it listens, whom it asks, and what to paste: a request, and the variable that SDKs read."""
    keyless = [name for name, table in config.providers.items() if table.api_key is not None and table.api_key.missing]
    lines = [f"sidecar listens on {', '.join(addresses)}", f"providers: {_some(list(config.providers))}"]
    if keyless:
        lines.append(f"without a key: {_some(keyless)}; `sidecar check` says why")
    if config.models:
        lines.append(f"models: {_some(list(config.models))}")
    return [*lines, *_to_paste(config, addresses)]


def _to_paste(config: Config, addresses: list[str]) -> list[str]:
    tcp = [each for each in addresses if not each.startswith("unix:")]
    key = ' -H "authorization: Bearer $KEY"' if config.callers else ""
    if tcp:
        host, _, port = tcp[0].rpartition(":")
        scheme = "https" if config.server.tls_cert is not None else "http"
        where = url = f"{scheme}://{_EVERYWHERE.get(host, host)}:{port}"
        lines = [f"export OPENAI_BASE_URL={url}/v1"]
    else:
        path = shlex.quote(addresses[0].removeprefix("unix:"))
        where = f"--unix-socket {path} http://localhost"
        lines = []
    model = _example(config)
    if model is None:
        return [*lines, f"curl {where}/v1/models{key}"]
    body = shlex.quote(f'{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}')
    return [*lines, f"curl {where}/v1/chat/completions{key} -H 'content-type: application/json' -d {body}"]


def _example(config: Config) -> str | None:
    """A model that can be asked for: an alias, or a known one of a provider that has its key."""
    if (alias := next((name for name in config.models if "*" not in name), None)) is not None:
        return alias
    for name, table in config.providers.items():
        example = _EXAMPLES.get(table.kind or name)
        if example is not None and not (table.api_key is not None and table.api_key.missing):
            return f"{name}/{example}"
    return None


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
