"""What is left, told in each API's own headers: exact lines, and read back by our own reader of resets."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sidecar import allowance
from sidecar.rates import Left
from sidecar.retry import seconds

WALL = 1_764_547_200.0  # 2025-12-01T00:00:00Z
REQUESTS = Left("requests_per_minute", 60, 59, 1.0)
TOKENS = Left("tokens_per_minute", 150_000, 149_984, 0.0064)
INPUT = Left("input_tokens_per_minute", 30_000, 12_000, 36.0)
OUTPUT = Left("output_tokens_per_minute", 8000, 7999, 0.0075)


def test_openais_six() -> None:
    assert allowance.lines([REQUESTS, TOKENS], "chat", WALL).decode() == (
        "x-ratelimit-limit-requests: 60\r\n"
        "x-ratelimit-remaining-requests: 59\r\n"
        "x-ratelimit-reset-requests: 1s\r\n"
        "x-ratelimit-limit-tokens: 150000\r\n"
        "x-ratelimit-remaining-tokens: 149984\r\n"
        "x-ratelimit-reset-tokens: 7ms\r\n"
    )


def test_anthropics_twelve() -> None:
    assert allowance.lines([REQUESTS, TOKENS, INPUT, OUTPUT], "messages", WALL).decode() == (
        "anthropic-ratelimit-requests-limit: 60\r\n"
        "anthropic-ratelimit-requests-remaining: 59\r\n"
        "anthropic-ratelimit-requests-reset: 2025-12-01T00:00:01Z\r\n"
        "anthropic-ratelimit-tokens-limit: 8000\r\n"  # the one that is nearest to its end
        "anthropic-ratelimit-tokens-remaining: 7999\r\n"
        "anthropic-ratelimit-tokens-reset: 2025-12-01T00:00:01Z\r\n"
        "anthropic-ratelimit-input-tokens-limit: 30000\r\n"
        "anthropic-ratelimit-input-tokens-remaining: 12000\r\n"
        "anthropic-ratelimit-input-tokens-reset: 2025-12-01T00:00:36Z\r\n"
        "anthropic-ratelimit-output-tokens-limit: 8000\r\n"
        "anthropic-ratelimit-output-tokens-remaining: 7999\r\n"
        "anthropic-ratelimit-output-tokens-reset: 2025-12-01T00:00:01Z\r\n"
    )


@pytest.mark.parametrize("dialect", ["chat", "completions", "embeddings", "responses"])
def test_openai_has_one_name_for_tokens_which_tells_the_least(dialect: str) -> None:
    told = allowance.lines([INPUT, OUTPUT], dialect, WALL)
    assert told.startswith(b"x-ratelimit-limit-tokens: 8000\r\nx-ratelimit-remaining-tokens: 7999\r\n")
    assert told.count(b"\r\n") == 3


def test_of_two_limits_of_a_kind_the_nearer_to_its_end_is_told() -> None:
    told = allowance.lines([REQUESTS, REQUESTS._replace(limit=900, remaining=3)], "chat", WALL)
    assert b"limit-requests: 900\r\nx-ratelimit-remaining-requests: 3\r\n" in told
    assert allowance.lines([], "chat", WALL) == allowance.lines([], "messages", WALL) == b""


def test_a_providers_own_are_left_out() -> None:
    kept = [(b"x-request-id", b"1"), (b"x-ratelimitless", b"2")]
    theirs = [
        (b"x-ratelimit-remaining-tokens", b"1"),
        (b"anthropic-ratelimit-requests-limit", b"1"),
        (b"ratelimit-policy", b"1"),
        (b"ratelimit", b"1"),
    ]
    assert allowance.without_theirs([*kept, *theirs]) == kept


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0s"), (1e-9, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (0.9991, "1s"), (1.0, "1s"), (1.5, "1.5s"),
        (59.9999, "1m0s"), (360.0, "6m0s"), (3600.0, "1h0m0s"), (3723.5, "1h2m3.5s"), (86_400.0, "24h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_as_go_writes_them(value: float, text: str) -> None:
    assert allowance.duration(value) == text


@given(st.floats(0, 86_399))
def test_a_duration_is_read_back_as_it_was_but_for_less_than_a_millisecond_more(value: float) -> None:
    again = seconds(allowance.duration(value).encode(), WALL)
    assert again is not None
    assert -1e-6 <= again - value <= 0.001 + 1e-6
