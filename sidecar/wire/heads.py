"""Heads of HTTP/1.1 messages without IO: what is told of them, how their end is found, and how ours are written.

llhttp (httptools) parses them, strictly. Bodies are framed in framing.py. A head that is not plain raises `Malformed`.
Work is linear in the bytes fed.
"""

from __future__ import annotations

from typing import Any

import httptools
import msgspec

from sidecar.errors import Malformed
from sidecar.wire.framing import DONE, END, HEAD, UNTIL_CLOSE, Bodies, End, Headers, Limits
from sidecar.wire.shapes import Shape


class RequestHead(msgspec.Struct):
    method: str
    target: bytes  # origin-form, or "*"
    headers: Headers
    version: str  # 1.1 or 1.0
    keep_alive: bool
    has_body: bool
    length: int | None  # declared; None when chunked or absent
    expect_continue: bool
    upgrade: bool  # an Upgrade offer, which is to be ignored unless the app takes a WebSocket
    index: dict[bytes, bytes]  # the headers by name; of a repeated one the last
    path: bytes = b""
    query: bytes = b""  # without the question mark
    plain: bool = True  # it speaks HTTP/1.1 and did not ask for the head alone: its answer needs no decisions
    raw: bytes = b""  # as it came, where it came in one piece
    notes: dict[str, Any] = {}  # what the app makes of it: the same for every request with the same head


class ResponseHead(msgspec.Struct):
    status: int
    names: tuple[bytes, ...]  # of its headers, in lower case
    values: tuple[bytes, ...]  # and what they say
    keep_alive: bool
    length: int | None
    shape: Shape | None = None  # what its names alone tell, where all of it is plain

    @property
    def headers(self) -> Headers:
        return list(zip(self.names, self.values, strict=True))

    @property
    def index(self) -> dict[bytes, bytes]:
        """The headers by name; of a repeated one the last."""
        return dict(zip(self.names, self.values, strict=True))


Event = RequestHead | ResponseHead | bytes | End


