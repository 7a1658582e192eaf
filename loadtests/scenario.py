"""What a scenario is, as its file has it, and what clients and judge of a load tell each other. No product code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

HERE = Path(__file__).parent
FOLDER = HERE / "scenarios"
NOT_FOR_ALL = ("smoke",)  # it is steady's little sister


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that is done to the parts, at a share of the run; `every_seconds` again, until another share of it."""

    at: float
    do: Literal["weather", "start", "reload", "replace", "stall_store", "wake_store", "kill_store", "start_store"]
    until: float | None = None
    every_seconds: float | None = None
    provider: int = 0  # of `weather`
    to: dict[str, Any] = {}  # of `weather`: the simulator's settings from now on


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of scenarios/. Durations are shares of the run, so that a short one has all of it, too."""

    about: str
    users: int
    seconds: int
    who: dict[str, float]  # classes of the locustfile, by weight
    attempts: int  # [retry]: at one target, after the first
    spawn_per_second: float = 50.0
    stages: list[tuple[float, float]] = []  # until a share of the run, a share of the users; empty: all, always
    providers: int = 1  # simulated ones; the model's targets, in turn
    simulate: list[str] = []  # options of `sidecar simulate`
    config: str = ""  # of the sidecar, behind the common part; {store}: where the store is
    store: bool = False  # a Redis of its own
    listen: Literal["port", "held", "envoy"] = "port"  # held: the runner has the socket, and so requests wait in it
    events: list[Event] = []
    direct_percent: float = 20.0  # of requests that go to the provider itself, to compare with
    direct_faults: bool = False  # ... and suffer its faults, too

    def told(self) -> str:
        return f"{self.users} users, {self.seconds} s: {self.about}"


class Plan(msgspec.Struct, kw_only=True):
    """What the locustfile is told, by LOAD_PLAN."""

    journal: str = ""
    direct: str = ""  # the provider's own address; empty: nobody is to ask it
    direct_percent: float = 0.0
    direct_faults: bool = False
    model: str = "chat"
    direct_model: str = "sim-large"
    keys: dict[str, str] = {}
    simulated: bool = True
    users: int = 1
    seconds: int = 60
    spawn_per_second: float = 50.0
    stages: list[tuple[float, float]] = []


class Row(msgspec.Struct, array_like=True, kw_only=True):
    """One request, as its client saw it: a line of the journal. Times of the monotonic clock, milliseconds."""

    kind: str
    direct: bool
    key: str  # sent upstream, too
    began: float
    ms: float = 0.0
    first_ms: float | None = None
    gaps: list[float] = []  # between two events of content
    size: int = 0
    outcome: str = "ok"
    why: str = ""  # more of a failure, in the words of whatever told it
    left: float | None = None  # when the client went away in the middle, of its own will
    cache: str = ""  # what the answer says of a cache: hit, miss, off ...


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Scenario:
    return msgspec.toml.decode((FOLDER / f"{name}.toml").read_bytes(), type=Scenario)
