"""Stores for what is shared."""

from tests.store.conftest import own_server, server, shared_server

__all__ = ["own_server", "server", "shared_server"]
