"""HTTP/1.1 heads and bodies without IO, for the server, the pool and the simulator (RFC 9112).

A reader takes bytes and answers a list of events: one head, any pieces of body, `END`. llhttp (httptools) parses heads,
strictly; bodies are framed here, because only then is it known exactly which byte ended a message, and so whether a
connection may be used again. A message whose framing is not plain raises `Malformed`. Work is linear in the bytes fed.
"""

from __future__ import annotations

import enum
import re
from typing import Any, Final, NamedTuple

import httptools
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
    raw: bytes = b""  # as it came, where it came in one piece
    notes: dict[str, Any] = {}  # what the app makes of it: the same for every request with the same head


class ResponseHead(msgspec.Struct):
    status: int
    headers: Headers
    keep_alive: bool
    length: int | None
    index: dict[bytes, bytes]  # the headers by name; of a repeated one the last


Event = RequestHead | ResponseHead | bytes | End

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)")
_OPEN_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")  # the start of one
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+;=%]*(?::[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z]+\](?::[0-9]*)?")
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r\n")  # llhttp is lenient with spaces, and knows RTSP
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)([/?].*)?", re.DOTALL)
_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_HEAD, _FIXED, _CHUNK_SIZE, _CHUNK_DATA, _CHUNK_END, _TRAILERS, _UNTIL_CLOSE, _DONE = range(8)


