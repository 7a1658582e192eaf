"""What a server writes by itself."""

from __future__ import annotations

import pytest

from sidecar.errors import Malformed
from sidecar.server import lines
from sidecar.server.lines import STATUS_LINES, Date, refusal


def test_status_lines_also_of_what_has_no_name() -> None:
    assert STATUS_LINES[404] == b"HTTP/1.1 404 Not Found\r\n"
    size = len(STATUS_LINES)
    assert STATUS_LINES[529] == b"HTTP/1.1 529 \r\n"
    assert len(STATUS_LINES) == size  # what a provider may choose is not kept


def test_the_date_is_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    date, now = Date(), 784111777.2
    monkeypatch.setattr(lines, "wall", lambda: now)
    assert date.line() == b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    assert date.line() is date.line()
    now = 784111778.0
    assert date.line() == b"date: Sun, 06 Nov 1994 08:49:38 GMT\r\n"


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", "caller_request_invalid"),
        (408, "request_timeout", "caller_body_timeout"),
        (413, "invalid_request_error", "caller_body_too_large"),
        (505, "invalid_request_error", "caller_request_invalid"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_closes(status: int, kind: str, code: str) -> None:
    head, _, body = refusal(Malformed('not "plain"', status)).partition(b"\r\n\r\n")
    first, *rest = head.split(b"\r\n")
    assert first + b"\r\n" == STATUS_LINES[status]
    assert rest[:4] == [
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-sidecar-error: " + code.encode(),
        b"connection: close",
    ]
    assert rest[4].startswith(b"date: ")
    assert body.decode() == (
        f'{{"error":{{"message":"not \\"plain\\"","type":"{kind}","param":null,"code":"{code}"}}}}'
    )
