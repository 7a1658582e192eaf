"""The spine: what every request goes through, in order. Start with spine.py."""

from sidecar.exchange.spine import STEPS, request_id, run
from sidecar.exchange.state import Duty, Spine

__all__ = ["STEPS", "Duty", "Spine", "request_id", "run"]
