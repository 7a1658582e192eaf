"""A client (types.Client) in between: what one that stands before another leaves to it."""

from __future__ import annotations

from sidecar.types import Client, Hold, Pipe, freely


class Between:
    """See the module. How an answer goes on is its heir's: nothing goes past it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.headers, self.index, self.query, self.notes = client.headers, client.index, client.query, client.notes

    @property
    def gone(self) -> bool:
        return self._client.gone

    @property
    def stay(self) -> bool:
        return self._client.stay

    @stay.setter
    def stay(self, stay: bool) -> None:
        self._client.stay = stay

    def body(self, most: int) -> bytes | None:
        return self._client.body(most)

    async def read(self, most: int, hold: Hold = freely) -> bytes:
        return await self._client.read(most, hold)

    def pipe(self) -> Pipe | None:
        return None
