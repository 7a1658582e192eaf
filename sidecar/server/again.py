"""A head that comes again: nearly all requests of a kept-alive client differ in their bodies and its length alone.

Its bytes mean what they meant before, so they are compared and not parsed.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from sidecar.wire.heads import RequestHead

_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,10})(?=\r\n)")
_MOST_BYTES: Final = 4096


class Again(NamedTuple):
    """The head of a connection's last request, before and behind the digits of its length, and what it meant."""

    before: bytes
    after: bytes
    head: RequestHead

    def split(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The digits of the length and the body, where `data` is exactly one request with this head."""
        before, after, _ = self
        if not data.startswith(before):
            return None
        at = len(before)
        stop = data.find(b"\r", at, at + 11)
        if stop < 0 or not data.startswith(after, stop):
            return None
        digits, body = data[at:stop], data[stop + len(after) :]
        return (digits, body) if digits.isdigit() and len(body) == int(digits) else None

    def with_length(self, digits: bytes) -> RequestHead:
        """The same head with another length, and no notes."""
        headers = [(name, digits if name == b"content-length" else value) for name, value in self.head.headers]
        index, length = dict(headers), int(digits)
        return msgspec.structs.replace(
            self.head, headers=headers, index=index, length=length, has_body=length > 0, notes={}
        )


def remembered(head: RequestHead) -> Again | None:
    """A head that may come again, cut where its length stands."""
    if head.raw and head.length and len(head.raw) <= _MOST_BYTES and not head.expect_continue:
        match = _LENGTH.search(head.raw)
        if match is not None:
            return Again(head.raw[: match.start(1)], head.raw[match.end(1) :], head)
    return None
