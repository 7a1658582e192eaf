"""Embeddings, an input each: what of a batch is new, and the answer put together again. Pure.

Only for requests and answers of OpenAI's shape; what is odd in any way is left to go through as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from sidecar.types import Envelope
from sidecar.wire import body

_MOST: Final = 10_000  # inputs; providers take 2048 or fewer
_DIGITS: Final = frozenset(b"%d" % digit for digit in range(10))
_list = msgspec.json.Decoder(list[msgspec.Raw])


class Datum(msgspec.Struct, forbid_unknown_fields=True):
    embedding: msgspec.Raw
    index: int
    object: str = ""


class Answer(msgspec.Struct):
    """Of the provider. `data` is in the order of the inputs."""

    data: list[Datum]
    model: str = ""
    usage: msgspec.Raw = msgspec.Raw(b"")


_answer = msgspec.json.Decoder(Answer)


def read(members: Envelope) -> list[bytes] | None:
    """The inputs of a request, each as it was written: texts, or token arrays. None: it is odd."""
    raw = bytes(members.get("input", b""))
    if raw[:1] == b'"':
        return [raw]
    if raw[:1] != b"[":
        return None
    try:
        found = [bytes(each) for each in _list.decode(raw)]
    except msgspec.DecodeError:
        return None
    firsts = {each[:1] for each in found}
    if firsts and firsts <= _DIGITS:
        return [raw]  # the tokens of one
    return found if firsts in ({b'"'}, {b"["}) and len(found) <= _MOST else None


def keyed(scope: bytes, members: Envelope, inputs: Iterable[bytes]) -> dict[bytes, bytes]:
    """The key of each input: of all but the others. The same input again is the same."""
    rest = {name: raw for name, raw in members.items() if name != "input"}
    within = hashlib.sha256(b"input" + scope + body.rebuild(dict(sorted(rest.items())))).digest()
    return {each: hashlib.sha256(within + each).digest() for each in inputs}


def only(members: Envelope, new: Iterable[bytes]) -> Envelope:
    """The request for some of its inputs, everything else as it was."""
    return {**members, "input": msgspec.Raw(b"[" + b",".join(new) + b"]")}


def answer(data: bytes, count: int) -> Answer | None:
    """A provider's answer to so many inputs; None where it is not of the shape."""
    try:
        found = _answer.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found.data.sort(key=_index)
    if [each.index for each in found.data] != list(range(count)):
        return None
    return found if all(bytes(each.embedding)[:1] in (b"[", b'"') for each in found.data) else None


def shares(tokens: int, inputs: Sequence[bytes]) -> list[int]:
    """What each input has of a batch's tokens, which are told for all together: by its length; exact in their sum."""
    whole, done, given = sum(map(len, inputs)) or 1, 0, 0
    out = []
    for each in inputs:
        done += len(each)
        out.append(tokens * done // whole - given)
        given += out[-1]
    return out


def put_together(inputs: Iterable[bytes], known: Mapping[bytes, bytes], model: str, usage: bytes) -> bytes:
    """The answer to all of the inputs, by what is known of each. `usage`: JSON; nothing where a provider tells none."""
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, known[each]) for index, each in enumerate(inputs)
    )
    tail = b',"usage":%b' % usage if usage else b""
    return b'{"object":"list","data":[%b],"model":%b%b}' % (data, body.encode(model), tail)


def usage(tokens: int) -> bytes:
    """As OpenAI tells it."""
    return b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)


def _index(datum: Datum) -> int:
    return datum.index
