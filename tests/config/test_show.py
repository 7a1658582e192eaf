"""The schema takes what the reader takes; what is in force is TOML, each value with its source, and no secret in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from sidecar.config import Config, effective, examine, schema
from tests.config.files import CANARY, ENV, OPENAI, read, written

GOOD = """\
[server]
listen = "127.0.0.1:4000"
socket_mode = 0o600
[providers.openai]
api_key = "env:OPENAI_API_KEY"
headers = { "OpenAI-Project" = "p" }
drop = ["user"]
rename = { max_tokens = "max_completion_tokens" }
timeouts.idle_seconds = 5
limits.requests_per_minute = 500
[models.fast]
targets = ["openai/gpt-4o-mini"]
[callers.web]
key = "env:WEB_KEY"
models = ["fast"]
[timeouts]
connect_seconds = 2.5
[log]
level = "off"
"""


def plain_schema() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema()))
    return found


def test_the_schema_is_one_and_takes_a_good_file(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(plain_schema())
    jsonschema.validate(tomllib.loads(GOOD), plain_schema())
    read(tmp_path, GOOD, {**ENV, "WEB_KEY": "k"})


@pytest.mark.parametrize(
    "text",
    [
        "[serve]\n",
        "[server]\nworker = 1\n",
        "[server]\nworkers = 0\n",
        "[server]\nworkers = 1.5\n",
        "[server]\nlisten = 3\n",
        "[timeouts]\nidle_seconds = 0\n",
        '[providers.x]\nkind = "opneai"\n',
        '[models.x]\npolicy = "failover"\n',
        "[callers.x]\nkey = 1\n",
        '[callers.x]\nkey = "env:K"\npriority = "higher"\n',
        "[models.x]\ntargets = [{ weight = 2 }]\n",
        '[models.x]\ntargets = [{ to = "a/b", weight = 0 }]\n',
        '[models.x]\ntargets = [{ to = "a/b", params = 1 }]\n',
        '[models.x]\ntargets = "a/b"\nfallback_on = ["errors"]\n',
        "[retry]\nattempts = -1\n",
        "[breaker]\nfailures = 1\n",
        '[on_disconnect]\npolicy = "stay"\n',
        '[providers.x]\napi_keys = "env:K"\n',
        '[log]\nlevel = "debug"\n',
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), plain_schema())


def test_the_schema_knows_every_option_and_no_null() -> None:
    tables = plain_schema()["$defs"]
    assert set(tables["Config"]["properties"]) == set(Config.__struct_fields__)
    assert "null" not in str(tables)
    assert "Secret" not in tables
    assert tables["Server"]["properties"]["workers"] == {"default": 1, "maximum": 256, "minimum": 1, "type": "integer"}


def test_what_is_in_force_is_toml_with_the_values_in_force(tmp_path: Path) -> None:
    text = effective(read(tmp_path, GOOD, {**ENV, "WEB_KEY": "k"}), {})
    found = tomllib.loads(text)
    assert found["server"]["listen"] == ["127.0.0.1:4000"]
    assert found["server"]["socket_mode"] == 0o600
    assert found["server"]["max_body_bytes"] == 32 * 1024 * 1024
    assert found["providers"]["openai"]["timeouts"] == {
        "connect_seconds": 2.5,
        "first_byte_seconds": 300.0,
        "idle_seconds": 5.0,
        "total_seconds": 1800.0,
    }
    assert found["providers"]["openai"]["rename"] == {"max_tokens": "max_completion_tokens"}
    assert found["models"]["fast"] == {
        "targets": ["openai/gpt-4o-mini"],
        "policy": "failover",
        "fallback_on": ["error", "timeout", "rate_limit"],
        "tags": [],
        "hedge_budget_percent": 5.0,
        "coalesce": False,
        "continuation": False,
        "commit_bytes": 65536,
        "commit_seconds": 30.0,
    }


def source(text: str, table: str, option: str) -> str:
    """What is said behind an option of a table."""
    (block,) = re.findall(rf"^\[{re.escape(table)}\]\n((?:[^\[\n].*\n?)*)", text, re.MULTILINE)
    (found,) = re.findall(rf"^(?:# )?{option}(?: =|:) .*  # (.*)$", block, re.MULTILINE)
    return str(found)


def test_each_value_has_its_source(tmp_path: Path) -> None:
    text = effective(read(tmp_path, GOOD, {**ENV, "WEB_KEY": "k"}), {"server.listen": "--listen"})
    file = f"{tmp_path}/sidecar.toml"
    assert source(text, "server", "listen") == "--listen"
    assert source(text, "server", "socket_mode") == f"{file}:3"
    assert source(text, "server", "workers") == "default"
    assert source(text, "server", "tls_cert") == "default"
    assert source(text, "providers.openai", "api_key") == f"{file}:5 (**********)"
    assert source(text, "providers.openai.timeouts", "idle_seconds") == f"{file}:9"
    assert source(text, "providers.openai.timeouts", "connect_seconds") == f"{file}:17"  # [timeouts]
    assert source(text, "log", "level") == f"{file}:19"


def test_zero_config_has_the_variable_as_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = effective(examine(env={"XAI_API_KEY": CANARY}), {})
    assert text.startswith("# no file: from the environment\n")
    assert source(text, "providers.xai", "api_key") == "env:XAI_API_KEY (**********)"
    assert CANARY not in text


def test_a_key_from_the_kinds_variable_says_so(tmp_path: Path) -> None:
    text = effective(read(tmp_path, "[providers.openai]\n", {}), {})
    assert source(text, "providers.openai", "api_key") == (
        "env:OPENAI_API_KEY (missing: the environment variable OPENAI_API_KEY is not set)"
    )


def test_no_secret_is_shown(tmp_path: Path) -> None:
    written(tmp_path / "key", CANARY)
    text = f"""\
