"""The guard against browsers: what a page could send to loopback is refused, what programs send is not."""

from __future__ import annotations

import pytest

from sidecar.browser import is_preflight, leave, refusal
from sidecar.types import Headers

JSON = (b"content-type", b"application/json")
LOCAL = (b"host", b"127.0.0.1:4000")
PAGE = "https://app.example"


def why(headers: Headers, *, tcp: bool = True, hot: bool = True) -> str:
    refused = refusal(headers, allowed=(PAGE,), tcp=tcp, hot=hot)
    return "" if refused is None else refused.code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:4000", "127.0.0.1", "127.8.9.1:80", "localhost", "LOCALHOST:4000", "[::1]:4000", "[::1]", "",
        "sidecar.localhost:4000",
    ],
)  # fmt: skip
def test_hosts_of_this_machine(host: str) -> None:
    assert why([(b"host", host.encode()), JSON]) == ""


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:4000", "127.0.0.1.evil.example:4000", "127.evil.example",
        "localhost.evil.example", "evil-localhost", "10.0.0.1:4000", "0.0.0.0:4000", "[::2]:4000", "[fe80::1]",
        "127.0.0.1:4000:x", "localhost:x", "user@localhost", "127.1", "2130706433", "::1", "\xe9",
    ],
)  # fmt: skip
def test_hosts_that_are_not(host: str) -> None:
    assert why([(b"host", host.encode("latin-1")), JSON]) == "policy_origin_forbidden"
    assert why([(b"host", host.encode("latin-1")), JSON], tcp=False) == ""  # no page reaches a unix socket


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://127.0.0.1:4000", PAGE + ":8443"])
def test_origins_that_are_not_allowed(origin: str) -> None:
    assert why([LOCAL, JSON, (b"origin", origin.encode())]) == "policy_origin_forbidden"
    assert why([LOCAL, (b"origin", origin.encode())], hot=False) == "policy_origin_forbidden"
    assert leave([(b"origin", origin.encode())], (PAGE,)) is None


def test_an_origin_that_is_allowed() -> None:
    headers = [LOCAL, JSON, (b"origin", PAGE.encode())]
    assert why(headers) == ""
    assert leave(headers, (PAGE,)) == PAGE.encode()
    assert leave([LOCAL, JSON], (PAGE,)) is None


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/vnd.api+json", True),
        ("text/plain", False),
        ("text/plain; application/json", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("text/x+json", False),
        ("", False),
    ],
)
def test_bodies_for_which_no_browser_asks_leave(kind: str, taken: bool) -> None:
    headers = [LOCAL, (b"content-type", kind.encode())]
    assert why(headers) == ("" if taken else "caller_media_type_unsupported")
    assert why(headers, hot=False) == ""


def test_no_content_type_is_not_json() -> None:
    assert why([LOCAL]) == "caller_media_type_unsupported"


def test_a_preflight_names_a_method() -> None:
    asks = [(b"access-control-request-method", b"POST")]
    assert is_preflight("OPTIONS", asks)
    assert not is_preflight("OPTIONS", [])
    assert not is_preflight("POST", asks)
