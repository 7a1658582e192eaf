"""An exchange and an attempt without sockets: what policies look at, on a clock of the test's."""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar import routing
from sidecar.app import ENDPOINTS, Sidecar
from sidecar.asgi import AsgiClient
from sidecar.config import Config, Key, Limits, Model, Provider, Server
from sidecar.dialects import DIALECTS
from sidecar.exchange.state import Attempt, Exchange
from sidecar.secret import Secret
from sidecar.types import Message, Outcome, Record, Target
from tests.asgi import http

CHAT = ENDPOINTS["/v1/chat/completions"]


def config(keys: int = 1, *, adaptive: bool = False, models: dict[str, Model] | None = None, **more: Any) -> Config:
    """One provider, "lab", with so many keys."""
    secrets = tuple(Key(source="inline", secret=Secret(f"sk-{number}")) for number in range(keys))
    lab = Provider(
        kind="openai-compatible", base_url="http://127.0.0.1:9/v1", api_keys=secrets, limits=Limits(adaptive=adaptive)
    )
    return Config(server=Server(), providers={"lab": lab}, models=models or {}, **more)


def exchange(app: Sidecar, model: str = "lab/m") -> Exchange:
    """One that is about to ask."""

    async def receive() -> Message:
        raise AssertionError("nothing is read here")

    async def send(_: Message) -> None:
        raise AssertionError("nothing is sent here")

    client = AsgiClient(http("POST", CHAT.path), receive, send)
    found = Exchange(app._spine, CHAT, DIALECTS["chat"], client, Record(), Outcome(0.0))
    found.plan = routing.find(app._spine.routes, model, "chat")
    found.members = {"model": msgspec.Raw(b'"m"'), "messages": msgspec.Raw(b"[]")}
    return found


def attempt(of: Exchange, target: Target | None = None, began: float = 0.0, key: int = 0) -> Attempt:
    """A try that has been let in."""
    target = target or of.plan.targets[0]
    place = of.spine.places.get(target.key) or of.spine.place(target)
    permit = place.counter.enter(began)
    place.target.in_flight += 1
    assert permit is place.counter
    return Attempt(target, place, permit, place.target.breaker.turn, key, began)
