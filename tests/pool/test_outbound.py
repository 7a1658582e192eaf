"""The head of a request to a provider, to the byte; and what may not be in it."""

from __future__ import annotations

import pytest

from sidecar.errors import UpstreamProtocol
from sidecar.pool.outbound import write_head
from sidecar.secret import Secret
from sidecar.types import Auth
from tests.pool.asks import ask, origin


def auth(secret: str, *, header: bytes = b"authorization", prefix: bytes = b"Bearer ") -> Auth:
    return Auth(header=header, prefix=prefix, secret=Secret(secret))


def test_a_head_without_a_credential() -> None:
    assert write_head(ask(origin(1), method=b"GET", path=b"/v1/models?a=b", body=b"")) == (
        b"GET /v1/models?a=b HTTP/1.1\r\nhost: provider.test\r\nx-one: 1\r\ncontent-length: 0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (auth("sk-1"), b"authorization: Bearer sk-1"),
        (auth("k", header=b"x-api-key", prefix=b""), b"x-api-key: k"),
        (auth("caf\u00e9"), b"authorization: Bearer caf\xe9"),
        (auth("\u20ac"), b"authorization: Bearer ?"),
    ],
)
def test_a_credential_is_its_last_line(given: Auth, line: bytes) -> None:
    head = write_head(ask(origin(1), auth=given, body=b"12345"))
    assert head.endswith(b"\r\ncontent-length: 5\r\n" + line + b"\r\n\r\n")


@pytest.mark.parametrize("path", [b"", b" /a", b"/a b", b"/a\r\nx: y", b"/a\n", b"/a\t", b"/a\x0b"])
def test_a_path_with_white_space_is_refused(path: bytes) -> None:
    with pytest.raises(UpstreamProtocol, match="the request for lab cannot be sent: a path with white space in it"):
        write_head(ask(origin(1), path=path))


@pytest.mark.parametrize("secret", ["a\r\nx: y", "a\n", "a\r", "a\0", "\r\n"])
def test_a_secret_that_would_split_the_head_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(UpstreamProtocol) as caught:
        write_head(ask(origin(1), auth=auth("canary" + secret)))
    assert caught.value.message == "the key of lab has a line break in it"
