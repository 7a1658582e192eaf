"""Clients (types.Client) in between: one that keeps what it passes on, and one that keeps it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from sidecar.clock import now
from sidecar.errors import UpstreamProtocol
from sidecar.exchange.between import Between
from sidecar.exchange.heartbeat import COMMENT
from sidecar.types import Client, Headers

_OFF: Final = b"x-sidecar-cache: off\r\n"
_MISS: Final = b"x-sidecar-cache: miss\r\n"


class _Keeping(Between):
    """What both keep."""

    def __init__(self, client: Client, most: int) -> None:
        super().__init__(client)
        self._most = most  # bytes that are kept
        self.status = 0
        self.answered: Headers = []
        self.pieces: list[bytes] = []
        self.size = 0

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status}, {self.size} bytes>"


class Tape(_Keeping):
    """Passes all on, and keeps it meanwhile: at most `most` bytes, none of them copied, and none of our own comments.

    The answer's head tells that it was not in the cache.
    """

    def __init__(self, client: Client, most: int, clock: Callable[[], float] = now) -> None:
        super().__init__(client, most)
        self._clock = clock
        self.times: list[float] = []  # when each piece came
        self.ended = False

    @property
    def whole(self) -> bool:
        """It has all of an answer."""
        return self.ended and self.size <= self._most

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> Awaitable[None] | None:
        self.status, self.answered = status, headers
        self._keep(data, more=more)
        return self._client.answer(status, headers, missed(lines), data, more=more)

    def write(self, data: bytes, *, more: bool) -> Awaitable[None] | None:
        self._keep(data, more=more)
        return self._client.write(data, more=more)

    def _keep(self, data: bytes, *, more: bool) -> None:
        self.ended = not more
        if not data or data == COMMENT:
            return
        self.size += len(data)
        if self.size > self._most:
            self.pieces.clear()
            self.times.clear()
        else:
            self.pieces.append(data)
            self.times.append(self._clock())


class Box(_Keeping):
    """Keeps an answer that is one body, and passes nothing on: what its client gets is still to be made of it."""

    lines = b""

    def answer(self, status: int, headers: Headers, lines: bytes, data: bytes, *, more: bool) -> None:
        self.status, self.answered, self.lines = status, headers, lines
        self.write(data, more=more)

    def write(self, data: bytes, *, more: bool) -> None:
        """Raises UpstreamProtocol where it is more than is kept."""
        self.size += len(data)
        if self.size > self._most:
            raise UpstreamProtocol(f"the provider answered with more than {self._most} bytes")
        self.pieces.append(data)


def missed(lines: bytes) -> bytes:
    """The head of an answer that was not in the cache, and might have been."""
    return lines.replace(_OFF, _MISS)