[providers.openai]
api_key = "{CANARY}"
headers = {{ "x-a" = "{CANARY}", "b" = "{CANARY}" }}
base_url = "https://host/v1?key={CANARY}"
proxy = "http://u:{CANARY}@host:1"
[providers.xai]
api_key = "file:key"
[callers]
a.key = "{CANARY}"
b.key = "sha256:{"ab" * 32}"
"""
    shown = effective(read(tmp_path, text), {})
    assert CANARY not in shown
    assert "abab" not in shown
    assert shown.count("**********") >= 9
    assert tomllib.loads(shown)["providers"]["openai"]["headers"] == {"x-a": "*" * 10, "b": "*" * 10}


def test_odd_text_stays_toml(tmp_path: Path) -> None:
    shown = effective(read(tmp_path, OPENAI + 'drop = ["a\\"\\\\", "\\u007f", "\\n", "é"]\n'), {})
    assert tomllib.loads(shown)["providers"]["openai"]["drop"] == ['a"\\', "\x7f", "\n", "é"]


BAD_DAYS = """\
[providers.openai]
api_keys = ["env:A", "env:B"]
tags = ["us"]
limits.adaptive = true
breaker.consecutive_failures = 3
[breaker]
open_seconds = 2
[retry]
attempts = 2
[models.fast]
targets = [
  "openai/a",
  { to = "openai/b", weight = 3, order = 1, tags = ["x"], params = { t = 0.5, stop = ["\\u007f"], a = { b = true } } },
]
policy = "weighted"
fallback_on = ["any"]
[models."gpt-*"]
targets = "openai/gpt-*"
tags = ["us"]
keepalive_comment_seconds = 15
[callers.web]
key = "env:WEB_KEY"
priority = "high"
tags = ["us"]
[on_disconnect]
policy = "drain"
"""


def test_what_is_in_force_on_bad_days(tmp_path: Path) -> None:
    jsonschema.validate(tomllib.loads(BAD_DAYS), plain_schema())
    text = effective(read(tmp_path, BAD_DAYS, {"A": CANARY, "WEB_KEY": "k"}), {})
    found = tomllib.loads(text)
    assert CANARY not in text
    assert found["providers"]["openai"]["api_keys"] == ["env:A", "env:B"]
    assert found["providers"]["openai"]["breaker"] == {
        "consecutive_failures": 3,
        "open_seconds": 2.0,
        "max_open_seconds": 60.0,
    }
    params = {"t": 0.5, "stop": ["\x7f"], "a": {"b": True}}
    said = {"to": "openai/b", "weight": 3, "order": 1, "tags": ["x"], "params": params}
    assert found["models"]["fast"]["targets"] == ["openai/a", said]
    assert found["models"]["gpt-*"]["targets"] == ["openai/gpt-*"]
    assert found["retry"]["attempts"] == 2
    file = f"{tmp_path}/sidecar.toml"
    for table, option, origin in (
        ("providers.openai", "tags", f"{file}:3"),
        (
            "providers.openai",
            "api_keys",
            f"{file}:2 (**********, missing: the environment variable B is not set)",
        ),
        ("providers.openai.limits", "adaptive", f"{file}:4"),
        ("providers.openai.breaker", "consecutive_failures", f"{file}:5"),
        ("providers.openai.breaker", "open_seconds", f"{file}:7"),  # [breaker]
        ("providers.openai.breaker", "max_open_seconds", "default"),
        ("retry", "attempts", f"{file}:9"),
        ("retry", "budget_percent", "default"),
        ("models.fast", "targets", f"{file}:11"),
        ("models.fast", "policy", f"{file}:15"),
        ("models.fast", "fallback_on", f"{file}:16"),
        ("models.fast", "affinity_header", "default"),
        ("models.fast", "hedge_after_seconds", "default"),
        ('models."gpt-*"', "tags", f"{file}:19"),
        ('models."gpt-*"', "keepalive_comment_seconds", f"{file}:20"),
        ("callers.web", "priority", f"{file}:23"),
        ("callers.web", "tags", f"{file}:24"),
        ("on_disconnect", "policy", f"{file}:26"),
    ):
        assert source(text, table, option) == origin, (table, option)
