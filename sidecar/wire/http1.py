"""HTTP/1.1 heads and bodies without IO, for the server, the pool and the simulator (RFC 9112).

A reader takes bytes and answers a list of events: one head, any pieces of body, `END`. llhttp (httptools) parses heads,
strictly, but for answers' whose every byte is plain: those a pattern takes that is narrower still. Bodies are framed in
framing.py. A message that is not plain raises `Malformed`. Work is linear in the bytes fed.
"""

from __future__ import annotations

import re
from typing import Any, Final

import httptools
import msgspec

from sidecar.errors import Malformed
from sidecar.wire.framing import DONE, END, HEAD, UNTIL_CLOSE, Bodies, End, Headers, Limits, count, framing


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
    headers: Headers
    keep_alive: bool
    length: int | None
    index: dict[bytes, bytes]  # the headers by name; of a repeated one the last


Event = RequestHead | ResponseHead | bytes | End

_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+;=%]*(?::[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z]+\](?::[0-9]*)?")
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r\n")  # llhttp is lenient with spaces, and knows RTSP
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)([/?].*)?", re.DOTALL)
# The head of an answer in which nothing needs a decision; whatever else there may be is llhttp's to judge.
_PLAIN_ANSWER = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*+\r\n()"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++: [\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*+\r\n)++\r\n"
)
_FIELD = re.compile(rb"([^:\r]++): ([^\r]++)\r\n")  # where the whole is known to be plain
_BODILESS: Final = (204, 304)
_LENGTH_DIGITS: Final = 18  # as many as llhttp's counter is sure to hold
_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


class _Reader(Bodies):
    """What both directions share: finding the end of the head, and having llhttp parse it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._tail = b""  # the last three bytes of an unfinished head
        self._head_bytes = 0
        self._started = False  # a byte of the current message has arrived
        self._blank = False  # an empty line has been skipped
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
        common = self._feed_common(data)
        if common is not None:
            return common
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
            self._padded = self._blank = False
            self._line = b""
            self.headers = []
            self.target = b""
            self._complete = False
            self._parser = None
        data, self._held = self._held, b""
        return self.feed(data) if data else []

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
        if data == b"\r" and not self._blank:  # may be half of one
            self._held = data
            return []
        if self._blank or not data.startswith(b"\r\n"):
            raise Malformed("line breaks before the first line")
        self._blank = True
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


class RequestReader(_Reader):
    """Reads requests, one after another, as a server must (RFC 9112 sections 3, 6, 7)."""

    def _new_parser(self) -> httptools.HttpRequestParser:
        return httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > self.limits.request_line_bytes:
            raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)

    def _check_open_head(self) -> None:
        bound = self.limits.request_line_bytes
        if not self.headers and self._head_bytes > bound and b"\n" not in self._tail and len(self.target) + 16 > bound:
            raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)

    def _finish_head(self) -> list[Event]:
        version = self._parser.get_http_version()
        method = _METHODS.get(raw := self._parser.get_method()) or raw.decode("ascii")
        if version not in ("1.1", "1.0"):
            raise Malformed(f"HTTP/{version} is not spoken here", 505)
        if _REQUEST_LINE.match(self._line) is None:
            raise Malformed("the request line is not plain")
        if len(method) + len(self.target) + 11 > self.limits.request_line_bytes:
            raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)
        headers = self.headers
        index = dict(headers)
        framed = framing(headers, index, version)
        host = index.get(b"host")
        if host is None:
            if version == "1.1":
                raise Malformed("a request needs exactly one Host header")
        elif not _HOST.fullmatch(host):
            raise Malformed("the Host header is not a host")
        elif len(index) != len(headers) and count(headers, b"host") > 1:
            raise Malformed("a request needs exactly one Host header")
        expect = index.get(b"expect")
        if expect is not None and any(
            name == b"expect" and value.lower() != b"100-continue" for name, value in headers
        ):
            raise Malformed("an expectation other than 100-continue", 417)
        if not self.target.startswith(b"/") or b"#" in self.target or b"%00" in self.target:
            self._check_target(method)
            headers, index = self.headers, dict(self.headers)
        path, _, query = self.target.partition(b"?")
        events: list[Event] = [
            RequestHead(
                method,
                self.target,
                headers,
                version,
                not framed.close,
                framed.chunked or bool(framed.length),
                framed.length,
                expect is not None and version == "1.1",
                b"upgrade" in index,
                index,
                path,
                query,
                version == "1.1" and method != "HEAD",
                self._raw,
                {},
            )
        ]
        self._begin_body(events, chunked=framed.chunked, length=framed.length)
        return events

    def _check_target(self, method: str) -> None:
        """Leave the origin-form in `self.target`; an absolute-form's authority replaces Host (RFC 9112 3.2.2)."""
        target = self.target
        if b"#" in target:
            raise Malformed("a fragment in the request target")
        if b"%00" in target:
            raise Malformed("a NUL in the request target")
        if target.startswith(b"/"):
            return
        if method == "CONNECT":
            raise Malformed("CONNECT is not served here", 501)
        if target == b"*" and method == "OPTIONS":
            return
        match = _ABSOLUTE.fullmatch(target)
        if match is None or not _HOST.fullmatch(match[1]):
            raise Malformed("the request target is not a path")
        path = match[2] or b"/"
        self.target = path if path.startswith(b"/") else b"/" + path
        self.headers = [(b"host", match[1])] + [pair for pair in self.headers if pair[0] != b"host"]


