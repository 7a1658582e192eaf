"""Places of keys: the locator finds exactly what tomllib reads, wherever it stands, in linear time."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.config.locate import Locator, Path, masked

names = st.sampled_from(["a", "b-c", "9", "x_y", '"q.u"', "'l #'", '"e\\"x\\u0041"', '""', "true"])
keys = st.lists(names, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from([".", " . "]).map(lambda dot: dot.join(parts))
)
scalars = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        "1979-05-27T07:32:00Z",
        "1979-05-27 07:32:00",
        '"a#b"',
        "'x]'",
        '"\\\\"',
        "''",
        "0o17",
        '"""m\nl "" \\" """',
        "'''z\n''q'''",
        '""""x"""""',
        '"""a\\\n  b"""',
    ]
)
gaps = st.sampled_from(["", " ", "\n", " # ] } c\n"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.tuples(gaps, st.lists(inner, max_size=3), gaps).map(
            lambda parts: f"[{parts[0]}{(',' + parts[2]).join(parts[1])}{parts[0]}]"
        ),
        st.lists(st.tuples(keys, inner).map(" = ".join), max_size=3).map(lambda pairs: "{ " + ", ".join(pairs) + " }"),
    ),
    max_leaves=6,
)
lines = st.one_of(
    keys.map("[{}]".format),
    keys.map("[[ {} ]] # c".format),
    st.tuples(keys, st.sampled_from(["=", " = "]), values, st.sampled_from(["", " # c", "\t"])).map("".join),
    st.sampled_from(["", "# [c]", " \t"]),
)
texts = st.tuples(st.lists(lines, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"])).map(
    lambda parts: parts[1].join(parts[0])
)


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from paths(each, (*path, name))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from paths(each, (*path, index))


@given(texts)
@settings(max_examples=400, deadline=None)
def test_it_finds_what_tomllib_reads(text: str) -> None:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(Locator(text).places) == set(paths(value))


TEXT = """\
# first
[a."b c"]
x = 1  # not this
y = [
  "one", 'two',
]
[[many]]
k = { i = 1, j = "s" }
[[many]]
"""


@pytest.mark.parametrize(
    ("path", "position"),
    [
        (("a",), (2, 2)),
        (("a", "b c"), (2, 4)),
        (("a", "b c", "x"), (3, 1)),
        (("a", "b c", "y", 1), (5, 10)),
        (("many", 0, "k", "j"), (8, 14)),
        (("many", 1), (9, 3)),
        (("many", 1, "absent"), (9, 3)),
        (("absent", "x"), (1, 1)),
    ],
)
def test_positions_count_from_one(path: Path, position: tuple[int, int]) -> None:
    assert Locator(TEXT).position(path) == position


def test_a_line_is_shown_without_its_comment_and_with_stars() -> None:
    locator = Locator(TEXT)
    assert locator.line(3, lambda *_: True) == "x = 1"
    assert locator.line(5, lambda path, _: path[-1] != 1) == "  \"one\", '***',"
    assert locator.line(8, lambda path, _: path[-1] != "j") == 'k = { i = 1, j = "*" }'
    assert locator.line(99, lambda *_: True) == ""


def test_a_value_of_several_lines_is_hidden_on_each() -> None:
    locator = Locator('k = """\nsk-one\nsk-two"""\n')
    assert [locator.line(number, lambda *_: False) for number in (1, 2, 3)] == ['k = """', "******", '******"""']


def test_a_value_as_it_is_written() -> None:
    assert Locator("a = 0o17 # c\n").literal(("a",)).strip() == "0o17"
    assert Locator("a = [1]\n").literal(("a",)) == ""


def test_of_what_is_no_toml_only_known_words_are_shown() -> None:
    assert masked('api_key = sk-one "caller" # sk-two', frozenset({"api_key"})) == 'api_key = ****** "******" # ******'


@pytest.mark.parametrize(
    "text",
    [
        "a = [" + "1," * 100_000 + "]",
        "a = [" + "#\n" * 100_000 + "]",
        'a = """' + '""\n' * 100_000 + '"""',
        'a = "' + '\\"' * 100_000 + '"',
        "[[a]]\n" * 50_000,
        "a = 1 " + " " * 200_000,
    ],
)
def test_long_texts_take_no_longer_than_their_length(text: str) -> None:
    assert Locator(text).position(("a",))[0] >= 1  # quadratic time would not end within the test's deadline
