"""HTTP/1.1 heads and bodies without IO, for the server, the pool and the simulator (RFC 9112).

A reader takes bytes and answers a list of events: one head, any pieces of body, `END`. llhttp (httptools) parses heads,
strictly; bodies are framed here, because only then is it known exactly which byte ended a message, and so whether a
connection may be used again. A message whose framing is not plain raises `Malformed`. Work is linear in the bytes fed.
"""

from __future__ import annotations

import enum
import re
from typing import Final

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
    version: bytes  # b"1.1" or b"1.0"
    keep_alive: bool
    has_body: bool
    length: int | None  # declared; None when chunked or absent
    expect_continue: bool
    upgrade: bool  # an Upgrade offer, which is to be ignored unless the app takes a WebSocket


class ResponseHead(msgspec.Struct):
    status: int
    headers: Headers
    keep_alive: bool
    length: int | None


Event = RequestHead | ResponseHead | bytes | End

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+;=%]*(?::[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z]+\](?::[0-9]*)?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)([/?].*)?", re.DOTALL)
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
        self.target = b""
        self.headers: Headers = []
        self._complete = False
        self._parser = self._new_parser()

    # -- what subclasses say

    def _new_parser(self) -> httptools.HttpRequestParser | httptools.HttpResponseParser:
        raise NotImplementedError

    def _finish_head(self) -> list[Event]:
        """Check the parsed head, set the state of the body, answer the events."""
        raise NotImplementedError

    # -- callbacks of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        headers.append((name.lower(), value.rstrip(b" \t")))  # llhttp keeps white space behind a value
        if len(headers) > self.limits.headers:
            raise Malformed(f"more than {self.limits.headers} headers", 431)

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
        self._started = False
        self.headers = []
        self.target = b""
        self._complete = False
        self._parser = self._new_parser()
        data, self._held = self._held, b""
        return self._feed_head(data) if data else []

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
            # RFC 9112 2.2 lets a server skip an empty line before a request line; one is plenty.
            if data.startswith(b"\r\n"):
                data = data[2:]
            if not data:
                return []
            self._started = True
        size = self._head_bytes
        if size:
            seen = self._tail + data
            at = seen.find(b"\r\n\r\n")
            end = at + 4 - len(self._tail) if at >= 0 else -1
        else:
            at = data.find(b"\r\n\r\n")
            end = at + 4 if at >= 0 else -1
        head = data if end < 0 or end == len(data) else data[:end]
        self._head_bytes = size = size + len(head)
        self._parse(head)
        if self._complete:
            self._held = data[len(head) :]
            return self._finish_head()
        if end >= 0:
            raise Malformed("the head is not plain")
        if size > self.limits.header_bytes + self.limits.request_line_bytes:
            raise Malformed(f"more than {self.limits.header_bytes} bytes of headers", 431)
        self._tail = (self._tail + data)[-3:]
        self._check_open_head()
        return []

    def _check_open_head(self) -> None:
        """A bound on what has come of an unfinished head."""

    def _parse(self, head: bytes) -> None:
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

    def _check_sizes(self) -> None:
        if self._head_bytes > self.limits.header_bytes + len(self.target) + 16:
            raise Malformed(f"more than {self.limits.header_bytes} bytes of headers", 431)

    # -- bodies

    def _begin_body(self, events: list[Event], *, chunked: bool, length: int | None, until_close: bool = False) -> None:
        if chunked:
            self._state = _CHUNK_SIZE
        elif until_close:
            self._state = _UNTIL_CLOSE
        elif length:
            self._state, self._left = _FIXED, length
        else:
            self._state = _DONE
            events.append(END)
            return
        if self._held:
            data, self._held = self._held, b""
            self._feed_body(data, 0, events)

    def _feed_body(self, data: bytes, at: int, events: list[Event]) -> None:
        """Consume `data` from `at`; what cannot be consumed yet is held."""
        size = len(data)
        while at < size:
            state = self._state
            if state == _CHUNK_SIZE:
                found = self._chunk_size(data, at)
                if found < 0:
                    return
                at = found
            elif state == _CHUNK_DATA or state == _FIXED:
                stop = at + self._left
                if stop > size:
                    self._left -= size - at
                    events.append(data[at:] if at else data)
                    return
                events.append(data[at:stop] if at or stop < size else data)
                at, self._left = stop, 0
                if state == _CHUNK_DATA:
                    self._state = _CHUNK_END
                else:
                    self._state = _DONE
                    events.append(END)
            elif state == _CHUNK_END:
                if not data.startswith(b"\r\n", at):
                    if size - at >= 2 or data[at] != 13:
                        raise Malformed("a chunk is longer than it says")
                    self._held = data[at:]
                    return
                at, self._state = at + 2, _CHUNK_SIZE
            elif state == _TRAILERS:
                found = self._trailers(data, at)
                if found < 0:
                    return
                at = found
                events.append(END)
            elif state == _UNTIL_CLOSE:
                events.append(data[at:] if at else data)
                return
            else:  # _DONE: what follows belongs to the next message
                self._held = data[at:]
                return

    def _chunk_size(self, data: bytes, at: int) -> int:
        """Read one chunk-size line at `at`. Answers where it ends, or -1 when it is not all there (and holds it)."""
        stop = data.find(b"\r\n", at)
        if stop < 0:
            line = data[at:]
            if len(line) > self.limits.extension_bytes or not _CHUNK_LINE.fullmatch(line.removesuffix(b"\r")):
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