class ResponseReader(_Reader):
    """Reads responses as a client must; `expect(method)` is called before each request is sent."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._bodiless = False
        self._interim = 0

    def expect(self, method: bytes) -> None:
        """The method of the request whose answer comes next, if it is no POST: an answer to HEAD has no body."""
        self._bodiless = method == b"HEAD"

    def feed(self, data: bytes) -> list[Event]:
        """Take what the provider sent; answer what it means. Raises Malformed."""
        if self._state == HEAD and not self._started and not self._held:
            events = self._feed_plain(data)
            if events is not None:
                return events
        return super().feed(data)

    def _feed_plain(self, data: bytes) -> list[Event] | None:
        """The head of an answer when all of it is here and plain, and what follows it; None where llhttp is to see it.

        Nothing is taken here that it would refuse, and what it would take is taken for the same.
        """
        match = _PLAIN_ANSWER.match(data)
        if match is None or self._bodiless:
            return None
        start, end = match.start(2), match.end()
        headers = [(name.lower(), value) for name, value in _FIELD.findall(data, start, end)]
        index = dict(headers)
        status = int(match[1])
        declared = index.get(b"content-length")
        if (
            end > self.limits.header_bytes
            or len(headers) > self.limits.headers
            or data.find(b" \r\n", start, end) >= 0
            or data.find(b"\t\r\n", start, end) >= 0
            or b"upgrade" in index
            or status in _BODILESS
            or (declared is not None and (not declared.isdigit() or len(declared) > _LENGTH_DIGITS))
            or (len(index) != len(headers) and (count(headers, b"content-length") > 1))
        ):
            return None
        chunked, length, close = False, None if declared is None else int(declared), False
        if b"transfer-encoding" in index or b"connection" in index:
            chunked, length, close = framing(headers, index, "1.1")
        self._started = True
        self._interim = 0
        until_close = length is None and not chunked
        events: list[Event] = [ResponseHead(status, headers, not close and not until_close, length, index)]
        if length is not None and len(data) == end + length and length:  # all of it came with the head
            self._state = DONE
            events += (data[end:], END)
            return events
        self._held = data[end:]
        self._begin_body(events, chunked=chunked, length=length, until_close=until_close)
        return events

    def _new_parser(self) -> httptools.HttpResponseParser:
        return httptools.HttpResponseParser(self)

    def _finish_head(self) -> list[Event]:
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if not 100 <= status <= 599 or version not in ("1.1", "1.0"):
            raise Malformed(f"not an HTTP/1.1 answer: status {status}, version {version}")
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > self.limits.interim:
                raise Malformed("an unasked switch of protocols" if status == 101 else "too many interim answers")
            return self.next()
        index = dict(self.headers)
        framed = framing(self.headers, index, version)
        bodiless = self._bodiless or status in _BODILESS
        self._bodiless, self._interim = False, 0
        until_close = not bodiless and not framed.chunked and framed.length is None
        events: list[Event] = [
            ResponseHead(status, self.headers, not framed.close and not until_close, framed.length, index)
        ]
        if bodiless:
            self._begin_body(events, chunked=False, length=0)
        else:
            self._begin_body(events, chunked=framed.chunked, length=framed.length, until_close=until_close)
        return events


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
