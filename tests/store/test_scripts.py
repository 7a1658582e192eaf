"""The scripts, run by a real Redis under random clocks and crashes, against arithmetic in Python."""

from __future__ import annotations

import socket
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidecar.store import scripts
from sidecar.store.resp import Replies, command
from sidecar.store.scripts import SOURCES, Script, keys, script
from tests.store.servers import Redis

CLOCK: Final = "local now = tonumber(redis.call('GET', 'clock'))\n"  # the test's, instead of the server's
LEASE: Final = 5_000_000  # us
NAMES: Final = ("requests_per_minute", "tokens_per_minute", "output_tokens_per_minute")


class Asking:
    """Asks a server over one connection, on a clock of its own."""

    def __init__(self, server: Redis) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(server.socket)
        self._replies = Replies()
        self._scripts = {name: script(text, CLOCK) for name, text in SOURCES.items()}
        self.keys = keys("caller:web")
        self("FLUSHALL")

    def __call__(self, *parts: str | bytes | int) -> Any:
        return self._send(command(*parts))

    def _send(self, data: bytes) -> Any:
        self._sock.sendall(data)
        while not (got := self._replies.feed(self._sock.recv(65536))):
            pass
        assert not isinstance(got[0], Exception), got[0]
        return got[0]

    def run(self, name: str, now: int, *parts: str | bytes | int) -> Any:
        self("SET", "clock", now)
        found: Script = self._scripts[name]
        given = {"decide": self.keys, "settle": self.keys[:1], "renew": self.keys[1:], "beat": (b"sidecars",)}[name]
        return self._send(found.whole(len(given), *given, *parts))

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def asking(server: Redis) -> Any:
    made = Asking(server)
    yield made
    made.close()


class Step(msgspec.Struct):
    """What one of several sidecars does: `what` it is, after so many microseconds, and for whom."""

    what: str
    after: int
    amounts: tuple[float, float]  # of tokens, seconds of the leak
    of: float  # which of the permits that are out: 0 the oldest, 1 the newest
    used: tuple[float, float]  # of what was reserved


def steps(*kinds: str) -> st.SearchStrategy[list[Step]]:
    amount = st.one_of(st.floats(0, 60), st.floats(0, 5), st.just(60.0), st.just(0.0))
    step = st.builds(
        Step,
        st.sampled_from(kinds),
        st.one_of(st.integers(0, 1_000), st.integers(0, 3_000_000), st.integers(0, 200_000_000)),
        st.tuples(amount, amount),
        st.floats(0, 1, exclude_max=True),
        st.tuples(st.floats(0, 3), st.floats(0, 3)),
    )
    return st.lists(step, min_size=1, max_size=25)


class Leak:
    """A bucket as rates.Bucket describes it, in seconds of its leak."""

    def __init__(self) -> None:
        self.due = self.since = 0.0

    def early(self, amount: float, now: float) -> float:
        return max(self.due - now, 0.0) + amount - 60.0

    def take(self, amount: float, now: float) -> None:
        if self.due <= now:
            self.due = self.since = now
        self.due += amount

    def settle(self, reserved: float, used: float, began: float, now: float) -> None:
        if used >= reserved:
            self.take(used - reserved, now)
        elif self.since <= began:
            self.due = max(self.due + used - reserved, now)


class Model:
    """What buckets and leases would be on one machine, with one clock."""

    def __init__(self, most: int) -> None:
        self.buckets = [Leak() for _ in NAMES]
        self.most = most
        self.leases: dict[bytes, int] = {}
        self.now = 1_000_000  # us

    def decide(self, lease: bytes, amounts: tuple[float, ...]) -> tuple[int, float]:
        """As the script answers: 0 and which rate, 1, or 2."""
        now = self.now / 1e6
        early = [bucket.early(amount, now) for bucket, amount in zip(self.buckets, amounts, strict=True)]
        if max(early) > 1e-6:
            return 0, max(early)
        self.leases = {id_: ends for id_, ends in self.leases.items() if ends > self.now}
        if len(self.leases) >= self.most:
            return 2, len(self.leases)
        self.leases[lease] = self.now + LEASE
        for bucket, amount in zip(self.buckets, amounts, strict=True):
            bucket.take(amount, now)
        return 1, 0.0


class Permit(msgspec.Struct):
    lease: bytes
    amounts: tuple[float, ...]
    began: int


