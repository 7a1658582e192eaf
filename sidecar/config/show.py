"""Showing the configuration: its schema for editors, and what is in force with the source of each value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sidecar.config.addresses import shown_url
from sidecar.config.faults import dotted
from sidecar.config.load import Loaded
from sidecar.config.stores import FORMS, MEMORY, Place
from sidecar.config.structs import KINDS, Config, Key, Table

_STARS: Final = "**********"
_KEY: Final = {"type": "string", "description": "env:NAME, file:/path, caller, or (callers) sha256:HEX"}
_ABSENT: Final = {  # what an option that is not set comes to
    "kind": "the table's own name",
    "base_url": "the built-in one",
    "max_connections": "as the limit on open files allows",
    "length": "as many as the limit",
    "proxy": "the environment's",
    "hedge_after_seconds": "the rolling p95 of the time to the first token",
    "keepalive_comment_seconds": "off",
}
_ONE_OR_MORE: Final = (("Server", "listen"), ("Model", "targets"))  # a string alone is a list of one


def schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    whole = msgspec.json.schema(Config, schema_hook=lambda _: {"type": "string"})  # Secret, which goes with Key
    tables = whole["$defs"]
    for table in tables.values():
        for option in table.get("properties", {}).values():
            _without_null(option)
    tables["Key"] = _KEY
    tables["Place"] = {"type": "string", "description": FORMS}
    tables["Store"]["properties"]["url"]["default"] = MEMORY.source
    tables["Provider"]["properties"]["kind"]["enum"] = list(KINDS)
    for table, option in _ONE_OR_MORE:
        several = tables[table]["properties"][option]
        about = {"default": several.pop("default")} if "default" in several else {}
        tables[table]["properties"][option] = {"anyOf": [{"type": "string"}, several], **about}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sidecar.toml", **whole}


def _without_null(option: dict[str, Any]) -> None:
    """TOML has no null: an option that may be left out is left out."""
    if "anyOf" in option:
        kept = [each for each in option.pop("anyOf") if each != {"type": "null"}]
        option.update(kept[0] if len(kept) == 1 else {"anyOf": kept})
    if option.get("default", 0) is None:
        del option["default"]
    if isinstance(option.get("default"), dict):  # a table's, whose own options say theirs
        del option["default"]


def effective(loaded: Loaded, flags: Mapping[str, str]) -> str:
    """The configuration in force, a line an option, each with where it comes from; secrets as stars. It is TOML.

    `flags`: dotted path -> the flag that set it.
    """
    lines = [f"# {loaded.file or 'no file: from the environment'}"]
    _show(loaded.config, (), {**loaded.sources, **flags}, lines)
    return "\n".join(lines)


def _show(table: Table, path: tuple[str, ...], sources: Mapping[str, str], out: list[str]) -> None:
    nested: list[tuple[tuple[str, ...], Table]] = []
    plain: list[str] = []
    for name in table.__struct_fields__:
        value = getattr(table, name)
        here = (*path, name)
        if isinstance(value, Table):
            nested.append((here, value))
        elif isinstance(value, dict) and name not in ("headers", "rename"):
            nested += [((*here, each), one) for each, one in value.items()]
        elif value is None:
            plain.append(f"# {name}: {_ABSENT.get(name, 'none')}  # default")
        else:
            plain.append(f"{name} = {_shown(name, value)}  # {_origin(here, value, sources)}")
    if plain:
        out += ["", f"[{dotted(path)}]", *plain]
    for here, each in nested:
        _show(each, here, sources, out)


def _origin(path: tuple[str, ...], value: Any, sources: Mapping[str, str]) -> str:
    source = sources.get(dotted(path))
    keys = value if isinstance(value, tuple) else (value,)
    states = [_state(each) for each in keys if isinstance(each, Key)]
    if not states:
        return source or "default"
    return f"{source or keys[0].source} ({', '.join(states)})"


def _state(key: Key) -> str:
    return f"missing: {key.missing}" if key.missing else "the caller's own" if key.source == "caller" else _STARS


def _shown(name: str, value: Any) -> str:
    match value:
        case Key():
            return _text(_STARS if value.source == "inline" else value.shown)
        case Place():
            return _text(value.source)
        case tuple() | list():
            return "[" + ", ".join(_shown(name, each) for each in value) + "]"
        case Table():
            return _shown(name, {each: getattr(value, each) for each in value.__struct_fields__})
        case dict():
            stars = dict.fromkeys(value, _STARS) if name == "headers" else value
            pairs = ", ".join(f"{dotted((key,))} = {_shown(key, each)}" for key, each in stars.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case str():
            return _text(shown_url(value) if name in ("base_url", "proxy") else value)
        case _ if name == "socket_mode":
            return f"0o{value:o}"
        case _:
            return msgspec.json.encode(value).decode()


def _text(text: str) -> str:
    """A string as TOML has it: as JSON, but for one control character that JSON lets pass."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
