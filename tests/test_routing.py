"""A model's name becomes a plan: aliases, provider/model, known names; and what is told where it does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from sidecar import config, routing
from sidecar.config import Config, Key, Model, Provider, Target
from sidecar.errors import ModelForbidden, SidecarError, UnknownModel, Unsupported
from sidecar.routing import Routes, allowed, build, find, models, plan
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


def test_a_plan_knows_by_which_name_of_models_it_goes() -> None:
    found = routes("openai", "lab=openai-compatible", **{"fast": ("lab/m",), "gpt-*": ("openai/gpt-*",)})
    names = {asked: find(found, asked, "chat").table for asked in ("fast", "gpt-4o", "lab/m", "o3")}
    assert names == {"fast": "fast", "gpt-4o": "gpt-*", "lab/m": "", "o3": ""}


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


def test_what_stands_for_many_is_not_listed() -> None:
    found = routes("openai", "lab=openai-compatible", **{"gpt-*": ("openai/gpt-*", "lab/one"), "x": ("lab/one",)})
    assert models(found) == ["x", "lab/one"]


# -- wildcards


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("gpt-4o", "openai/gpt-4o"),
        ("gpt-4o/x y*z", "openai/gpt-4o/x y*z"),
        ("gpt-*", "openai/gpt-*"),
        ("gpt-exact", "lab/exact"),  # an exact name before any pattern
        ("gpt-5-mini", "lab/five/mini"),  # the longest text before the * first
        ("gpt-5-nano-eu", "lab/eu/nano"),  # and then the longest behind it
        ("lab/m", "lab/m"),  # `lab/*` says more of it than `*` and `lab*` do
        ("lab-m", "lab/dash/-m"),
        ("openai/m", "lab/instead/m"),  # but no more than a `openai/*` of your own
        ("anything", "lab/rest/anything"),
        ("xy", "lab/rest/xy"),  # a * stands for one character or more
        ("xzy", "lab/between/z"),
        ("gpt-", "lab/rest/gpt-"),
        ("/", "lab/rest//"),
    ],
)
def test_patterns(asked: str, target: str) -> None:
    names = {
        "*": ("lab/rest/*",),
        "gpt-*": ("openai/gpt-*",),
        "gpt-5-*": ("lab/five/*",),
        "gpt-5-*-eu": ("lab/eu/*",),
        "gpt-exact": ("lab/exact",),
        "lab*": ("lab/dash/*",),
        "openai/*": ("lab/instead/*",),
        "x*y": ("lab/between/*",),
    }
    for aliases in (names, dict(reversed(names.items()))):
        ((name, model, _),) = planned(routes("openai", "lab=openai-compatible", **aliases), asked)
        assert f"{name}/{model}" == target


def test_a_pattern_for_several_targets_one_of_them_fixed() -> None:
    found = routes("openai", "anthropic", "xai", **{"a-*": ("openai/*", "anthropic/claude-x", "xai/g-*-y")})
    assert [target[:2] for target in planned(found, "a-b")] == [
        ("openai", "b"),
        ("anthropic", "claude-x"),
        ("xai", "g-b-y"),
    ]
    assert find(found, "a-b", "chat").targets[0].why == 'target of [models."a-*"]'


def test_a_pattern_before_the_names_that_providers_are_known_for() -> None:
    found = routes("openai", "xai", **{"gpt-*": ("xai/*",)})
    assert planned(found, "gpt-4o") == [("xai", "4o", "chat")]
    assert planned(found, "o3") == [("openai", "o3", "chat")]
    assert refused(found, "zzz").status == 404


def test_a_pattern_cannot_be_led_out_of_its_path() -> None:
    url = "https://r.test/openai/deployments/{model}?api-version=1"
    aliases = {"az-*": Model(targets=("azure/*",))}
    found = build(Config(providers={"azure": Provider(base_url=url, api_key=KEY)}, models=aliases))
    (target,) = plan(found, "az-../x?y", "chat")
    assert target.path == b"/openai/deployments/..%2Fx%3Fy/chat/completions?api-version=1"
    assert refused(found, "az-..").message == "the model '..' cannot stand in a path"


@settings(max_examples=300, deadline=None)
@given(prefix=st.text("ab-/", max_size=4), suffix=st.text("ab-/", max_size=4), asked=st.text("ab-/*", max_size=8))
def test_a_star_stands_for_what_is_between(prefix: str, suffix: str, asked: str) -> None:
    found = routes("lab=openai-compatible", **{f"{prefix}*{suffix}": ("lab/<*>",)})
    part = asked.removeprefix(prefix).removesuffix(suffix)
    if part and f"{prefix}{part}{suffix}" == asked:
        assert planned(found, asked) == [("lab", f"<{part}>", "chat")]
    else:
        assert refused(found, asked).status == 404


# -- what else is said of targets


def test_a_plain_name_has_the_defaults() -> None:
    found = find(routes("openai"), "openai/gpt-4o", "chat")
    assert (found.name, found.policy, found.affinity, found.skipped) == ("openai/gpt-4o", "failover", None, ())
    assert msgspec.structs.replace(found.model, targets=("x",)) == Model(targets=("x",))
    assert found.fallback_on == frozenset(("error", "timeout", "rate_limit"))
    (target,) = found.targets
    assert (target.key, target.weight, target.order, target.params) == ("openai/gpt-4o", 1, 0, ())
    assert target.tags == frozenset()


def test_what_is_said_of_a_target() -> None:
    params = {"temperature": 0.25, "stop": ["x"], "a": {"b": True}, "max_tokens": 2**63}
    said = Target(to="lab/m", weight=3, order=2, tags=("cheap",), params=params)
    model = Model(targets=(said, "lab/n"), policy="weighted", affinity_header="X-Session")
    providers = {"lab": Provider(kind="vllm", tags=("eu",))}
    found = find(build(Config(providers=providers, models={"fast": model})), "fast", "chat")
    assert (found.policy, found.affinity, found.model) == ("weighted", b"x-session", model)
    other, target = found.targets  # by order
    assert (target.key, target.weight, target.order, target.tags) == ("lab/m", 3, 2, frozenset(("cheap", "eu")))
    assert (other.key, other.weight, other.order, other.tags) == ("lab/n", 1, 0, frozenset(("eu",)))
    assert [(name, bytes(value)) for name, value in target.params] == [
        ("temperature", b"0.25"),
        ("stop", b'["x"]'),
        ("a", b'{"b":true}'),
        ("max_tokens", b"9223372036854775808"),
    ]
    assert other.params == ()


# -- tags


def tagged(*targets: str | Target, tags: tuple[str, ...] = ()) -> Routes:
    providers = {
        "openai": Provider(api_key=KEY, tags=("us",)),
        "xai": Provider(api_key=KEY, tags=("eu",)),
        "voyage": Provider(api_key=KEY, tags=("eu",)),
    }
    return build(Config(providers=providers, models={"m": Model(targets=targets, tags=tags)}))


def keys(found: Routes, asked: str, *tags: str, dialect: str = "chat") -> list[str]:
    return [target.key for target in find(found, asked, dialect, frozenset(tags)).targets]


def test_a_models_tags_choose_its_targets() -> None:
    targets = ("openai/a", "xai/b", Target(to="xai/c", tags=("fast",)), Target(to="openai/d", tags=("eu",)))
    assert keys(tagged(*targets), "m") == ["openai/a", "xai/b", "xai/c", "openai/d"]
    assert keys(tagged(*targets, tags=("eu",)), "m") == ["xai/b", "xai/c", "openai/d"]
    assert keys(tagged(*targets, tags=("eu", "us")), "m") == ["openai/d"]
    assert find(tagged(*targets, tags=("fast",)), "m", "chat").skipped == (
        "openai/a has not the tag fast of its model's",
        "xai/b has not the tag fast of its model's",
        "openai/d has not the tag fast of its model's",
    )
    assert refused(tagged("openai/a", "voyage/v", tags=("eu",)), "m").message == (
        "openai/a has not the tag eu of its model's; provider voyage does not serve chat"
    )


def test_a_callers_tags_hold_for_every_name() -> None:
    found = tagged("openai/a", "xai/b", Target(to="xai/c", tags=("fast",)))
    assert keys(found, "m", "eu") == ["xai/b", "xai/c"]
    assert keys(found, "m", "eu", "fast") == ["xai/c"]
    assert keys(found, "m") == ["openai/a", "xai/b", "xai/c"]  # a plan of others is not remembered for this one
    assert keys(found, "xai/b", "eu") == ["xai/b"]
    assert keys(found, "gpt-4o", "us") == ["openai/gpt-4o"]
    for asked, tags in (("m", ("zz",)), ("openai/a", ("eu",)), ("gpt-4o", ("eu",)), ("m", ("us", "eu"))):
        for _ in range(2):
            with pytest.raises(ModelForbidden) as caught:
                keys(found, asked, *tags)
            assert caught.value.message == f"this key may use the model {asked!r} at no provider that serves it"
            assert (caught.value.status, caught.value.code) == (403, "policy_model_forbidden")
    with pytest.raises(Unsupported):  # which no caller can do anything about
        keys(found, "voyage/v", "us")
