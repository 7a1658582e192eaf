"""What may be cached, and by which key: nothing that an answer depends on is left out of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from sidecar import routing
from sidecar.cache import fit
from sidecar.config import Model, Target as Said
from sidecar.types import Headers, Target
from sidecar.wire import body
from tests.exchange import stage


def members(**of: Any) -> dict[str, msgspec.Raw]:
    return body.envelope(msgspec.json.encode({"model": "m", **of}))


def targets(*said: Said) -> tuple[Target, ...]:
    config = stage.config(models={"one": Model(targets=said or (Said(to="lab/m"),))})
    return routing.find(routing.build(config), "one", "chat").targets


HOT = Said(to="lab/m", params={"temperature": 1.5})
COLD = Said(to="lab/n", params={"temperature": 0})


@pytest.mark.parametrize(
    ("dialect", "asked", "most", "said", "why"),
    [
        ("chat", {}, 2.0, (), ""),
        ("completions", {}, 2.0, (), ""),
        ("responses", {}, 2.0, (), ""),
        ("messages", {}, 2.0, (), ""),
        ("embeddings", {}, 0.0, (), ""),
        ("count_tokens", {}, 2.0, (), "dialect"),
        ("chat", {}, 0.9, (), "temperature"),
        ("chat", {}, 1.0, (), ""),
        ("chat", {"temperature": None}, 0.9, (), "temperature"),
        ("chat", {"temperature": 0.9}, 0.9, (), ""),
        ("chat", {"temperature": 0.91}, 0.9, (), "temperature"),
        ("chat", {"temperature": "0"}, 0.9, (), "temperature"),
        ("chat", {"temperature": "hot"}, 2.0, (), ""),
        ("chat", {"temperature": 0}, 1.0, (HOT,), "temperature"),
        ("chat", {}, 0.0, (COLD,), ""),
        ("chat", {"temperature": 1}, 1.4, (COLD, HOT), "temperature"),
        ("chat", {"temperature": 0}, 1.0, (COLD, Said(to="lab/k")), ""),
        ("chat", {"temperature": 1.1}, 1.0, (COLD, Said(to="lab/k")), "temperature"),
        ("chat", {"store": True}, 2.0, (), "stateful"),
        ("chat", {"store": False}, 2.0, (), ""),
        ("responses", {"background": True}, 2.0, (), "stateful"),
        ("responses", {"conversation": "c"}, 2.0, (), "stateful"),
        ("responses", {"conversation": None, "previous_response_id": "r"}, 2.0, (), ""),
    ],
)
def test_what_fits(dialect: str, asked: dict[str, Any], most: float, said: tuple[Said, ...], why: str) -> None:
    assert fit.unfit(dialect, members(**asked), most, targets(*said)) == why
    assert not why or why in fit.REASONS


def test_the_order_of_members_is_no_difference_and_their_spelling_is_one() -> None:
    def key(data: bytes, within: bytes = b"w") -> bytes:
        return fit.key(within, body.envelope(data), long=False)

    one = key(b'{"model":"m","n":1,"messages":[]}')
    assert key(b' {"messages" : [],"model":"m", "n":1}') == one
    for other in (
        b'{"model":"m","n":1.0,"messages":[]}',
        b'{"model":"m","n":1,"messages":[ ]}',
        b'{"model":"m","n":1,"messages":[],"x":null}',
        b'{"model":"M","n":1,"messages":[]}',
        b'{"model":"m","n":1,"messages":[],"stream":true}',
    ):
        assert key(other) != one
    assert key(b'{"model":"m","n":1,"messages":[]}', b"x") != one
    assert len(one) == 32


json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(st.text(max_size=4), json, max_size=5)


@settings(max_examples=40)
@given(bodies, bodies, st.booleans())
def test_two_requests_have_one_key_only_if_they_are_one(one: dict[str, Any], other: dict[str, Any], long: bool) -> None:
    def key(asked: dict[str, Any]) -> bytes:
        return fit.key(b"w", body.envelope(msgspec.json.encode(asked)), long=long)

    same = {name: msgspec.json.encode(value) for name, value in one.items()} == {
        name: msgspec.json.encode(value) for name, value in other.items()
    }
    assert (key(one) == key(other)) == same


def test_long_requests_are_told_apart_in_the_same_way() -> None:
    def key(within: bytes, **asked: str) -> bytes:
        return fit.key(within, members(**asked), long=True)

    text = "x" * 200_000
    one = key(b"w", a=text, b="y")
    assert key(b"w", b="y", a=text) == one
    others = {key(b"w", a=text, b="z"), key(b"w", b=text, a="y"), key(b"w", a=f"{text}y", b=""), key(b"w", a=text)}
    assert len(others | {one, key(b"v", a=text, b="y"), fit.key(b"w", members(a=text, b="y"), long=False)}) == 7


HEADERS: Headers = [(b"anthropic-beta", b"a"), (b"x-own", b"1")]


@pytest.mark.parametrize(
    ("parts", "headers", "said"),
    [
        (("web", "chat"), HEADERS, (Said(to="lab/m", params={"top_p": 1}),)),
        (("web", "chat"), HEADERS, (Said(to="lab/n"),)),
        (("web", "chat"), HEADERS, (Said(to="lab/m"), Said(to="lab/n"))),
        (("web", "messages"), HEADERS, ()),
        (("api", "chat"), HEADERS, ()),
        (("web", "chat"), HEADERS[:1], ()),
        (("web", "chat"), [(b"anthropic-beta", b"b"), HEADERS[1]], ()),
    ],
)
def test_what_makes_another_scope(parts: tuple[str, ...], headers: Headers, said: tuple[Said, ...]) -> None:
    assert fit.scope(parts, headers, targets(*said)) != fit.scope(("web", "chat"), HEADERS, targets())


def test_headers_that_say_nothing_of_the_answer_are_no_difference() -> None:
    silent = [(b"user-agent", b"curl"), (b"accept", b"*/*"), (b"x-stainless-os", b"L"), (b"traceparent", b"00-1")]
    one = fit.scope(("web",), HEADERS, targets())
    assert fit.scope(("web",), [*silent, *reversed(HEADERS)], targets()) == one


@pytest.mark.parametrize(
    ("headers", "data", "stream", "why"),
    [
        ([], b'{"a":1}', False, ""),
        ([(b"content-encoding", b"identity")], b' {"a":1} ', False, ""),
        ([(b"content-encoding", b"gzip")], b'{"a":1}', False, "encoded"),
        ([], b'{"a":1', False, "odd"),
        ([], b'{"a":1}{', False, "odd"),
        ([], b"[1]", False, "odd"),
        ([], b"<html>", False, "odd"),
        ([], b"", False, "odd"),
        ([], b"data: x\n\n", True, ""),
        ([], b'{"finish_reason":"length"}', False, ""),
        ([], b'{"finish_reason": "content_filter"}', False, "filtered"),
        ([], b'data: {"stop_reason":"refusal"}\n\n', True, "filtered"),
        ([], b'{"incomplete_details":{"reason":"content_filter"}}', False, "filtered"),
        ([], b'{"incomplete_details":{"reason":"max_output_tokens"}}', False, ""),
        ([], b'{"content":"\\"finish_reason\\":\\"content_filter\\""}', False, ""),
        ([], b'{"content_filter_results":{"hate":{"filtered":false}}}', False, ""),
    ],
)
def test_what_is_kept(headers: Headers, data: bytes, stream: bool, why: str) -> None:
    assert fit.unkept(headers, data, stream=stream) == why
    assert not why or why in fit.REASONS


def test_what_lasts_of_a_head() -> None:
    ours = [(b"content-type", b"application/json"), (b"openai-version", b"1"), (b"x-own", b"2")]
    passing = [(b"x-request-id", b"r"), (b"x-ratelimit-remaining-tokens", b"3"), (b"cf-ray", b"4"), (b"age", b"5")]
    assert fit.lasting([*passing, *ours, (b"anthropic-ratelimit-requests-limit", b"6")]) == ours
