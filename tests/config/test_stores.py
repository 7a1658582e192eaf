"""A store's URL: every form, and nothing of it in what is told of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.config import MEMORY, Place, place
from sidecar.secret import Secret
from tests.config.files import config, read, refused


def seen(found: Place) -> dict[str, Any]:
    """What differs from a place that is nowhere."""
    fields = {name: getattr(found, name) for name in Place.__struct_fields__ if name not in ("source", "password")}
    plain = Place(source="")
    return {name: value for name, value in fields.items() if value != getattr(plain, name)}


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("memory:", {}),
    ("redis://redis", {"form": "single", "addresses": (("redis", 6379),)}),
    ("redis://10.0.0.1:7000/3", {"form": "single", "addresses": (("10.0.0.1", 7000),), "db": 3}),
    ("rediss://[::1]:7000/", {"form": "single", "addresses": (("::1", 7000),), "tls": True}),
    ("redis://u@h", {"form": "single", "addresses": (("h", 6379),), "user": "u"}),
    ("unix:///run/redis.sock", {"form": "single", "path": "/run/redis.sock"}),
    ("unix:///run/a%20b?db=2", {"form": "single", "path": "/run/a b", "db": 2}),
    ("redis+cluster://a:1,b", {"form": "cluster", "addresses": (("a", 1), ("b", 6379))}),
    ("rediss+cluster://a/0", {"form": "cluster", "addresses": (("a", 6379),), "tls": True}),
    ("redis+sentinel://a,b:2/main", {"form": "sentinel", "addresses": (("a", 26379), ("b", 2)), "service": "main"}),
    ("rediss+sentinel://a/ma%69n/4", {"form": "sentinel", "addresses": (("a", 26379),), "service": "main", "db": 4,
                                      "tls": True}),
]  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), FORMS, ids=[url for url, _ in FORMS])
def test_every_form_is_taken_apart(url: str, expected: dict[str, Any]) -> None:
    found = place(url)
    assert seen(found) == expected
    assert found.password is None


@pytest.mark.parametrize("url", ["redis://:p%40ss@h", "redis+cluster://u:p%40ss@h,i", "unix://u:p%40ss@/run/r.sock"])
def test_a_password_is_kept_as_a_secret_only(url: str) -> None:
    found = place(url)
    assert found.password is not None
    assert found.password.matches("p@ss")
    assert "p@ss" not in repr(found)
    assert "p%40ss" not in repr(found)
    assert "**********@" in found.source


WRONG = {
    "": "not of the form",
    "memory": "not of the form",
    "http://h": "not of the form",
    "redis://h?db=1": "not of the form",
    "redis://h#1": "not of the form",
    "redis://[h": "not of the form",
    "redis://": "a host is of the form",
    "redis://h:0": "a host is of the form",
    "redis://h:99999": "a host is of the form",
    "redis://h h": "a host is of the form",
    "redis://a,b": "several hosts are those of",
    "redis://h/x": "a database is a number",
    "redis://h/1/2": "a database is a number",
    "unix://run/redis.sock": "takes an absolute path",
    "unix:///": "takes an absolute path",
    "unix:///a%00b": "takes an absolute path",
    f"unix:///{'x' * 110}": "at most 107 bytes",
    "unix:///r.sock?x=1": "?db=N, and nothing else",
    "unix:///r.sock?db=x": "a database is a number",
    "redis+cluster://a/1": "one database only",
    "redis+sentinel://a": "are asked for a service",
    "redis+sentinel://a/": "are asked for a service",
    "redis+sentinel://a/m/x": "a database is a number",
}


@pytest.mark.parametrize("url", WRONG)
def test_what_is_wrong_is_told_and_nothing_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]") as caught:
        place(url)
    assert WRONG[url] in str(caught.value)
    assert not url or url not in ("memory", "http://h") or url not in str(caught.value).split(", ")


FILE = '[providers.openai]\napi_key = "caller"\n[store]\nurl = "{}"\n'


def test_by_default_it_is_memory(tmp_path: Path) -> None:
    assert config(tmp_path, '[providers.openai]\napi_key = "caller"\n').store.url is MEMORY


def test_it_may_stand_in_the_environment_or_in_a_file(tmp_path: Path) -> None:
    url = "redis://:hunter2@h/1"
    found = config(tmp_path, FILE.format("env:REDIS_URL"), {"REDIS_URL": url}).store.url
    assert found.source == "env:REDIS_URL"
    assert (found.db, found.password is not None) == (1, True)
    secret = tmp_path / "redis-url"
    secret.write_text(url + "\n")
    secret.chmod(0o600)
    found = config(tmp_path, FILE.format(f"file:{secret}")).store.url
    assert found.source == f"file:{secret}"
    assert isinstance(found.password, Secret)


def told(folder: Path, text: str, mode: int = 0o600) -> list[str]:
    return [str(fault) for fault in refused(folder, text, mode=mode)]


def test_a_password_must_not_stand_where_others_may_read_it(tmp_path: Path) -> None:
    text = FILE.format("redis://:hunter2@h")
    assert config(tmp_path, text).store.url.password is not None
    (fault,) = told(tmp_path, text, 0o644)
    assert "a password stands in the file" in fault
    assert "hunter2" not in fault
    assert read(tmp_path, FILE.format("redis://h"), mode=0o644).config.store.url.source == "redis://h"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("env:REDIS_URL", "store.url: the environment variable REDIS_URL is not set"),
        ("env:no-name", "store.url: env: takes a name"),
        ("file:/none", "store.url: the key file /none cannot be read: no such file or directory"),
        ("redis://:hunter2@h h", "store.url: a host is of the form host[:port]"),
    ],
)
def test_faults_have_their_line_and_no_secret(tmp_path: Path, url: str, words: str) -> None:
    (fault,) = told(tmp_path, FILE.format(url))
    assert f"sidecar.toml:4:1: {words}" in fault
    assert "hunter2" not in fault


def test_it_is_a_string(tmp_path: Path) -> None:
    (fault,) = told(tmp_path, FILE.replace('"{}"', "7"))
    assert "store.url must be a string: memory:, redis://" in fault


def test_certificates_are_for_tls(tmp_path: Path) -> None:
    faults = told(tmp_path, FILE.format("redis://h") + 'tls_ca = "none.pem"\n')
    assert any("none.pem cannot be read" in each for each in faults)
    assert any("is for a store that is asked over TLS: rediss://" in each for each in faults)


LIMITED = '[server]\nworkers = {}\n[providers.openai]\napi_key = "caller"\n{}\n'


@pytest.mark.parametrize(
    ("workers", "more", "warned"),
    [
        (4, "[providers.openai.limits]\nrequests_per_minute = 60", True),
        (4, '[callers.web]\nkey = "sha256:' + "0" * 64 + '"\nconcurrency = 4', True),
        (4, "[providers.openai.limits]\ntokens_per_minute = 60", True),
        (4, '[models.fast]\ntargets = ["openai/x"]\nrequests_per_minute = 4', True),
        (1, "[providers.openai.limits]\nrequests_per_minute = 60", False),
        (4, "", False),
        (4, '[providers.openai.limits]\nrequests_per_minute = 60\n[store]\nurl = "redis://h"', False),
    ],
)
def test_workers_that_count_each_by_itself_are_warned_of(tmp_path: Path, workers: int, more: str, warned: bool) -> None:
    found = read(tmp_path, LIMITED.format(workers, more))
    words = [str(each) for each in found.warnings if "workers" in str(each)]
    assert len(words) == warned
    if warned:
        assert "sidecar.toml:2:" in words[0]
        assert "up to 4 times as much is let in" in words[0]


def test_an_unknown_option_is_an_error(tmp_path: Path) -> None:
    (fault,) = told(tmp_path, FILE.replace("url =", "urls =").format("memory:"))
    assert 'unknown option "urls"' in fault
