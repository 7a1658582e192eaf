"""The parts of README.md that are made from the code: `python -m tests.readme` writes them anew, a test compares."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import table
from sidecar import config
from sidecar.app import ENDPOINTS
from sidecar.config import KEY_VARIABLES
from sidecar.providers import ALIASES, BUILT_IN

TOP: Final = Path(__file__).parents[1]
FILE: Final = TOP / "README.md"
RESULTS: Final = TOP / "benchmarks" / "results"
BLOCK: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: Final = {  # of the file, in its order -> where each is written
    "Server": "[server]",
    "Provider": "[providers.X]",
    "Timeouts": "[timeouts], [providers.X.timeouts]",
    "Pool": "[pool], [providers.X.pool]",
    "Limits": "[providers.X.limits]",
    "Breaker": "[breaker], [providers.X.breaker]",
    "Retry": "[retry]",
    "Model": "[models.X]",
    "Target": "targets of [models.X]",
    "Caller": "[callers.X]",
    "Queue": "[queue]",
    "Store": "[store]",
    "Cache": "[cache]",
    "OnDisconnect": "[on_disconnect]",
    "Log": "[log]",
}
ABOUT: Final = {  # every option, and nothing else: a test holds this to the structs
    "Server.listen": "`host:port`, `unix:/path` or `fd:N`, one or several",
    "Server.socket_mode": "of a unix socket, set before anyone can connect",
    "Server.workers": "processes; each has its own pools, and its own limits where there is no `[store]`",
    "Server.tls_cert": "PEM file: serve TLS",
    "Server.tls_key": "PEM file of its key",
    "Server.allow_origins": "origins of web pages that may use a listener without callers",
    "Server.max_connections": "of clients, a worker; without it 4096, or 45 % of the descriptors that it may open",
    "Server.max_request_line_bytes": "more is answered with 414",
    "Server.max_header_bytes": "more is answered with 431",
    "Server.max_headers": "more is answered with 431",
    "Server.max_body_bytes": "more is answered with 413",
    "Server.header_seconds": "from accepting, or the last answer's end, to a whole head",
    "Server.body_idle_seconds": "between two pieces of a body",
    "Server.body_seconds": "for a whole body",
    "Server.keepalive_seconds": "of an idle connection",
    "Server.send_stall_seconds": "of a client that does not read",
    "Server.lame_duck_seconds": "after SIGTERM: not ready any more, still serving",
    "Server.drain_seconds": "after that, for what is under way",
    "Provider.kind": "the built-in row; without it the table's own name",
    "Provider.base_url": "instead of the row's; also `unix:/path.sock:/v1`",
    "Provider.api_key": "`env:NAME`, `file:/path`, `caller` (forward the caller's own); without it the row's variable",
    "Provider.api_keys": "several instead of the one, in turn; a limited one rests, and not its provider",
    "Provider.tags": "words for what its targets are, such as a region: models and callers may ask for them",
    "Provider.headers": "sent with each request, unless the client sends its own",
    "Provider.drop": "members of the body that are not sent",
    "Provider.rename": "members of the body that are sent under another name",
    "Provider.tls_ca": "PEM file to trust instead of the system's roots",
    "Provider.tls_verify": "`false` is warned of at each start",
    "Provider.proxy": '`http://host:port` for CONNECT, `""` for none; without it as the environment has it',
    "Timeouts.connect_seconds": "name, TCP and TLS",
    "Timeouts.first_byte_seconds": "to the provider's first byte (590 where the answer comes all at once)",
    "Timeouts.idle_seconds": "between two bytes of an answer",
    "Timeouts.total_seconds": "for one attempt",
    "Pool.max_connections": "to one provider",
    "Pool.keepalive_seconds": "of an idle connection",
    "Pool.max_age_seconds": "of any connection: so that DNS is asked again",
    "Limits.requests_per_minute": "as many at once, then evenly (GCRA)",
    "Limits.tokens_per_minute": "in and out together, as the provider counts them: reserved by a guess, then settled",
    "Limits.input_tokens_per_minute": "the same of what is sent",
    "Limits.output_tokens_per_minute": "the same of what is answered",
    "Limits.concurrency": "exchanges under way, held to the last byte",
    "Limits.adaptive": "as many under way as the provider takes: fewer on 429, 503, 529 and timeouts, else more",
    "Breaker.consecutive_failures": "of a target, after which it is left alone",
    "Breaker.open_seconds": "until one request probes it; doubled while that fails",
    "Breaker.max_open_seconds": "the most it is doubled to",
    "Retry.attempts": "at the same target, before the first byte; the other targets come after",
    "Retry.base_seconds": "to wait before the first at most; doubled for each, and drawn between that and none",
    "Retry.cap_seconds": "the most it is doubled to",
    "Retry.max_wait_seconds": "what a provider may ask to wait; if it asks for more, the client is told so",
    "Retry.budget_percent": "of the requests under way that may be retries",
    "Retry.budget_minimum": "retries that may be under way whatever the percentage",
    "Model.targets": "`provider/model`, one or several; or `{ to, weight, order, params, tags }`. A `*` in the table's"
    " name stands for a part of a model's name, and a `*` in its targets for the same part",
    "Model.policy": "`failover`: the next target is asked when one fails before its first content; `weighted`: drawn by"
    " weight; `least-latency`: the better of two by the time to the first token; `hedge`: the next one, too, when the"
    " first is late",
    "Model.fallback_on": "causes for asking the next target: `error`, `timeout`, `rate_limit`, `context_window`,"
    " `content_policy`, `any`",
    "Model.affinity_header": "requests with the same value of it go to the same target",
    "Model.tags": "only targets that have all of them, themselves or by their provider",
    "Model.requests_per_minute": "of all callers that ask for this name: as many at once, then evenly (GCRA)",
    "Model.tokens_per_minute": "of all callers, in and out together: reserved by a guess, then settled",
    "Model.input_tokens_per_minute": "the same of what is sent",
    "Model.output_tokens_per_minute": "the same of what is answered",
    "Model.hedge_after_seconds": "without it the 95th percentile of the time to the first token",
    "Model.hedge_budget_percent": "of requests that may be hedged",
    "Model.coalesce": "equal requests of one caller at one time are one request to the provider",
    "Model.cache_ttl_seconds": "instead of `[cache] ttl_seconds`; 0: never cached",
    "Model.continuation": "an answer that breaks off goes on at another target",
    "Model.keepalive_comment_seconds": "between comments in a stream while the provider is silent; without it none",
    "Model.commit_bytes": "of an answer held back until its first content",
    "Model.commit_seconds": "that an answer is held back until its first content",
    "Target.to": "`provider/model`",
    "Target.weight": "its share under `weighted`, and of sessions",
    "Target.order": "lower ones are tried first, whatever the policy",
    "Target.params": "members of the body that are set for this target, in its provider's words; not `model`, `stream`",
    "Target.tags": "beside those of its provider",
    "Caller.key": "`env:NAME`, `file:/path` or `sha256:HEX`",
    "Caller.models": "names it may ask for, `*` matches; without it all",
    "Caller.requests_per_minute": "as many at once, then evenly (GCRA)",
    "Caller.tokens_per_minute": "in and out together, as providers count them: reserved by a guess, then settled",
    "Caller.input_tokens_per_minute": "the same of what is sent",
    "Caller.output_tokens_per_minute": "the same of what is answered",
    "Caller.concurrency": "exchanges under way, held to the last byte",
    "Caller.priority": "in a queue, higher ones first; `x-sidecar-priority` may ask for less, without callers for any",
    "Caller.tags": "only targets that have all of them",
    "Queue.length": "that wait for a limit on concurrency; without it as many as the limit itself",
    "Queue.wait_seconds": "the most that one waits; who would wait longer, or than its client does, is refused at once",
    "Store.url": "where limits are counted: `memory:` of each process, or a Redis that several share (forms below)",
    "Store.tls_ca": "PEM file to trust instead of the system's roots",
    "Cache.ttl_seconds": "that an answer is given again; without it nothing is cached, but for models with their own",
    "Cache.stale_seconds": "behind that in which the old answer is given once more, while a new one is asked for",
    "Cache.max_bytes": "of memory in all, overhead included, a worker; of one answer an eighth",
    "Cache.memory_percent": "of the container's memory at most, for all workers; less while memory is short",
    "Cache.temperature_max": "requests above it are not cached; one without a temperature counts as 1",
    "Cache.replay": "a cached stream: `at-once`, or with the pauses that it came with (`recorded`)",
    "OnDisconnect.policy": "when the client leaves: `cancel` closes at once, `drain` reads to the end, to count tokens",
    "Log.level": "`info`: a JSON line an exchange; `off`: nothing",
    "Log.file": "a path, `-` for standard error",
}


def configuration() -> str:
    """A row an option, from the schema: what it takes, its default, what it means."""
    tables = config.schema()["$defs"]
    rows = ["| table | option | takes | default | |", "| --- | --- | --- | --- | --- |"]
    for name, written in TABLES.items():
        for option, about in tables[name]["properties"].items():
            if "$ref" in about and not about["$ref"].endswith(("/Key", "/Place")):
                continue  # a table of its own
            default = _default(name, option, about, option in tables[name]["required"])
            rows.append(f"| `{written}` | `{option}` | {_takes(about)} | {default} | {ABOUT[f'{name}.{option}']} |")
    return "\n".join(rows)


def _takes(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return "text or list"
    if "enum" in about:
        return "a name below" if len(about["enum"]) > 5 else ", ".join(f"`{each}`" for each in about["enum"])
    if "$ref" in about:
        return "key" if about["$ref"].endswith("/Key") else "URL"
    kind = {"string": "text", "boolean": "true, false", "array": "list", "object": "table"}.get(about["type"])
    if kind is not None:
        return kind
    least = about.get("minimum", about.get("exclusiveMinimum"))
    return f"{'over ' if 'exclusiveMinimum' in about else ''}{least} to {about['maximum']}"


def _default(table: str, option: str, about: dict[str, Any], required: bool) -> str:
    if required:
        return "(must be given)"
    value = about.get("default")
    if option == "socket_mode":
        return f"`0o{value:o}`"
    return "" if value in (None, []) else f"`{msgspec.json.encode(value).decode()}`"


def providers() -> str:
    """A row a provider, from the table of providers."""
    rows = ["| provider | key | dialects | and | known by |", "| --- | --- | --- | --- | --- |"]
    for row in BUILT_IN:
        names = [row.name, *(alias for alias, name in ALIASES.items() if name == row.name)]
        key = f"`{KEY_VARIABLES[row.name]}`" if row.name in KEY_VARIABLES else "none needed"
        known = ", ".join(f"`{each}`" for each in row.known)
        speaks = ", ".join(dialect for dialect, _ in row.speaks)
        rows.append(
            f"| {', '.join(f'`{name}`' for name in names)} | {key} | {speaks} | {', '.join(row.offers)} | {known} |"
        )
    return "\n".join(rows)


def endpoints() -> str:
    """A row an endpoint, from the table of endpoints."""
    rows = ["| path | dialect |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `POST {path}` | {row.dialect} |" for path, row in ENDPOINTS.items())])


def claims() -> str:
    """A row a check of each benchmark, with the file that makes it, its date and its machine."""
    rows = ["| measured | holds | by | on |", "| --- | --- | --- | --- |"]
    for file in [*sorted(RESULTS.glob("bench_*.json")), RESULTS / "compare.json"]:
        result = msgspec.json.decode(file.read_bytes())
        where = result["machine"]
        machine = f"{where['date']}, {where['cores']} cores ({where['cpu']}), Python {where['python']}"
        for check, holds in result["checks"].items():
            rows.append(f"| {check} | {'yes' if holds else 'no'} | `benchmarks/{result['name']}.py` | {machine} |")
    return "\n".join(rows)


def compare() -> str:
    """A row a proxy, from the last run of benchmarks/compare.py."""
    return table.markdown(msgspec.json.decode((RESULTS / "compare.json").read_bytes()))


PARTS: Final[dict[str, Callable[[], str]]] = {
    "configuration": configuration,
    "providers": providers,
    "endpoints": endpoints,
    "claims": claims,
    "compare": compare,
}


def made(text: str) -> str:
    """README's text with every made part as it should be."""
    return BLOCK.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    FILE.write_text(made(FILE.read_text()))
    sys.stdout.write(f"{FILE.name}: {', '.join(PARTS)}\n")
