"""A model's name becomes a plan: aliases, provider/model, known names; and what is told where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar import config, routing
from sidecar.config import Config, Key
from sidecar.errors import SidecarError, UnknownModel, Unsupported
from sidecar.routing import Routes, allowed, build, models, plan
from sidecar.secret import Secret
from sidecar.types import Caller

KEY = Key(source="env:KEY", secret=Secret("canary"))


def routes(*names: str, **aliases: tuple[str, ...]) -> Routes:
    """Providers by the names of their rows, or `name=kind`; and names of [models]."""
    providers = {}
    for each in names:
        name, _, kind = each.partition("=")
        url = "http://127.0.0.1:1/v1" if (kind or name) in ("azure", "openai-compatible") else None
        providers[name] = config.Provider(kind=kind or None, base_url=url, api_key=KEY)
    return build(Config(providers=providers, models={name: config.Model(targets=to) for name, to in aliases.items()}))


def planned(found: Routes, asked: str, dialect: str = "chat") -> list[tuple[str, str, str]]:
    return [(target.upstream.name, target.model, target.dialect) for target in plan(found, asked, dialect)]


def refused(found: Routes, asked: str, dialect: str = "chat") -> SidecarError:
    with pytest.raises((UnknownModel, Unsupported)) as caught:
        plan(found, asked, dialect)
    error: Any = caught.value
    assert isinstance(error, SidecarError)
    assert error.param == "model"
    return error


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o",
        "meta-llama/Llama-3.3-70B-Instruct:free",
        "accounts/fireworks/models/x",
        "@cf/meta/llama-3.1-8b-instruct",
        "ft:gpt-4o-mini-2024-07-18:org::id",
        "~vendor/name-latest",
        "gpt-oss:20b@sha256:00",
        "lab/again",
        "a b",
        "/",
        "モデル",
        "*",
        "m" * 500,
    ],
)
def test_provider_and_model(model: str) -> None:
    """The first slash divides; all behind it is the provider's."""
    found = routes("openai", "lab=openai-compatible")
    assert planned(found, f"lab/{model}") == [("lab", model, "chat")]


def test_a_name_of_your_own_stands_before_all_else() -> None:
    found = routes(
        "openai",
        "anthropic",
        **{"gpt-4o": ("anthropic/claude-x",), "openai/gpt-4o": ("openai/gpt-4o-mini",), "a/b:c@d": ("openai/m",)},
    )
    assert planned(found, "gpt-4o") == [("anthropic", "claude-x", "messages")]
    assert planned(found, "openai/gpt-4o") == [("openai", "gpt-4o-mini", "chat")]
    assert planned(found, "a/b:c@d") == [("openai", "m", "chat")]


def test_targets_keep_their_order_and_their_dialect() -> None:
    found = routes("openai", "anthropic", "xai", fast=("anthropic/c", "openai/g", "xai/x/y"))
    assert planned(found, "fast") == [("anthropic", "c", "messages"), ("openai", "g", "chat"), ("xai", "x/y", "chat")]
    assert [target[2] for target in planned(found, "fast", "messages")] == ["messages", "chat", "chat"]
    assert planned(found, "fast", "embeddings") == [("openai", "g", "embeddings")]  # the only one that has them
    assert planned(found, "fast", "count_tokens") == [("anthropic", "c", "count_tokens")]


@pytest.mark.parametrize(
    ("asked", "owner"),
    [
        ("gpt-4o", "openai"),
        ("o3", "openai"),
        ("claude-haiku-4-5", "anthropic"),
        ("grok-4", "grok"),
        ("gemini-2.5-flash", "google"),
        ("accounts/fireworks/models/m", "fireworks"),
    ],
)
def test_a_known_name_of_one_provider(asked: str, owner: str) -> None:
    found = routes("openai", "anthropic", "grok", "google", "fireworks", "lab=openai-compatible")
    ((name, model, _),) = planned(found, asked)
    assert (name, model) == (owner, asked)


def test_a_known_name_of_two_is_asked_back() -> None:
    found = routes("openai", "eu=openai")
    error = refused(found, "gpt-4o")
    assert (error.status, error.code) == (404, "caller_model_unknown")
    assert error.message == (
        "the model 'gpt-4o' is known to more than one configured provider: ask for openai/gpt-4o or eu/gpt-4o"
    )
    assert planned(found, "eu/gpt-4o") == [("eu", "gpt-4o", "chat")]


@pytest.mark.parametrize("asked", ["nothing", "lab/", "/m", "Lab/m", "lab", "gpt-4o", "other/m"])
def test_an_unknown_name(asked: str) -> None:
    error = refused(routes("lab=openai-compatible"), asked)
    assert (error.status, error.code) == (404, "caller_model_unknown")
    assert error.message.startswith(f"the model {asked!r} is not configured; ")


