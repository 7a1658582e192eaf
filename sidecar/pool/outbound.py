"""The head of a request to a provider, as it goes on the wire: the one place of the product that reveals a secret."""

from __future__ import annotations

from sidecar.errors import UpstreamProtocol
from sidecar.types import Outbound


def write_head(outbound: Outbound) -> bytes:
    """Raises UpstreamProtocol where a part of it would split the head."""
    if outbound.path.split() != [outbound.path]:
        raise UpstreamProtocol(f"the request for {outbound.origin.name} cannot be sent: a path with white space in it")
    credential = b""
    if (auth := outbound.auth) is not None:
        credential = b"%b: %b%b\r\n" % (auth.header, auth.prefix, auth.secret.reveal().encode("latin-1", "replace"))
        if credential.count(b"\n") != 1 or credential.count(b"\r") != 1 or b"\0" in credential:
            raise UpstreamProtocol(f"the key of {outbound.origin.name} has a line break in it")
    length = len(outbound.body)
    if outbound.more:
        length += sum(map(len, outbound.more))
    return b"%b %b HTTP/1.1\r\n%bcontent-length: %d\r\n%b\r\n" % (
        outbound.method,
        outbound.path,
        outbound.lines,
        length,
        credential,
    )
