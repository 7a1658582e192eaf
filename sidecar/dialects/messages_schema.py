"""JSON Schemas as Anthropic's structured outputs want them: objects closed, and no keyword that is refused.

What a refused keyword demands is told to the model in the description instead, as Anthropic's SDKs do. Values that are
not touched stay as they were written.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from sidecar.types import Envelope
from sidecar.wire import body

_REFUSED: Final = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
    "uniqueItems", "contains", "minContains", "maxContains", "minProperties", "maxProperties",
)  # fmt: skip
_FORMATS: Final = (
    "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid",
)  # fmt: skip
_HARD_PATTERN: Final = re.compile(r"\(\?[=!<]|\\[1-9bB]")  # lookaround, backreference, word boundary
_MAPS: Final = ("properties", "$defs", "definitions")  # names to schemas: the names are the caller's, no keywords
_LISTS: Final = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS: Final = ("items", "not")


def strict(schema: msgspec.Raw) -> Any:
    """A schema within the rules. Raises BodyInvalid when it is none."""
    members = _members(schema)
    if members is None:  # true, false
        return schema
    out: dict[str, Any] = {}
    moved: list[str] = []
    for name, raw in members.items():
        if name == "$schema":
            continue
        if _refused(name, raw):
            moved.append(f"{name}: {bytes(raw).decode()}")
        else:
            out["anyOf" if name == "oneOf" and "anyOf" not in members else name] = _value(name, raw)
    if _is_object(members):
        out["additionalProperties"] = False
    if moved:
        told = body.view(members["description"], str, "description") if "description" in members else ""
        out["description"] = "; ".join(filter(None, [told, *moved]))
    return out


def _value(name: str, raw: msgspec.Raw) -> Any:
    if name in _MAPS:
        return {each: strict(value) for each, value in body.view(raw, dict[str, msgspec.Raw], name).items()}
    if name in _LISTS:
        return [strict(value) for value in body.view(raw, list[msgspec.Raw], name)]
    return strict(raw) if name in _SCHEMAS else raw


def _refused(name: str, raw: msgspec.Raw) -> bool:
    if name in _REFUSED:
        return True
    if name == "minItems":
        return bytes(raw) not in (b"0", b"1")
    if name == "format":
        return body.view(raw, str, name) not in _FORMATS
    return name == "pattern" and _HARD_PATTERN.search(body.view(raw, str, name)) is not None


def _is_object(members: Envelope) -> bool:
    kind = body.document(members["type"]) if "type" in members else None
    return (
        kind == "object" or (isinstance(kind, list) and "object" in kind) or (kind is None and "properties" in members)
    )


def _members(raw: msgspec.Raw) -> Envelope | None:
    if not bytes(raw).startswith(b"{"):
        return None
    members: Envelope = body.view(raw, dict[str, msgspec.Raw], "json_schema.schema")
    return members
