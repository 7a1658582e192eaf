"""A client in between: whatever is not its own is asked of the one behind it."""

from __future__ import annotations

from sidecar.exchange.between import Between
from tests.exchange.clients import Kept


async def test_what_is_not_its_own_is_the_clients() -> None:
    client = Kept()
    client.headers, client.query, client.notes = [(b"a", b"b")], b"q", {"n": 1}
    between = Between(client)
    assert (between.headers, between.query) == (client.headers, b"q")
    assert between.notes is client.notes
    assert (between.body(9), await between.read(9)) == (b"", b"")
    assert between.pipe() is None
    assert not between.gone
    client.gone = True
    assert between.gone
    between.stay = True
    assert client.stay
    assert between.stay
