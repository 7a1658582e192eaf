"""The loads of compare.py before servers that stall, lie and leave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop

from benchmarks import answers, bench_unary, openloop, streams

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
WHOLE = (
    b'{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"total_tokens":3}}'
)
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"hel"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"lo"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)
SAID = answers.Said("hello", "stop", 3)
Serve = Callable[[socket.socket, int], bool]


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[int]:
    """`serve` answers a request by its number; False: it hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    count = iter(range(10**6))

    def peer(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while sock.recv(65536):
                if not serve(sock, next(count)):
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=peer, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def right(body: bytes) -> bool:
    return answers.whole(body) == SAID


def test_a_stall_is_seen_by_all_that_were_due_meanwhile() -> None:
    """And not only by the 64 that were sent."""
    lock = threading.Lock()

    def serve(sock: socket.socket, number: int) -> bool:
        with lock:
            if number == 20:
                time.sleep(0.6)
        sock.sendall(whole(WHOLE))
        return True

    with server(serve) as port:
        measured = openloop.run(port, REQUEST, right, rate=300, seconds=0.5, limit=10)
    assert measured.asked == 150 == len(measured.took)
    assert not measured.failed
    assert sum(took > 0.15 for took in measured.took) >= 120  # the last one was due when it lasted for 0.2 s more


def test_a_load_that_is_late_itself_is_late() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        sock.sendall(whole(WHOLE))
        return True

    async def late(port: int) -> openloop.Measured:
        asyncio.get_running_loop().call_later(0.1, time.sleep, 0.4)
        return await openloop.Load(port, REQUEST, right, limit=10).run(200, 0.4)

    with server(serve) as port:
        measured = uvloop.run(late(port))
    assert measured.asked == 80 == len(measured.took)
    assert sum(took > 0.1 for took in measured.took) >= 50


def test_streams_that_never_end_are_left() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(*EVENTS)[0])
        return True

    with server(serve) as port:
        measured = streams.run(port, REQUEST, right, streams=2, each=2, limit=0.5)
    assert measured.failed == {"timeout": 2, "unasked": 2}


def test_each_failure_is_counted_by_its_class() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        if number == 3:
            return False
        sock.sendall(
            {5: whole(b"no", b"503 Busy"), 7: whole(WHOLE.replace(b"hello", b"hallo"))}.get(number, whole(WHOLE))
        )
        return True

    with server(serve) as port:
        measured = openloop.run(port, REQUEST, right, rate=100, seconds=0.2, limit=5)
    assert measured.failed == {"closed": 1, "status": 1, "wrong": 1}
    assert (measured.asked, len(measured.took)) == (20, 17)


def test_what_never_comes_has_timed_out() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        if number < 10:
            sock.sendall(whole(WHOLE))
        return True

    with server(serve) as port:
        measured = openloop.run(port, REQUEST, right, rate=100, seconds=0.2, limit=1.0)
    assert measured.failed == {"timeout": 10}
    assert len(measured.took) == 10


def chunked(*events: bytes) -> list[bytes]:
    return [b"%x\r\n%b\r\n" % (len(event), event) for event in events]


def test_streams_are_timed_to_the_first_token_and_between_events() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        first, *others = chunked(*EVENTS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + first)
        time.sleep(0.05)
        sock.sendall(b"".join(others) + b"0\r\n")
        time.sleep(0.02)
        sock.sendall(b"\r\n")  # the end may come in pieces
        return True

    with server(serve) as port:
        measured = streams.run(port, REQUEST, lambda body: answers.stream(body) == SAID, streams=3, each=2, limit=10)
    assert (measured.asked, len(measured.first), measured.failed) == (6, 6, {})
    assert min(measured.first) >= 0.05  # the empty content before is no token
    assert len(measured.gaps) == 6 * 5


def test_events_that_come_together_have_no_time_between() -> None:
    first, *others = chunked(*EVENTS)
    pieces = [(1.0, b""), (1.25, b"HTTP/1.1 200 OK\r\n\r\n" + first), (1.5, others[0]), (2.0, b"".join(others[1:]))]
    assert streams.times(pieces) == (0.5, [0.25, 0.5, 0.0, 0.0, 0.0])
    assert streams.times(pieces[:2]) == (None, [])


def test_a_refused_stream_does_not_hold_up_the_round() -> None:
    def serve(sock: socket.socket, number: int) -> bool:
        sock.sendall(whole(b"no", b"500 Oops"))
        return True

    with server(serve) as port:
        began = time.monotonic()
        measured = streams.run(port, REQUEST, right, streams=2, each=3, limit=60)
    assert time.monotonic() - began < 15
    assert measured.failed == {"status": 2, "unasked": 4}


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (0, SAID),
        (1, answers.Said("lo", "stop", 3)),
        (2, answers.Said("hel", "stop", 3)),
        (3, None),
        (4, None),
        (5, None),
    ],
)
def test_a_stream_says_what_its_events_say(cut: int, said: answers.Said | None) -> None:
    assert answers.stream(b"".join(EVENTS)) == SAID
    assert answers.stream(b"".join(EVENTS[:-1]) + EVENTS[4]) is None  # it does not end with [DONE]
    assert answers.stream(b"".join(event for number, event in enumerate(EVENTS) if number != cut)) == said


@pytest.mark.parametrize("body", [b"", b"{", b'{"choices":[]}', WHOLE.replace(b'"usage"', b'"use"')])
def test_what_is_no_answer_says_nothing(body: bytes) -> None:
    assert answers.whole(body) is None


def test_what_wrk_prints_is_read() -> None:
    out = "  120 requests in 2.00s\n  Socket errors: connect 0, read 2, write 0, timeout 4\nWrong answers: 0\n"
    assert bench_unary.read(out) == (120, {"read": 2, "timeout": 4})
    assert bench_unary.read("Non-2xx or 3xx responses: 5\nWrong answers: 6") == (0, {"status": 5, "wrong": 6})
