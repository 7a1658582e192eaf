"""Requests whose framing or form is not plain: each is refused, alone, whatever follows it (RFC 9112, R1 and R2)."""

from __future__ import annotations

from typing import Final

FOLLOWER: Final = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"  # what is appended to each: it must never be served

_GET: Final = b"GET / HTTP/1.1\r\nHost: a\r\n"
_POST: Final = b"POST / HTTP/1.1\r\nHost: a\r\n"
_CHUNKED: Final = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_END: Final = b"0\r\n\r\n"


def _post(*lines: bytes, body: bytes = b"") -> bytes:
    return _POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _get(*lines: bytes) -> bytes:
    return _GET + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# name -> (bytes, status)
LENGTHS: Final[dict[str, tuple[bytes, int]]] = {
    "length and chunked": (_post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=_END), 400),
    "chunked and length": (_post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=_END), 400),
    "length of zero and chunked": (_post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=_END), 400),
    "two lengths": (_post(b"Content-Length: 3", b"Content-Length: 4", body=b"abc"), 400),
    "the same length twice": (_post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (_post(b"Content-Length: 3, 3", body=b"abc"), 400),
    "a list of two lengths": (_post(b"Content-Length: 3, 4", body=b"abc"), 400),
    "a length with a plus": (_post(b"Content-Length: +3", body=b"abc"), 400),
    "a length below zero": (_post(b"Content-Length: -3", body=b"abc"), 400),
    "a length with a space": (_post(b"Content-Length: 3 3", body=b"abc"), 400),
    "a length in hex": (_post(b"Content-Length: 0x3", body=b"abc"), 400),
    "a length with an underscore": (_post(b"Content-Length: 1_0", body=b"0123456789"), 400),
    "a length with a fraction": (_post(b"Content-Length: 3.0", body=b"abc"), 400),
    "an empty length": (_post(b"Content-Length:", body=b"abc"), 400),
    "a blank length": (_post(b"Content-Length:   ", body=b"abc"), 400),
    "a length in words": (_post(b"Content-Length: three", body=b"abc"), 400),
    "a quoted length": (_post(b'Content-Length: "3"', body=b"abc"), 400),
    "a length past 64 bits": (_post(b"Content-Length: 18446744073709551619", body=b"abc"), 400),
    "a length of digits outside ascii": (_post(b"Content-Length: \xef\xbc\x93", body=b"abc"), 400),
    "a length with a NUL": (_post(b"Content-Length: 3\0", body=b"abc"), 400),
    "a length with a vertical tab": (_post(b"Content-Length: \x0b3", body=b"abc"), 400),
    "a length folded": (_post(b"Content-Length:\r\n 3", body=b"abc"), 400),
    "a length behind a space before the colon": (_post(b"Content-Length : 3", body=b"abc"), 400),
}

