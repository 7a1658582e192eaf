"""JSON bodies at three depths: envelope (top level, zero-copy), view (the few fields used), document (to translate).

The envelope keeps every member's value as the bytes the client wrote: order, number spelling, escapes and unknown
members survive. Duplicate members collapse to the last, so what is forwarded is always the rebuilt envelope, never the
client's bytes: a second `"model"` cannot be routed as one model and served as another. Nor can a `"MODEL"`, which some
readers take for the same (`check_names`).
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import msgspec

from sidecar.errors import BodyInvalid

Envelope = dict[str, msgspec.Raw]

_TRUSTED = 8  # times what has come of a body, at most, is set aside for it
LONG_BYTES = 128 * 1024  # a copy of more costs fresh pages of memory, which are dearer than the copying
MAX_DEPTH = 64  # nested arrays and objects; providers refuse far less, and a deeper body only serves to exhaust stacks

_envelope = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_document = msgspec.json.Decoder()
_text = msgspec.json.Decoder(str)  # decoders are made once: `msgspec.json.decode` makes one a call
_flag = msgspec.json.Decoder(bool | None)
_BOM = b"\xef\xbb\xbf"
_BRACES = bytes.maketrans(b"[]", b"{}")
_NO_BRACES = bytes(set(range(256)) - set(b'[]{}"'))
_SHORT = 16_384  # bytes, in which to count all brackets costs less than to search for more than so many of them
_MANY = 8
_DOT_ABOVE = (
    "\u0307"  # what lower-casing a dotted capital I leaves behind; upper-casing first sees to long s and dotless i
)
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of half of a surrogate pair


def envelope(body: bytes) -> Envelope:
    """The members of a JSON object, values undecoded. Raises BodyInvalid with what is wrong and where."""
    body = body.removeprefix(_BOM)  # which a reader may pass over (RFC 8259 8.1); it is not sent on
    try:
        members = _envelope.decode(body)
        if not body.isascii():
            body.decode()  # inside a Raw it passes unseen, and what a provider makes of it is not for us to guess
    except msgspec.ValidationError:
        raise BodyInvalid("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise BodyInvalid(f"the body is {_why(error, body)}") from None
    except UnicodeDecodeError as error:
        raise BodyInvalid(f"the body is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise BodyInvalid(f"the body nests deeper than {MAX_DEPTH} levels") from None
    if _may_nest(body):
        _check_depth(body)
    return members


def check_names(members: Envelope, read: frozenset[str], path: str = "") -> None:
    """Refuse a name that is one of `read` but for the case of its letters: Go's encoding/json takes it for that one.

    What we read would then not be what the provider reads. Raises BodyInvalid naming the member.
    """
    for name in members:
        if name in read or (name.islower() and name.isascii()):
            continue
        if (known := name.upper().casefold().replace(_DOT_ABOVE, "")) in read:
            raise BodyInvalid(
                f"the member {name!r} is {known!r} but for the case of its letters; send it as {known!r}, and once",
                param=path + name,
            )


def rebuild(members: Envelope) -> bytes:
    """The envelope as bytes again, each value as it was written."""
    return _encoder.encode(members)


def pieces(members: Envelope) -> list[bytes | memoryview]:
    """What `rebuild` makes, in pieces: long values are not copied but stay where they are."""
    found: list[bytes | memoryview] = []
    short = [b"{"]
    for name, value in members.items():
        if len(short) > 1 or found:
            short.append(b",")
        short += (_encoder.encode(name), b":")
        if len(value) > LONG_BYTES:
            found += (b"".join(short), memoryview(value))
            short = []
        else:
            short.append(bytes(value))
    return [*found, b"".join(short) + b"}"]


def raw(value: Any) -> msgspec.Raw:
    """A value of our own as a member of an envelope."""
    return msgspec.Raw(_encoder.encode(value))


def view(member: msgspec.Raw | bytes, type_: Any, path: str) -> Any:
    """Decode one member as `type_`. Raises BodyInvalid naming the JSON path, e.g. `$.messages[3].content`."""
    try:
        return msgspec.json.decode(member, type=type_)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        raise BodyInvalid(_first_lower(text), param=path + where.rstrip("`")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyInvalid(f"not valid JSON: {_lower(error)}", param=path) from None
    except RecursionError:  # JSON inside a string is not seen by `envelope`
        raise BodyInvalid(f"nests deeper than {MAX_DEPTH} levels", param=path) from None


def text(member: msgspec.Raw, path: str) -> str:
    """A member that is a string. Raises BodyInvalid."""
    try:
        return _text.decode(member)
    except msgspec.DecodeError:
        return str(view(member, str, path))  # raises, with the words


def flag(member: msgspec.Raw, path: str) -> bool:
    """A member that is true, false or null. Raises BodyInvalid."""
    try:
        return bool(_flag.decode(member))
    except msgspec.DecodeError:
        return bool(view(member, bool | None, path))


def document(data: bytes | msgspec.Raw) -> Any:
    """The whole value decoded, only to translate. Raises BodyInvalid."""
    try:
        return _document.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BodyInvalid(f"not valid JSON: {_lower(error)}") from None
    except RecursionError:
        raise BodyInvalid(f"the body nests deeper than {MAX_DEPTH} levels") from None


def encode(value: Any) -> bytes:
    return _encoder.encode(value)


def _may_nest(body: bytes) -> bool:
    """Are there enough brackets for it to nest too deep? Most bodies have few, and to `find` these beats `count`."""
    found, many = 0, _MANY if len(body) <= _SHORT else MAX_DEPTH
    for bracket in (b"{", b"["):
        at = body.find(bracket)
        while at >= 0:
            found += 1
            if found > many:
                found += body.count(bracket, at + 1) if many < MAX_DEPTH else 0
                break
            at = body.find(bracket, at + 1)
    return found > MAX_DEPTH


def _check_depth(body: bytes) -> None:
    """Linear in the body, and all of it in C: this runs for most requests that carry tools."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # so that every quote left opens or closes a string
    # Two quotes in a row are a string without a brace, or two with none between them: nothing goes in or out by that.
    braces = body.translate(_BRACES, _NO_BRACES).replace(b'""""""""', b"").replace(b'""', b"")  # four at a time first
    if b'"' in braces:
        braces = b"".join(braces.split(b'"')[::2])  # those outside of strings
    for _ in range(MAX_DEPTH):
        braces = braces.replace(b"{}", b"")  # takes off exactly the innermost level
    if braces:
        raise BodyInvalid(f"the body nests deeper than {MAX_DEPTH} levels")


def _why(error: msgspec.DecodeError, body: bytes) -> str:
    """What msgspec says, but for half of a surrogate pair, which it calls truncated, and for what is no text at all."""
    if "UTF-8" in str(error):  # some releases of msgspec see it, and others pass it over
        try:
            body.decode()
        except UnicodeDecodeError as undecodable:
            return f"not UTF-8: {undecodable.reason}"
    if "truncated" in str(error) and body.rstrip().endswith(b"}") and _HALF_PAIR.search(body):
        return "not valid JSON: a string holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    return f"not valid JSON: {_lower(error)}"


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _lower(error: Exception) -> str:
    return _first_lower(str(error).removeprefix("JSON is malformed: "))


def room(length: int, held: int) -> BytesIO | None:
    """Where a long body is put together, of its declared length; None as long as only an eighth of it or less is here.

    Its pieces held until the end, and then joined, would take twice as much memory.
    """
    if held <= length // _TRUSTED:  # what is only declared takes little
        return None
    room = BytesIO()
    room.seek(length - 1)
    room.write(b"\0")
    room.seek(0)
    return room