class Run:
    """The script and the model, step by step, and never of two minds."""

    def __init__(self, asking: Asking, most: int) -> None:
        self.asking = asking
        self.model = Model(most)
        self.permits: list[Permit] = []
        self.serial = 0
        self.borders = 0  # decisions that a microsecond's rounding may turn

    def step(self, step: Step) -> None:
        self.model.now += step.after
        getattr(self, step.what)(step)

    def enter(self, step: Step) -> None:
        self.serial += 1
        lease, amounts = b"l%d" % self.serial, (1.0, *step.amounts)
        parts: list[str | bytes | int] = [lease, self.model.most, LEASE]
        for name, amount in zip(NAMES, amounts, strict=True):
            parts += [name, f"{amount * 1e6:.17g}"]
        now = self.model.now / 1e6
        early = [bucket.early(amount, now) for bucket, amount in zip(self.model.buckets, amounts, strict=True)]
        got = self.asking.run("decide", self.model.now, *parts)
        if any(abs(each) < 3e-6 for each in early) and max(early) < 3e-6:
            self._follow(got, lease, amounts)
            return
        said, why = self.model.decide(lease, amounts)
        assert got[0] == said
        if said == 0:
            assert got[2] == pytest.approx(why * 1e6, abs=4)
            assert early[got[1]] == pytest.approx(max(early), abs=4e-6)
        elif said == 2:
            assert got[1] == why
        else:
            assert got[1] == self.model.now
            self.permits.append(Permit(lease, amounts, self.model.now))
        for due, bucket in zip(got[2 if said == 1 else 3 if said == 0 else 2 :], self.model.buckets, strict=True):
            assert due == pytest.approx(max(bucket.due - now, 0.0) * 1e6, abs=4)

    def _follow(self, got: Any, lease: bytes, amounts: tuple[float, ...]) -> None:
        """On the border the script has the last word: floating point may see it either way."""
        self.borders += 1
        if got[0] == 1:
            self.model.leases[lease] = self.model.now + LEASE
            for bucket, amount in zip(self.model.buckets, amounts, strict=True):
                bucket.take(amount, self.model.now / 1e6)
            self.permits.append(Permit(lease, amounts, self.model.now))

    def _some(self, step: Step) -> Permit | None:
        return self.permits.pop(int(step.of * len(self.permits))) if self.permits else None

    def settle(self, step: Step) -> None:
        permit = self._some(step)
        if permit is None:
            return
        parts: list[str | bytes | int] = [permit.began]
        for index, (reserved, share) in enumerate(zip(permit.amounts[1:], step.used, strict=True), 1):
            parts += [NAMES[index], f"{reserved * 1e6:.17g}", f"{reserved * share * 1e6:.17g}"]
            self.model.buckets[index].settle(reserved, reserved * share, permit.began / 1e6, self.model.now / 1e6)
        self.asking.run("settle", self.model.now, *parts)
        self.asking("ZREM", self.asking.keys.leases, permit.lease)
        self.model.leases.pop(permit.lease, None)

    def renew(self, step: Step) -> None:
        """All that are held: also those that have ended, or were flushed, meanwhile."""
        if self.permits:
            self.asking.run("renew", self.model.now, LEASE, *(permit.lease for permit in self.permits))
            self.model.leases |= {permit.lease: self.model.now + LEASE for permit in self.permits}

    def crash(self, step: Step) -> None:
        """A sidecar dies with half of what is held: nobody renews or settles it any more."""
        del self.permits[: len(self.permits) // 2]

    def flush(self, step: Step) -> None:
        self.asking("DEL", *self.asking.keys)
        fresh = Model(self.model.most)
        fresh.now = self.model.now
        self.model = fresh


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=steps("enter", "enter", "enter", "settle", "renew", "crash", "flush"), most=st.integers(1, 4))
def test_rates_and_leases_are_as_the_model_has_them(asking: Asking, run: list[Step], most: int) -> None:
    asking("FLUSHALL")
    both = Run(asking, most)
    for step in run:
        both.step(step)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    waits=st.lists(st.integers(-40_000_000, 20_000_000), min_size=5, max_size=60),
    limit=st.integers(1, 600),
)
def test_a_clock_that_goes_back_neither_blocks_nor_gives_more_than_the_limit(
    asking: Asking, waits: list[int], limit: int
) -> None:
    """Time that has passed is what counts: the steps forward, whatever steps back are among them."""
    asking("FLUSHALL")
    now, passed, admitted = 2_000_000_000, 0, 0
    for wait in waits:
        now += wait
        passed += max(wait, 0)
        got = asking.run("decide", now, b"", 0, LEASE, "requests_per_minute", f"{60e6 / limit:.17g}")
        admitted += got[0] == 1
        if got[0] == 0:
            assert 0 < got[2] <= 60e6 / limit + 2
    assert admitted <= limit + passed / 60e6 * limit + 1e-3
    assert admitted >= min(len(waits), limit)


