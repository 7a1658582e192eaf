"""What passes along the spine: defaults, and that nothing in it tells a secret or can be changed on the way."""

from __future__ import annotations

import msgspec
import pytest

from sidecar import types
from sidecar.secret import Secret
from sidecar.types import (
    Auth,
    Caller,
    Endpoint,
    Origin,
    Outbound,
    Outcome,
    PoolLimits,
    Record,
    Timeouts,
    Upstream,
    Usage,
)

FROZEN = [
    Endpoint(path="/v1/x", dialect="chat"),
    Caller(name="web"),
    Origin(name="lab", scheme="http", host="h", port=1),
    Timeouts(),
    PoolLimits(),
    Auth(header=b"authorization", prefix=b"Bearer ", secret=Secret("canary")),
]


@pytest.mark.parametrize("value", FROZEN, ids=lambda value: type(value).__name__)
def test_what_several_exchanges_share_cannot_be_changed(value: msgspec.Struct) -> None:
    name = value.__struct_fields__[0]
    with pytest.raises(AttributeError):
        setattr(value, name, None)


def test_a_credential_is_stars_and_cannot_be_encoded() -> None:
    auth = Auth(header=b"authorization", prefix=b"Bearer ", secret=Secret("canary"))
    origin = Origin(name="lab", scheme="http", host="h", port=1)
    outbound = Outbound(origin=origin, method=b"POST", path=b"/v1", lines=b"", auth=auth, body=b'{"model":"m"}')
    upstream = Upstream(name="lab", kind="openai", origin=origin, host=b"h", paths={}, auth=auth)
    for value in (auth, outbound, upstream):
        assert "canary" not in repr(value)
        with pytest.raises(TypeError):
            msgspec.json.encode(value)


def test_defaults_are_not_shared() -> None:
    origin = Origin(name="lab", scheme="http", host="h", port=1)
    one, other = (Upstream(name="lab", kind="openai", origin=origin, host=b"h", paths={}, auth=None) for _ in range(2))
    one.headers.append((b"x", b"y"))
    assert other.headers == []
    assert (Outcome().first_byte_at, Outcome().complete) == (None, False)
    assert Usage() == Usage(input=0, output=0, cached=0, cache_write=0, reasoning=0, estimated=False)


def test_an_origin_is_a_key() -> None:
    """Of the pool: the same place of another provider, or by other trust, is another bulkhead."""
    lab = Origin(name="lab", scheme="http", host="h", port=1)
    assert {lab: 1}[Origin(name="lab", scheme="http", host="h", port=1)] == 1
    others = [
        msgspec.structs.replace(lab, name="other"),
        msgspec.structs.replace(lab, tls=types.Tls(verify=False)),
        msgspec.structs.replace(lab, unix="/run/x.sock"),
        msgspec.structs.replace(lab, proxy=""),
    ]
    assert len({lab, *others}) == 5


def test_a_record_holds_no_content() -> None:
    """Its members are ids, names, numbers and times: what the access log writes comes from here alone."""
    assert not {"body", "messages", "prompt", "text", "headers", "key"} & set(Record.__struct_fields__)
