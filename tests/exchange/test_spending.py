"""What a request is guessed to come to, and what an exchange came to: by the count, else by what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from sidecar.app import ENDPOINTS, Sidecar
from sidecar.dialects import DIALECTS
from sidecar.dialects.neutral import Fault
from sidecar.exchange import spending
from sidecar.exchange.spending import Paying, Used
from sidecar.exchange.state import Exchange
from sidecar.limits import Counter, Limits, Reservation
from sidecar.quota import ANTHROPIC, OPENAI
from sidecar.rates import Guess
from sidecar.types import Usage, View
from tests.exchange import stage

COUNTED = Usage(input=30, output=20)
WORDS = b'[{"role":"user","content":"%b"}]' % (b"word " * 81)
WORDS += b" " * (-len(WORDS) % 4)  # what else there is in a request is less than a token
INPUT = len(WORDS) // 4


def exchange(path: str = "/v1/chat/completions", **members: Any) -> Exchange:
    made = stage.exchange(Sidecar(stage.config()))
    made.endpoint = ENDPOINTS[path]
    made.dialect = DIALECTS[made.endpoint.dialect]
    made.members = {
        "messages": msgspec.Raw(WORDS),
        **{k: msgspec.Raw(msgspec.json.encode(v)) for k, v in members.items()},
    }
    made.view = View(model="m", max_tokens=members.get("max_tokens"))
    return made


@dataclass
class Head:
    """As much of an answer as is looked at."""

    status: int = 200


@dataclass
class Measured:
    """A meter that has seen this much."""

    usage: Usage | None = None
    ended: bool = False
    closed: bool = False
    fault: Fault | None = None


def test_a_guess_is_by_the_whole_body_and_made_once() -> None:
    made = exchange(max_tokens=50, n=2)
    assert spending.guess(made) == Guess(INPUT, 50, 2)
    made.members["messages"] = msgspec.Raw(b"[]")
    assert spending.guess(made).input == INPUT
    assert spending.guess(made).whole(7.0) == (INPUT, 100)
    assert spending.guess(exchange(n=3)).whole(7.9) == (INPUT, 21)


def test_what_answers_nothing_in_words_comes_to_no_output_and_counting_to_nothing() -> None:
    assert spending.guess(exchange("/v1/embeddings")) == Guess(INPUT, 0, 1)
    assert spending.guess(exchange("/v1/messages/count_tokens")) == Guess(0, 0, 1)


def used_by(
    made: Exchange, *, head: Head | None = None, meter: Measured | None = None, sent: int = 0, **attempt: Any
) -> Used:
    tried = stage.attempt(made)
    tried.inbound = head  # type: ignore[assignment]
    tried.meter = meter  # type: ignore[assignment]
    for name, value in attempt.items():
        setattr(tried, name, value)
    made.attempt = tried
    made.outcome.bytes_sent = sent
    return spending.used(made)


FAULT = Fault(status=500, message="no")
ROWS: list[tuple[dict[str, Any], Used]] = [
    ({}, Used()),  # nobody answered
    ({"left": True}, Used(INPUT)),
    ({"head": Head(), "usage": COUNTED, "whole": True}, Used(30, 20, True)),
    ({"head": Head(429)}, Used()),
    ({"head": Head(), "fault": FAULT, "whole": True}, Used()),
    ({"head": Head(), "fault": FAULT, "usage": COUNTED}, Used(30, 20)),  # it says itself what it came to
    ({"head": Head(), "plain": b"x" * 44, "whole": True}, Used(INPUT, 11)),
    ({"head": Head(), "plain": b"x" * 4400, "whole": True}, Used(INPUT, 50)),  # no more than was allowed
    ({"head": Head(), "meter": Measured(COUNTED, ended=True)}, Used(30, 20, True)),
    ({"head": Head(), "meter": Measured(COUNTED, closed=True)}, Used(30, 20, True)),
    ({"head": Head(), "meter": Measured(COUNTED, ended=True, fault=FAULT)}, Used(30, 20)),
    ({"head": Head(), "meter": Measured(), "way": object(), "sent": 1300}, Used(INPUT, 10)),
    ({"head": Head(), "meter": Measured(), "sent": 120}, Used(INPUT, 30)),  # a long body that broke off
    ({"head": Head(), "meter": Measured(Usage(input=30, output=1)), "way": object(), "sent": 1300}, Used(30, 10)),
    ({"head": Head(), "meter": Measured(Usage(input=30, output=15)), "way": object(), "sent": 1300}, Used(30, 15)),
    ({"head": Head(), "meter": Measured(), "way": object(), "data": b"x" * 260}, Used(INPUT, 2)),  # not sent yet
]


@pytest.mark.parametrize(("known", "wanted"), ROWS)
def test_what_an_exchange_came_to(known: dict[str, Any], wanted: Used) -> None:
    assert used_by(exchange(max_tokens=50), **known) == wanted


def test_what_was_gone_on_with_is_added_and_an_exchange_that_asked_nobody_came_to_nothing() -> None:
    made = exchange()
    assert spending.used(made) == Used()
    made.before = [COUNTED, Usage(input=1, output=2)]
    assert spending.used(made) == Used(31, 22)


def test_a_try_that_lost_is_guessed_by_what_it_brought() -> None:
    made = exchange(max_tokens=50)
    lost, won = stage.attempt(made), stage.attempt(made)
    lost.inbound, lost.meter, lost.way, lost.data = Head(), Measured(), object(), b"x" * 400  # type: ignore[assignment]
    made.attempt, made.outcome.bytes_sent = won, 99_999
    assert spending.used_by(made, lost) == Used(INPUT, 3)


def counters() -> tuple[Counter, Counter]:
    limits = Limits(clock=lambda: 1000.0)
    return limits.counter("caller:web", None, None, (1000, None, None)), limits.counter("model:fast", None, None)


def left(counter: Counter) -> int:
    return counter.left(1000.0)[0].remaining


@pytest.mark.parametrize(("counted", "remaining"), [(True, 950), (False, 1000 - INPUT - 50)])
def test_permits_are_settled_and_given_back_together(counted: bool, remaining: int) -> None:
    """`counted` is False where the exchange is left to another, which may go on: then the guess stands."""
    made, (web, fast) = exchange(max_tokens=50), counters()
    used_by(made, head=Head(), usage=COUNTED, whole=True)
    made.counted = counted
    permits = [spending.reserve(made, each, 1000.0) for each in (web, fast)]
    assert isinstance(permits[0], Reservation)
    assert permits[1] is fast
    assert left(web) == 1000 - INPUT - 50
    paying = Paying(made, permits)  # type: ignore[arg-type]
    assert repr(paying) == "<Paying 2 permits>"
    paying.release()
    assert left(web) == remaining
    assert (web.running, fast.running) == (0, 0)
    assert web.usual == (20 if counted else 1024)


def test_a_permit_under_which_nothing_was_sent_is_given_back_whole() -> None:
    made, (web, fast) = exchange(), counters()
    for counter in (web, fast):
        permit = spending.reserve(made, counter, 1000.0)
        spending.undo(permit)  # type: ignore[arg-type]
        assert counter.running == 0
    assert left(web) == 1000


def test_what_is_needed_of_a_provider_is_by_its_own_way_of_counting() -> None:
    assert spending.need(exchange(max_tokens=50), OPENAI) == {"requests": 1, "tokens": INPUT + 50}
    assert spending.need(exchange(), OPENAI) == {"requests": 1, "tokens": INPUT + 1024}
    assert spending.need(exchange(max_tokens=50), ANTHROPIC) == {"requests": 1, "input": INPUT, "output": 1}
    cached = exchange(system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}])
    assert spending.need(cached, ANTHROPIC) == {"requests": 1, "input": 1, "output": 1}


def test_a_key_is_picked_that_rests_not_and_has_enough_left() -> None:
    made = stage.exchange(Sidecar(stage.config(keys=3)))
    place = made.spine.place(made.plan.targets[0])
    index = {b"x-ratelimit-limit-requests": b"60", b"x-ratelimit-reset-requests": b"60s"}
    for key, remaining in ((0, b"0"), (1, b"1")):
        place.quota.hear(key, {**index, b"x-ratelimit-remaining-requests": remaining}, 99.0, 100.0, 0.0)
    place.keys.cool(2, 130.0)
    assert spending.pick(made, place, 100.0) == (1, 0.0)
    assert spending.pick(made, place, 100.0)[1] == pytest.approx(1.0)  # what was left of the second is gone
    assert spending.pick(made, place, 130.0)[0] is not None
    assert place.quota.short
    for key in range(3):
        place.keys.cool(key, 200.0)
    assert spending.pick(made, place, 140.0) == (None, 0.0)


def test_a_target_that_has_all_again_is_not_looked_at_any_more() -> None:
    made = stage.exchange(Sidecar(stage.config()))
    place = made.spine.place(made.plan.targets[0])
    index = {b"x-ratelimit-limit-requests": b"60", b"x-ratelimit-reset-requests": b"60s"}
    place.quota.hear(0, {**index, b"x-ratelimit-remaining-requests": b"0"}, 99.0, 100.0, 0.0)
    place.see()
    assert not place.simple
    assert spending.pick(made, place, 101.0) == (0, 0.0)
    assert not place.simple
    assert spending.pick(made, place, 200.0) == (0, 0.0)
    assert place.simple


def test_nothing_is_told_where_there_are_no_limits_of_tokens() -> None:
    made = exchange()
    assert spending.told(made) == b""
    made.limits = counters()
    assert spending.told(made).startswith(b"x-ratelimit-limit-tokens: 1000\r\n")
