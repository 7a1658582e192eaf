"""What the names of an answer's headers tell, before their values are looked at."""

from __future__ import annotations

from hypothesis import given, strategies as st

from sidecar.wire import headers as rules, shapes
from sidecar.wire.heads import head_lines
from sidecar.wire.shapes import SHAPES

NAMES = st.sampled_from(
    [
        *(b"Content-Type", b"content-length", b"X-Request-Id", b"request-id", b"Server", b"date", b"set-cookie"),
        *(b"x-a%b", b"X-Sidecar-Cost", b"content-encoding", b"openai-version", b"alt-svc", b"x-a%%s"),
    ]
)


@given(st.lists(st.tuples(NAMES, st.binary(min_size=1).filter(lambda value: not set(value) & set(b"\r\n\0")))))
def test_the_lines_that_go_on_are_those_that_the_rules_let_pass(pairs: list[tuple[bytes, bytes]]) -> None:
    names, values = tuple(zip(*pairs, strict=True)) or ((), ())
    headers = [(name.lower(), value) for name, value in pairs]
    shape = SHAPES[names]
    assert shape.lines(values) == head_lines(rules.downward(headers, dict(headers)))
    for name, at in ((b"content-length", shape.length), (b"content-type", shape.kind)):
        assert (None if at < 0 else values[at]) == dict(headers).get(name)


def test_where_a_length_stands_twice_no_short_cut_is_taken() -> None:
    assert not SHAPES[b"Content-Length", b"content-length"].usual
    assert SHAPES[b"Content-Length",].usual


def test_nor_where_framing_has_to_be_read_or_there_is_no_length() -> None:
    for name in (b"Connection", b"Transfer-Encoding", b"Upgrade"):
        assert not SHAPES[b"content-length", name].usual
    assert not SHAPES[b"content-type",].usual


def test_of_two_ids_the_one_is_found_that_the_client_is_told() -> None:
    for names, at, both, same in (
        ((b"x-request-id", b"request-id"), 0, True, True),
        ((b"request-id", b"x-request-id"), 1, True, True),
        ((b"request-id",), 0, False, False),
        ((b"a", b"x-request-id"), 1, False, True),
        ((b"a",), -1, False, False),
    ):
        shape = SHAPES[names]
        assert (shape.request_id, shape.both_ids, shape.same_id) == (at, both, same)


def test_as_many_orders_are_kept_as_there_is_room_for() -> None:
    kept = shapes.Shapes()
    for number in range(3000):
        assert kept[b"x-%d" % number,].names == (b"x-%d" % number,)
        assert len(kept) <= 1024
