"""The benchmark of idle streams: who has which number, and what is counted."""

from __future__ import annotations

import pytest

from benchmarks import bench_idle
from benchmarks.bench_stream import body

FOUND = {"open": 10, "got their event": 10, "ended": 10, "accounted": 10, "KB/stream": 20.0}


@pytest.mark.parametrize(("descriptors", "alike"), [(1_000_000, 0), (20_064, 0), (20_062, 3), (20_000, 65)])
def test_streams_are_alike_only_where_descriptors_are_too_few(descriptors: int, alike: int) -> None:
    numbers = bench_idle.numbers(10_000, descriptors)
    assert len(numbers) == 10_000
    assert numbers.count(0) == alike
    upward = len(set(numbers))  # those that are alike share one
    assert upward == 10_000 - max(alike - 1, 0)
    assert len(numbers) + upward + bench_idle.SPARE <= descriptors


def test_requests_of_one_number_are_one_request() -> None:
    first, second = (bench_idle.request(number, alike=False) for number in (7, 10**9))
    assert len(first) == len(second)
    assert b"stream 7 " in first
    assert b'"model":"openai/sim-large"' in first
    assert bench_idle.request(0, alike=True) == bench_idle.request(0, alike=True)
    assert b'"model":"alike"' in bench_idle.request(0, alike=True)


def test_what_a_stream_says_is_its_own() -> None:
    pieces = [bench_idle.said(what, 7) for what in bench_idle.SAID]
    assert all(b" of 7" in piece and b" of 8" not in piece for piece in pieces)
    assert [piece.count(b"data: ") for piece in pieces] == [1, 1, 2]
    assert body(bench_idle.HEAD + b"".join(map(bench_idle.chunk, pieces)) + b"0\r\n\r\n") == b"".join(pieces)


@pytest.mark.parametrize("name", ["open", "got their event", "ended", "accounted"])
def test_one_stream_too_few_or_too_many_fails(name: str) -> None:
    assert all(bench_idle.checks(FOUND, 10).values())
    for wrong in (9, 11):
        assert list(bench_idle.checks({**FOUND, name: wrong}, 10).values()).count(False) == 1


def test_more_memory_than_the_bar_fails() -> None:
    assert not all(bench_idle.checks({**FOUND, "KB/stream": 25.1}, 10).values())
