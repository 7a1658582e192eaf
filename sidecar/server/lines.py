"""What a server writes by itself: status lines, the date, and the answer to a request that is not plain."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from sidecar.clock import wall
from sidecar.errors import Malformed
from sidecar.types import Headers
from sidecar.wire import body as json
from sidecar.wire.heads import head_lines

_CODES: Final = {413: "caller_body_too_large", 408: "caller_body_timeout"}


class StatusLines(dict[int, bytes]):
    """By status; also of one that has no name."""

    def __missing__(self, status: int) -> bytes:
        return b"HTTP/1.1 %d \r\n" % status


STATUS_LINES: Final = StatusLines(
    (status.value, b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())) for status in HTTPStatus
)


class Date:
    """The `date` header line, made once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(wall())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


DATE: Final = Date()


def refusal(error: Malformed) -> bytes:
    """The whole answer, after which the connection closes."""
    code = _CODES.get(error.status, "caller_request_invalid")
    kind = "request_timeout" if error.status == 408 else "invalid_request_error"
    data = json.encode({"error": {"message": error.message, "type": kind, "param": None, "code": code}})
    lines: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
        (b"x-sidecar-error", code.encode()),
        (b"connection", b"close"),
    ]
    return STATUS_LINES[error.status] + head_lines(lines) + DATE.line() + b"\r\n" + data
