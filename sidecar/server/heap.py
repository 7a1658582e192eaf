"""The allocator of a serving process: what large bodies have used is kept for those to come.

glibc gives memory back to the kernel as soon as it is free at the heap's top, and asks for it anew with the next body:
its fresh pages then cost more CPU than all else that is done to a body of a megabyte. What is kept is given back by
`malloc_trim`, where memory is short.
"""

from __future__ import annotations

import ctypes
from typing import Final

KEPT_BYTES: Final = 32 * 1024 * 1024  # at the heap's top; also the largest piece that the heap is used for (malloc.h)
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


def keep(most_bytes: int = KEPT_BYTES) -> bool:
    """Keep so many bytes that are free, rather than to give them back at once. False where the C library cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, most_bytes)) and bool(mallopt(_M_MMAP_THRESHOLD, most_bytes))
