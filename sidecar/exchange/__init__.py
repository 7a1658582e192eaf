"""The spine: what every request goes through, in order. Start with spine.py."""

from sidecar.exchange.hits import Direct, Over
from sidecar.exchange.lane import Lane, take
from sidecar.exchange.shared import share
from sidecar.exchange.spine import STEPS, request_id, run
from sidecar.exchange.state import Duty, Spine, askers_of, limits_of

__all__ = [
    "STEPS",
    "Direct",
    "Duty",
    "Lane",
    "Over",
    "Spine",
    "askers_of",
    "limits_of",
    "request_id",
    "run",
    "share",
    "take",
]