def test_slots_of_the_dead_are_free_after_a_lease_and_not_before(asking: Asking) -> None:
    ask = asking.run
    assert ask("decide", 0, b"a", 1, LEASE) == [1, 0]
    assert ask("decide", LEASE - 1, b"b", 1, LEASE) == [2, 1]
    assert ask("decide", LEASE, b"b", 1, LEASE) == [1, LEASE]


def test_a_renewal_brings_back_what_was_flushed(asking: Asking) -> None:
    asking.run("decide", 0, b"a", 1, LEASE)
    asking("FLUSHALL")
    asking.run("renew", 10, LEASE, b"a")
    assert asking.run("decide", 20, b"b", 1, LEASE) == [2, 1]


def test_leases_of_a_clock_that_ran_ahead_do_not_outlive_it(asking: Asking) -> None:
    asking.run("decide", 10**12, b"a", 1, LEASE)
    assert asking.run("decide", 1000, b"b", 1, LEASE) == [1, 1000]


def test_what_is_refused_for_want_of_a_slot_takes_nothing_of_a_rate(asking: Asking) -> None:
    rate = ("requests_per_minute", 1_000_000)
    assert asking.run("decide", 0, b"a", 1, LEASE, *rate) == [1, 0, 1_000_000]
    before = asking("HGETALL", asking.keys.rates)
    assert asking.run("decide", 0, b"b", 1, LEASE, *rate) == [2, 1, 1_000_000]
    assert asking("HGETALL", asking.keys.rates) == before


def test_what_is_refused_by_a_rate_takes_no_slot(asking: Asking) -> None:
    assert asking.run("decide", 0, b"a", 1, LEASE, "tokens_per_minute", 60_000_010) == [0, 0, 10, 0]
    assert asking("EXISTS", *asking.keys) == 0


def test_of_two_rates_the_one_that_is_short_for_longer_refuses(asking: Asking) -> None:
    got = asking.run("decide", 0, b"", 0, LEASE, "requests_per_minute", 60_000_500, "tokens_per_minute", 60_001_000)
    assert got == [0, 1, 1000, 0, 0]


def test_keys_that_nobody_needs_any_more_go_by_themselves(asking: Asking) -> None:
    asking.run("decide", 0, b"a", 1, LEASE, "requests_per_minute", 1_000_000)
    assert 0 < asking("PTTL", asking.keys.leases) <= 2 * LEASE // 1000
    assert 60_000 < asking("PTTL", asking.keys.rates) <= 61_000


def test_hearts_that_beat_are_counted(asking: Asking) -> None:
    assert asking.run("beat", 0, b"one", LEASE) == 1
    assert asking.run("beat", 1000, b"two", LEASE) == 2
    assert asking.run("beat", 2000, b"one", LEASE) == 2
    assert asking.run("beat", LEASE + 1500, b"one", LEASE) == 1


def test_the_servers_own_clock_is_microseconds_since_2025(server: Redis) -> None:
    seconds, micros = server.ask("TIME")
    now = (int(seconds) - scripts.EPOCH) * 1_000_000 + int(micros)
    got = server.ask("EVAL", scripts.CLOCK + "return now", 0)
    assert 0 <= got - now < 5_000_000


def test_the_keys_of_one_counter_share_a_slot() -> None:
    found = keys("caller:a}b{c")
    assert found.rates == b"sidecar:{caller:a}b{c}:rates"
    assert found.leases == b"sidecar:{caller:a}b{c}:leases"


def test_a_script_is_known_by_its_hash(server: Redis) -> None:
    assert server.ask("SCRIPT", "LOAD", scripts.DECIDE.text) == scripts.DECIDE.sha.encode()
