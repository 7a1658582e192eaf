"""The hot lane: the spine's steps without a coroutine, for a request and an answer that need no decision.

It is entered when a head has come again on its connection (server/again.py), under the configuration that read it
before, for a plan with one healthy target that speaks the client's dialect; and it is left, for the spine, at the first
sight of anything else: a limit, a dial, a refusal, a stream, a slow client, a client that goes. What was done until
then is not done again. So it decides nothing: it is the spine's usual case, and tests run each request both ways.
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
from sidecar.exchange.hits import Direct, Over, give_at_once
from sidecar.exchange.spine import proceed, request_id, run
from sidecar.exchange.state import Attempt, Exchange, Place, Spine
from sidecar.memory import COUNTED_BYTES
from sidecar.pool.connection import ENDED, Connection, Stale
from sidecar.pool.outbound import Prepared
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
        connection.put_away()
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
    """A request that has been sent, until its answer comes."""

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

    def wake(self) -> None:
        """Something has come of it: deliver the whole of a plain answer; all else is the spine's."""
        connection, client = self.connection, self.client
        head = connection.answer
        if head is None or connection.phase is not ENDED or head.status != 200 or self.view.stream:
            self.leave()
            return
        shape = head.shape
        if shape is None or not shape.simple or not client.plain:
            self.leave()
            return
        if shape.left and _scarce(shape, head.values):
            self.leave()
            return
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
        spine.duty.active -= 1  # it is counted anew
        return self.client.follow(proceed(exchange, lead.plan, attempt, asking.asker.counter, error))
