"""Which headers pass: what the lists do not name, in order, and what a Connection header does not name."""

from __future__ import annotations

import pytest

from sidecar.wire import headers

KEPT = [(b"user-agent", b"x"), (b"openai-beta", b"a"), (b"x-odd", b"1"), (b"x-odd", b"2"), (b"accept", b"*/*")]


def test_what_is_not_named_passes_in_order_and_as_often_as_it_came() -> None:
    assert headers.upward(KEPT) == KEPT
    assert headers.downward(KEPT, dict(KEPT)) == KEPT


@pytest.mark.parametrize("name", sorted(headers.HOP_BY_HOP))
def test_nothing_of_one_hop_crosses_either_way(name: bytes) -> None:
    assert headers.upward([(name, b"x-other"), *KEPT]) == KEPT
    assert headers.downward([(name, b"x-other"), *KEPT], {name}) == KEPT


@pytest.mark.parametrize(
    "name", [*headers.CREDENTIALS, b"cookie", b"host", b"x-forwarded-for", b"x-sidecar-tag", b"via"]
)
def test_what_is_the_clients_alone_does_not_go_up(name: bytes) -> None:
    assert headers.upward([(name, b"1"), *KEPT]) == KEPT


@pytest.mark.parametrize("name", [b"set-cookie", b"server", b"alt-svc", b"x-sidecar-provider", b"cache-control"])
def test_what_is_the_providers_alone_does_not_come_down(name: bytes) -> None:
    assert headers.downward([(name, b"1"), *KEPT], {name}) == KEPT


def test_headers_of_an_api_go_to_that_api_only() -> None:
    assert headers.upward(KEPT, translated=True) == [pair for pair in KEPT if pair[0] != b"openai-beta"]


@pytest.mark.parametrize("value", [b"x-odd", b"close, X-Odd", b" keep-alive ,x-odd,", b",x-odd"])
def test_what_connection_names_is_for_this_hop(value: bytes) -> None:
    wanted = [pair for pair in KEPT if pair[0] != b"x-odd"]
    assert headers.upward([(b"connection", value), *KEPT]) == wanted
    assert headers.downward([*KEPT, (b"connection", value)], {b"connection"}) == wanted


def test_the_first_of_several_is_had() -> None:
    assert headers.get(KEPT, b"x-odd") == b"1"
    assert headers.get(KEPT, b"x-none") is None
