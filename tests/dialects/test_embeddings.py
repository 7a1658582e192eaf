"""Embeddings: relayed and metered; there is no stream, and so no usage to ask for."""

from __future__ import annotations

from sidecar.dialects import embeddings
from sidecar.types import Usage
from sidecar.wire import body


def test_embeddings() -> None:
    members = body.envelope(b'{"model":"m","input":"x","encoding_format":"base64"}')
    before = body.rebuild(members)
    assert embeddings.read_view(members).model == "m"
    assert embeddings.ask_usage(members) is False
    assert body.rebuild(members) == before
    assert embeddings.local(members) is None
    watching = embeddings.meter(stream=False, hide_usage=False)
    watching.feed(b'{"data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":3,"total_tokens":3}}')
    assert watching.usage == Usage(input=3)
