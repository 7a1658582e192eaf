"""JSON bodies: what is refused and in which words, and that what passes is what was written."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, strategies as st

from sidecar.errors import BodyInvalid
from sidecar.wire import body
from sidecar.wire.body import MAX_DEPTH

NUMBERS = ["0", "-0", "1.0", "1e400", "-1E-7", "123456789012345678901234567890", "0.1000", "1.7976931348623157e309"]
TEXTS = ['"plain"', r'"A\/\n\"\\"', r'"\ud83d\ude00"', '"h\u00e9\u4e16"', '""', r'"\u0000"']
SPACES = st.sampled_from(["", " ", "\n", "\t", "\r\n "])
NAMES = st.sampled_from(["model", "stream", "x", "X", "\u00e9", "a b", "", "__proto__", "temperature", "0"])


def _list(items: list[str], spaces: list[str]) -> str:
    return "[" + ",".join(f"{space}{item}" for item, space in zip(items, spaces, strict=True)) + "]"


def _object(members: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f"{space}{json.dumps(name)}:{value}" for name, value, space in members) + "}"


def _nested(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    lists = st.lists(values, max_size=3).flatmap(
        lambda items: st.lists(SPACES, min_size=len(items), max_size=len(items)).map(lambda s: _list(items, s))
    )
    return lists | st.lists(st.tuples(NAMES, values, SPACES), max_size=3).map(_object)


VALUES = st.recursive(st.sampled_from([*NUMBERS, *TEXTS, "true", "false", "null"]), _nested, max_leaves=12)


@given(st.lists(st.tuples(NAMES, VALUES, SPACES), max_size=8))
def test_values_keep_every_byte_members_their_order_and_duplicates_the_last(
    members: list[tuple[str, str, str]],
) -> None:
    envelope = body.envelope(_object(members).encode())
    last = {name: value for name, value, _ in members}
    assert {name: bytes(raw).decode() for name, raw in envelope.items()} == last
    assert list(envelope) == list(dict.fromkeys(name for name, _, _ in members))
    rebuilt = body.rebuild(envelope)
    assert (
        rebuilt == b"{" + b",".join(orjson.dumps(name) + b":" + value.encode() for name, value in last.items()) + b"}"
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b\u00e9", "c", "d"]), st.sampled_from([0, 1, 131_070, 131_071])), max_size=5
    )
)
def test_pieces_are_what_is_rebuilt_and_long_values_are_not_copied(members: list[tuple[str, int]]) -> None:
    envelope = {name: msgspec.Raw(b'"' + b"x" * size + b'"') for name, size in members}
    pieces = body.pieces(envelope)
    assert b"".join(pieces) == body.rebuild(envelope)
    long = [value for value in envelope.values() if len(value) > body.LONG_BYTES]
    assert len(pieces) == 2 * len(long) + 1
    assert [piece.obj for piece in pieces if isinstance(piece, memoryview)] == long


def test_a_member_named_by_escapes_is_the_same_member() -> None:
    members = body.envelope(rb'{"model":"a","mod\u0065l":"b"}')
    assert body.rebuild(members) == b'{"model":"b"}'


READ = frozenset(("model", "stream", "max_tokens", "stream_options"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("MODEL", "model"),
        ("Model", "model"),
        (r"mo\u0044el", "model"),
        ("Max_Tokens", "max_tokens"),
        ("max_to\u212aens", "max_tokens"),  # the sign of kelvin
        ("\u017ftream", "stream"),  # a long s
        ("stream_opt\u0131ons", "stream_options"),  # a dotless i
        ("stream_opt\u0130ons", "stream_options"),  # a dotted one
    ],
)
def test_a_name_that_some_take_for_another_is_refused(name: str, known: str) -> None:
    members = body.envelope(b'{"%b":"a","model":"b"}' % name.encode())
    with pytest.raises(BodyInvalid) as caught:
        body.check_names(members, READ, "$.")
    (sent, _) = members
    assert caught.value.param == f"$.{sent}"
    assert f"send it as {known!r}" in caught.value.message


@pytest.mark.parametrize(
    "name", ["model", "mode", "model ", "models", "model\u0000", "m\u00f6del", "", "\u00e9", "MODELS"]
)
def test_other_names_pass(name: str) -> None:
    body.check_names({name: body.raw(1), "model": body.raw("b")}, READ)


def test_a_byte_order_mark_is_passed_over_and_not_sent_on() -> None:
    assert body.rebuild(body.envelope(b'\xef\xbb\xbf{"a":1}')) == b'{"a":1}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the body is not valid JSON: input data was truncated"),
        (b"{", "the body is not valid JSON: input data was truncated"),
        (b"[1]", "the body must be a JSON object"),
        (b"1", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b"hello", "the body is not valid JSON: invalid character (byte 0)"),
        (b'{"a":1} x', "the body is not valid JSON: trailing characters (byte 9)"),
        (b'{"a":01}', "the body is not valid JSON: invalid number (byte 6)"),
        (b'{"a":NaN}', "the body is not valid JSON: invalid character (byte 5)"),
        (b'{"a":"\n"}', "the body is not valid JSON: invalid character (byte 6)"),
        (b"{'a':1}", "the body is not valid JSON: object keys must be strings (byte 1)"),
        (b'{"a":1,}', "the body is not valid JSON: trailing comma in object (byte 7)"),
        (b'{"\xff":1}', "the body is not UTF-8: invalid start byte"),
        (b'{"a":"\xff"}', "the body is not UTF-8: invalid start byte"),
        (b'{"a":"\xed\xa0\x80"}', "the body is not UTF-8: invalid continuation byte"),
        (b'{"a":"\xc0\xaf"}', "the body is not UTF-8: invalid start byte"),
        (
            rb'{"a":"\ud83d"}',
            r"the body is not valid JSON: a string holds half of a surrogate pair (\ud800 to \udfff), which is no"
            " character",
        ),
        (rb'{"a":"\ud83d', "the body is not valid JSON: input data was truncated"),
        ('{"a":1}'.encode("utf-16"), "the body is not valid JSON: invalid character (byte 0)"),
    ],
)
def test_what_is_no_json_object(data: bytes, words: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        body.envelope(data)
    assert caught.value.message == words
    assert (caught.value.status, caught.value.code) == (400, "caller_body_invalid")


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u01ae\u00e9 ', max_size=40).map(str.encode))
def test_anything_is_an_object_or_refused(data: bytes) -> None:
    try:
        members = body.envelope(data)
    except BodyInvalid:
        return
    assert body.envelope(body.rebuild(members)) == members
    assert isinstance(json.loads(data), dict)


# -- depth


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]"), (b'{"a":[', b"]}")]
)
def test_the_bound_on_depth_is_exact(opening: bytes, closing: bytes) -> None:
    inner = MAX_DEPTH - 1  # the body itself is one
    times, rest = divmod(inner, opening.count(b"[") + opening.count(b"{"))
    fits = b'{"m":' + opening * times + b"[" * rest + b"1" + b"]" * rest + closing * times + b"}"
    assert depth_of(msgspec.json.decode(fits)) == MAX_DEPTH
    assert body.envelope(fits)
    with pytest.raises(BodyInvalid, match="the body nests deeper than 64 levels"):
        body.envelope(fits.replace(b"1", b"[1]"))


@pytest.mark.parametrize("depth", [100, 1000, 10_000, 1_000_000])
def test_what_nests_without_end_is_refused_at_once(depth: int) -> None:
    began = time.perf_counter()
    for closed in (True, False):
        with pytest.raises(BodyInvalid):
            body.envelope(b'{"a":' + b"[" * depth + (b"]" * depth + b"}" if closed else b""))
    assert time.perf_counter() - began < 0.5


def test_brackets_in_strings_do_not_count() -> None:
    text = orjson.dumps({"a": '\\"[{' * 500, '"[[[\\': ["[" * 100, "\\", '"', "{" * 100]})
    assert len(body.envelope(text)) == 2


@given(VALUES, st.integers(0, 70))
def test_depth_agrees_with_a_plain_count(value: str, more: int) -> None:
    padding = '"' + "[{" * 40 + r"\\\"" + '"'  # enough brackets for the check to be made
    text = f'{{"a":{"[" * more}{value}{"]" * more},"b":{padding}}}'.encode()
    if depth_of(json.loads(text)) <= MAX_DEPTH:
        assert body.envelope(text)
    else:
        with pytest.raises(BodyInvalid, match="deeper"):
            body.envelope(text)


def test_the_checks_are_linear() -> None:
    text = orjson.dumps({"messages": [{"role": "user", "content": 'h\u00e9 "\n\\' * 50}] * 20_000})
    began = time.perf_counter()
    body.envelope(text)
    assert time.perf_counter() - began < 1.0
    assert len(text) > 10_000_000


# -- the other depths of reading


class _Part(msgspec.Struct):
    text: str


class _Message(msgspec.Struct):
    content: list[_Part]


@pytest.mark.parametrize(
    ("member", "words", "param"),
    [
        (b'[{"content":[{"text":1}]}]', "expected `str`, got `int`", "messages[0].content[0].text"),
        (b'[{"content":[{}]}]', "object missing required field `text`", "messages[0].content[0]"),
        (b'"x"', "expected `array`, got `str`", "messages"),
        (b'[{"content":[{"text":"\xff"}]}]', "not valid JSON: ", "messages"),
    ],
)
def test_a_view_says_where_it_is_wrong(member: bytes, words: str, param: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        body.view(member, list[_Message], "messages")
    assert caught.value.message.startswith(words)
    assert caught.value.param == param


def test_a_document_is_all_of_it_or_refused() -> None:
    assert body.document(b'{"a":[1,{"b":null}]}') == {"a": [1, {"b": None}]}
    for data in (b"", b"{", b'"\xff"', b"[" * 100_000):
        with pytest.raises(BodyInvalid):
            body.document(data)


def test_our_own_values_as_members() -> None:
    assert bytes(body.raw({"a": "\u00e9"})) == '{"a":"\u00e9"}'.encode() == body.encode({"a": "\u00e9"})


def test_room_is_set_aside_by_what_has_come_of_a_body_and_not_by_what_is_declared() -> None:
    assert body.room(8 * 1_000_000, 1_000_000) is None
    room = body.room(8 * 1_000_000, 1_000_000 + 1)
    assert room is not None
    room.writelines([b"x" * (3 * 1_000_000), b"y" * (5 * 1_000_000)])
    assert room.getvalue() == b"x" * (3 * 1_000_000) + b"y" * (5 * 1_000_000)
    assert room.getvalue() is room.getvalue()  # not a copy
