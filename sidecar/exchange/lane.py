"""The hot lane: the spine's steps without a coroutine, for a request and an answer that need no decision.

It is entered when a head has come again on its connection (server/again.py), under the configuration that read it
before, for a plan with one healthy target that speaks the client's dialect; and it is left, for the spine, at the first
sight of anything else: a limit, a dial, a refusal, a slow client, a client that goes; and with the first content of a
stream, which the spine relays. What was done until then is not done again. So it decides nothing: it is the spine's
usual case, and tests run each request both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Final

import msgspec

from sidecar.answer import ids_of
from sidecar.clock import now
from sidecar.dialects import DIALECTS
from sidecar.drive import ENOUGH
from sidecar.errors import SidecarError
from sidecar.exchange import cached
from sidecar.exchange.attempt import HELD_BYTES
from sidecar.exchange.hits import Direct, Over, give_at_once
from sidecar.exchange.spine import proceed, request_id, run
from sidecar.exchange.state import Attempt, Exchange, Place, Spine
from sidecar.memory import COUNTED_BYTES
from sidecar.pool.answer import Answer
from sidecar.pool.connection import BODY, ENDED, Connection, Stale
from sidecar.pool.outbound import Prepared
from sidecar.relay import Through
from sidecar.request import Asking, deadline, translate
from sidecar.routing import Plan
from sidecar.types import Client, Counting, Endpoint, Envelope, Outcome, Record, Target, Usage, View
from sidecar.wire import body
from sidecar.wire.heads import ResponseHead
from sidecar.wire.shapes import Shape

_MOST_LEADS: Final = 64  # models that one head is remembered to have asked for


class Lead(msgspec.Struct, frozen=True, eq=False):
    """Where a model leads that a head asks for, and what is the same for each request that goes there."""

    plan: Plan
    target: Target
    prepared: Prepared
    stamp: bytes  # our first lines of its answers
    names: tuple[str, str, str]  # endpoint, provider and model, for the record


def take(spine: Spine, asking: Asking, client: Direct, data: bytes) -> Lane | Over | Coroutine[Any, Any, None]:
    """Serve a request whose head has been read before: here if it is plain, else by the spine. `data`: its body."""
    endpoint, size = asking.endpoint, len(data)
    assert endpoint is not None
    if size > spine.max_body_bytes:
        return run(spine, endpoint, client)
    if size > COUNTED_BYTES and (size > body.LONG_BYTES or not spine.duty.room.has(size)):
        return run(spine, endpoint, client, data)
    lane = _enter(asking, spine, endpoint, client, data)
    return run(spine, endpoint, client, data) if lane is None else lane


def _enter(asking: Asking, spine: Spine, endpoint: Endpoint, client: Direct, data: bytes) -> Lane | Over | None:
    """Send what is asked for to where it leads, if nothing stands in the way; else nothing has been done."""
    dialect, hide_usage = DIALECTS[endpoint.dialect], False
    try:
        members = body.envelope(data)
        view = dialect.read_view(members)
        lead = asking.leads.get(view.model) or _lead(asking, spine, endpoint, client, view.model)
        if lead is None or "models" in members:
            hit = cached.at_once(asking, spine, endpoint, client, members, view, len(data))
            return None if hit is None else give_at_once(asking, spine, endpoint, client, view, hit, request_id())
        target = lead.target
        sent = members.copy()
        sent["model"] = target.raw_model
        if view.stream:
            hide_usage = target.upstream.stream_usage and dialect.ask_usage(sent)
    except SidecarError:
        return None  # the spine finds the same, and tells it
    started, place = now(), spine.places.get(target.key)
    if place is None or not place.simple or place.target.breaker.until is not None or started < place.keys.until[0]:
        return None
    upstream, caller, provider = target.upstream, asking.asker.counter, place.counter
    connection = spine.pool.ready(upstream.origin, upstream.pool)
    if connection is None:
        return None
    if not _admit(caller, provider, started):
        spine.pool.put_back(connection, upstream.origin)
        return None
    written, limits = body.rebuild(sent), deadline(upstream, view, started, started + asking.timeout)
    try:
        connection.ask(lead.prepared.head(len(written)), written, limits)
    except Stale:
        provider.forgo(provider)
        caller.forgo(caller)
        return None
    turn, size = place.target.breaker.turn, len(data)
    lane = Lane(
        *(
            spine,
            endpoint,
            asking,
            client,
            lead,
            place,
            connection,
            members,
            view,
            hide_usage,
            size,
            started,
            now(),
            turn,
        )
    )
    spine.duty.retries.request(started)
    spine.duty.active += 1
    if size > COUNTED_BYTES:
        spine.duty.room.take(size, size)
    place.target.in_flight += 1
    connection.signal.attach(lane.wake)
    return lane


def _admit(caller: Counting, provider: Counting, now: float) -> bool:
    """Steps admit caller and admit provider, where neither has limits of tokens; else nothing has been taken."""
    if caller.tokens is not None or provider.tokens is not None:
        return False
    if (decision := caller.enter(now)) is not caller:
        caller.forgo(decision)
        return False
    if (decision := provider.enter(now)) is not provider:
        provider.forgo(decision)
        caller.forgo(caller)
        return False
    return True


def _lead(asking: Asking, spine: Spine, endpoint: Endpoint, client: Client, model: str) -> Lead | None:
    """Of a plan that leaves no choice, and a target that takes the client's own words; else None."""
    plan = spine.plans.get((asking.asker.caller.name, model, endpoint.dialect))
    if plan is None or len(plan.targets) != 1 or not plan.plain or plan.policy != "failover" or plan.model.continuation:
        return None
    target = plan.targets[0]
    upstream = target.upstream
    own_words = target.dialect == endpoint.dialect and not (target.params or upstream.drop or upstream.rename)
    one_key = len(upstream.auths) == 1 or not (upstream.auths or upstream.forward_caller_key or upstream.missing_key)
    if not own_words or not one_key or asking.explain or client.query or spine.stays or endpoint.model is not None:
        return None
    way = (upstream.name, target.path)
    prepared = asking.prepared.get(way)
    if prepared is None:
        outbound, _, _ = translate(target, endpoint, {}, client, asking, stream=False)
        if len(asking.prepared) >= _MOST_LEADS:
            asking.prepared.clear()
        prepared = asking.prepared[way] = Prepared(outbound)
    stamp = target.stamp + b"x-sidecar-attempts: 1\r\nx-sidecar-overhead-us: "
    if len(asking.leads) >= _MOST_LEADS:
        asking.leads.clear()
    lead = asking.leads[model] = Lead(plan, target, prepared, stamp, (endpoint.path, upstream.name, target.model))
    return lead


