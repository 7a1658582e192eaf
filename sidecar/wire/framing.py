"""Bodies of HTTP/1.1 messages without IO: their framing, byte by byte accounted for (RFC 9112 sections 6 and 7).

Bodies are framed here and not by llhttp, because only then is it known exactly which byte ended a message, and so
whether a connection may be used again. A body whose framing is not plain raises `Malformed`. Work is linear.
"""

from __future__ import annotations

import enum
import re
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.errors import Malformed

Headers = list[tuple[bytes, bytes]]  # names in lower case, in the order received


class End(enum.Enum):
    """The type of `END`, the event after the last byte of a message."""

    END = "end"


END: Final = End.END


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer may send before it is refused. Bytes and counts per message."""

    request_line_bytes: int = 8192
    header_bytes: int = 65536
    headers: int = 100
    interim: int = 8  # 1xx answers before the final one
    extension_bytes: int = 16384  # chunk extensions, all together
    trailer_bytes: int = 16384


_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)")
_OPEN_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")  # the start of one
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_WHOLE_CHUNK = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,6})\r\n")  # the line that begins one, as nearly all write it
HEAD, FIXED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, UNTIL_CLOSE, DONE = range(8)


class Bodies:
    """The state of a reader of messages, and the framing of their bodies."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._state = HEAD
        self._held = b""  # bytes not consumed yet: an unfinished line, or what follows a finished message
        self._left = 0  # bytes to come of a fixed body or chunk
        self._extra = 0  # bytes of chunk extensions, then of trailers

    def piece(self, data: bytes) -> bytes | None:
        """What nearly every read of a body is: a piece of one whose end is not near, or exactly one chunk.

        None where it is anything else, or not of a body: then nothing has been taken, and `feed` is to be asked.
        """
        state = self._state
        if state == FIXED:
            if len(data) < self._left:
                self._left -= len(data)
                return data
        elif state == CHUNK_SIZE and not self._held:
            match = _WHOLE_CHUNK.match(data)
            if match is not None:
                start = match.end()
                if len(data) == start + int(match[1], 16) + 2 and data.endswith(b"\r\n"):
                    return data[start:-2]
        return None

    @property
    def between(self) -> bool:
        """Between two chunks, with not a byte of the next one seen."""
        return self._state == CHUNK_SIZE and not self._held

    def _begin_body(self, events: list[Any], *, chunked: bool, length: int | None, until_close: bool = False) -> None:
        held = self._held
        if length:
            if len(held) == length:  # all of it came with the head, and nothing more
                self._held = b""
                self._state = DONE
                events += (held, END)
                return
            self._state, self._left = FIXED, length
        elif chunked:
            self._state, self._extra = CHUNK_SIZE, 0
        elif until_close:
            self._state = UNTIL_CLOSE
        else:
            self._state = DONE
            events.append(END)
            return
        if held:
            self._held = b""
            self._feed_body(held, 0, events)

    def _feed_body(self, data: bytes, at: int, events: list[Any]) -> None:
        """Consume `data` from `at`; what cannot be consumed yet is held."""
        size = len(data)
        while at < size:
            state = self._state
            if state == CHUNK_SIZE:
                found = self._chunk_size(data, at)
            elif state in (CHUNK_DATA, FIXED):
                found = self._piece(data, at, events)
            elif state == CHUNK_END:
                found = self._chunk_end(data, at)
            elif state == TRAILERS:
                found = self._trailers(data, at)
                if found >= 0:
                    events.append(END)
            elif state == UNTIL_CLOSE:
                events.append(data[at:] if at else data)
                return
            else:  # DONE: what follows belongs to the next message
                self._held = data[at:]
                return
            if found < 0:
                return
            at = found

    def _piece(self, data: bytes, at: int, events: list[Any]) -> int:
        """Bytes of a body of known length, or of a chunk. Answers where they end, or -1 when there are more to come."""
        size, stop = len(data), at + self._left
        if stop > size:
            self._left -= size - at
            events.append(data[at:] if at else data)
            return -1
        events.append(data[at:stop] if at or stop < size else data)
        self._left = 0
        if self._state == CHUNK_DATA:
            self._state = CHUNK_END
        else:
            self._state = DONE
            events.append(END)
        return stop

    def _chunk_end(self, data: bytes, at: int) -> int:
        """The line end behind a chunk. Answers where it ends, or -1 when it is not all there (and holds it)."""
        if data.startswith(b"\r\n", at):
            self._state = CHUNK_SIZE
            return at + 2
        if len(data) - at >= 2 or data[at] != 13:
            raise Malformed("a chunk is longer than it says")
        self._held = data[at:]
        return -1

    def _chunk_size(self, data: bytes, at: int) -> int:
        """Read one chunk-size line at `at`. Answers where it ends, or -1 when it is not all there (and holds it)."""
        stop = data.find(b"\r\n", at)
        if stop < 0:
            line = data[at:]
            if len(line) > self.limits.extension_bytes or not _OPEN_CHUNK_LINE.fullmatch(line.removesuffix(b"\r")):
                raise Malformed("a chunk size is not plain")
            self._held = line
            return -1
        match = _CHUNK_LINE.fullmatch(data, at, stop)
        if match is None:
            raise Malformed("a chunk size is not plain")
        extension = match.end(2) - match.start(2)
        if extension:
            self._extra += extension
            if self._extra > self.limits.extension_bytes:
                raise Malformed("too many bytes of chunk extensions")
        self._left = int(match[1], 16)
        if self._left:
            self._state = CHUNK_DATA
        else:
            self._state, self._extra = TRAILERS, 0
        return stop + 2

    def _trailers(self, data: bytes, at: int) -> int:
        """Skip trailers (they never become headers, RFC 9110 6.5.1). Answers where the message ends, or -1."""
        while True:
            stop = data.find(b"\r\n", at)
            if stop == at:
                self._state = DONE
                return at + 2
            if stop < 0:
                self._held = data[at:]
                if self._extra + len(self._held) > self.limits.trailer_bytes:
                    raise Malformed("too many bytes of trailers", 431)
                if b"\n" in self._held or b"\r" in self._held[:-1]:
                    raise Malformed("a trailer is not plain")
                return -1
            self._extra += stop + 2 - at
            if self._extra > self.limits.trailer_bytes:
                raise Malformed("too many bytes of trailers", 431)
            if _TRAILER.fullmatch(data, at, stop) is None:
                raise Malformed("a trailer is not plain")
            at = stop + 2


