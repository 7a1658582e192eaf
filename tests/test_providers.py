"""The table of providers, and what a configured one resolves to."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from sidecar import config
from sidecar.config import Key
from sidecar.config.structs import KEY_VARIABLES, KEYLESS, KINDS, PLACELESS
from sidecar.providers import ALIASES, BUILT_IN, ROWS, resolve
from sidecar.secret import Secret

KEY = Key(source="env:KEY", secret=Secret("canary"))


def table(**options: Any) -> config.Provider:
    return config.Provider(**{"kind": "openai-compatible", "base_url": "http://127.0.0.1:8000/v1", **options})


# -- the table


def test_the_configuration_knows_every_row_and_no_other() -> None:
    assert set(KINDS) == set(ROWS) == {row.name for row in BUILT_IN} | set(ALIASES)
    assert len(ROWS) == len(BUILT_IN) + len(ALIASES)
    assert len(BUILT_IN) > 40
    assert {row.name for row in BUILT_IN if not row.needs_key} == set(KEYLESS)
    assert {row.name for row in BUILT_IN if not row.base_url} == set(PLACELESS)


def test_other_names_of_a_row_have_its_key_s_variable() -> None:
    for alias, name in ALIASES.items():
        assert ROWS[alias] is ROWS[name]
        assert KEY_VARIABLES[alias] == KEY_VARIABLES[name]
        assert list(KEY_VARIABLES).index(name) < list(KEY_VARIABLES).index(alias)  # zero-config takes the first
    own = {name: variable for name, variable in KEY_VARIABLES.items() if name not in ALIASES}
    assert len(set(own.values())) == len(own)


@pytest.mark.parametrize("row", BUILT_IN, ids=lambda row: row.name)
def test_a_row_is_well_formed(row: Any) -> None:
    parts = urlsplit(row.base_url)
    assert not row.base_url.endswith("/")
    assert parts.query == parts.fragment == ""
    assert parts.scheme == ("" if not row.base_url else "https" if row.needs_key else "http")
    assert parts.hostname == "127.0.0.1" or row.needs_key or row.name in PLACELESS  # a key never goes in clear
    assert all(path.startswith("/") and not path.endswith("/") for _, path in row.speaks)
    assert len(dict(row.speaks)) == len(row.speaks)
    assert all(name == name.lower() for name, _ in row.headers)
    assert not {"model", "messages", "prompt", "input", "stream"} & {*row.drop, *(old for old, _ in row.rename)}
    if "stream_options" in row.drop:
        assert not row.stream_usage


NAMES = {
    "openai": (
        "gpt-4o-mini",
        "o1",
        "o3-mini",
        "o4-mini",
        "chatgpt-4o-latest",
        "text-embedding-3-small",
        "ft:gpt-4o:x::1",
    ),
    "anthropic": ("claude-sonnet-4-5", "claude-3-haiku-20240307"),
    "gemini": ("gemini-2.5-flash",),
    "xai": ("grok-4", "grok-4-1-fast-reasoning"),
    "mistral": ("mistral-large-latest", "codestral-2501", "magistral-medium-latest"),
    "cohere": ("command-a-03-2025", "embed-v4.0"),
    "deepseek": ("deepseek-chat", "deepseek-reasoner"),
    "fireworks": ("accounts/fireworks/models/llama-v3p1-8b-instruct",),
    "perplexity": ("sonar", "sonar-pro"),
    "alibaba": ("qwen-plus", "qwen3-max", "qwq-plus"),
    "moonshot": ("kimi-k2-0905-preview", "moonshot-v1-8k"),
    "zai": ("glm-4.6",),
    "minimax": ("MiniMax-M2",),
    "voyage": ("voyage-3-large",),
    "writer": ("palmyra-x5",),
    "inception": ("mercury",),
    "upstage": ("solar-pro2",),
    "stepfun": ("step-3",),
}


def test_a_known_name_is_of_one_row() -> None:
    assert set(NAMES) == {row.name for row in BUILT_IN if row.known}
    for owner, names in NAMES.items():
        for name in names:
            owners = [row.name for row in BUILT_IN if any(fnmatchcase(name, pattern) for pattern in row.known)]
            assert owners == [owner], name


@pytest.mark.parametrize(
    ("name", "dialect", "url"),
    [
        ("openai", "chat", "https://api.openai.com/v1/chat/completions"),
        ("anthropic", "messages", "https://api.anthropic.com/v1/messages"),
        ("anthropic", "count_tokens", "https://api.anthropic.com/v1/messages/count_tokens"),
        ("gemini", "chat", "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions"),
        ("xai", "chat", "https://api.x.ai/v1/chat/completions"),
        ("openrouter", "embeddings", "https://openrouter.ai/api/v1/embeddings"),
        ("blackbox", "chat", "https://api.blackbox.ai/chat/completions"),
        ("groq", "chat", "https://api.groq.com/openai/v1/chat/completions"),
        ("mistral", "chat", "https://api.mistral.ai/v1/chat/completions"),
        ("cohere", "chat", "https://api.cohere.ai/compatibility/v1/chat/completions"),
        ("deepseek", "chat", "https://api.deepseek.com/chat/completions"),
        ("deepseek", "completions", "https://api.deepseek.com/beta/completions"),
        ("together", "chat", "https://api.together.ai/v1/chat/completions"),
        ("fireworks", "chat", "https://api.fireworks.ai/inference/v1/chat/completions"),
        ("perplexity", "chat", "https://api.perplexity.ai/chat/completions"),
        ("perplexity", "embeddings", "https://api.perplexity.ai/v1/embeddings"),
        ("cerebras", "chat", "https://api.cerebras.ai/v1/chat/completions"),
        ("nvidia", "chat", "https://integrate.api.nvidia.com/v1/chat/completions"),
        ("huggingface", "chat", "https://router.huggingface.co/v1/chat/completions"),
        ("writer", "chat", "https://api.writer.com/v1/chat"),
        ("zai", "chat", "https://api.z.ai/api/paas/v4/chat/completions"),
        ("ollama", "chat", "http://127.0.0.1:11434/v1/chat/completions"),
        ("llamacpp", "chat", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_where_a_request_goes(name: str, dialect: str, url: str) -> None:
    upstream = resolve(name, config.Provider())
    origin = upstream.origin
    assert f"{origin.scheme}://{upstream.host.decode()}{upstream.paths[dialect]}" == url
    assert origin.name == upstream.name == name


@pytest.mark.parametrize("name", ROWS)
def test_a_table_of_that_name_is_all_it_takes(name: str, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    place = 'base_url = "https://r.test/v1"' if name in PLACELESS else ""
    file.write_text(f"[providers.{name}]\n{place}\n")
    file.chmod(0o600)
    variable = KEY_VARIABLES.get(name, "NONE")
    upstream = resolve(name, config.load(file, env={variable: "canary"}).providers[name])
    assert upstream.missing_key is None
    assert upstream.kind == ROWS[name].name
    assert (upstream.auth is None) is (name in KEYLESS)
    if name not in KEYLESS:
        assert upstream.auth is not None
        assert upstream.auth.secret.reveal() == "canary"
        missing = resolve(name, config.load(file, env={}).providers[name]).missing_key
        assert missing is not None
        assert variable in missing


def test_zero_config_takes_each_row_once_by_its_first_name() -> None:
    found = config.load(env=dict.fromkeys(KEY_VARIABLES.values(), "canary")).providers
    assert list(found) == [row.name for row in BUILT_IN if row.needs_key and row.name not in PLACELESS]


# -- resolving


@pytest.mark.parametrize(
    ("base_url", "host", "port", "authority", "path"),
    [
        ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, b"127.0.0.1:8000", "/v1/chat/completions"),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1", 8000, b"127.0.0.1:8000", "/v1/chat/completions"),
        ("http://lab", "lab", 80, b"lab", "/chat/completions"),
        ("https://lab/", "lab", 443, b"lab", "/chat/completions"),
        ("https://lab:444//a//", "lab", 444, b"lab:444", "//a/chat/completions"),
        ("http://[::1]:99/v1", "::1", 99, b"[::1]:99", "/v1/chat/completions"),
        ("https://r.test/openai/v1?api-version=preview", "r.test", 443, b"r.test", None),
        ("https://r.test/openai/v1/?api-version=preview", "r.test", 443, b"r.test", None),
    ],
)
def test_a_base_url(base_url: str, host: str, port: int, authority: bytes, path: str | None) -> None:
    upstream = resolve("lab", table(base_url=base_url, proxy="http://p:1", tls_ca="/ca.pem", tls_verify=False))
    origin = upstream.origin
    assert (origin.host, origin.port, upstream.host, origin.unix) == (host, port, authority, None)
    assert upstream.paths["chat"] == (path or "/openai/v1/chat/completions?api-version=preview")
    assert (origin.proxy, origin.tls.ca, origin.tls.verify) == ("http://p:1", "/ca.pem", False)


@pytest.mark.parametrize(("base_url", "base"), [("unix:/run/m.sock", ""), ("unix:/run/m.sock:/v1/", "/v1")])
def test_a_unix_socket(base_url: str, base: str) -> None:
    upstream = resolve("lab", table(base_url=base_url))
    assert (upstream.origin.unix, upstream.origin.scheme, upstream.host) == ("/run/m.sock", "http", b"localhost")
    assert upstream.paths["embeddings"] == f"{base}/embeddings"


@pytest.mark.parametrize(
    ("kind", "header", "prefix"),
    [
        ("openai", b"authorization", b"Bearer "),
        ("anthropic", b"x-api-key", b""),
        ("azure", b"api-key", b""),
    ],
)
def test_how_a_key_is_sent(kind: str, header: bytes, prefix: bytes) -> None:
    upstream = resolve("mine", table(kind=kind, api_key=KEY))
    assert upstream.auth is not None
    assert (upstream.auth.header, upstream.auth.prefix, upstream.auth.secret.reveal()) == (header, prefix, "canary")
    assert (upstream.auth_header, upstream.auth_prefix) == (header, prefix)
    assert (upstream.name, upstream.kind, upstream.missing_key) == ("mine", kind, None)
    assert "canary" not in repr(upstream)


@pytest.mark.parametrize(
    ("kind", "key", "missing"),
    [
        ("openai", None, "set api_key in [providers.mine]"),
        ("vllm", None, None),
        ("openai", Key(source="env:X", missing="X is not set"), "X is not set"),
        ("vllm", Key(source="env:X"), "its key is not there"),
        ("openai", Key(source="caller"), None),
    ],
)
def test_a_key_that_is_not_there(kind: str, key: Key | None, missing: str | None) -> None:
    upstream = resolve("mine", table(kind=kind, api_key=key))
    assert (upstream.auth, upstream.missing_key) == (None, missing)
    assert upstream.forward_caller_key is (key is not None and key.source == "caller")


def test_several_keys_are_sent_alike_and_the_first_stands_alone() -> None:
    missing = Key(source="env:X", missing="X is not set")
    upstream = resolve(
        "mine", table(kind="anthropic", api_keys=(missing, KEY, Key(source="env:B", secret=Secret("b"))))
    )
    assert [(auth.header, auth.prefix, auth.secret.reveal()) for auth in upstream.auths] == [
        (b"x-api-key", b"", "canary"),
        (b"x-api-key", b"", "b"),
    ]
    assert (upstream.auth, upstream.missing_key) == (upstream.auths[0], None)
    none = resolve("mine", table(kind="openai", api_keys=(missing, Key(source="env:Y", missing="Y is not set"))))
    assert (none.auth, none.auths, none.missing_key) == (None, (), "X is not set; Y is not set")


def test_a_table_adds_to_its_row() -> None:
    upstream = resolve(
        "mine",
        table(
            kind="mistral",
            drop=("metadata",),
            rename={"a": "b"},
            headers={"X-Team": "t"},
            limits=config.Limits(requests_per_minute=5, output_tokens_per_minute=7, concurrency=2),
            pool=config.Pool(max_connections=3, keepalive_seconds=4.0, max_age_seconds=5.0),
        ),
    )
    assert upstream.drop == {"logit_bias", "user", "store", "metadata"}
    assert upstream.rename == (("max_completion_tokens", "max_tokens"), ("seed", "random_seed"), ("a", "b"))
    assert upstream.headers == [(b"x-team", b"t")]
    assert (upstream.requests_per_minute, upstream.tokens, upstream.concurrency) == (5, (None, None, 7), 2)
    assert (upstream.pool.max_connections, upstream.pool.keepalive_seconds, upstream.pool.max_age_seconds) == (3, 4, 5)


def test_a_table_s_header_stands_for_its_row_s() -> None:
    upstream = resolve("anthropic", config.Provider(headers={"Anthropic-Version": "2026-10-21"}))
    assert upstream.headers == [(b"anthropic-version", b"2026-10-21")]


def test_deadlines() -> None:
    plain = resolve("openai", config.Provider()).timeouts
    assert (plain.connect, plain.first_byte, plain.first_byte_unary, plain.idle, plain.total) == (
        5,
        300,
        590,
        120,
        1800,
    )
    set_ = resolve("openai", config.Provider(timeouts=config.Timeouts(first_byte_seconds=7.0))).timeouts
    assert (set_.first_byte, set_.first_byte_unary) == (7, 7)


def test_what_does_not_resolve() -> None:
    with pytest.raises(KeyError):
        resolve("nobody", config.Provider())
    for kind in PLACELESS:
        with pytest.raises(ValueError, match="provider mine needs a base_url"):
            resolve("mine", config.Provider(kind=kind))


def test_a_row_is_data() -> None:
    row = BUILT_IN[0]
    with pytest.raises(AttributeError):
        row.name = "other"  # type: ignore[misc]  # the test is that it cannot be
    assert msgspec.json.encode(row)  # no callable in it
