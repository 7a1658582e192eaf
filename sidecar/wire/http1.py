"""Readers of HTTP/1.1 messages without IO, for the server, the pool and the simulator (RFC 9112).

A reader takes bytes and answers a list of events: one head, any pieces of body, `END`. Heads are llhttp's to parse
(heads.py), but for answers' whose every byte is plain: those a pattern takes that is narrower still. Bodies are framed
in framing.py. A message that is not plain raises `Malformed`. Work is linear in the bytes fed.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from sidecar.errors import Malformed
from sidecar.wire.framing import HEAD, Limits, count, framing
from sidecar.wire.heads import Event, Reader, RequestHead, ResponseHead
from sidecar.wire.shapes import SHAPES

_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+;=%]*(?::[0-9]*)?|\[[0-9A-Fa-f:.%A-Za-z]+\](?::[0-9]*)?")
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r\n")  # llhttp is lenient with spaces, and knows RTSP
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)([/?].*)?", re.DOTALL)
# The head of an answer in which nothing needs a decision; whatever else there may be is llhttp's to judge.
_PLAIN_ANSWER = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*+\r\n()"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++: [!-~\x80-\xff]++(?:[\t ]++[!-~\x80-\xff]++)*+\r\n)++\r\n"
)
_FIELD = re.compile(rb"([^:\r]++): ([^\r]++)\r\n")  # where the whole is known to be plain
_BODILESS: Final = (204, 304)
_LENGTH_DIGITS: Final = 18  # as many as llhttp's counter is sure to hold
_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


class RequestReader(Reader):
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


class ResponseReader(Reader):
    """Reads responses as a client must; `expect(method)` is called before each request is sent."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._bodiless = False
        self._interim = 0

    def expect(self, method: bytes) -> None:
        """The method of the request whose answer comes next, if it is no POST: an answer to HEAD has no body."""
        self._bodiless = method == b"HEAD"

    def whole(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Head and body of an answer that is all here, plain, and of a declared length: as nearly all of one body are.

        None for anything else, which `feed` is then given. Either way nothing has been taken: the reader is as before.
        """
        if self._started or self._held or self._bodiless:
            return None
        match = _PLAIN_ANSWER.match(data)
        if match is None:
            return None
        end = match.end()
        names, values = zip(*_FIELD.findall(data, match.start(2), end), strict=True)
        shape, status = SHAPES[names], int(match[1])
        if not shape.usual or end > self.limits.header_bytes or status in _BODILESS:
            return None
        declared = values[shape.length]
        if (
            not declared.isdigit()
            or len(declared) > _LENGTH_DIGITS
            or len(data) - end != int(declared)
            or end == len(data)
        ):
            return None
        return ResponseHead(status, shape.names, values, True, len(data) - end, shape), data[end:]

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
        end = match.end()
        names, values = zip(*_FIELD.findall(data, match.start(2), end), strict=True)
        shape, status = SHAPES[names], int(match[1])
        declared = None if shape.length < 0 else values[shape.length]
        if (
            shape.odd
            or end > self.limits.header_bytes
            or len(names) > self.limits.headers
            or status in _BODILESS
            or (declared is not None and (not declared.isdigit() or len(declared) > _LENGTH_DIGITS))
        ):
            return None
        length = None if declared is None else int(declared)
        self._interim = 0
        head = ResponseHead(status, shape.names, values, True, length, shape)
        chunked, close = False, False
        if shape.framed:
            chunked, length, close = framing(head.headers, head.index, "1.1")
        until_close = length is None and not chunked
        head.length, head.keep_alive = length, not close and not until_close
        self._started = True
        events: list[Event] = [head]
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
        names, values = tuple(zip(*self.headers, strict=True)) or ((), ())
        events: list[Event] = [ResponseHead(status, names, values, not framed.close and not until_close, framed.length)]
        if bodiless:
            self._begin_body(events, chunked=False, length=0)
        else:
            self._begin_body(events, chunked=framed.chunked, length=framed.length, until_close=until_close)
        return events