def _scarce(shape: Shape, values: tuple[bytes, ...]) -> bool:
    """Is little left of the provider's limits, by its own word? Who comes next is to look at that."""
    return any(len(values[at]) < digits for at, digits in shape.left)


class Lane(msgspec.Struct, eq=False):
    """A request that has been sent, until its answer comes; of a stream, until its first content."""

    spine: Spine
    endpoint: Endpoint
    asking: Asking
    client: Direct
    lead: Lead
    place: Place
    connection: Connection
    members: Envelope
    view: View
    hide_usage: bool
    size: int  # of the body, in bytes
    started: float
    began: float  # when it had been sent
    turn: int  # of the breaker
    hold: Hold | None = None

    def wake(self) -> None:
        """Something has come of it: deliver the whole of a plain answer, or hold a stream; all else is the spine's."""
        connection, client = self.connection, self.client
        head = connection.answer
        shape = head.shape if head is not None and head.status == 200 and client.plain else None
        if head is None or shape is None or (shape.left and _scarce(shape, head.values)):
            self.leave()
        elif self.view.stream:
            self._begin_stream(head, shape)
        elif connection.phase is ENDED and shape.simple:
            self._take(head, shape)
        else:
            self.leave()

    def _take(self, head: ResponseHead, shape: Shape) -> None:
        """The whole of an answer, if it is no error and tells its usage."""
        connection = self.connection
        data, came = connection.take(), now()
        if len(data) <= HELD_BYTES and head.values[shape.kind].startswith(b"application/json"):
            try:
                usage, fault = DIALECTS[self.endpoint.dialect].measure(data)
                if usage is not None and fault is None:
                    self._deliver(head, shape, data, usage, came)
                    return
            except Exception as error:  # noqa: BLE001  # a bug of ours: the spine tells of it
                self.leave(error)
                return
        connection.put_back(data)
        self.leave()

    def _begin_stream(self, head: ResponseHead, shape: Shape) -> None:
        connection, dialect = self.connection, DIALECTS[self.endpoint.dialect]
        plain = shape.streams and connection.phase is BODY and head.values[shape.kind].startswith(b"text/event-stream")
        if not plain or dialect.choices(self.members) != 1:
            self.leave()
            return
        meter = dialect.meter(stream=True, hide_usage=self.hide_usage)
        self.hold = hold = Hold(self, head, shape, Through(meter, None))
        try:
            hold.begin()
        except Exception as error:  # noqa: BLE001  # a bug of ours: the spine tells of it
            self.leave(error)

    def _deliver(self, head: ResponseHead, shape: Shape, data: bytes, usage: Usage, came: float) -> None:
        """Steps relay and account."""
        spine, place, client, lead, started = self.spine, self.place, self.client, self.lead, self.started
        place.target.breaker.success(came, self.turn)
        values, own_id = head.values, request_id()
        first = now()
        overhead = int((self.began - started + first - came) * 1e6)
        ids = ids_of(shape, values, own_id)
        lines = b"%b%b%d\r\n%b" % (shape.lines(values), lead.stamp, overhead, ids)
        client.finish_with(lines, data)
        self.connection.finish()
        place.target.in_flight -= 1
        place.counter.release()
        asker = self.asking.asker
        asker.counter.release()
        spine.duty.active -= 1
        if self.size > COUNTED_BYTES:
            spine.duty.room.give(self.size)
        endpoint, provider, model = lead.names
        end = now()
        record = Record(
            end, "exchange", own_id, endpoint, asker.caller.name, self.view.model, provider, model, 200, "", 1
        )
        record.seconds, record.first_byte_seconds, record.overhead_us = end - started, first - started, overhead
        record.bytes_in, record.bytes_out = self.size, len(data)
        record.input_tokens, record.output_tokens = usage.input, usage.output
        record.cached_tokens, record.reasoning_tokens = usage.cached, usage.reasoning
        spine.ledger.record(record)

    def cancel(self) -> None:
        """As of a Drive: its client has gone, or the server will not wait any longer."""
        self.leave().cancel()

    def leave(self, error: Exception | None = None) -> Any:
        """Go on in the spine, with the try that has been sent."""
        if self.hold is not None:
            self.hold.stop()
        exchange, attempt = self._exchange()
        return self._follow(exchange, attempt, error)

    def _follow(self, exchange: Exchange, attempt: Attempt, error: Exception | None = None) -> Any:
        self.spine.duty.active -= 1  # it is counted anew
        return self.client.follow(proceed(exchange, self.lead.plan, attempt, self.asking.asker.counter, error))

    def go_on(self, held: Hold, data: bytes) -> None:
        """The first content of a stream has come: step relay begins here, and is the spine's to end."""
        place, lead, head, shape = self.place, self.lead, held.head, held.shape
        came = now()
        place.target.breaker.success(came, self.turn)
        exchange, attempt = self._exchange()
        record, outcome = exchange.record, exchange.outcome
        record.status, record.attempts = 200, 1
        _, record.provider, record.model = lead.names
        first = outcome.first_byte_at = now()
        outcome.waited, outcome.bytes_sent = came - self.began, len(data)
        record.overhead_us = overhead = int((self.began - self.started + first - came) * 1e6)
        ids = ids_of(shape, head.values, record.request_id)
        lines = b"%b%d\r\n%b" % (lead.stamp, overhead, ids)
        self.client.begin_with(shape.lines(head.values), lines, data)
        exchange.streaming, exchange.target = True, lead.target
        attempt.sent, attempt.inbound = None, Answer(200, [], {}, self.connection)
        attempt.way, attempt.meter = held.way, held.way.meter
        self._follow(exchange, attempt)

    def _exchange(self) -> tuple[Exchange, Attempt]:
        """What it has come to, as the spine has it."""
        spine, asking, lead, view = self.spine, self.asking, self.lead, self.view
        record = Record(request_id=request_id(), endpoint=self.endpoint.path, caller=asking.asker.caller.name)
        record.asked_model, record.stream, record.bytes_in = view.model, view.stream, self.size
        exchange = Exchange(
            spine,
            self.endpoint,
            DIALECTS[self.endpoint.dialect],
            self.client,
            record,
            Outcome(self.started),
            asking,
            self.members,
            view,
            self.started + asking.timeout,
        )
        if self.size > COUNTED_BYTES:
            exchange.held = self.size
        attempt = exchange.attempt = Attempt(
            lead.target, self.place, self.place.counter, self.turn, 0, self.began, self.hide_usage, sent=self.connection
        )
        return exchange, attempt


