"""The hot lane: the spine's steps without a coroutine, for a request and an answer that need no decision.

It is entered when a head has come again on its connection (server/again.py), under the configuration that read it
before, for a plan with one healthy target that speaks the client's dialect; and it is left, for the spine, at the first
sight of anything else: a limit, a dial, a refusal, a slow client, a client that goes. What was done until then is not
done again. So it decides nothing: it is the spine's usual case, and tests run each request both ways. Streams are
flow.py's.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from sidecar.answer import ids_of
from sidecar.clock import now
from sidecar.dialects import DIALECTS
from sidecar.errors import SidecarError
from sidecar.exchange import cached
from sidecar.exchange.attempt import HELD_BYTES
from sidecar.exchange.flow import Flow
from sidecar.exchange.hits import Direct, Over, give_at_once
from sidecar.exchange.spine import proceed, request_id, run
from sidecar.exchange.state import Attempt, Exchange, Place, Spine
from sidecar.memory import COUNTED_BYTES
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
    flow: Flow | None = None  # of a stream

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
        self.flow = flow = Flow(self, head, shape, Through(meter, None), Outcome(self.started))
        try:
            flow.begin()
        except Exception as error:  # noqa: BLE001  # a bug of ours: the spine tells of it
            self.leave(error)

    def _deliver(self, head: ResponseHead, shape: Shape, data: bytes, usage: Usage, came: float) -> None:
        """Steps relay and account."""
        self.place.target.breaker.success(came, self.turn)
        values, own_id = head.values, request_id()
        first = now()
        overhead = int((self.began - self.started + first - came) * 1e6)
        ids = ids_of(shape, values, own_id)
        self.client.finish_with(b"%b%b%d\r\n%b" % (shape.lines(values), self.lead.stamp, overhead, ids), data)
        self.account(own_id, Outcome(self.started, len(data), first), overhead, usage)

    def begin_stream(self, head: ResponseHead, shape: Shape, outcome: Outcome, data: bytes) -> tuple[str, int]:
        """The first content of a stream has come: what there is of it is sent. Its id, and our own microseconds."""
        came = now()
        self.place.target.breaker.success(came, self.turn)
        own_id = request_id()
        first = outcome.first_byte_at = now()
        outcome.waited, outcome.bytes_sent = came - self.began, len(data)
        overhead = int((self.began - self.started + first - came) * 1e6)
        ids = ids_of(shape, head.values, own_id)
        self.client.begin_with(shape.lines(head.values), b"%b%d\r\n%b" % (self.lead.stamp, overhead, ids), data)
        return own_id, overhead

    def account(self, own_id: str, outcome: Outcome, overhead: int, usage: Usage | None) -> None:
        """Step account, of an answer that has gone: what was held is given back."""
        self.flow = None  # which knows this: a circle is left to the garbage collector
        self.connection.finish()
        self.place.target.in_flight -= 1
        self.place.counter.release()
        asker, duty = self.asking.asker, self.spine.duty
        asker.counter.release()
        duty.active -= 1
        if self.size > COUNTED_BYTES:
            duty.room.give(self.size)
        endpoint, provider, model = self.lead.names
        first = outcome.first_byte_at
        end = now()
        record = Record(
            *(end, "exchange", own_id, endpoint, asker.caller.name, self.view.model, provider, model, 200, "", 1),
            *(self.view.stream, end - self.started, None if first is None else first - self.started, overhead),
            *(self.size, outcome.bytes_sent),
            *((None,) * 4 if usage is None else (usage.input, usage.output, usage.cached, usage.reasoning)),
        )
        self.spine.ledger.record(record)

    def cancel(self) -> None:
        """As of a Drive: its client has gone, or the server will not wait any longer."""
        self.leave().cancel()

    def leave(self, error: Exception | None = None) -> Any:
        """Go on in the spine, with the try that has been sent."""
        exchange, attempt = self._exchange()
        if self.flow is not None:
            self.flow.hand_over(exchange, attempt)
            self.flow = None
        self.spine.duty.active -= 1  # it is counted anew
        return self.client.follow(proceed(exchange, self.lead.plan, attempt, self.asking.asker.counter, error))

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
