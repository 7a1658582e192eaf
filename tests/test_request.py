"""Who asks, and until when: by any of the headers a client sends a key in, and found without comparing."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from sidecar.asgi import AsgiClient
from sidecar.errors import BodyInvalid, Unauthorized
from sidecar.limits import Limits
from sidecar.request import ANONYMOUS, Asker, identify, presented, read_head
from sidecar.types import Caller, Headers

KEY = "key-of-the-web"
LIMITS = Limits()
NOBODY = Asker(ANONYMOUS, LIMITS.counter("caller:", None, None))
WEB = Asker(Caller(name="web"), LIMITS.counter("caller:web", None, None))
OTHER = Asker(Caller(name="other"), LIMITS.counter("caller:other", None, None))
CALLERS = {hashlib.sha256(KEY.encode()).digest(): WEB, hashlib.sha256(b"other").digest(): OTHER}


def timeout(value: bytes | None) -> float:
    """What a head says of how long its client waits."""
    headers: Headers = [] if value is None else [(b"x-sidecar-timeout-ms", value)]
    client = AsgiClient({"headers": headers}, nothing, nothing)
    return read_head(LIMITS, {}, NOBODY, client).timeout


async def nothing(*_: Any) -> Any:
    """A client of which only the head is read."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer key-of-the-web"),
        (b"authorization", b"bearer   key-of-the-web "),
        (b"x-api-key", b"key-of-the-web"),
        (b"api-key", b" key-of-the-web"),
        (b"x-goog-api-key", b"key-of-the-web"),
    ],
)
def test_a_caller_is_found_by_each_header(name: bytes, value: bytes) -> None:
    assert identify(CALLERS, [(b"host", b"h"), (name, value)], NOBODY) is WEB


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"key-of-the-web")],
        [(b"authorization", b"Basic key-of-the-web")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"key-of-the-we")],
        [(b"x-api-key", b"key-of-the-webb")],
        [(b"x-api-key", b"KEY-OF-THE-WEB")],
        [(b"x-api-key", b"\xff\xfe")],
        [(b"x-api-key", hashlib.sha256(KEY.encode()).hexdigest().encode())],  # the digest is not the key
        [(b"cookie", b"key-of-the-web")],
        [(b"proxy-authorization", b"Bearer key-of-the-web")],
    ],
)
def test_nobody_else_is_let_in_and_the_key_is_not_repeated(headers: Headers) -> None:
    with pytest.raises(Unauthorized) as refusal:
        identify(CALLERS, headers, NOBODY)
    assert "key-of" not in str(refusal.value).lower()


def test_without_callers_everybody_is_nobody_in_particular() -> None:
    assert identify({}, [(b"x-api-key", b"whatever")], NOBODY) is NOBODY


def test_a_scheme_that_is_not_ours_does_not_hide_a_key_that_is() -> None:
    assert identify(CALLERS, [(b"authorization", b"Basic eA=="), (b"x-api-key", KEY.encode())], NOBODY) is WEB


def test_the_credential_is_a_secret() -> None:
    found = presented([(b"x-api-key", KEY.encode())])
    assert found is not None
    assert found[0] == b"x-api-key"
    assert KEY not in repr(found)
    assert found[1].matches(KEY)


def test_a_client_may_say_how_long_it_waits() -> None:
    assert timeout(None) == float("inf")
    assert timeout(b"1500") == 1.5


@pytest.mark.parametrize("value", [b"", b"0", b"-1", b"1.5", b"1e3", b" 1", b"86400001", "\u0663".encode()])
def test_but_in_milliseconds_of_a_day_at_most(value: bytes) -> None:
    with pytest.raises(BodyInvalid, match="is not a number of milliseconds") as refusal:
        timeout(value)
    assert refusal.value.param == "x-sidecar-timeout-ms"


def test_nor_in_a_number_of_thousands_of_digits() -> None:
    with pytest.raises(BodyInvalid):
        timeout(b"9" * 5000)


@pytest.mark.parametrize(
    ("accepted", "codings"),
    [
        (b"gzip, deflate", {b"gzip", b"deflate"}),
        (b"GZIP;q=0.5", {b"gzip"}),
        (b"gzip;q=0, br; q=0.00,identity", {b"identity"}),
    ],
)
def test_a_coding_that_is_refused_is_not_accepted(accepted: bytes, codings: set[bytes]) -> None:
    client = AsgiClient({"headers": [(b"accept-encoding", accepted)]}, nothing, nothing)
    assert read_head(LIMITS, {}, NOBODY, client).accepts == codings
