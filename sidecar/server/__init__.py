"""An ASGI server for this product: strict HTTP/1.1 on uvloop and httptools, bounded everywhere. It knows ASGI only."""

from sidecar.server.listen import Server
from sidecar.server.run import Served, run

__all__ = ["Served", "Server", "run"]
