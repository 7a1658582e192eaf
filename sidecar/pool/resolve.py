"""Names to addresses, on threads of their own: a name that hangs holds one thread and delays no other name (R7)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Final

from sidecar.errors import ConnectFailed

Address = tuple[socket.AddressFamily, str]

TTL_SECONDS: Final = 30.0  # getaddrinfo tells no TTL; within the clamp of 1 to 60 s
NEGATIVE_SECONDS: Final = 5.0
STALE_SECONDS: Final = 300.0  # old addresses are better than none while a resolver is away
PATIENCE_SECONDS: Final = 0.1  # how long a request that has old addresses waits for new ones
TIMEOUT_SECONDS: Final = 2.0
MOST_THREADS: Final = 32  # as many names as may hang before others wait for them
_MOST_NAMES: Final = 1024


class Entry:
    """What is known of one name. `error`: why there is nothing."""

    __slots__ = ("addresses", "at", "error")

    def __init__(self, addresses: list[Address], error: str | None, at: float) -> None:
        self.addresses = addresses
        self.error = error
        self.at = at


class Resolver:
    """A cache over getaddrinfo, with at most one look-up per name and MOST_THREADS in all under way."""

    def __init__(self) -> None:
        self._known: dict[str, Entry] = {}
        # Look-ups under way, each on a thread, with the loop time at which it counts as hung.
        self._asking: dict[str, tuple[asyncio.Future[None], float]] = {}

    async def resolve(self, host: str) -> list[Address]:
        """Addresses in the system's order of preference. Raises ConnectFailed within two seconds."""
        literal = _literal(host)
        if literal is not None:
            return [literal]
        loop = asyncio.get_running_loop()
        entry = self._known.get(host)
        if entry is not None and loop.time() - entry.at < (NEGATIVE_SECONDS if entry.error else TTL_SECONDS):
            return _addresses(host, entry)
        old = entry is not None and not entry.error and loop.time() - entry.at < STALE_SECONDS
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if old else TIMEOUT_SECONDS):
                await self._look_up(host, loop)
        except TimeoutError:
            pass  # the thread goes on; what it finds serves the next request
        except ConnectFailed:
            if not old:
                raise
        fresh = self._known.get(host)
        if fresh is not None and (old or fresh is not entry):
            return _addresses(host, fresh)
        raise ConnectFailed(f"the name {host} was not resolved within {TIMEOUT_SECONDS:g} s")

    def prefer(self, host: str, address: Address) -> None:
        """This address answered: until the name is looked up again, it is the first to be tried."""
        if (entry := self._known.get(host)) is not None:
            entry.addresses = sorted(entry.addresses, key=lambda each: each != address)

    async def _look_up(self, host: str, loop: asyncio.AbstractEventLoop) -> None:
        """Until a thread has asked for the name: one that does already, or ours, once there is one to have."""
        while (asking := self._asking.get(host)) is None:
            if len(self._asking) < MOST_THREADS:
                asking = self._ask(host, loop)
                break
            busy = [future for future, hung_at in self._asking.values() if loop.time() < hung_at]
            if not busy:  # every thread hangs: to wait for one of them would only delay the bad news
                raise ConnectFailed(f"the name {host} cannot be resolved: all {MOST_THREADS} look-ups under way hang")
            await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.shield(asking[0])

    def _ask(self, host: str, loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Future[None], float]:
        future: asyncio.Future[None] = loop.create_future()

        def look_up() -> None:
            addresses: list[Address] = []
            error: str | None = None
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))
            except OSError as failure:
                error = failure.strerror or "unknown"
            except UnicodeError:  # an empty label, or one of more than 63 bytes
                error = "not a host name"
            try:
                loop.call_soon_threadsafe(self._tell, host, addresses, error, loop)
            except RuntimeError:  # the loop has closed meanwhile
                return

        threading.Thread(target=look_up, name=f"sidecar-dns-{host}", daemon=True).start()
        asking = self._asking[host] = (future, loop.time() + TIMEOUT_SECONDS / 2)
        return asking

    def _tell(self, host: str, addresses: list[Address], error: str | None, loop: asyncio.AbstractEventLoop) -> None:
        old = self._known.get(host)
        if error is None or old is None or old.error or loop.time() - old.at >= STALE_SECONDS:
            if len(self._known) >= _MOST_NAMES:
                self._known.clear()
            self._known[host] = Entry(addresses, error, loop.time())
        future, _ = self._asking.pop(host)
        if not future.done():
            future.set_result(None)


def _literal(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return (socket.AF_INET6 if address.version == 6 else socket.AF_INET, host)


def _addresses(host: str, entry: Entry) -> list[Address]:
    if entry.error:
        raise ConnectFailed(f"the name {host} does not resolve: {entry.error.lower()}")
    return entry.addresses
