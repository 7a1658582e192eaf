"""JSON Schemas made fit for structured outputs. A whole one is in tests/golden (request_schema)."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.dialects.messages_schema import strict
from sidecar.errors import BodyInvalid
from sidecar.wire import body


def _strict(schema: bytes) -> bytes:
    return body.encode(strict(msgspec.Raw(schema)))


@pytest.mark.parametrize(
    ("schema", "out"),
    [
        (b'{"type":"string"}', b'{"type":"string"}'),
        (b"true", b"true"),
        (b'{"type":"object"}', b'{"type":"object","additionalProperties":false}'),
        (b'{"type":"object","additionalProperties":{"type":"x"}}', b'{"type":"object","additionalProperties":false}'),
        (b'{"type":["object","null"]}', b'{"type":["object","null"],"additionalProperties":false}'),
        (
            b'{"const":1.0,"enum":[1e2],"default":{"type":"object"}}',
            b'{"const":1.0,"enum":[1e2],"default":{"type":"object"}}',
        ),
        (b'{"minLength":1}', b'{"description":"minLength: 1"}'),
        (b'{"description":"d","maximum":1.50}', b'{"description":"d; maximum: 1.50"}'),
        (b'{"minItems":1,"items":{"minItems":2}}', b'{"minItems":1,"items":{"description":"minItems: 2"}}'),
        (b'{"format":"uuid"}', b'{"format":"uuid"}'),
        (b'{"format":"regex"}', b'{"description":"format: \\"regex\\""}'),
        (b'{"pattern":"^[a-z]+$"}', b'{"pattern":"^[a-z]+$"}'),
        (b'{"pattern":"\\\\bword"}', b'{"description":"pattern: \\"\\\\\\\\bword\\""}'),
        (b'{"allOf":[{"maximum":1}]}', b'{"allOf":[{"description":"maximum: 1"}]}'),
        (b'{"oneOf":[{"type":"null"}]}', b'{"anyOf":[{"type":"null"}]}'),
        (b'{"$defs":{"maximum":{"maximum":1}}}', b'{"$defs":{"maximum":{"description":"maximum: 1"}}}'),
    ],
)
def test_strict(schema: bytes, out: bytes) -> None:
    assert _strict(schema) == out


@pytest.mark.parametrize(
    "schema", [b'{"properties":[]}', b'{"anyOf":{}}', b'{"format":5}', b'{"description":5,"maximum":1}']
)
def test_what_is_no_schema(schema: bytes) -> None:
    with pytest.raises(BodyInvalid):
        _strict(schema)
