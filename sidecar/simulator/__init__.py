"""The simulated provider: OpenAI's and Anthropic's endpoints with chosen latency, pace and faults, the same for every run of a seed.

It is its own server on raw sockets, because it must be able to break HTTP in ways that no good server lets it, and it shares
no code with the dialects, so that each checks the other.
"""

from sidecar.simulator.server import Seen, Simulator, add_arguments, run, settings_from
from sidecar.simulator.settings import Settings

__all__ = ["Seen", "Settings", "Simulator", "add_arguments", "run", "settings_from"]
