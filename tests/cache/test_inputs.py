"""Batches of embeddings, taken apart and put together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from sidecar.cache import inputs
from sidecar.wire import body


def members(value: Any, **more: Any) -> dict[str, msgspec.Raw]:
    return body.envelope(msgspec.json.encode({"model": "m", **more, "input": value}))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a", [b'"a"']),
        (["a", "b", "a"], [b'"a"', b'"b"', b'"a"']),
        ([1, 2, 30], [b"[1,2,30]"]),
        ([[1, 2], [3]], [b"[1,2]", b"[3]"]),
        ([], None),
        ([1, "a"], None),
        ([["a"], "b"], None),
        ([{"text": "a"}], None),
        ({"a": 1}, None),
        ([-1], None),
        (None, None),
        (["a"] * 10_001, None),
    ],
)
def test_inputs_as_they_were_written(value: Any, found: list[bytes] | None) -> None:
    assert inputs.read(members(value)) == found


def test_what_is_missing_or_no_json_is_odd() -> None:
    assert inputs.read({}) is None
    assert inputs.read({"input": msgspec.Raw(b"[1,")}) is None


def test_the_key_of_an_input_is_of_all_but_the_others() -> None:
    def keys(*texts: str, scope: bytes = b"s", **more: Any) -> list[bytes]:
        asked = members([*texts], **more)
        found = inputs.read(asked)
        assert found is not None
        return [*inputs.keyed(scope, asked, found).values()]

    one, two = keys("a", "b")
    assert keys("b", "c", "b")[0] == two
    assert keys("a") == [one]
    assert keys("a", dimensions=8) != [one]
    assert keys("a", dimensions=8, user="u") == keys("a", user="u", dimensions=8)
    assert keys("a", scope=b"t") != [one]
    text, asked = members("a"), members(["a"])
    assert [*inputs.keyed(b"s", text, [b'"a"']).values()] == [*inputs.keyed(b"s", asked, [b'"a"']).values()]


def test_only_the_new_ones_and_everything_else_as_it_was() -> None:
    asked = body.envelope(b'{"model":"m","input":["a","b","c"],"dimensions":1.50}')
    assert body.rebuild(inputs.only(asked, [b'"c"', b'"a"'])) == b'{"model":"m","input":["c","a"],"dimensions":1.50}'


GOOD = (
    b'{"object":"list","id":"x","data":[{"object":"embedding","index":1,"embedding":[0.50,1e-7]},'
    b'{"index":0,"embedding":"AAAA"}],"model":"said","usage":{"prompt_tokens":7,"total_tokens":7}}'
)


def test_an_answer_in_the_order_of_its_inputs() -> None:
    found = inputs.answer(GOOD, 2)
    assert found is not None
    assert [bytes(each.embedding) for each in found.data] == [b'"AAAA"', b"[0.50,1e-7]"]
    assert (found.model, bytes(found.usage)) == ("said", b'{"prompt_tokens":7,"total_tokens":7}')


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (GOOD, 3),
        (GOOD, 1),
        (GOOD.replace(b'"index":1', b'"index":0'), 2),
        (GOOD.replace(b'"AAAA"', b"null"), 2),
        (GOOD.replace(b'"index":0,', b'"index":0,"truncated":true,'), 2),
        (GOOD[:-1], 2),
        (b"[]", 0),
        (b"\xff", 1),
    ],
)
def test_an_answer_that_is_odd(data: bytes, count: int) -> None:
    assert inputs.answer(data, count) is None


@settings(max_examples=40)
@given(st.integers(0, 10**9), st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=40))
def test_shares_are_exact_in_their_sum(tokens: int, texts: list[bytes]) -> None:
    found = inputs.shares(tokens, texts)
    assert sum(found) == tokens
    assert min(found) >= 0
    assert len(found) == len(texts)


def test_put_together() -> None:
    data = inputs.put_together([b"a", b"b", b"a"], {b"a": b"[1.0]", b"b": b'"AA"'}, 'm"', inputs.usage(5))
    assert data == (
        b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0]},'
        b'{"object":"embedding","index":1,"embedding":"AA"},{"object":"embedding","index":2,"embedding":[1.0]}],'
        b'"model":"m\\"","usage":{"prompt_tokens":5,"total_tokens":5}}'
    )
    assert b"usage" not in inputs.put_together([b"a"], {b"a": b"[]"}, "m", b"")
