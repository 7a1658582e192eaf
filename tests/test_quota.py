"""What providers say is left of their limits: read in each form, counted on, forgotten when all is there again."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from sidecar.quota import ANTHROPIC, CEREBRAS, OPENAI, Form, Quota, form

WALL = 1_764_547_200.0  # 2025-12-01T00:00:00Z


def openai(
    requests: str = "59", tokens: str = "149984", reset: str = "1s", again: str = "6m0s", limit: str = "60"
) -> dict[bytes, bytes]:
    return {
        b"x-ratelimit-limit-requests": limit.encode(),
        b"x-ratelimit-remaining-requests": requests.encode(),
        b"x-ratelimit-reset-requests": reset.encode(),
        b"x-ratelimit-limit-tokens": b"150000",
        b"x-ratelimit-remaining-tokens": tokens.encode(),
        b"x-ratelimit-reset-tokens": again.encode(),
    }


def heard(index: dict[bytes, bytes], of: Form = OPENAI, now: float = 100.0) -> Quota:
    quota = Quota(of)
    quota.hear(0, index, now, now, WALL)
    return quota


@pytest.mark.parametrize(
    ("kind", "dialect", "found"),
    [("openai", "chat", OPENAI), ("anthropic", "messages", ANTHROPIC), ("cerebras", "chat", CEREBRAS),
     ("anthropic", "count_tokens", ANTHROPIC), ("groq", "embeddings", OPENAI)],
)  # fmt: skip
def test_each_api_has_its_headers(kind: str, dialect: str, found: Form) -> None:
    assert form(kind, dialect) is found
    assert found.sign in (
        b"x-ratelimit-remaining-requests",
        b"anthropic-ratelimit-requests-remaining",
        b"x-ratelimit-remaining-requests-day",
    )


def test_where_plenty_is_left_nothing_is_remembered() -> None:
    quota = heard(openai("9999", "1499984"))
    assert not quota.short
    assert quota.stats(100.0) == []
    assert repr(quota) == "<Quota ample>"
    quota.hear(0, openai("999", "1499984"), 100.0, 100.0, WALL)
    assert quota.short
    quota.hear(0, openai("9999", "1499984"), 100.0, 100.1, WALL)
    assert not quota.short


def test_a_limit_with_nothing_left_is_waited_for_at_the_pace_at_which_it_fills() -> None:
    quota = heard(openai("0", reset="60s"))
    assert quota.wait(0, {"requests": 1}, 100.0) == pytest.approx(1.0)
    assert quota.wait(0, {"requests": 1}, 100.75) == pytest.approx(0.25)
    assert quota.wait(0, {"requests": 1}, 101.0) == pytest.approx(0.0)
    assert quota.wait(0, {"requests": 100}, 100.0) == pytest.approx(60.0)  # all there can be
    assert quota.wait(1, {"requests": 1}, 100.0) == 0  # another key


def test_a_request_waits_by_what_it_needs_of_tokens_and_a_smaller_one_goes() -> None:
    quota = heard(openai("59", "5000", again="58s"))  # 2500 a second
    assert quota.wait(0, {"requests": 1, "tokens": 5000}, 100.0) == 0
    assert quota.wait(0, {"requests": 1, "tokens": 7500}, 100.0) == pytest.approx(1.0)
    assert quota.stats(100.0) == [{"key": 0, "requests": 59, "tokens": 5000}]
    assert quota.stats(110.0) == [{"key": 0, "tokens": 30_000}]
    assert quota.stats(158.0) == []
    assert not quota.short


def test_what_has_been_sent_since_is_not_there() -> None:
    quota, need = heard(openai("2", "40000", reset="58s")), {"requests": 1.0, "tokens": 1000.0}
    for moment in (100.25, 100.5):
        assert quota.wait(0, need, moment) == 0
        quota.take(0, need, moment)
    assert quota.wait(0, need, 100.5) == pytest.approx(0.5)
    quota.hear(0, openai("1", "39000", reset="59s"), 100.25, 100.6, WALL)  # it does not know the second
    assert quota.stats(100.6) == [{"key": 0, "requests": 0, "tokens": 38_000}]
    quota.hear(0, openai("0", "38500", reset="60s"), 100.5, 100.7, WALL)
    assert quota.wait(0, need, 100.7) == pytest.approx(1.0)
    assert quota.stats(100.7) == [{"key": 0, "requests": 0, "tokens": 38_500}]


def test_anthropics_resets_are_dates_and_each_kind_counts_by_itself() -> None:
    index = {
        b"anthropic-ratelimit-requests-limit": b"4000",
        b"anthropic-ratelimit-requests-remaining": b"3999",
        b"anthropic-ratelimit-requests-reset": b"2025-12-01T00:00:00Z",
        b"anthropic-ratelimit-input-tokens-limit": b"60000",
        b"anthropic-ratelimit-input-tokens-remaining": b"0",
        b"anthropic-ratelimit-input-tokens-reset": b"2025-12-01T00:01:00Z",
        b"anthropic-ratelimit-output-tokens-limit": b"8000",
        b"anthropic-ratelimit-output-tokens-remaining": b"7000",
        b"anthropic-ratelimit-output-tokens-reset": b"2025-12-01T00:00:08Z",
    }
    quota = heard(index, ANTHROPIC)
    assert quota.stats(100.0) == [{"key": 0, "input": 0, "output": 7000}]
    assert quota.wait(0, {"requests": 1, "input": 2000, "output": 1}, 100.0) == pytest.approx(2.0)
    assert quota.wait(0, {"requests": 1, "input": 0, "output": 7500}, 100.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("index", "wait"),
    [
        ({b"x-ratelimit-remaining-requests": b"0"}, 1.0),  # nothing more is said
        ({b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"7s"}, 7.0),
        ({b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"48h"}, 3600.0),
        ({b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"nonsense"}, 1.0),
        ({b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-reset-requests": b"0s"}, 0.0),
        ({b"x-ratelimit-remaining-requests": b"1"}, 0.0),
        ({b"x-ratelimit-remaining-requests": b""}, 0.0),
        ({b"x-ratelimit-remaining-requests": b"-1"}, 0.0),
        ({b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-limit-requests": b"0"}, 1.0),
        ({b"x-ratelimit-remaining-requests": b"7" * 4000}, 0.0),
    ],
)  # fmt: skip
def test_what_is_not_said_or_makes_no_sense_holds_nobody_for_long(index: dict[bytes, bytes], wait: float) -> None:
    assert heard(index).wait(0, {"requests": 1}, 100.0) == pytest.approx(wait)


def test_cerebras_counts_requests_by_day_and_tokens_by_minute() -> None:
    index = {
        b"x-ratelimit-limit-requests-day": b"14400",
        b"x-ratelimit-remaining-requests-day": b"14399",
        b"x-ratelimit-reset-requests-day": b"33011.382867",
        b"x-ratelimit-limit-tokens-minute": b"60000",
        b"x-ratelimit-remaining-tokens-minute": b"10000",
        b"x-ratelimit-reset-tokens-minute": b"10.0",
    }
    quota = heard(index, CEREBRAS)
    assert quota.wait(0, {"requests": 1, "tokens": 20_000}, 100.0) == pytest.approx(2.0)


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 9)), max_size=120))
@settings(max_examples=300, deadline=None)
def test_who_goes_by_it_is_never_refused_by_a_bucket_that_fills_evenly(
    per_minute: int, acts: list[tuple[int, int]]
) -> None:
    """However late the answers come, and in whatever order; once one has come at all."""
    now, level, rate = Fraction(1000), Fraction(per_minute), Fraction(per_minute, 60)
    quota, answers, need = Quota(OPENAI), list[tuple[float, dict[bytes, bytes]]](), {"requests": 1.0}
    for milliseconds, which in acts:
        now += Fraction(milliseconds, 1000)
        level = min(Fraction(per_minute), level + Fraction(milliseconds, 1000) * rate)
        if which < 6 and answers:
            began, index = answers.pop(which % len(answers))
            quota.hear(0, index, began, float(now), WALL)
        elif quota.short and not quota.wait(0, need, float(now)):
            assert level >= 1 - Fraction(1, 1000), "refused"
            quota.take(0, need, float(now))
            level -= 1
            answers.append(
                (
                    float(now),
                    openai(str(int(level)), reset=f"{float((per_minute - level) / rate):.9f}s", limit=str(per_minute)),
                )
            )
        elif not quota.short and not answers and level >= 1:
            level -= 1
            answers.append(
                (
                    float(now),
                    openai(str(int(level)), reset=f"{float((per_minute - level) / rate):.9f}s", limit=str(per_minute)),
                )
            )