class Hold(msgspec.Struct, eq=False):
    """Step hold: what has come of a stream, until its first content. Where none comes, the spine has it as it came."""

    lane: Lane
    head: ResponseHead
    shape: Shape
    way: Through
    raw: list[bytes] = []
    out: list[bytes] = []
    size: int = 0
    timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        connection, model = self.lane.connection, self.lane.lead.plan.model
        if connection.size and self.feed(connection.take()) is not None:
            self.over()
            return
        connection.tap(self.feed)
        connection.signal.attach(self.over)
        self.timer = asyncio.get_running_loop().call_later(model.commit_seconds, self.late)

    def feed(self, data: bytes) -> Awaitable[None] | None:
        """ENOUGH, where it is certain what comes of it."""
        self.raw.append(data)
        out, meter = self.way.feed(data), self.way.meter
        self.out.append(out)
        self.size += len(out)
        enough = meter.started or meter.fault is not None or self.size > self.lane.lead.plan.model.commit_bytes
        return ENOUGH if enough else None

    def late(self) -> None:
        """Held for as long as it may be."""
        self.lane.connection.signal.detach()
        self.over()

    def over(self) -> None:
        """Content, an error, an end; or it was held for long enough."""
        lane, meter = self.lane, self.way.meter
        try:
            if lane.connection.phase is not BODY or meter.fault is not None or not lane.client.plain:
                lane.leave()
                return
            self._untap()
            meter.start()
            lane.hold = None
            lane.go_on(self, b"".join(self.out))
        except Exception as error:  # noqa: BLE001  # a bug of ours: the spine tells of it
            lane.leave(error)

    def stop(self) -> None:
        """The spine reads it from the beginning."""
        self.lane.hold = None
        self._untap()
        if self.raw:
            self.lane.connection.put_back(b"".join(self.raw))

    def _untap(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.lane.connection.tap(None)
