"""The LLM sidecar: one small process (or object) through which every model call goes.

`Sidecar(config)` is an ASGI app, `SidecarMiddleware(app, config)` puts it inside another, `SidecarTransport(config)`
under an httpx or httpx2 client; `load(path)` reads a `Config`.
Names are imported when first used: a command starts faster.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.app import Sidecar
    from sidecar.config import Config, ConfigError, load
    from sidecar.middleware import SidecarMiddleware
    from sidecar.transport import SidecarTransport

__all__ = ["Config", "ConfigError", "Sidecar", "SidecarMiddleware", "SidecarTransport", "load"]

__version__ = "0.1.0"

_WHERE = {
    "Config": "sidecar.config",
    "ConfigError": "sidecar.config",
    "Sidecar": "sidecar.app",
    "SidecarMiddleware": "sidecar.middleware",
    "SidecarTransport": "sidecar.transport",
    "load": "sidecar.config",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sidecar' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
