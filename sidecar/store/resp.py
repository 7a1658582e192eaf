"""RESP2, the language of Redis and Valkey: commands to bytes, bytes to replies. Pure.

A client of our own, for what a decision costs: with redis.asyncio (8.1) one takes 170 us of this process's time, or 34
where 64 go together; so it is 28, or 4. And nothing of it need run in a task.
"""

from __future__ import annotations

from typing import Any, Final

_MOST_BYTES: Final = 64 * 1024 * 1024  # of a string
_MOST_ITEMS: Final = 1 << 20  # of an array
_DEEPEST: Final = 8


class ReplyError(Exception):
    """What a server answers instead of a result: `kind` is its first word ("NOSCRIPT", "MOVED", "LOADING")."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.kind = text.partition(" ")[0]


class Broken(ValueError):
    """Bytes that are no replies: nothing behind them can be understood."""


class _More(Exception):
    """The reply has not come whole."""


def command(*parts: str | bytes | int) -> bytes:
    """A command as it is sent."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if type(part) is bytes else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


class Replies:
    """Bytes in, whole replies out: int, bytes, None, ReplyError, or a list of them.

    What is not whole is read again from its beginning when more has come: a long string costs its head only, and long
    arrays are not asked for where it matters.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Raises Broken."""
        buffer = self._buffer
        buffer += data
        replies, at = [], 0
        try:
            while at < len(buffer):
                reply, at = _reply(buffer, at, 0)
                replies.append(reply)
        except _More:
            pass
        del buffer[:at]
        return replies


def _reply(buffer: bytearray, at: int, depth: int) -> tuple[Any, int]:
    end = buffer.find(b"\r\n", at)
    if end < 0:
        if len(buffer) - at > _MOST_BYTES:
            raise Broken("a line without an end")
        raise _More
    kind, line, at = buffer[at], buffer[at + 1 : end], end + 2
    if kind == 0x3A:  # ":"
        return _number(line), at
    if kind == 0x24:  # "$"
        return _string(buffer, at, _number(line))
    if kind == 0x2A:  # "*"
        return _array(buffer, at, _number(line), depth)
    if kind == 0x2B:  # "+"
        return bytes(line), at
    if kind == 0x2D:  # "-"
        return ReplyError(line.decode("utf-8", "replace")), at
    raise Broken("not a reply")


def _number(line: bytearray) -> int:
    try:
        return int(line)
    except ValueError:
        raise Broken("not a number") from None


def _string(buffer: bytearray, at: int, size: int) -> tuple[bytes | None, int]:
    if size == -1:
        return None, at
    if not 0 <= size <= _MOST_BYTES:
        raise Broken("a string that is too long")
    end = at + size
    if len(buffer) < end + 2:
        raise _More
    if buffer[end : end + 2] != b"\r\n":
        raise Broken("a string that is longer than it says")
    return bytes(buffer[at:end]), end + 2


def _array(buffer: bytearray, at: int, size: int, depth: int) -> tuple[list[Any] | None, int]:
    if size == -1:
        return None, at
    if not 0 <= size <= _MOST_ITEMS or depth >= _DEEPEST:
        raise Broken("an array that is too long or too deep")
    items = []
    for _ in range(size):
        item, at = _reply(buffer, at, depth + 1)
        items.append(item)
    return items, at