class Reader(Bodies):
    """What both directions share: finding the end of the head, and having llhttp parse it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._tail = b""  # the last three bytes of an unfinished head
        self._head_bytes = 0
        self._started = False  # a byte of the current message has arrived
        self._line = b""  # the head so far, until its first line is whole
        self._padded = False  # a line of the head may end in white space
        self.target = b""
        self.headers: Headers = []
        self._complete = False
        self._parser: Any = None  # made for each head
        self._raw = b""

    # -- what subclasses say

    def _new_parser(self) -> httptools.HttpRequestParser | httptools.HttpResponseParser:
        raise NotImplementedError

    def _finish_head(self) -> list[Event]:
        """Check the parsed head, set the state of the body, answer the events."""
        raise NotImplementedError

    # -- callbacks of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._complete = True

    # -- the public side

    @property
    def idle(self) -> bool:
        """Between messages, with not a byte of the next one seen."""
        return not self._started and not self._held

    @property
    def done(self) -> bool:
        """The current message has ended; `next()` begins another."""
        return self._state == DONE

    @property
    def excess(self) -> int:
        """How many bytes have arrived behind the end of the current message."""
        return len(self._held) if self._state == DONE else 0

    def feed(self, data: bytes) -> list[Event]:
        """Take what the peer sent; answer what it means. Raises Malformed."""
        piece = self.piece(data)
        if piece is not None:
            return [piece]
        state = self._state
        if self._held:
            data, self._held = self._held + data, b""
        if state == HEAD:
            return self._feed_head(data)
        if state == DONE:
            self._held = data
            return []
        events: list[Event] = []
        self._feed_body(data, 0, events)
        return events

    def next(self) -> list[Event]:
        """Begin the next message on this connection, with the bytes that came early, if any."""
        self._state = HEAD
        self._started = False
        if self._parser is not None:
            self._tail = b""
            self._head_bytes = 0
            self._padded = False
            self._line = b""
            self.headers = []
            self.target = b""
            self._complete = False
            self._parser = None
        data, self._held = self._held, b""
        return self.feed(data) if data else []

    def renew(self) -> bool:
        """Begin the next message, where this one has ended with nothing behind it. Else False: nothing is done."""
        if self._held or self._state != DONE:
            return self._state == HEAD and not self._started and not self._held  # it was read by `whole`
        if self._parser is None:  # nothing else of the last one is kept
            self._state = HEAD
            self._started = False
        else:
            self.next()
        return True

    def pass_over(self) -> None:
        """The current message has been read by somebody else: what comes from now on belongs to the next."""
        self._started = True
        self._state = DONE

    def end(self) -> list[Event]:
        """The peer ended its side. Answers END where that ends the message; raises Malformed where it cuts one."""
        if self._state == UNTIL_CLOSE:
            self._state = DONE
            return [END]
        if self._state == DONE or (self._state == HEAD and not self._started):
            return []
        raise Malformed("the connection ended inside a message")

    # -- heads

    def _feed_head(self, data: bytes) -> list[Event]:
        if not self._started:
            if data[:1] == b"\r" or data[:1] == b"\n":
                return self._blank_line(data)
            if not data:
                return []
            self._started = True
            end = data.find(b"\r\n\r\n") + 4
            if end > 3:  # all of it, as nearly always
                self._raw = head = data if end == len(data) else data[:end]
                return self._whole_head(head, data, end)
            self._raw = b""
        seen = self._tail + data
        at = seen.find(b"\r\n\r\n")
        if at >= 0:
            end = at + 4 - len(self._tail)
            return self._whole_head(data[:end], data, end)
        self._head_bytes += len(data)
        if b"\n" not in self._line:
            self._line += data
        self._padded = self._padded or _is_padded(seen)
        self._parse(data)
        self._check_count()
        if self._complete:
            raise Malformed("the head is not plain")
        if self._head_bytes > self.limits.header_bytes + self.limits.request_line_bytes:
            raise Malformed(f"more than {self.limits.header_bytes} bytes of headers", 431)
        self._tail = seen[-3:]
        self._check_open_head()
        return []

    def _blank_line(self, data: bytes) -> list[Event]:
        """RFC 9112 2.2 lets a server skip an empty line before a request line; one is plenty."""
        if data in (b"\r", b"\r\n"):  # until more has come, to tell one from two
            self._held = data
            return []
        if not data.startswith(b"\r\n") or data[2:3] in (b"\r", b"\n"):
            raise Malformed("line breaks before the first line")
        return self._feed_head(data[2:])

    def _whole_head(self, head: bytes, data: bytes, end: int) -> list[Event]:
        """The head, or the last piece of one, and what came behind it in `data`."""
        self._head_bytes += len(head)
        self._line = head if not self._line else self._line + head
        self._parse(head)
        if len(self.headers) > self.limits.headers:
            self._check_count()
        if not self._complete:
            raise Malformed("the head is not plain")
        if self._head_bytes > self.limits.header_bytes + len(self.target) + 16:
            raise Malformed(f"more than {self.limits.header_bytes} bytes of headers", 431)
        if self._padded or _is_padded(self._tail + head if self._tail else head):
            self.headers = [(name, value.rstrip(b" \t")) for name, value in self.headers]  # llhttp keeps what is behind
        if end != len(data):
            self._held = data[end:]
        return self._finish_head()

    def _check_count(self) -> None:
        if len(self.headers) > self.limits.headers:
            raise Malformed(f"more than {self.limits.headers} headers", 431)

    def _check_open_head(self) -> None:
        """A bound on what has come of an unfinished head."""

    def _parse(self, head: bytes) -> None:
        if self._parser is None:
            self._parser = self._new_parser()
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # an offer, or CONNECT; the caller decides. The head itself is complete and valid
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Malformed):
                raise error.__context__ from None
            raise
        except httptools.HttpParserInvalidMethodError:
            raise Malformed("unknown method", 501) from None
        except httptools.HttpParserError as error:
            raise Malformed(f"not HTTP/1.1: {str(error).lower()}", _status_of(self._parser)) from None


def _status_of(parser: httptools.HttpRequestParser | httptools.HttpResponseParser) -> int:
    """505 for a version that is not ours, 400 for anything else that llhttp refuses."""
    version = parser.get_http_version()
    return 400 if version in ("1.0", "1.1", "0.0") else 505


def _is_padded(head: bytes) -> bool:
    """May a line of it end in white space?"""
    return b" \r\n" in head or b"\t\r\n" in head


def head_lines(headers: Headers) -> bytes:
    """Header lines for the wire. Raises Malformed where a name or value would split the head (CR, LF or NUL in it)."""
    if not headers:
        return b""
    lines = b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
    count = len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\0" in lines:
        raise Malformed("a header with a line break in it")
    return lines
