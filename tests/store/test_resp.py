"""The language of Redis: as redis-py writes it, read whole wherever it is cut, and nothing taken for what it is not."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio.connection
from hypothesis import given, settings, strategies as st

from sidecar.store.resp import Broken, Replies, ReplyError, command
from tests.store.servers import Redis

OTHER = redis.asyncio.connection.Connection()
PART = st.one_of(st.binary(max_size=40), st.text(max_size=20), st.integers(-(10**15), 10**15))
REPLY = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=60)),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


def written(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case _:
            return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(PART, min_size=1, max_size=6))
def test_commands_are_written_as_redis_py_writes_them(parts: list[str | bytes | int]) -> None:
    assert command(b"CMD", *parts) == b"".join(OTHER.pack_command(b"CMD", *parts))


@given(replies=st.lists(REPLY, min_size=1, max_size=5), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_replies_are_the_same_wherever_they_are_cut(replies: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(written, replies))
    reader, got, begin = Replies(), list[Any](), 0
    for end in [*sorted(cuts), len(data)]:
        got += reader.feed(data[begin:end])
        begin = max(begin, end)
    assert got == replies


def test_a_real_server_is_understood(server: Redis) -> None:
    text = "return {1, 'two', {3, false}, redis.status_reply('FINE')}"
    assert server.ask("EVAL", text, 0) == [1, b"two", [3, None], b"FINE"]
    assert server.raw(command("EVAL", text, 0)) == [1, b"two", [3, None], b"FINE"]
    error = server.raw(command("EVAL", "return redis.error_reply('OOPS of this')", 0))
    assert isinstance(error, ReplyError)
    assert (error.kind, str(error)) == ("OOPS", "OOPS of this")


def test_a_long_string_is_not_read_again_and_again() -> None:
    reader, size = Replies(), 4 * 1024 * 1024
    got = reader.feed(b"$%d\r\n" % size)
    for _ in range(size // 4096):
        assert got == []
        got = reader.feed(b"x" * 4096)
    assert reader.feed(b"\r\n:7\r\n") == [b"x" * size, 7]


@pytest.mark.parametrize(
    "data",
    [
        *(b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b":x\r\n", b"$x\r\n", b"$-2\r\n", b"$99999999999\r\n"),
        *(b"$3\r\nabcde\r\n", b"*-2\r\n", b"*9999999\r\n", b"*1\r\n" * 9 + b":1\r\n"),
    ],
)
def test_what_is_no_reply_is_not_taken_for_one(data: bytes) -> None:
    with pytest.raises(Broken):
        Replies().feed(data)


def test_a_line_without_an_end_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.store.resp._MOST_BYTES", 1000)
    reader = Replies()
    assert reader.feed(b"+" + b"x" * 900) == []
    with pytest.raises(Broken):
        reader.feed(b"x" * 200)
