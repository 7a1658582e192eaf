"""One closed tree: each leaf says its status, its code of the closed vocabulary, and whether another target may try."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sidecar import errors
from sidecar.errors import (
    CallerError,
    ErrorInAnswer,
    InternalError,
    Malformed,
    PolicyError,
    ProviderError,
    RateLimited,
    SidecarError,
    UpstreamTimeout,
)

DOMAINS = {CallerError: "caller_", PolicyError: "policy_", ProviderError: "provider_", InternalError: "sidecar_"}


def tree(top: type[SidecarError] = SidecarError) -> Iterator[type[SidecarError]]:
    for below in top.__subclasses__():
        yield below
        yield from tree(below)


def test_the_tree_is_all_in_this_module() -> None:
    names = {name for name, each in vars(errors).items() if SidecarError in getattr(each, "__mro__", ())}
    assert {leaf.__name__ for leaf in tree()} == names - {"SidecarError"}
    assert set(SidecarError.__subclasses__()) == set(DOMAINS)


@pytest.mark.parametrize("leaf", list(tree()), ids=lambda leaf: str(leaf.__name__))
def test_each_leaf_keeps_to_the_vocabulary_of_its_domain(leaf: type[SidecarError]) -> None:
    (prefix,) = [word for domain, word in DOMAINS.items() if domain in leaf.__mro__]
    assert re.fullmatch(prefix + r"[a-z]+(_[a-z]+)*", leaf.code) or leaf is ProviderError
    assert 400 <= leaf.status < 600
    assert leaf.type
    assert not (leaf.retryable and issubclass(leaf, CallerError | PolicyError))


def test_no_two_mean_the_same_code() -> None:
    codes = [leaf.code for leaf in tree() if "code" in vars(leaf)]
    assert len(codes) == len(set(codes))


def test_an_error_says_what_where_and_when() -> None:
    error = RateLimited("too many", param="$.model", retry_after=0.3)
    assert (str(error), error.message, error.param, error.retry_after) == ("too many", "too many", "$.model", 0.3)
    assert UpstreamTimeout("late", phase="idle").phase == "idle"


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (402, False), (422, False), (401, True), (429, True), (529, True)]
)
def test_an_error_in_an_answer_has_its_own_status(status: int, retryable: bool) -> None:
    error = ErrorInAnswer("no", status=status, their_code="odd", param="p")
    assert (error.status, error.retryable, error.their_code, error.param) == (status, retryable, "odd", "p")
    assert ErrorInAnswer.status == 502
    assert not error.type  # left to the dialects


def test_what_is_malformed_has_the_status_a_server_answers() -> None:
    assert Malformed("two Hosts").status == 400
    assert (Malformed("too long", 414).message, Malformed("too long", 414).status) == ("too long", 414)