class _Reader:
    """What both directions share: finding the end of the head, and the framing of bodies."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._state = _HEAD
        self._held = b""  # bytes not consumed yet: an unfinished line, or what follows a finished message
        self._tail = b""  # the last three bytes of an unfinished head
        self._head_bytes = 0
        self._left = 0  # bytes to come of a fixed body or chunk
        self._extra = 0  # bytes of chunk extensions, then of trailers
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
        return self._state == _DONE

    @property
    def excess(self) -> int:
        """How many bytes have arrived behind the end of the current message."""
        return len(self._held) if self._state == _DONE else 0

    def feed(self, data: bytes) -> list[Event]:
        """Take what the peer sent; answer what it means. Raises Malformed."""
        state = self._state
        if state == _FIXED and len(data) < self._left:  # the common case of a long body
            self._left -= len(data)
            return [data]
        if self._held:
            data, self._held = self._held + data, b""
        if state == _HEAD:
            return self._feed_head(data)
        if state == _DONE:
            self._held = data
            return []
        events: list[Event] = []
        self._feed_body(data, 0, events)
        return events

    def next(self) -> list[Event]:
        """Begin the next message on this connection, with the bytes that came early, if any."""
        self._state = _HEAD
        self._tail = b""
        self._head_bytes = self._extra = 0
        self._started = self._padded = self._blank = False
        self._line = b""
        self.headers = []
        self.target = b""
        self._complete = False
        self._parser = None
        data, self._held = self._held, b""
        return self._feed_head(data) if data else []

    def pass_over(self) -> None:
        """The current message has been read by somebody else: what comes from now on belongs to the next."""
        self._started = True
        self._state = _DONE

    def end(self) -> list[Event]:
        """The peer ended its side. Answers END where that ends the message; raises Malformed where it cuts one."""
        if self._state == _UNTIL_CLOSE:
            self._state = _DONE
            return [END]
        if self._state == _DONE or (self._state == _HEAD and not self._started):
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

    # -- bodies

    def _begin_body(self, events: list[Event], *, chunked: bool, length: int | None, until_close: bool = False) -> None:
        held = self._held
        if length:
            if len(held) == length:  # all of it came with the head, and nothing more
                self._held = b""
                self._state = _DONE
                events += (held, END)
                return
            self._state, self._left = _FIXED, length
        elif chunked:
            self._state = _CHUNK_SIZE
        elif until_close:
            self._state = _UNTIL_CLOSE
        else:
            self._state = _DONE
            events.append(END)
            return
        if held:
            self._held = b""
            self._feed_body(held, 0, events)

    def _feed_body(self, data: bytes, at: int, events: list[Event]) -> None:
        """Consume `data` from `at`; what cannot be consumed yet is held."""
        size = len(data)
        while at < size:
            state = self._state
            if state == _CHUNK_SIZE:
                found = self._chunk_size(data, at)
            elif state in (_CHUNK_DATA, _FIXED):
                found = self._piece(data, at, events)
            elif state == _CHUNK_END:
                found = self._chunk_end(data, at)
            elif state == _TRAILERS:
                found = self._trailers(data, at)
                if found >= 0:
                    events.append(END)
            elif state == _UNTIL_CLOSE:
                events.append(data[at:] if at else data)
                return
            else:  # _DONE: what follows belongs to the next message
                self._held = data[at:]
                return
            if found < 0:
                return
            at = found

    def _piece(self, data: bytes, at: int, events: list[Event]) -> int:
        """Bytes of a body of known length, or of a chunk. Answers where they end, or -1 when there are more to come."""
        size, stop = len(data), at + self._left
        if stop > size:
            self._left -= size - at
            events.append(data[at:] if at else data)
            return -1
        events.append(data[at:stop] if at or stop < size else data)
        self._left = 0
        if self._state == _CHUNK_DATA:
            self._state = _CHUNK_END
        else:
            self._state = _DONE
            events.append(END)
        return stop

    def _chunk_end(self, data: bytes, at: int) -> int:
        """The line end behind a chunk. Answers where it ends, or -1 when it is not all there (and holds it)."""
        if data.startswith(b"\r\n", at):
            self._state = _CHUNK_SIZE
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
            self._state = _CHUNK_DATA
        else:
            self._state, self._extra = _TRAILERS, 0
        return stop + 2

    def _trailers(self, data: bytes, at: int) -> int:
        """Skip trailers (they never become headers, RFC 9110 6.5.1). Answers where the message ends, or -1."""
        while True:
            stop = data.find(b"\r\n", at)
            if stop == at:
                self._state = _DONE
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


def _is_padded(head: bytes) -> bool:
    """May a line of it end in white space?"""
    return b" \r\n" in head or b"\t\r\n" in head


class _Framing(NamedTuple):
    chunked: bool
    length: int | None
    close: bool


def _framing(headers: Headers, index: dict[bytes, bytes], version: str) -> _Framing:
    """What the head says of the body and the connection (RFC 9112 sections 6 and 9). Raises Malformed if not plain."""
    if b"transfer-encoding" not in index and b"connection" not in index:
        declared = index.get(b"content-length")
        return _Framing(False, None if declared is None else int(declared), version == "1.0")
    length: int | None = None
    if (declared := index.get(b"content-length")) is not None:
        length = int(declared)  # llhttp has checked: digits, once
    chunked = False
    if (coding := index.get(b"transfer-encoding")) is not None:
        if coding.lower() != b"chunked":
            raise Malformed("a transfer coding other than chunked", 501)
        if version == "1.0" or length is not None or _count(headers, b"transfer-encoding") > 1:
            raise Malformed("the framing of the body is not plain")
        chunked = True
    close = version == "1.0"
    if b"connection" in index:
        tokens = connection_tokens(headers)
        if b"close" in tokens:
            close = True
        elif b"keep-alive" in tokens and version == "1.0":
            close = False
    return _Framing(chunked, length, close)


def connection_tokens(headers: Headers) -> list[bytes]:
    """What the Connection headers name, in lower case."""
    lines = [value for name, value in headers if name == b"connection"]
    return [token.strip(b" \t") for token in b",".join(lines).lower().split(b",")]


def _count(headers: Headers, name: bytes) -> int:
    return sum(1 for key, _ in headers if key == name)


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
        framing = _framing(headers, index, version)
        host = index.get(b"host")
        if host is None:
            if version == "1.1":
                raise Malformed("a request needs exactly one Host header")
        elif not _HOST.fullmatch(host):
            raise Malformed("the Host header is not a host")
        elif len(index) != len(headers) and _count(headers, b"host") > 1:
            raise Malformed("a request needs exactly one Host header")
        expect = index.get(b"expect")
        if expect is not None and any(
            name == b"expect" and value.lower() != b"100-continue" for name, value in headers
        ):
            raise Malformed("an expectation other than 100-continue", 417)
        if not self.target.startswith(b"/") or b"#" in self.target or b"%00" in self.target:
            self._check_target(method)
            headers, index = self.headers, dict(self.headers)
        events: list[Event] = [
            RequestHead(
                method,
                self.target,
                headers,
                version,
                not framing.close,
                framing.chunked or bool(framing.length),
                framing.length,
                expect is not None and version == "1.1",
                b"upgrade" in index,
                index,
                self._raw,
                {},
            )
        ]
        self._begin_body(events, chunked=framing.chunked, length=framing.length)
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
        """The method of the request whose answer comes next: an answer to HEAD has no body."""
        self._bodiless = method == b"HEAD"
        self._interim = 0

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
        framing = _framing(self.headers, index, version)
        bodiless = self._bodiless or status in (204, 304)
        until_close = not bodiless and not framing.chunked and framing.length is None
        events: list[Event] = [
            ResponseHead(status, self.headers, not framing.close and not until_close, framing.length, index)
        ]
        if bodiless:
            self._begin_body(events, chunked=False, length=0)
        else:
            self._begin_body(events, chunked=framing.chunked, length=framing.length, until_close=until_close)
        return events


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"


def head_lines(headers: Headers) -> bytes:
    """Header lines for the wire. Raises Malformed where a name or value would split the head (CR, LF or NUL in it)."""
    if not headers:
        return b""
    lines = b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
    count = len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\0" in lines:
        raise Malformed("a header with a line break in it")
    return lines
