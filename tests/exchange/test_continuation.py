"""Who is asked to go on with a stream that broke off, in which order, and for how long."""

from __future__ import annotations

import pytest

from sidecar.app import Sidecar
from sidecar.config import Model
from sidecar.errors import UpstreamCut
from sidecar.exchange.continuation import _others, go_on
from tests.exchange import stage


def _model(count: int) -> dict[str, Model]:
    return {"long": Model(targets=tuple(f"lab/{name}" for name in "abcd"[:count]), continuation=True)}


@pytest.mark.parametrize(
    ("broken", "continued", "names"),
    [
        (0, 0, ["b", "c"]),
        (1, 1, ["c", "a"]),
        (2, 0, ["a", "b"]),
        (2, 2, []),  # each has had its turn
    ],
)
def test_those_behind_it_then_those_before(broken: int, continued: int, names: list[str]) -> None:
    exchange = stage.exchange(Sidecar(stage.config(models=_model(3))), "long")
    exchange.record.continued = continued
    assert [target.model for target in _others(exchange, exchange.plan.targets[broken])] == names


async def test_what_was_no_stream_of_ours_is_not_gone_on_with() -> None:
    exchange = stage.exchange(Sidecar(stage.config(models=_model(2))), "long")
    attempt = stage.attempt(exchange)
    with pytest.raises(UpstreamCut, match="cut"):
        await go_on(exchange, attempt, UpstreamCut("cut"))
    assert (exchange.resumed, exchange.before, exchange.record.attempts) == (None, [], 0)
    attempt.close()
