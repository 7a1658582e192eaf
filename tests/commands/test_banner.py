"""The banner: at most ten lines, whatever is configured, and what it gives to paste can be pasted."""

from __future__ import annotations

import shlex

import msgspec
import pytest

from sidecar.commands.banner import banner
from sidecar.config import Caller, Config, Key, Model, Provider, Server
from sidecar.secret import Secret

KEY = Key(source="inline", secret=Secret("sk-canary"))
MISSING = Key(source="env:X", missing="the environment variable X is not set")
OPENAI = {"openai": Provider(api_key=KEY)}


def test_the_usual_one() -> None:
    assert banner(Config(providers=OPENAI), ["127.0.0.1:4000"]) == [
        "sidecar listens on 127.0.0.1:4000",
        "providers: openai",
        "export OPENAI_BASE_URL=http://127.0.0.1:4000/v1",
        "curl http://127.0.0.1:4000/v1/chat/completions -H 'content-type: application/json'"
        ' -d \'{"model":"openai/gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}\'',
    ]


def test_with_everything_it_has_ten_lines_at_most() -> None:
    config = Config(
        server=Server(tls_cert="c", tls_key="k"),
        providers={f"p{number}": Provider(kind="openai", api_key=MISSING) for number in range(100)},
        models={f"m{number}": Model(targets=("p0/m",)) for number in range(100)},
        callers={"web": Caller(key=Key(source="inline", digest=b"d"))},
    )
    lines = banner(config, ["127.0.0.1:4000", "[::1]:4000", "unix:/run/sidecar.sock"])
    assert len(lines) <= 10
    assert all(len(line) < 250 for line in lines)
    assert lines[0] == "sidecar listens on 127.0.0.1:4000, [::1]:4000, unix:/run/sidecar.sock"
    assert lines[1].endswith("p7 and 92 more")
    assert "export OPENAI_BASE_URL=https://127.0.0.1:4000/v1" in lines
    assert '-H "authorization: Bearer $KEY"' in lines[-1]
    assert "sk-canary" not in "\n".join(lines)


@pytest.mark.parametrize(
    ("addresses", "where"),
    [
        (["0.0.0.0:80"], "http://127.0.0.1:80/v1"),
        (["[::]:80"], "http://[::1]:80/v1"),
        (["unix:/a", "127.0.0.1:1"], "http://127.0.0.1:1/v1"),  # what an SDK can use comes first
    ],
)
def test_it_says_where_it_is_reached_from_here(addresses: list[str], where: str) -> None:
    assert f"export OPENAI_BASE_URL={where}" in banner(Config(providers=OPENAI), addresses)


def test_a_socket_alone_has_no_url_to_export() -> None:
    lines = banner(Config(providers=OPENAI), ["unix:/run/a b.sock"])
    assert not any(line.startswith("export") for line in lines)
    assert shlex.split(lines[-1])[:4] == [
        "curl",
        "--unix-socket",
        "/run/a b.sock",
        "http://localhost/v1/chat/completions",
    ]


def test_what_is_to_paste_stays_whole_whatever_a_model_is_called() -> None:
    config = Config(providers=OPENAI, models={"it's$(x)": Model(targets=("openai/m",))})
    words = shlex.split(banner(config, ["127.0.0.1:1"])[-1])
    assert msgspec.json.decode(words[-1])["model"] == "it's$(x)"


@pytest.mark.parametrize(
    "providers",
    [{"lab": Provider(kind="openai-compatible", base_url="http://x/v1")}, {"openai": Provider(api_key=MISSING)}],
)
def test_where_no_model_is_known_to_work_the_curl_asks_for_the_list(providers: dict[str, Provider]) -> None:
    assert banner(Config(providers=providers), ["127.0.0.1:1"])[-1] == "curl http://127.0.0.1:1/v1/models"


def test_the_example_is_of_a_provider_that_has_its_key() -> None:
    config = Config(providers={"openai": Provider(api_key=MISSING), "grok": Provider(kind="xai", api_key=KEY)})
    lines = banner(config, ["127.0.0.1:1"])
    assert "without a key: openai; `sidecar check` says why" in lines
    assert '"model":"grok/grok-4"' in lines[-1]
