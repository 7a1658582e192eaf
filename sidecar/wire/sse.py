"""Server-sent events without IO: an incremental reader, and the finding of event boundaries in passing bytes.

Lines end in LF, CR or CRLF; a trailing CR waits for the next piece. Work is linear in the bytes fed, and one event may
hold at most `max_event_bytes`. (WHATWG HTML, section 9.2.6; the providers' departures from it are in their dialects.)
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sidecar.errors import UpstreamProtocol

MAX_EVENT_BYTES = 8 * 1024 * 1024

_OVERLAP = 3  # of the four bytes of the longest boundary, so many may have come before
_BOM = b"\xef\xbb\xbf"
_BOM_LINE = re.compile(rb"(^|[\r\n])\xef\xbb\xbf")
_ONE = re.compile(rb"(?:event:([^\r\n]*)\n)?data: ?([^\r\n]*)\n\n")  # one event of one line of data
_LINE = re.compile(rb"\r\n|\n|\r")
# An empty line: two line ends in a row. A lone CR at the very end may be half of a CRLF.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")


class Event(NamedTuple):
    """One event: its `event:` name ("" when absent) and its `data:` lines joined by LF."""

    name: str
    data: bytes


class Splitter:
    """Cuts a byte stream behind whole events: `feed` answers the whole ones, byte for byte, and holds the rest."""

    __slots__ = ("_max", "rest")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.rest = bytearray()  # of an event that has not ended
        self._max = max_event_bytes

    @property
    def held(self) -> bytes:
        """Bytes of an event that has not ended."""
        return bytes(self.rest)

    def feed(self, data: bytes) -> bytes:
        """The bytes of all events that are whole by now. Raises UpstreamProtocol when one event is too long."""
        held = self.rest
        if not held and data.endswith(b"\n\n"):  # what nearly every provider sends nearly every time
            return data
        tail = bytes(held[-_OVERLAP:])
        end = _last_boundary(tail + data)
        if end:
            cut = end - len(tail)  # never less than 0: what ended inside the tail was found before
            whole = bytes(held) + data[:cut]
            held[:] = data[cut:]
        else:
            whole = b""
            held += data
        if len(held) > self._max:
            raise UpstreamProtocol(f"an event of more than {self._max} bytes")
        return whole


def _last_boundary(data: bytes) -> int:
    """Where the last whole event ends; 0 when none does."""
    if b"\r" not in data:
        return data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    end = 0
    for match in _BOUNDARY.finditer(data):  # rare, so found the careful way
        end = match.end()
    return end


def events(block: bytes) -> list[Event]:
    """The events in a block of whole events. Comments, `id` and `retry` are passed over; so are events without data."""
    match = _ONE.fullmatch(block)  # what nearly every provider sends nearly every time
    if match is not None:
        named, data = match.groups()
        return [Event(named.strip().decode("utf-8", "replace") if named else "", data)]
    if _BOM in block:  # at a stream's start; a block does not know whether it is that, so it goes from any line's
        block = _BOM_LINE.sub(rb"\1", block)
    found: list[Event] = []
    name = ""
    lines: list[bytes] = []
    for line in _LINE.split(block) if b"\r" in block else block.split(b"\n"):
        if not line:
            if lines:
                found.append(Event(name, lines[0] if len(lines) == 1 else b"\n".join(lines)))
                lines = []
            name = ""
        elif line.startswith(b"data:"):
            lines.append(line[6:] if line.startswith(b" ", 5) else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip().decode("utf-8", "replace")
        elif line == b"data":
            lines.append(b"")
    return found


class Reader:
    """Bytes to events, whatever the cuts. `finish()` tells whether the stream ended between events."""

    __slots__ = ("_splitter",)

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._splitter = Splitter(max_event_bytes)

    def feed(self, data: bytes) -> list[Event]:
        block = self._splitter.feed(data)
        return events(block) if block else []

    def finish(self) -> list[Event]:
        """The end of the stream: an event whose last line ended but whose empty line never came is still read."""
        held = self._splitter.held
        return events(held + b"\n\n") if held.endswith((b"\n", b"\r")) else []


def write(data: bytes, name: str = "") -> bytes:
    """One event for the wire; `data` has no line breaks (JSON has none)."""
    if name:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    return b"data: %b\n\n" % data
