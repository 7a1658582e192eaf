"""`sidecar explain`: the plan, or why there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar import config
from sidecar.cli import main
from sidecar.commands.explain import explain
from sidecar.config import Config, Key, Model, Provider, Target
from sidecar.errors import UnknownModel
from sidecar.secret import Secret
from tests.config.files import written

KEY = Key(source="env:KEY", secret=Secret("canary"))
TEXT = """\
[providers.lab]
kind = "openai-compatible"
base_url = "http://127.0.0.1:1/v1"
[models.fast]
targets = ["lab/one", "lab/two"]
"""


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "f.toml", TEXT))
    assert main(["explain", "fast", "--config", file]) == 0
    out = capsys.readouterr().out
    assert out.index("lab/one") < out.index("lab/two")


def test_a_name_that_nobody_knows_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(written(tmp_path / "f.toml", TEXT))
    assert main(["explain", "zebra", "--config", file]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sidecar: the model 'zebra' is not configured")


def test_a_bad_file_is_a_fault_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "fast", "--config", str(tmp_path / "absent")]) == 2
    assert "cannot be read: no such file or directory" in capsys.readouterr().err


def configured(*names: str, **models: Model) -> Config:
    return Config(providers={name: Provider(api_key=KEY) for name in names}, models=models)


def test_a_plan_in_words() -> None:
    fast = Model(targets=("openai/gpt-4o", "anthropic/claude-x", "voyage/v"))
    found = configured("openai", "anthropic", "voyage", fast=fast)
    assert explain(found, "fast", "chat") == [
        "fast (chat): failover over 2 target(s)",
        "1. openai/gpt-4o  as it is, https://api.openai.com/v1/chat/completions",
        "   why: target of [models.fast]",
        "   limits: none of ours",
        "   times: connect 5 s, first byte 300 s (unary 590 s), idle 120 s, total 1800 s",
        "   breaker: left alone after 5 failures in a row, for 1 s and up to 60 s",
        "   key: set",
        "2. anthropic/claude-x  translated to messages, https://api.anthropic.com/v1/messages",
        "   why: target of [models.fast]",
        "   limits: none of ours",
        "   times: connect 5 s, first byte 300 s (unary 590 s), idle 120 s, total 1800 s",
        "   breaker: left alone after 5 failures in a row, for 1 s and up to 60 s",
        "   key: set",
        "-  falls back on: error, timeout, rate_limit",
        "-  retries: 1 at the same target, after up to 0.25 s, doubled each time up to 4 s, or as the provider says"
        " up to 5 s; at most 20 % of the requests under way, and 3 always",
        "-  held: until the first content, 65536 bytes or 30 s",
        "-  cache: off: [cache] has no ttl_seconds",
        "-  skipped: provider voyage does not serve chat",
    ]
    with pytest.raises(UnknownModel):
        explain(found, "nothing", "chat")


def test_limits_keys_and_sockets_in_words() -> None:
    limits = config.Limits(requests_per_minute=60, concurrency=2, adaptive=True)
    lab = Provider(kind="vllm", base_url="unix:/run/m.sock:/v1", limits=limits, api_keys=(KEY, KEY))
    own = Provider(kind="openai", api_key=Key(source="caller"))
    url = "https://r.test/openai/deployments/{model}?api-version=1"
    providers = {"lab": lab, "own": own, "bare": Provider(kind="openai"), "azure": Provider(base_url=url, api_key=KEY)}
    found = Config(providers={**providers, "free": Provider(kind="vllm")})
    lines = explain(found, "lab/m", "chat")
    assert lines[0] == "lab/m (chat): 1 target(s)"
    assert lines[1] == "1. lab/m  as it is, unix:/run/m.sock/v1/chat/completions"
    assert "   limits: 60 requests/min, 2 at once, as many at once as it takes (adaptive)" in lines
    assert "   key: 2 in turn" in lines
    assert "   key: the callers own" in explain(found, "own/m", "chat")
    assert "   key: MISSING, set api_key in [providers.bare]" in explain(found, "bare/m", "chat")
    assert "   key: none needed" in explain(found, "free/m", "chat")
    assert "api-version" not in "".join(explain(found, "azure/gpt-4o", "chat"))  # a query may hold a key


def test_limits_of_tokens_and_of_names_in_words() -> None:
    limits = config.Limits(requests_per_minute=60, tokens_per_minute=9000, input_tokens_per_minute=8000)
    lab = Provider(kind="vllm", base_url="http://127.0.0.1:1/v1", limits=limits)
    fast = Model(targets=("lab/m",), output_tokens_per_minute=500, requests_per_minute=3)
    lines = explain(Config(providers={"lab": lab}, models={"fast": fast}), "fast", "chat")
    assert "   limits: 60 requests/min, 9000 tokens/min, 8000 input tokens/min" in lines
    assert "-  limits of [models.fast]: 3 requests/min, 500 output tokens/min, of all callers together" in lines
    assert not [line for line in explain(configured("openai"), "openai/m", "chat") if "of all callers" in line]


def test_weights_orders_tags_and_parameters_in_words() -> None:
    targets = (
        Target(to="openai/a", weight=3, order=1, tags=("eu", "cheap")),
        Target(to="openai/b", params={"temperature": 0, "stop": ["x"], "top_p": 0.5}),
        Target(to="openai/c", order=1),
    )
    lines = explain(configured("openai", fast=Model(targets=targets, policy="weighted")), "fast", "chat")
    assert [
        line for line in lines if line[0].isdigit() or line.strip().startswith(("weight", "order", "tags", "sets"))
    ] == [
        "1. openai/b  as it is, https://api.openai.com/v1/chat/completions",
        "   weight: 1 of 1",
        "   order: 0",
        '   sets: temperature = 0, stop = ["x"], top_p = 0.5',
        "2. openai/a  as it is, https://api.openai.com/v1/chat/completions",
        "   weight: 3 of 4",
        "   order: 1",
        "   tags: cheap, eu",
        "3. openai/c  as it is, https://api.openai.com/v1/chat/completions",
        "   weight: 1 of 4",
        "   order: 1",
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"fallback_on": ()}, "falls back on: nothing"),
        ({"fallback_on": ("any",)}, "falls back on: any"),
        ({"affinity_header": "X-Session"}, "affinity: sessions by the header x-session"),
        (
            {"policy": "hedge"},
            "hedge: the next target too after the rolling p95 of the first token, for at most 5 % of requests",
        ),
        (
            {"policy": "hedge", "hedge_after_seconds": 0.3, "hedge_budget_percent": 2.5},
            "hedge: the next target too after 0.3 s, for at most 2.5 % of requests",
        ),
        ({"coalesce": True}, "coalesce: equal requests of one caller at one time are one"),
        ({"continuation": True}, "continuation: an answer that breaks off goes on at another target"),
        (
            {"keepalive_comment_seconds": 15.0},
            "keep-alive: a comment every 15 s while the provider is silent",
        ),
        ({"commit_bytes": 1, "commit_seconds": 0.5}, "held: until the first content, 1 bytes or 0.5 s"),
    ],
)
def test_settings_in_words_where_they_hold(settings: dict[str, Any], line: str) -> None:
    plain, changed = (
        explain(configured("openai", fast=Model(targets=("openai/a", "openai/b"), **more)), "fast", "chat")
        for more in ({}, settings)
    )
    assert f"-  {line}" in changed
    assert f"-  {line}" not in plain


def test_what_tags_leave_out_in_words() -> None:
    providers = {"openai": Provider(api_key=KEY, tags=("us",)), "xai": Provider(api_key=KEY, tags=("eu", "us"))}
    model = Model(targets=("openai/a", "xai/b"), tags=("eu",))
    lines = explain(Config(providers=providers, models={"fast": model}), "fast", "chat")
    assert lines[1].startswith("1. xai/b ")
    assert "-  tags: only targets with eu" in lines
    assert lines[-1] == "-  skipped: openai/a has not the tag eu of its model's"


def test_a_wildcard_and_no_retries_in_words() -> None:
    found = Config(
        providers={"openai": Provider(api_key=KEY)},
        models={"gpt-*": Model(targets=("openai/gpt-*",))},
        retry=config.Retry(attempts=0),
    )
    lines = explain(found, "gpt-4o", "chat")
    assert lines[1].startswith("1. openai/gpt-4o ")
    assert lines[2] == '   why: target of [models."gpt-*"]'
    assert not [line for line in lines if "retries" in line]


@pytest.mark.parametrize(
    ("cache", "own", "dialect", "told"),
    [
        ({}, None, "chat", "off: [cache] has no ttl_seconds"),
        ({"ttl_seconds": 60}, 0, "chat", "off: cache_ttl_seconds of the model is 0"),
        ({"ttl_seconds": 60}, None, "chat", "answers are given again for 60 s"),
        ({}, 90, "embeddings", "answers are given again for 90 s"),
        ({"ttl_seconds": 60, "stale_seconds": 5}, None, "embeddings", "answers are given again for 60 s"),
        (
            {"ttl_seconds": 60, "stale_seconds": 5, "temperature_max": 0.5},
            None,
            "chat",
            "answers are given again for 60 s; then for 5 s while a new one is asked for;"
            " those to a temperature above 0.5 are not (without one it is 1)",
        ),
    ],
)
def test_the_cache(cache: dict[str, Any], own: float | None, dialect: str, told: str) -> None:
    lab = Provider(kind="openai-compatible", base_url="http://127.0.0.1:1/v1")
    models = {"one": Model(targets=("lab/m",), cache_ttl_seconds=own)}
    found = Config(providers={"lab": lab}, models=models, cache=config.Cache(**cache))
    assert explain(found, "one", dialect)[-1] == f"-  cache: {told}"


def test_an_endpoint_that_is_never_cached() -> None:
    found = Config(providers={"anthropic": Provider(api_key=KEY)}, cache=config.Cache(ttl_seconds=60))
    assert explain(found, "anthropic/m", "count_tokens")[-1].startswith("-  cache: off: answers of this endpoint")
