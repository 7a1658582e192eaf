"""What outlives a reload, what does not, and what an attempt gives back."""

from __future__ import annotations

import pytest

from sidecar.app import Sidecar
from sidecar.config import Retry
from sidecar.exchange import state
from tests.exchange.stage import attempt, config, exchange


class Holder:
    """An answer of a provider that is to be closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_an_attempt_gives_back_all_that_it_holds() -> None:
    of = exchange(Sidecar(config()))
    tried = attempt(of)
    tried.inbound = inbound = Holder()  # type: ignore[assignment]
    assert (tried.place.target.in_flight, tried.place.counter.running) == (1, 1)
    tried.close()
    assert (tried.place.target.in_flight, tried.place.counter.running, inbound.closed) == (0, 0, 1)


def test_a_place_is_made_once_and_shares_what_the_process_has_learned() -> None:
    app = Sidecar(config())
    before = exchange(app)
    place = before.spine.place(before.plan.targets[0])
    assert before.spine.places == {"lab/m": place}
    app.reload(config())
    after = exchange(app)
    assert after.spine is not before.spine
    again = after.spine.place(after.plan.targets[0])
    assert (again.target, again.keys, again.counter) == (place.target, place.keys, place.counter)


def test_places_of_models_that_clients_name_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MOST_NAMES", 3)
    app = Sidecar(config())
    for number in range(10):
        of = exchange(app, f"lab/m{number}")
        of.spine.place(of.plan.targets[0])
    assert len(app._spine.places) <= 3


def test_a_reload_keeps_the_budget_unless_its_options_change() -> None:
    app = Sidecar(config())
    duty = app._duty
    budget = duty.retries
    assert budget.take(1, 0.0)
    app.reload(config())
    assert duty.retries is budget
    app.reload(config(retry=Retry(budget_minimum=1)))
    assert duty.retries is not budget
    assert duty.retries.take(1, 0.0)
    assert not duty.retries.take(1, 0.0)
    budget.give_back()  # to the one that it was taken of
    app = Sidecar(config(retry=Retry(budget_percent=0, budget_minimum=0)))
    assert not app._duty.retries.take(100, 0.0)


def test_what_is_there_tells_of_itself_in_one_line_without_a_key() -> None:
    app = Sidecar(config(2))
    assert repr(app._duty) == "<Duty 0 active, <Health 0 targets, 0 adaptive limits>>"
    assert repr(app._spine) == "<Spine 1 providers, 0 callers>"
