"""What a process may fill with what it has under way, and the bodies that are held of it. Pure."""

from __future__ import annotations

from typing import Final

from sidecar.errors import BodyTooLarge, Overloaded

REST_BYTES: Final = 48 * 1024 * 1024  # of a process that does nothing
COUNTED_BYTES: Final = 4096  # shorter bodies are not counted: connections are, and have these
FEWEST, MOST = 16, 1_000_000  # connections
CONNECTION_BYTES: Final = 32 * 1024  # with a stream, and what was just not counted


def spare(most: int, workers: int) -> int:
    """Bytes that one of some workers may fill with what it has under way."""
    return max(most - workers * REST_BYTES, most // 8) // workers


def connections(most: int, workers: int) -> int:
    """Clients that a worker has memory for: a quarter of what is to spare, by what one with a stream takes.

    `most`: 0 where nobody tells what there is.
    """
    return max(spare(most, workers) // 4 // CONNECTION_BYTES, FEWEST) if most else MOST


class Room:
    """The bodies of requests that may be held at once, in bytes: half of what a worker has to spare.

    Each counts twice: as it came, and as it goes out where it has to be made anew.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most  # None: as many as come
        self.held = 0
        self.refused = 0

    def has(self, size: int) -> bool:
        """Is there room for so many bytes more?"""
        return self.most is None or 2 * (self.held + size) <= self.most

    def take(self, size: int, whole: int) -> None:
        """So many bytes more of a body, which has `whole` so far. Raises Overloaded, or BodyTooLarge for all times."""
        if self.most is not None and not self.has(size):
            self.refused += 1
            if 2 * whole > self.most:
                raise BodyTooLarge(f"the body has {whole} bytes; there is memory for {self.most // 2} here")
            raise Overloaded("too much is under way for the memory that there is; ask again", retry_after=1.0)
        self.held += size

    def give(self, size: int) -> None:
        """Back, once."""
        self.held -= size

    def __repr__(self) -> str:
        return f"<Room {self.held} of {self.most} bytes>"
