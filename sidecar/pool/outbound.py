"""The head of a request to a provider, as it goes on the wire: the one place of the product that reveals a secret."""

from __future__ import annotations

from sidecar.errors import UpstreamProtocol
from sidecar.types import Outbound


class Prepared:
    """The head of requests that differ in their length alone. It holds a key, so it shows nothing of itself."""

    __slots__ = ("_after", "_before")

    def __init__(self, outbound: Outbound) -> None:
        """Raises UpstreamProtocol where a part of it would split the head."""
        if outbound.path.split() != [outbound.path]:
            words = f"the request for {outbound.origin.name} cannot be sent: a path with white space in it"
            raise UpstreamProtocol(words)
        credential = b""
        if (auth := outbound.auth) is not None:
            credential = b"%b: %b%b\r\n" % (auth.header, auth.prefix, auth.secret.reveal().encode("latin-1", "replace"))
            if credential.count(b"\n") != 1 or credential.count(b"\r") != 1 or b"\0" in credential:
                raise UpstreamProtocol(f"the key of {outbound.origin.name} has a line break in it")
        self._before = b"%b %b HTTP/1.1\r\n%bcontent-length: " % (outbound.method, outbound.path, outbound.lines)
        self._after = b"\r\n%b\r\n" % credential

    def head(self, length: int) -> bytes:
        """For a body of so many bytes."""
        return b"%b%d%b" % (self._before, length, self._after)

    def __repr__(self) -> str:
        return "<Prepared head>"


def write_head(outbound: Outbound) -> bytes:
    """Raises UpstreamProtocol where a part of it would split the head."""
    return Prepared(outbound).head(len(outbound.body) + sum(map(len, outbound.more)))
