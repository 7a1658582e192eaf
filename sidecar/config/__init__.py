"""The configuration: one TOML file, one frozen struct, one package that reads it, and alone the environment."""

from sidecar.config.addresses import address_problem, exposed
from sidecar.config.checks import unshared
from sidecar.config.faults import ConfigError, Fault
from sidecar.config.keys import Stamp, stamp
from sidecar.config.load import Loaded, examine, load, proxies
from sidecar.config.show import effective, schema
from sidecar.config.stores import MEMORY, Place, place
from sidecar.config.structs import (
    KEY_VARIABLES,
    Breaker,
    Cache,
    Caller,
    Config,
    Key,
    Limits,
    Log,
    Model,
    OnDisconnect,
    Pool,
    Provider,
    Queue,
    Retry,
    Server,
    Store,
    Target,
    Timeouts,
    token_limits,
)

__all__ = [
    "KEY_VARIABLES",
    "MEMORY",
    "Breaker",
    "Cache",
    "Caller",
    "Config",
    "ConfigError",
    "Fault",
    "Key",
    "Limits",
    "Loaded",
    "Log",
    "Model",
    "OnDisconnect",
    "Place",
    "Pool",
    "Provider",
    "Queue",
    "Retry",
    "Server",
    "Stamp",
    "Store",
    "Target",
    "Timeouts",
    "address_problem",
    "effective",
    "examine",
    "exposed",
    "load",
    "place",
    "proxies",
    "schema",
    "stamp",
    "token_limits",
    "unshared",
]
