"""The order in which targets are tried: policies, weights, sessions, health. Chance is seeded, health a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.config import Config, Key, Model, Provider, Target as Said
from sidecar.routing import Plan, build, find, order
from sidecar.secret import Secret
from sidecar.types import Target

PROVIDERS = {"lab": Provider(kind="vllm", api_key=Key(source="env:KEY", secret=Secret("canary")))}
WEIGHED = (Said(to="lab/a", weight=6), Said(to="lab/b", weight=3), "lab/c")
POLICIES = ("failover", "weighted", "least-latency", "hedge")


def planned(*targets: str | Said, **settings: Any) -> Plan:
    return find(build(Config(providers=PROVIDERS, models={"m": Model(targets=targets, **settings)})), "m", "chat")


def never(_: Any = None) -> Any:
    raise AssertionError("not asked of this policy")


def always(_: Target) -> bool:
    return True


def first(_: Sequence[Target]) -> int:
    return 0


def ready_but(*names: str) -> Callable[[Target], bool]:
    return lambda target: target.model not in names


def tried(
    plan: Plan,
    *,
    ready: Callable[[Target], bool] = always,
    least: Callable[[Sequence[Target]], int] = never,
    random: Callable[[], float] = never,
    affinity: bytes | None = None,
) -> str:
    """The models in order, each a letter."""
    return "".join(target.model for target in order(plan, ready, least, random, affinity))


# -- order


@pytest.mark.parametrize("policy", ["failover", "hedge"])
def test_targets_are_tried_as_they_stand_and_lower_orders_first(policy: str) -> None:
    assert tried(planned("lab/a", "lab/b", "lab/c", policy=policy)) == "abc"
    said = (Said(to="lab/a", order=2), "lab/b", Said(to="lab/c", order=1), Said(to="lab/d", order=2), "lab/e")
    assert tried(planned(*said, policy=policy)) == "becad"


@pytest.mark.parametrize(
    ("down", "expected"),
    [("a", "bcda"), ("bc", "adbc"), ("ad", "bcad"), ("abcd", "abcd"), ("", "abcd")],
)
def test_targets_that_are_not_ready_stand_behind_all_that_are(down: str, expected: str) -> None:
    """Whatever their order: a ready target of the last resort goes before a broken one of the first."""
    plan = planned("lab/a", "lab/b", Said(to="lab/c", order=1), Said(to="lab/d", order=1))
    assert tried(plan, ready=ready_but(*down)) == expected


def test_each_target_is_asked_once_whether_it_is_ready() -> None:
    asked: list[str] = []

    def ready(target: Target) -> bool:
        asked.append(target.model)
        return target.model != "a"

    tried(planned("lab/a", "lab/b", "lab/c"), ready=ready)
    assert asked == ["a", "b", "c"]


SAID = st.builds(
    Said,
    to=st.sampled_from([f"lab/{letter}" for letter in "abcdefgh"]),
    weight=st.integers(1, 1_000_000),
    order=st.integers(0, 3),
)


@settings(max_examples=300, deadline=None)
@given(
    said=st.lists(SAID, min_size=1, max_size=10),
    policy=st.sampled_from(POLICIES),
    down=st.sets(st.sampled_from("abcdefgh")),
    session=st.none() | st.binary(max_size=20),
    seed=st.integers(),
)
def test_no_target_is_lost_or_repeated(
    said: list[Said], policy: str, down: set[str], session: bytes | None, seed: int
) -> None:
    """Nor do orders mix, among those that are ready and among those that are not."""
    plan = planned(*said, policy=policy, affinity_header="x-session")
    chance = Random(seed)

    def least(some: Sequence[Target]) -> int:
        return chance.randrange(len(some))

    found = order(plan, ready_but(*down), least, chance.random, session)
    assert sorted(map(id, found)) == sorted(map(id, plan.targets))
    assert [(target.model in down, target.order) for target in found] == sorted(
        (target.model in down, target.order) for target in plan.targets
    )


# -- weighted


def share(plan: Plan, times: int, **more: Any) -> Counter[str]:
    chance = Random(7)
    return Counter(tried(plan, random=chance.random, **more) for _ in range(times))


def test_the_first_is_drawn_by_weight() -> None:
    plan = planned(*WEIGHED, policy="weighted")
    firsts = Counter[str]()
    for letters, times in share(plan, 20_000).items():
        firsts[letters[0]] += times
    for name, expected in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert abs(firsts[name] / 20_000 - expected) < 0.01  # three standard deviations


def test_the_others_are_drawn_by_weight_among_those_that_are_left() -> None:
    plan = planned(*WEIGHED, policy="weighted")
    for letters, times in share(plan, 20_000).items():
        weights = [{"a": 6, "b": 3, "c": 1}[letter] for letter in letters]
        expected = weights[0] / 10 * weights[1] / (10 - weights[0])
        assert abs(times / 20_000 - expected) < 0.011, letters


def test_what_is_not_ready_leaves_its_share_to_the_others_by_weight() -> None:
    plan = planned(*WEIGHED, policy="weighted")
    found = share(plan, 20_000, ready=ready_but("a"))
    assert set(found) == {"bca", "cba"}
    assert abs(found["bca"] / 20_000 - 0.75) < 0.01


def test_weights_are_of_equal_orders_only() -> None:
    said = (Said(to="lab/a", order=1, weight=1_000_000), "lab/b", "lab/c")
    assert set(share(planned(*said, policy="weighted"), 200)) == {"bca", "cba"}


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-53])
def test_the_ends_of_chance_are_taken(drawn: float) -> None:
    plan = planned("lab/a", Said(to="lab/b", weight=1_000_000), policy="weighted")
    assert sorted(tried(plan, random=lambda: drawn)) == ["a", "b"]


# -- least latency


def test_each_next_one_is_picked_among_those_that_are_left() -> None:
    seen: list[str] = []

    def last(some: Sequence[Target]) -> int:
        seen.append("".join(target.model for target in some))
        return len(some) - 1

    plan = planned("lab/a", "lab/b", "lab/c", "lab/d", policy="least-latency")
    assert tried(plan, least=last) == "dcba"
    assert seen == ["abcd", "abc", "ab", "a"]
    seen.clear()
    assert tried(plan, least=last, ready=ready_but("b", "d")) == "cadb"
    assert seen == ["ac", "a", "bd", "b"]  # what is not ready is never compared with what is
    assert [target.model for target in plan.targets] == ["a", "b", "c", "d"]  # of all requests, so it stays


# -- sessions


def sessions(plan: Plan, count: int = 4000, **more: Any) -> dict[bytes, str]:
    return {key: tried(plan, affinity=key, **more) for key in (b"session-%d" % number for number in range(count))}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_stays_whatever_the_policy(policy: str) -> None:
    said = ("lab/a", "lab/b", "lab/c", Said(to="lab/d", order=1))
    plan = planned(*said, policy=policy, affinity_header="X-Session")
    assert plan.affinity == b"x-session"
    found = sessions(plan, 200)
    assert found == sessions(planned(*said, policy=policy, affinity_header="x-session"), 200)
    assert {letters[0] for letters in found.values()} == set("abc")
    assert {letters[3] for letters in found.values()} == {"d"}


def test_sessions_spread_by_weight() -> None:
    plan = planned(Said(to="lab/a", weight=3), "lab/b", affinity_header="x-session")
    found = Counter(letters[0] for letters in sessions(plan).values())
    assert abs(found["a"] / 4000 - 0.75) < 0.025


def test_a_target_more_takes_its_share_and_moves_nothing_else() -> None:
    before = sessions(planned("lab/a", "lab/b", "lab/c", affinity_header="x-session"))
    after = sessions(planned("lab/c", "lab/d", "lab/a", "lab/b", affinity_header="x-session"))
    assert {key: letters.replace("d", "") for key, letters in after.items()} == before
    moved = [key for key in before if before[key][0] != after[key][0]]
    assert {after[key][0] for key in moved} == {"d"}
    assert abs(len(moved) / 4000 - 0.25) < 0.025


def test_the_sessions_of_what_is_not_ready_go_to_their_next_and_come_back() -> None:
    plan = planned("lab/a", "lab/b", "lab/c", affinity_header="x-session")
    whole = sessions(plan, 500)
    for key, letters in sessions(plan, 500, ready=ready_but("b")).items():
        assert letters == whole[key].replace("b", "") + "b"


def test_more_weight_takes_sessions_and_gives_none_away() -> None:
    before = sessions(planned("lab/a", "lab/b", "lab/c", affinity_header="x"), 1000)
    after = sessions(planned(Said(to="lab/a", weight=2), "lab/b", "lab/c", affinity_header="x"), 1000)
    assert {after[key][0] for key in before if before[key][0] != after[key][0]} == {"a"}


def test_without_the_header_or_the_option_the_policy_decides() -> None:
    assert tried(planned("lab/b", "lab/a", affinity_header="x-session")) == "ba"
    assert tried(planned("lab/b", "lab/a"), affinity=b"session-1") == "ba"
    assert tried(planned("lab/b", "lab/a"), affinity=b"session-2") == "ba"
    assert tried(planned("lab/b", "lab/a", policy="least-latency", affinity_header="x"), least=first) == "ba"