class Framing(NamedTuple):
    chunked: bool
    length: int | None
    close: bool


def framing(headers: Headers, index: dict[bytes, bytes], version: str) -> Framing:
    """What the head says of the body and the connection (RFC 9112 sections 6 and 9). Raises Malformed if not plain."""
    if b"transfer-encoding" not in index and b"connection" not in index:
        declared = index.get(b"content-length")
        return Framing(False, None if declared is None else int(declared), version == "1.0")
    length: int | None = None
    if (declared := index.get(b"content-length")) is not None:
        length = int(declared)  # llhttp has checked: digits, once
    chunked = False
    if (coding := index.get(b"transfer-encoding")) is not None:
        if coding.lower() != b"chunked":
            raise Malformed("a transfer coding other than chunked", 501)
        if version == "1.0" or length is not None or count(headers, b"transfer-encoding") > 1:
            raise Malformed("the framing of the body is not plain")
        chunked = True
    close = version == "1.0"
    if b"connection" in index:
        tokens = connection_tokens(headers)
        if b"close" in tokens:
            close = True
        elif b"keep-alive" in tokens and version == "1.0":
            close = False
    return Framing(chunked, length, close)


def connection_tokens(headers: Headers) -> list[bytes]:
    """What the Connection headers name, in lower case."""
    lines = [value for name, value in headers if name == b"connection"]
    return [token.strip(b" \t") for token in b",".join(lines).lower().split(b",")]


def count(headers: Headers, name: bytes) -> int:
    return sum(1 for key, _ in headers if key == name)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class ChunkLines(dict[int, tuple[bytes, int]]):
    """By a number of bytes the only chunk that makes them, its line and both line ends included: that line, as nearly
    all write it, and the size of what the chunk holds.

    No bytes begin with what stands for a number of bytes that no chunk makes, or that is not remembered.
    """

    def __missing__(self, size: int) -> tuple[bytes, int]:
        if size > _MOST_REMEMBERED:
            return _NO_LINE
        digits = next((digits for digits in range(1, 5) if len(b"%x" % max(size - digits - 4, 0)) == digits), 0)
        length = size - digits - 4
        found = self[size] = (b"%x\r\n" % length, length) if digits and length > 1 else _NO_LINE
        return found


_MOST_REMEMBERED: Final = 4096  # bytes of a chunk: an event of a stream has some hundred
_NO_LINE: Final = (b"\r\n\r\n", -1)
CHUNK_LINES: Final = ChunkLines()
EVENT_END: Final = b"\n\n\r\n"  # of an event of a stream, and of its chunk


def events_in_chunks(data: bytes) -> int:
    """The size of what whole chunks hold, each of which ends with an event; -1 where there is anything else."""
    at = size = 0
    while at < len(data):
        match = _WHOLE_CHUNK.match(data, at)
        if match is None or (length := int(match[1], 16)) < len(EVENT_END) - 2:
            return -1
        at = match.end() + length + 2
        if not data.startswith(EVENT_END, at - len(EVENT_END)):
            return -1
        size += length
    return size


LAST_CHUNK: Final = b"0\r\n\r\n"