class _Framing(msgspec.Struct):
    chunked: bool
    length: int | None
    close: bool
    others: Headers  # host, expect, upgrade


_FRAMING_NAMES = frozenset((b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"upgrade"))


def _framing(headers: Headers, version: bytes) -> _Framing:
    """What the head says of the body and the connection (RFC 9112 sections 6 and 9). Raises Malformed if not plain."""
    framing = _Framing(chunked=False, length=None, close=version == b"1.0", others=[])
    for name, value in headers:
        if name not in _FRAMING_NAMES:
            continue
        if name == b"content-length":
            framing.length = int(value)  # llhttp has checked: digits, once
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Malformed("a transfer coding other than chunked", 501)
            if framing.chunked or version == b"1.0":
                raise Malformed("the framing of the body is not plain")
            framing.chunked = True
        elif name == b"connection":
            tokens = value.lower().replace(b" ", b"").replace(b"\t", b"").split(b",")
            if b"close" in tokens:
                framing.close = True
            elif b"keep-alive" in tokens and version == b"1.0":
                framing.close = False
        else:
            framing.others.append((name, value))
    if framing.chunked and framing.length is not None:
        raise Malformed("both Content-Length and Transfer-Encoding")
    return framing


def _status_of(parser: httptools.HttpRequestParser | httptools.HttpResponseParser) -> int:
    """505 for a version that is not ours, 400 for anything else that llhttp refuses."""
    version = parser.get_http_version()
    return 400 if version in ("1.0", "1.1", "0.0") else 505


class RequestReader(_Reader):
    """Reads requests, one after another, as a server must (RFC 9112 sections 3, 6, 7)."""

    _parser: httptools.HttpRequestParser

    def _new_parser(self) -> httptools.HttpRequestParser:
        return httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > self.limits.request_line_bytes:
            raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)

    def _check_open_head(self) -> None:
        if not self.headers and self._head_bytes > self.limits.request_line_bytes and b"\n" not in self._tail:
            if len(self.target) + 16 > self.limits.request_line_bytes:
                raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)

    def _finish_head(self) -> list[Event]:
        self._check_sizes()
        version = self._parser.get_http_version().encode()
        method = self._parser.get_method().decode("ascii")
        if version not in (b"1.1", b"1.0"):
            raise Malformed(f"HTTP/{version.decode()} is not spoken here", 505)
        if len(method) + len(self.target) + 11 > self.limits.request_line_bytes:
            raise Malformed(f"a request line of more than {self.limits.request_line_bytes} bytes", 414)
        framing = _framing(self.headers, version)
        hosts = expect = 0
        upgrade = False
        for name, value in framing.others:
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    raise Malformed("the Host header is not a host")
            elif name == b"expect":
                expect += 1
                if value.lower() != b"100-continue":
                    raise Malformed("an expectation other than 100-continue", 417)
            else:
                upgrade = True
        if hosts != 1 and (hosts or version == b"1.1"):
            raise Malformed("a request needs exactly one Host header")
        self._check_target(method)
        events: list[Event] = [
            RequestHead(
                method,
                self.target,
                self.headers,
                version,
                not framing.close,
                framing.chunked or bool(framing.length),
                framing.length,
                bool(expect) and version == b"1.1",
                upgrade,
            )
        ]
        self._begin_body(events, chunked=framing.chunked, length=framing.length)
        return events

    def _check_target(self, method: str) -> None:
        """Leave the origin-form in `self.target`; an absolute-form's authority replaces Host (RFC 9112 3.2.2)."""
        target = self.target
        if target.startswith(b"/"):
            if b"#" in target:
                raise Malformed("a fragment in the request target")
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

    _parser: httptools.HttpResponseParser

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
        self._check_sizes()
        status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if not 100 <= status <= 599 or version not in ("1.1", "1.0"):
            raise Malformed(f"not an HTTP/1.1 answer: status {status}, version {version}")
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > self.limits.interim:
                raise Malformed("an unasked switch of protocols" if status == 101 else "too many interim answers")
            return self.next()
        framing = _framing(self.headers, version.encode())
        bodiless = self._bodiless or status in (204, 304)
        until_close = not bodiless and not framing.chunked and framing.length is None
        events: list[Event] = [
            ResponseHead(status, self.headers, not framing.close and not until_close, framing.length)
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
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    count = len(headers)
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\0" in lines:
        raise Malformed("a header with a line break in it")
    return lines
