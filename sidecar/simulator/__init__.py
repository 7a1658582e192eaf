"""The simulated provider: OpenAI's and Anthropic's endpoints with chosen latency, pace and faults, by a seed.

It is its own server on raw sockets, because it must be able to break HTTP in ways that no good server lets it, and it
shares no code with the dialects, so that each checks the other.
"""

from sidecar.simulator.command import add_arguments, run, settings_from
from sidecar.simulator.provider import Seen
from sidecar.simulator.server import Simulator
from sidecar.simulator.settings import Settings

__all__ = ["Seen", "Settings", "Simulator", "add_arguments", "run", "settings_from"]
