"""Buckets by amounts against a leaky bucket in exact arithmetic, and guesses at tokens by bytes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from sidecar import rates
from sidecar.rates import KINDS, ROUNDING, Bucket

PER_MINUTE = 60 * 64  # an interval of 1/64 s, and times of 1/1024 s: floats are exact then


def bucket(per_minute: int = PER_MINUTE) -> Bucket:
    return Bucket(*KINDS[0], per_minute)


class Leaky:
    """The definition: a level in tokens that falls evenly, and never below nothing."""

    def __init__(self, per_minute: int, now: Fraction) -> None:
        self.rate = Fraction(per_minute, 60)
        self.most = per_minute
        self.level = Fraction(0)
        self.now = now
        self.empty = 0  # times that something was taken while nothing was in it

    def at(self, now: Fraction) -> None:
        self.level = max(Fraction(0), self.level - (now - self.now) * self.rate)
        self.now = now

    def wait(self, tokens: int) -> Fraction:
        return (self.level + min(tokens, self.most) - self.most) / self.rate

    def take(self, tokens: int) -> int:
        self.empty += not self.level
        self.level += tokens
        return self.empty

    def settle(self, reserved: int, used: int, empty: int) -> None:
        if used >= reserved:
            self.take(used - reserved)
        elif empty == self.empty:
            self.level = max(Fraction(0), self.level + used - reserved)


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "settle"]),
        st.integers(0, 8 * 1024),  # 1/1024 s that pass
        st.integers(0, 2 * PER_MINUTE),  # tokens
        st.integers(0, 20),  # which
    ),
    max_size=60,
)


@given(ACTS)
@settings(max_examples=300, deadline=None)
def test_reserving_and_settling_is_as_a_leaky_bucket_has_it(acts: list[tuple[str, int, int, int]]) -> None:
    now = Fraction(5000)
    ours, model = bucket(), Leaky(PER_MINUTE, now)
    held: list[tuple[int, float, int]] = []  # tokens, when, and how often the bucket had been empty
    for act, passed, tokens, which in acts:
        now += Fraction(passed, 1024)
        model.at(now)
        moment = float(now)
        if act == "take":
            reserved = min(tokens, PER_MINUTE)
            amounts, early, name = rates.look((ours,), tokens, 0, moment)
            assert amounts == [reserved * ours.per_input]
            assert early == max(float(model.wait(tokens)), ROUNDING)
            assert name == ("tokens_per_minute" if early > ROUNDING else "")
            if not name:
                rates.take((ours,), amounts, moment)
                held.append((reserved, moment, model.take(reserved)))
        elif held:
            reserved, began, empty = held.pop(which % len(held))
            used = tokens if which % 3 == 0 else min(tokens, reserved)
            model.settle(reserved, used, empty)
            ours.settle(reserved * ours.per_input, used * ours.per_output, began, moment)
        left = ours.left(moment)
        assert left.reset == float(model.level / model.rate)
        assert left.remaining == max(0, PER_MINUTE - -(-model.level.numerator // model.level.denominator))
        assert 0 <= left.remaining <= left.limit == PER_MINUTE


@given(
    st.integers(1, 10**9),
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0, 90), st.integers(0, 10**10), st.integers(0, 10**10)), max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_settled_never_is_more_there_than_all_or_less_used_than_nothing(
    per_minute: int, now: float, acts: list[tuple[float, int, int]]
) -> None:
    ours = bucket(per_minute)
    for passed, reserved, used in acts:
        began, now = now, now + passed
        amounts, _, name = rates.look((ours,), reserved, 0, began)
        if not name:
            rates.take((ours,), amounts, began)
            ours.settle(amounts[0], used * ours.per_input, began, now)
        left = ours.left(now)
        assert 0 <= left.remaining <= per_minute
        if used == 0 and left.reset == 0:
            assert left.remaining == per_minute


def test_what_has_leaked_of_a_reservation_is_not_given_back() -> None:
    ours = bucket()
    rates.take((ours,), (60.0,), 1000.0)
    rates.take((ours,), (60.0,), 1060.0)  # the first has leaked, and is not known any more
    ours.settle(60.0, 0.0, 1000.0, 1060.0)
    assert ours.left(1060.0).remaining == 0
    ours.settle(60.0, 1.0, 1060.0, 1060.0)
    assert ours.left(1060.0).remaining == PER_MINUTE - 64


def test_what_was_not_foreseen_is_taken_later_and_waited_for() -> None:
    ours = bucket()
    rates.take((ours,), (1.0,), 1000.0)
    ours.settle(1.0, 90.0, 1000.0, 1000.0)
    assert ours.left(1000.0) == ("tokens_per_minute", PER_MINUTE, 0, 90.0)
    assert rates.look((ours,), 64, 0, 1000.0) == ([1.0], 31.0, "tokens_per_minute")


def test_each_kind_counts_what_it_is_called_by() -> None:
    made = rates.buckets((60, 60, 60), ())
    assert [(each.name, each.per_input, each.per_output) for each in made] == [
        ("tokens_per_minute", 1, 1),
        ("input_tokens_per_minute", 1, 0),
        ("output_tokens_per_minute", 0, 1),
    ]
    assert rates.buckets((None, None, None), made) == ()


def test_another_bound_keeps_what_has_been_used() -> None:
    (first,) = rates.buckets((None, 60, None), ())
    rates.take((first,), (30.0,), 0.0)
    (again,) = rates.buckets((None, 120, None), (first,))
    assert again is first
    assert again.left(0.0) == ("input_tokens_per_minute", 120, 60, 30.0)
    assert repr(again) == "<Bucket input_tokens_per_minute 120>"


# -- guesses


@pytest.mark.parametrize(
    ("members", "tokens"),
    [
        ([], 0),
        ([b"x" * 400], 100),
        ([b"word " * 80, b'"gpt"'], 101),
        ([b"word " * 80_000], 100_000),
        (["語".encode() * 40_000], 30_000),  # no space, but no base64 either
        ([b'{"a":1},' * 40_000], 80_000),
        ([b"x" * 8191], 2047),  # too little to be looked into
        ([b"A" * 4096 * 100], 800),  # base64
        ([b'[{"url":"data:image/png;base64,' + b"A" * 4096 * 100 + b'"}]'], 1824),  # but for its ends
    ],
)
def test_a_token_is_guessed_for_four_bytes_and_of_base64_for_512(members: list[bytes], tokens: int) -> None:
    assert rates.input_tokens(members) == tokens


def test_an_answer_is_guessed_to_be_all_that_is_allowed_or_the_usual() -> None:
    assert rates.output_tokens(500, 1, 7.9) == 500
    assert rates.output_tokens(500, 3, 7.9) == 1500
    assert rates.output_tokens(None, 2, 7.9) == 14
    assert rates.output_tokens(-5, 1, 7.9) == rates.output_tokens(0, 1, 7.9) == 0
    assert rates.output_tokens(10**400, 1, 7.9) == 1 << 40


def test_the_usual_is_the_mean_of_what_came_of_late() -> None:
    mean = 1024.0
    for seen, output in enumerate((100, 200, 300), 1):
        mean = rates.usual(mean, output, seen)
    assert mean == pytest.approx(200.0)
    for seen in range(4, 400):
        mean = rates.usual(mean, 50, seen)
    assert mean == pytest.approx(50.0, abs=0.1)
