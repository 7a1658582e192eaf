"""The parts of a scenario that are no sidecar: what is done to them."""

from __future__ import annotations

import socket

import pytest

from benchmarks import harness
from loadtests.scenario import Event, Scenario
from loadtests.stage import Stage
from tests.components import require

STORE = Scenario(about="", users=1, seconds=9, who={}, attempts=0, store=True, events=[Event(at=0.0, do="start")])


def answers(port: int) -> bytes | None:
    """What a Redis says to a PING; nothing while it is stalled. Raises OSError where none is."""
    with socket.create_connection(("127.0.0.1", port), 1.0) as sock:
        sock.sendall(b"PING\r\n")
        sock.settimeout(0.2)
        try:
            return sock.recv(64)
        except TimeoutError:
            return None


def test_a_store_stalls_goes_on_dies_and_comes_again_at_its_place() -> None:
    require("redis-server", harness.binary("redis-server"))
    with Stage(STORE) as stage:
        port = stage.stores[-1].port
        text = (stage.folder / "sidecar.toml").read_text()
        assert answers(port) == b"+PONG\r\n"
        stage.do(Event(at=0.0, do="stall_store"))
        assert answers(port) is None
        stage.do(Event(at=0.0, do="wake_store"))
        assert answers(port) == b"+PONG\r\n"
        stage.do(Event(at=0.0, do="kill_store"))
        with pytest.raises(OSError, match="refused"):
            answers(port)
        stage.do(Event(at=0.0, do="start_store"))
        assert (answers(port), stage.stores[-1].port) == (b"+PONG\r\n", port)
        stage.do(Event(at=0.0, do="stall_store"))  # and is ended all the same
    with pytest.raises(OSError, match="refused"):
        answers(port)
    assert "{store}" not in text


def test_the_configuration_says_where_the_store_is() -> None:
    require("redis-server", harness.binary("redis-server"))
    scenario = Scenario(
        about="",
        users=1,
        seconds=9,
        who={},
        attempts=0,
        store=True,
        events=STORE.events,
        config='[store]\nurl="{store}"\n',
    )
    with Stage(scenario) as stage:
        wanted = f'[store]\nurl="redis://127.0.0.1:{stage.stores[0].port}"\n'
        assert (stage.folder / "sidecar.toml").read_text().endswith(wanted)
