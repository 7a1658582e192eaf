"""Golden files: what a translation gave when somebody last read it. `pytest --rewrite-golden` writes them anew."""

from __future__ import annotations

from pathlib import Path

import msgspec

TESTS = Path(__file__).parent.parent
GOLDEN = TESTS / "golden"
TRANSCRIPTS = TESTS / "transcripts"
OTHER = {"chat": "messages", "messages": "chat"}  # the dialect that each is translated to


def cases(kind: str) -> list[Path]:
    """The files `<dialect>/<kind>_*.json`, without what they became."""
    found = sorted(GOLDEN.glob(f"*/{kind}_*.json"))
    return [path for path in found if not path.stem.endswith(tuple(f".{name}" for name in OTHER))]


def check(path: Path, got: bytes, *, rewrite: bool) -> None:
    """Compare, byte for byte, with the file that is there."""
    if rewrite:
        path.write_bytes(got)
    assert path.exists(), f"{path.name} is missing: run pytest --rewrite-golden, and read what it wrote"
    assert got == path.read_bytes()


def pretty(data: bytes) -> bytes:
    """Laid out for a diff; numbers and escapes stay as they are."""
    return msgspec.json.format(data, indent=2) + b"\n"
