"""A fleet on one machine: Envoy before three sidecars, each in a network of its own, and one simulated provider.

test_fleet.py runs this file in namespaces that end with it; whatever becomes of the test here, nothing is left.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import trustme
import yaml

from sidecar.clock import now
from sidecar.config import Server as Defaults
from sidecar.simulator import Settings, Simulator
from sidecar.simulator.provider import Seen, answer_to
from tests.commands.process import environment
from tests.config.files import written
from tests.envoy.stand import AUTH, FOLDER, KEYS, Envoy, certify, changed, document, envoy, seconds
from tests.faults.peer import RawClient
from tests.faults.stand import Reply, ask, comes_true, read
from tests.faults.transcripts import WAYS

pytestmark = pytest.mark.timeout(80)

CHAT: Final = WAYS["chat"]
PARTED, KILLED, DRAINED = NAMES = ("parted", "killed", "drained")
PORT: Final = 4000
DONE: Final = b"data: [DONE]\n\n"
CALLERS: Final = 12  # at one time
RATE: Final = 40  # tokens a second of each stream
TOKENS: Final = (20, 40, 20, 40, 160)  # of streams, in turn; the last outlives the lame duck
IDLE_SECONDS: Final = 2.0  # that a sidecar waits for the next byte
LOOK: Final = document("ingress.yaml")["static_resources"]["clusters"][0]["health_checks"][0]
LOOK_SECONDS: Final = seconds(LOOK["interval"])
# until a machine that is silent is left alone
SILENT_SECONDS: Final = LOOK["unhealthy_threshold"] * (LOOK_SECONDS + seconds(LOOK["timeout"]))
BLOCK: Final = re.search(
    r"^```yaml\n(upstream_connection_options:.*?)^```", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
GIVEN_UP_SECONDS: Final = 5.0  # what the block says: until Envoy cuts what waits for a machine that is silent
SLACK_SECONDS: Final = 1.5


@pytest.fixture
def anyio_backend() -> str:
    """What is tested are processes of their own: one loop for the test will do."""
    return "asyncio"


async def ran(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await child.communicate()
    assert child.returncode == 0, (command, out.decode())
    return out.decode()


@asynccontextmanager
async def child(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is gone when the block has ended."""
    process = await asyncio.create_subprocess_exec(*command, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass
class Machine:
    """A network namespace with a sidecar in it, and one link to the street, where Envoy and the provider are."""

    name: str
    street: str  # the address of this end of the link
    address: str  # of the other
    holder: int  # a process that keeps the namespace
    sidecar: asyncio.subprocess.Process

    async def link(self, state: str) -> None:
        await ran(*inside(self.holder), "ip", "link", "set", "eth0", state)


def inside(holder: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder}/ns/net"]


@asynccontextmanager
async def machine(name: str, number: int, folder: Path, provider: int) -> AsyncIterator[Machine]:
    street, address = f"10.77.{number}.1", f"10.77.{number}.2"
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    async with child("unshare", "--net", "sh", "-c", "echo there; exec cat", **pipes) as holder:
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"there\n"
        enter = inside(holder.pid)
        await ran("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        await ran("ip", "address", "add", f"{street}/30", "dev", name)
        await ran("ip", "link", "set", name, "up")
        await ran(*enter, "ip", "address", "add", f"{address}/30", "dev", "eth0")
        await ran(*enter, "ip", "link", "set", "eth0", "up")
        # the provider knows by the path whose request it is
        tables = f'base_url = "http://{street}:{provider}/{name}/v1"\n'
        text = (FOLDER / "ingress.toml").read_text()
        text = changed(text, {"unix:/run/sidecar/sidecar.sock": f"{address}:{PORT}"})
        text = changed(text, {"[providers.openai]\n": f"[providers.openai]\n{tables}"})
        text += f"[timeouts]\nidle_seconds = {IDLE_SECONDS}\n[retry]\nattempts = 0\n"
        file = written(folder / f"{name}.toml", text)
        command = [*enter, sys.executable, "-m", "sidecar", "serve", "--config", str(file)]
        with (folder / f"{name}.log").open("wb") as log:
            async with child(*command, stderr=log, env=environment(KEYS, covered=False)) as sidecar:
                yield Machine(name, street, address, holder.pid, sidecar)


@dataclass
class Row:
    """One request, and what its client has got."""

    number: int
    began: float
    ended: float = 0.0  # 0: not yet
    reply: Reply | None = None  # None: nothing came

    @property
    def outcome(self) -> str:
        """`whole`, `cut` (no end, as HTTP has it), `told` (an error in the stream) or `refused` (by Envoy itself)."""
        reply = self.reply
        if reply is None or not reply.ended:
            return "cut"
        if reply.status == 503 and reply.get(b"x-sidecar-error") == b"sidecar_unavailable":
            return "refused"
        assert reply.status == 200, reply
        if reply.body.endswith(DONE):
            return "whole"
        assert DONE not in reply.body
        assert b'data: {"error":' in reply.body, reply.body[-300:]
        return "told"


@dataclass
class Load:
    """Callers who ask for one stream after the other through Envoy, each by a number of its own; and the provider."""

    port: int
    provider: Simulator
    rows: dict[int, Row] = field(default_factory=dict)
    stopped: bool = False
    _numbers: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    async def call(self) -> None:
        while not self.stopped:
            number = self._numbers()
            tokens = TOKENS[number % len(TOKENS)]
            names = {"x-sim-key": number, "x-sim-tokens": tokens, "x-sim-rate": RATE}
            lines = [f"{name}: {value}".encode() for name, value in names.items()]
            members: dict[str, Any] = {"max_tokens": tokens, "stream_options": {"include_usage": True}}
            row = self.rows[number] = Row(number, now())
            async with asyncio.timeout(30), RawClient(self.port) as client:
                client.write(ask(CHAT, AUTH, b"connection: close", *lines, model="openai/m", **members))
                data = await client.rest()
            row.reply = read(data) if data else None
            row.ended = now()
            if row.outcome != "whole":
                await asyncio.sleep(0.1)  # as who is told to come again

    def seen(self) -> dict[int, Seen]:
        """The provider's requests by their number. None is there twice."""
        counts = collections.Counter(int(seen.header("x-sim-key")) for seen in self.provider.requests)
        assert not [number for number, count in counts.items() if count > 1]
        return {int(seen.header("x-sim-key")): seen for seen in self.provider.requests}

    def by(self, name: str, *, since: float = 0.0) -> set[int]:
        """The numbers that came to the provider by this sidecar."""
        return {number for number, seen in self.seen().items() if whose(seen) == name and seen.began >= since}

    def under_way(self, name: str) -> set[int]:
        seen = self.seen()
        return {each for each in self.by(name) if seen[each].finished_at is None and seen[each].cancelled_at is None}

    async def over(self, numbers: set[int], within: float) -> list[str]:
        """What has become of these, once they all have ended."""
        await comes_true(lambda: all(self.rows[each].ended for each in numbers), "streams are over", within)
        return [self.rows[each].outcome for each in numbers]

    async def served(self, name: str, within: float = 7.0) -> None:
        """Until this sidecar has served a request from beginning to end, from now on."""
        since = now()
        await comes_true(
            lambda: any(
                self.rows[each].ended and self.rows[each].outcome == "whole" for each in self.by(name, since=since)
            ),
            f"{name} serves",
            within,
        )

    def failed(self, since: float, until: float) -> list[Row]:
        """Of the requests of this time, those that have ended and are not whole."""
        return [
            row for row in self.rows.values() if since <= row.began < until and row.ended and row.outcome != "whole"
        ]


def whose(seen: Seen) -> str:
    return seen.path.split("/")[1]


def promised(seen: Seen) -> bytes:
    """The provider's answer, byte for byte."""
    answer = answer_to(seen, Settings(), tokens=int(seen.header("x-sim-tokens")), flavour="openai")
    assert answer.events is not None
    return b"".join(answer.events)


def configured(machines: list[Machine]) -> dict[str, str]:
    """ingress.yaml with the block of README.md for sidecars on machines of their own."""
    assert BLOCK is not None
    text = BLOCK[1]
    for number, each in enumerate(machines, 1):
        text = changed(text, {f"address: 10.0.0.{number},": f"address: {each.address},"})
    found = document("ingress.yaml")
    found["static_resources"]["clusters"][0].update(yaml.safe_load(text))
    return {(FOLDER / "ingress.yaml").read_text(): yaml.safe_dump(found, sort_keys=False)}


async def healthy(before: Envoy, count: int, within: float) -> None:
    async with asyncio.timeout(within):
        while (await before.admin("/clusters")).count("health_flags::healthy") != count:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def fleet(folder: Path, authority: trustme.CA) -> AsyncIterator[tuple[dict[str, Machine], Envoy, Load]]:
    """All of it, under load. When the block has ended, so has every request."""
    links = await ran("ip", "-oneline", "link")
    assert links.count("\n") == 1, "not a network of its own: test_fleet.py makes one"
    await ran("ip", "link", "set", "lo", "up")
    certify(authority, folder)
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(Simulator(Settings(host="0.0.0.0")))
        machines = [
            await stack.enter_async_context(machine(name, number, folder, provider.port))
            for number, name in enumerate(NAMES)
        ]
        before = await stack.enter_async_context(envoy("ingress.yaml", folder, configured(machines)))
        await healthy(before, len(machines), 10.0)
        load = Load(before.plain, provider)
        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(load.call())
            try:
                yield {each.name: each for each in machines}, before, load
            finally:
                load.stopped = True
        await comes_true(lambda: not any(map(load.under_way, NAMES)), "the provider works for nobody", SLACK_SECONDS)


async def busy(load: Load, name: str) -> None:
    """Until some streams go through a sidecar, and their clients have some of them."""

    def running() -> bool:
        return sum(1 for each in load.under_way(name) if load.rows[each].began < now() - 0.3) >= 2

    await comes_true(running, f"{name} is busy", 7.0)


async def parted(machine: Machine, before: Envoy, load: Load) -> None:
    """No packet comes from this machine, nor gets there; then they do again."""
    await busy(load, PARTED)
    await machine.link("down")
    at, lost = now(), load.under_way(PARTED)
    await healthy(before, 2, SILENT_SECONDS + SLACK_SECONDS)
    known = now()
    outcomes = await load.over(lost, at + GIVEN_UP_SECONDS + SLACK_SECONDS - now())
    assert "whole" not in outcomes
    assert {"cut", "told"} & set(outcomes)
    # and those that were sent there, and never got there
    await comes_true(
        lambda: all(row.ended for row in load.rows.values() if row.began < known and row.number not in load.seen()),
        "what was sent into the void is over",
        GIVEN_UP_SECONDS + SLACK_SECONDS,
    )
    healed = now()
    await machine.link("up")
    await healthy(before, 3, SILENT_SECONDS + SLACK_SECONDS)
    assert not load.failed(known, healed)
    await load.served(PARTED)


async def killed(machine: Machine, before: Envoy, load: Load) -> None:
    await busy(load, KILLED)
    machine.sidecar.kill()
    at, lost = now(), load.under_way(KILLED)
    outcomes = await load.over(lost, SLACK_SECONDS)
    assert "cut" in outcomes
    assert set(outcomes) <= {"cut", "refused"}  # by Envoy, where nothing had come yet
    await healthy(before, 2, SILENT_SECONDS + SLACK_SECONDS)
    known = now()
    await load.served(DRAINED)
    await load.served(PARTED)
    assert not load.failed(known, now())
    assert not load.by(KILLED, since=at + SLACK_SECONDS)


async def drained(machine: Machine, before: Envoy, load: Load) -> None:
    await busy(load, DRAINED)
    machine.sidecar.send_signal(signal.SIGTERM)
    at, kept = now(), load.under_way(DRAINED)
    await healthy(before, 1, LOOK_SECONDS + SLACK_SECONDS)
    known = now()
    longest = max(TOKENS) / RATE + SLACK_SECONDS
    assert set(await load.over(kept, longest)) == {"whole"}
    within = Defaults().lame_duck_seconds + longest
    await comes_true(lambda: machine.sidecar.returncode is not None, "it has ended", within)
    assert machine.sidecar.returncode == 0
    await load.served(PARTED)
    assert not load.by(DRAINED, since=known + 0.1)
    assert not load.failed(at, now())


async def test_fleet(tmp_path: Path, authority: trustme.CA) -> None:
    """One is parted and comes back, then one is killed and one drained."""
    async with fleet(tmp_path, authority) as (machines, before, load):
        for name in NAMES:
            await load.served(name)
        await parted(machines[PARTED], before, load)
        await killed(machines[KILLED], before, load)
        await drained(machines[DRAINED], before, load)
    seen = load.seen()
    told = collections.Counter[tuple[str, str]]()
    for row in load.rows.values():
        told[whose(seen[row.number]) if row.number in seen else "", row.outcome] += 1
        if row.outcome == "whole":
            assert row.reply is not None
            assert row.reply.body == promised(seen[row.number])
        elif row.reply is not None and row.reply.status == 200:
            body, _, _ = row.reply.body.partition(b'data: {"error":')
            assert promised(seen[row.number]).startswith(body)
    assert {name for name, outcome in told if outcome != "whole"} <= {PARTED, KILLED, ""}, told
    assert not {(KILLED, "told"), ("", "cut"), ("", "told"), ("", "whole")} & told.keys(), told
    assert all(told[name, "whole"] > 10 for name in NAMES), told
