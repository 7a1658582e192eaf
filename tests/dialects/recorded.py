"""Exchanges with real providers, recorded by other projects, where their folder lies beside this one."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import msgspec

TRAFFIC = Path(__file__).parents[3] / "shared" / "traffic"


class Exchange(msgspec.Struct):
    """A row of the recordings, as far as it is used here. A body that was not recorded is null."""

    id: str
    kind: str
    status: int
    streaming: bool
    tags: list[str]
    request_body: msgspec.Raw
    response_body: msgspec.Raw
    response_body_encoding: str

    @property
    def asked(self) -> bytes | None:
        """The request, where it is a JSON object."""
        body = bytes(self.request_body)
        return body if body.startswith(b"{") else None

    @property
    def answered(self) -> bytes:
        """The answer's bytes."""
        if self.response_body_encoding == "text":
            return msgspec.json.decode(self.response_body, type=str).encode()
        return bytes(self.response_body)


@cache
def exchanges(kinds: tuple[str, ...]) -> tuple[Exchange, ...]:
    """All recordings of these kinds; none where there is no folder."""
    decoder = msgspec.json.Decoder(Exchange)
    wanted = tuple(f'"kind": "{kind}"'.encode() for kind in kinds) + tuple(
        f'"kind":"{kind}"'.encode() for kind in kinds
    )
    found: list[Exchange] = []
    for path in sorted(TRAFFIC.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            found += [decoder.decode(line) for line in lines if any(mark in line for mark in wanted)]
    return tuple(row for row in found if row.kind in kinds)
