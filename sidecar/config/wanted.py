"""What an option takes, in words for a person: from its type, so that no message tells other bounds than are kept."""

from __future__ import annotations

from typing import Any

from msgspec import inspect


def wanted(type_: Any) -> str:
    """`a whole number from 1 to 256`, of the type of an option."""
    return _words(inspect.type_info(type_))


def kind(value: object) -> str:
    """What stands there instead. Of a string only that it is one: it may be a key."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = str(value)
            return text if len(text) <= 40 else "a number of so many digits"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _words(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata():
            return _words(info.type)
        case inspect.UnionType():  # with null, which TOML has not
            return " or ".join(_words(each) for each in info.types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in info.values)
        case inspect.IntType():
            return f"a whole number from {info.ge} to {info.le}"
        case inspect.FloatType(ge=None):
            return f"a number over {info.gt:g} and at most {info.le:g}"
        case inspect.FloatType():
            return f"a number from {info.ge:g} to {info.le:g}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StructType():
            return "a table"
        case _:
            return "a string"