def test_near_names_are_told() -> None:
    found = routes("openai", "anthropic", fast=("openai/gpt-4o-mini",), smart=("anthropic/claude-opus-4-1",))
    assert "; near it are fast" in refused(found, "fasst").message
    assert "openai/gpt-4o-mini" in refused(found, "openia/gpt-4o-mini").message
    assert "openai/gpt-5" in refused(found, "OpenAI/gpt-5").message
    assert "near" not in refused(found, "zzzz").message
    assert refused(found, "zzzz").message.endswith("ask for provider/model (providers: openai, anthropic)")
    assert refused(routes(), "gpt-4o").message.endswith("(providers: none)")


def test_a_provider_that_does_not_speak_it() -> None:
    error = refused(routes("blackbox"), "blackbox/m", "embeddings")
    assert (error.status, error.code) == (400, "caller_feature_unsupported")
    assert error.message == "provider blackbox does not serve embeddings"
    both = refused(routes("blackbox", "xai", both=("blackbox/a", "xai/b")), "both", "completions").message
    assert both == "provider blackbox does not serve completions; provider xai does not serve completions"
    assert refused(routes("voyage"), "voyage/v", "messages").message == "provider voyage does not serve messages"


# -- what clients choose is bounded


@pytest.mark.parametrize("asked", ["lab/" + "m" * 509, "m" * 100_000])
def test_a_name_too_long_is_refused_in_few_words(asked: str) -> None:
    found = routes("lab=openai-compatible")
    error = refused(found, asked)
    assert error.message == f"the model's name has {len(asked)} characters; at most 512 are taken"
    with pytest.raises(UnknownModel):
        allowed(Caller(name="web", models=("*",)), asked)
    assert not found.plans


@pytest.mark.parametrize("asked", ["lab/a\r\nx: y", "lab/\0", "a\tb", "lab/\u2028", "lab/\x7f", "lab/\u202egpt"])
def test_a_name_that_is_not_printable_is_refused(asked: str) -> None:
    found = routes("lab=openai-compatible")
    assert refused(found, asked).message == "the model's name has characters that are not printable"
    assert not found.plans


def test_plans_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_MOST_PLANS", 8)
    found = routes("lab=openai-compatible")
    first = plan(found, "lab/0", "chat")
    assert plan(found, "lab/0", "chat") is first
    for number in range(1000):
        plan(found, f"lab/{number}", "chat")
        refused(found, f"unknown-{number}")
        assert len(found.plans) <= 8
    assert plan(found, "lab/0", "chat") == first
    assert routes("lab=openai-compatible").plans == {}


def test_the_same_name_in_another_dialect_is_another_plan() -> None:
    found = routes("openai")
    assert planned(found, "gpt-4o", "messages") == [("openai", "gpt-4o", "chat")]
    assert planned(found, "gpt-4o", "embeddings") == [("openai", "gpt-4o", "embeddings")]
    assert len(found.plans) == 2


# -- callers


@pytest.mark.parametrize(
    ("patterns", "asked", "may"),
    [
        (("fast",), "fast", True),
        (("fast",), "faster", False),
        (("fast",), "openai/fast", False),
        (("openai/*",), "openai/gpt-4o", True),
        (("openai/*",), "gpt-4o", False),
        (("openai/*",), "openai/a/b:c@d", True),
        (("openai/gpt-4?",), "openai/gpt-4o", True),
        (("gpt-[45]*",), "gpt-5", True),
        (("gpt-[45]*",), "gpt-3", False),
        (("model[1]",), "model[1]", True),
        (("Fast",), "fast", False),
        (("a", "b"), "b", True),
        (("*",), "anything/at:all", True),
    ],
)
def test_who_may_ask_for_what(patterns: tuple[str, ...], asked: str, may: bool) -> None:
    assert allowed(Caller(name="web", models=patterns), asked) is may


# -- a place for the model in the path


def test_a_model_in_the_path() -> None:
    url = "https://r.test/openai/deployments/{model}?api-version=1"
    found = build(Config(providers={"azure": config.Provider(base_url=url, api_key=KEY)}))
    (target,) = plan(found, "azure/gpt-4o", "chat")
    assert target.upstream.paths["chat"] == "/openai/deployments/gpt-4o/chat/completions?api-version=1"
    assert found.upstreams["azure"].paths["chat"] == "/openai/deployments/{model}/chat/completions?api-version=1"
    (target,) = plan(found, "azure/../x?y#z&é", "chat")
    assert target.upstream.paths["chat"].startswith("/openai/deployments/..%2Fx%3Fy%23z%26%C3%A9/chat/completions?")
    for dots in (".", "..", "..."):
        assert refused(found, f"azure/{dots}").message == f"the model {dots!r} cannot stand in a path"


# -- telling


def test_the_names_that_are_listed() -> None:
    found = routes("openai", "anthropic", fast=("openai/a", "anthropic/b"), slow=("openai/a",))
    assert models(found) == ["fast", "slow", "openai/a", "anthropic/b"]
    assert models(routes("openai")) == []