CODINGS: Final[dict[str, tuple[bytes, int]]] = {
    "a coding that is not chunked": (_post(b"Transfer-Encoding: xchunked", body=_END), 400),
    "gzip": (_post(b"Transfer-Encoding: gzip", body=_END), 400),
    "gzip, then chunked": (_post(b"Transfer-Encoding: gzip, chunked", body=_END), 501),
    "gzip and chunked in two lines": (
        _post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=_END),
        501,
    ),
    "chunked, then identity": (_post(b"Transfer-Encoding: chunked, identity", body=_END), 400),
    "identity": (_post(b"Transfer-Encoding: identity", body=_END), 400),
    "chunked twice": (_post(b"Transfer-Encoding: chunked, chunked", body=_END), 400),
    "chunked twice in two lines": (
        _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=_END),
        400,
    ),
    "chunked, and another coding behind it": (
        _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=_END),
        400,
    ),
    "chunked with a parameter": (_post(b"Transfer-Encoding: chunked;q=1", body=_END), 400),
    "quoted chunked": (_post(b'Transfer-Encoding: "chunked"', body=_END), 400),
    "an empty coding": (_post(b"Transfer-Encoding:", body=_END), 400),
    "a coding with a comma": (_post(b"Transfer-Encoding: ,chunked", body=_END), 501),
    "a coding behind a vertical tab": (_post(b"Transfer-Encoding: \x0bchunked", body=_END), 400),
    "a coding with a NUL": (_post(b"Transfer-Encoding: chunked\0", body=_END), 400),
    "a coding folded": (_post(b"Transfer-Encoding:\r\n chunked", body=_END), 400),
    "a coding behind a space before the colon": (_post(b"Transfer-Encoding : chunked", body=_END), 400),
    "a coding behind a space before the name": (
        b"POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a coding behind a bare line feed": (_post(b"X: y\nTransfer-Encoding: chunked", body=_END), 400),
    "a coding behind a bare carriage return": (_post(b"X: y\rTransfer-Encoding: chunked", body=_END), 400),
    "a coding in HTTP/1.0": (
        b"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
}

CHUNKS: Final[dict[str, tuple[bytes, int]]] = {
    "no size": (_CHUNKED + b"\r\nabc\r\n" + _END, 400),
    "a size that is not hex": (_CHUNKED + b"xyz\r\nabc\r\n" + _END, 400),
    "a size with a prefix": (_CHUNKED + b"0x3\r\nabc\r\n" + _END, 400),
    "a size with a sign": (_CHUNKED + b"+3\r\nabc\r\n" + _END, 400),
    "a size below zero": (_CHUNKED + b"-3\r\nabc\r\n" + _END, 400),
    "a size with an underscore": (_CHUNKED + b"1_0\r\n0123456789abcdef\r\n" + _END, 400),
    "a size behind a space": (_CHUNKED + b" 3\r\nabc\r\n" + _END, 400),
    "a size before a space": (_CHUNKED + b"3 \r\nabc\r\n" + _END, 400),
    "a size past 64 bits": (_CHUNKED + b"10000000000000003\r\nabc\r\n" + _END, 400),
    "a size of many zeros": (_CHUNKED + b"0" * 64 + b"3\r\nabc\r\n" + _END, 400),
    "a size with a NUL": (_CHUNKED + b"3\0\r\nabc\r\n" + _END, 400),
    "a size before a bare line feed": (_CHUNKED + b"3\nabc\r\n" + _END, 400),
    "a size before a bare carriage return": (_CHUNKED + b"3\rabc\r\n" + _END, 400),
    "an extension with a bare line feed": (_CHUNKED + b"3;a=\nb\r\nabc\r\n" + _END, 400),
    "an extension with a bare carriage return": (_CHUNKED + b"3;a=\rb\r\nabc\r\n" + _END, 400),
    "an extension with a NUL": (_CHUNKED + b"3;a=\0\r\nabc\r\n" + _END, 400),
    "extensions without end": (_CHUNKED + b"3;" + b"a" * 20_000 + b"\r\nabc\r\n" + _END, 400),
    "extensions of many chunks": (_CHUNKED + (b"1;" + b"a" * 999 + b"\r\nx\r\n") * 20 + _END, 400),
    "a chunk longer than it says": (_CHUNKED + b"2\r\nabc\r\n" + _END, 400),
    "a chunk shorter than it says": (_CHUNKED + b"4\r\nabc\r\n" + _END, 400),
    "a chunk before a bare line feed": (_CHUNKED + b"3\r\nabc\n" + _END, 400),
    "a chunk before two characters": (_CHUNKED + b"3\r\nabcXX" + _END, 400),
    "a last chunk before a bare line feed": (_CHUNKED + b"3\r\nabc\r\n0\n\r\n", 400),
    "an end of a bare line feed": (_CHUNKED + b"3\r\nabc\r\n0\r\n\n", 400),
    "a trailer that is not a header": (_CHUNKED + b"0\r\nnot a header\r\n\r\n", 400),
    "a trailer before a bare line feed": (_CHUNKED + b"0\r\nA: b\n\r\n", 400),
    "a trailer folded": (_CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n", 400),
    "a trailer with a NUL": (_CHUNKED + b"0\r\nA: \0\r\n\r\n", 400),
    "a trailer with a space before the colon": (_CHUNKED + b"0\r\nA : b\r\n\r\n", 400),
    "trailers without end": (_CHUNKED + b"0\r\n" + b"A: b\r\n" * 4000 + b"\r\n", 431),
}

LINES: Final[dict[str, tuple[bytes, int]]] = {
    "bare line feeds": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a bare line feed behind the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "a bare line feed behind a header": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    "a bare line feed before the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "a bare line feed before the request": (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bare carriage returns": (b"GET / HTTP/1.1\rHost: a\r\r", 400),
    "a bare carriage return in a value": (_get(b"X: a\rb"), 400),
    "a bare carriage return before the request": (b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an end with two carriage returns": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", 400),
    "a value that is folded": (_get(b"X: a", b" b"), 400),
    "a value folded by a tab": (_get(b"X: a", b"\tb"), 400),
    "a first header that is folded": (b"GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n", 400),
    "a space before the colon": (_get(b"X : y"), 400),
    "a tab before the colon": (_get(b"X\t: y"), 400),
    "a header without a name": (_get(b": y"), 400),
    "a header without a colon": (_get(b"X"), 400),
    "a space in a name": (_get(b"X Y: z"), 400),
    "a bracket in a name": (_get(b"X[]: z"), 400),
    "a NUL in a name": (_get(b"X\0: y"), 400),
    "a NUL in a value": (_get(b"X: y\0z"), 400),
    "a control in a value": (_get(b"X: y\x01z"), 400),
    "a DEL in a value": (_get(b"X: y\x7fz"), 400),
    "a letter outside ascii in a name": (_get("Ü: y".encode()), 400),
}

REQUESTS: Final[dict[str, tuple[bytes, int]]] = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "the same host twice": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "two hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "a host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "a host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "a host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "a host with a port that is none": (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "a host with an open bracket": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    "a host with a question mark": (b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400),
    "a host with a hash": (b"GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", 400),
    "a host outside ascii": ("GET / HTTP/1.1\r\nHost: ü\r\n\r\n".encode(), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9 by name": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/2": (b"GET / HTTP/2\r\nHost: a\r\n\r\n", 505),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400),
    "http/1.1": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "a protocol of another name": (b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n", 400),
    "RTSP": (b"OPTIONS / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
    "ICE": (b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a word behind the version": (b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", 400),
    "two spaces before the target": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a tab before the target": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "two spaces before the version": (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a space before the method": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "no target": (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a space": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target without a slash": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a NUL": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with an escaped NUL": (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a control": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target with a tab": (b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target outside ascii": ("GET /ü HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "a target with a fragment": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a query with a fragment": (b"GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target with a fragment": (b"GET http://a/b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target with a user": (b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target without a host": (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an absolute target of another scheme": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a target of an authority": (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "an asterisk not for OPTIONS": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
    "an unknown method": (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "a method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "a method that is no token": (b"GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "another expectation": (_post(b"Expect: 200-ok", b"Content-Length: 3", body=b"abc"), 417),
    "an empty expectation": (_post(b"Expect:", b"Content-Length: 3", body=b"abc"), 417),
    "not HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 501),
}

SIZES: Final[dict[str, tuple[bytes, int]]] = {
    "a request line past its bound": (b"GET /" + b"a" * (8193 - 14) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a query past the bound": (b"GET /?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "headers past their bound": (_get(b"X: " + b"a" * 65_537), 431),
    "many headers past their bound": (_get(*[b"X: " + b"a" * 1400] * 48), 431),
    "a header too many": (_get(*[b"X%d: y" % number for number in range(100)]), 431),
}

CORPUS: Final = {**LENGTHS, **CODINGS, **CHUNKS, **LINES, **REQUESTS, **SIZES}
