"""Order, retries and fall-backs, under any ASGI server (in its task); what each leaves behind is nothing."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sidecar.app import Sidecar
from sidecar.clock import now
from sidecar.config import Breaker, Model, Retry
from sidecar.exchange.tries import Failure, obtain
from sidecar.types import Message
from tests.asgi import http
from tests.exchange.stage import attempt, config, exchange
from tests.exchange.test_attempt import call
from tests.faults.peer import CLOSE, REQUEST, RST, Again, Pause, RawServer, Script
from tests.faults.stand import ask, comes_true, provider, standing
from tests.faults.transcripts import CHAT_BODY, LAST, MESSAGES_EVENTS, WAYS, chunk, head, reply as answer

CHAT = WAYS["chat"]
BUSY = answer(b"{}", status=b"503 Busy")
BOTH = Model(targets=("lab/m", "other/m"))


def test_a_failure_gives_back_what_it_holds_once() -> None:
    of = exchange(Sidecar(config()))
    failure = Failure("server", None, attempt(of))
    place = of.spine.place(of.plan.targets[0])
    assert place.counter.running == 1
    failure.close()
    failure.close()
    assert (place.counter.running, place.target.in_flight) == (0, 0)


async def test_a_retry_and_a_fall_back_under_any_server() -> None:
    async with RawServer([REQUEST, CHAT.whole()]) as other:
        async with standing(
            [Again((REQUEST, BUSY))],
            models={"fast": BOTH},
            more=lambda _: {"other": provider(other)},
            retry=Retry(base_seconds=0.01),
        ) as stand:
            reply = await call(stand, "fast", stream=False, x_sidecar_explain="1")
            assert (reply.status, reply.body, reply.get(b"x-sidecar-attempts")) == (200, CHAT_BODY, b"3")
            assert b"failover over lab/m, other/m: lab/m 503" in (reply.get(b"x-sidecar-route") or b"")
            assert (len(stand.peer.requests), len(other.requests)) == (2, 1)


async def test_a_client_of_any_server_that_leaves_during_the_back_off_ends_it() -> None:
    limited = answer(b"{}", b"retry-after: 2", status=b"429 Slow")
    async with standing([Again((REQUEST, limited))], retry=Retry()) as stand:
        body = msgspec.json.encode({"model": "lab/m", "messages": []})
        heard: list[Message] = [{"type": "http.request", "body": body}]
        left = asyncio.Event()

        async def receive() -> Message:
            if heard:
                return heard.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            raise AssertionError("nobody is there")

        async with asyncio.timeout(1):
            scope = http("POST", CHAT.path, {"content-type": "application/json"})
            asked = asyncio.ensure_future(stand.app(scope, receive, send))
            await comes_true(lambda: " 1 under way" in repr(stand.app._duty.retries), "the back-off")
            left.set()
            await asked
        assert (await stand.recorded())[0]["status"] == 499
        assert (len(stand.peer.requests), stand.idle()) == (1, True)


async def test_a_target_that_is_left_alone_hides_no_refusal_of_another() -> None:
    async with RawServer([Again((REQUEST, BUSY))]) as other:
        async with standing([], models={"fast": BOTH}, more=lambda _: {"other": provider(other)}) as stand:
            targets = exchange(stand.app, "fast").plan.targets
            stand.app._spine.place(targets[0]).target.breaker._open(now())
            reply = await call(stand, "fast", x_sidecar_explain="1")
            assert (reply.status, reply.body, reply.get(b"x-sidecar-attempts")) == (503, b"{}", b"1")
            route = (reply.get(b"x-sidecar-route") or b"").decode()
            assert route.index("other/m 503") < route.index("lab/m left alone")
            stand.app._spine.place(targets[1]).target.breaker._open(now())
            reply = await call(stand, "fast")
            assert (reply.status, reply.get(b"x-sidecar-error")) == (503, b"provider_unavailable")
            assert (len(stand.peer.connections), len(other.requests)) == (0, 1)


async def test_the_failure_that_opens_the_breaker_is_told_and_not_retried() -> None:
    options = {"breaker": Breaker(consecutive_failures=1)}
    async with standing([Again((REQUEST, BUSY))], options=options, retry=Retry(base_seconds=0.01)) as stand:
        reply = await call(stand)
        assert (reply.status, reply.body, len(stand.peer.requests)) == (503, b"{}", 1)
        assert (await call(stand)).get(b"x-sidecar-error") == b"provider_unavailable"


async def test_a_budget_that_is_spent_is_told_to_the_client() -> None:
    """Its own tries would multiply the load as ours do."""
    none = Retry(budget_percent=0, budget_minimum=0)
    async with standing([Again((REQUEST, BUSY))], retry=none) as stand:
        reply = await call(stand, x_sidecar_explain="1")
        assert (reply.status, reply.get(b"x-should-retry"), len(stand.peer.requests)) == (503, b"false", 1)
        assert (reply.get(b"x-sidecar-route") or b"").endswith(b"no retry: its budget is spent")


async def test_what_one_target_said_is_not_told_of_the_next() -> None:
    """The first ends its stream with an error in front of content; the second, whose key rests, is not even asked."""
    fault = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"boom"}}\n\n'
    until = asyncio.Event()
    start = chunk(MESSAGES_EVENTS[0].split(b"\n\n")[0] + b"\n\n")
    script: Script = [REQUEST, head() + start, Pause(until), chunk(fault) + LAST, CLOSE]
    model = Model(targets=("claude/m", "other/m"), keepalive_comment_seconds=0.03)
    async with RawServer([]) as other:
        async with standing(script, models={"fast": model}, more=lambda _: {"other": provider(other)}) as stand:
            place = stand.app._spine.place(exchange(stand.app, "fast").plan.targets[1])
            place.keys.cool(0, now() + 60)
            async with stand.client() as client:
                client.write(ask(CHAT, model="fast"))
                await client.take_until(b": sidecar")
                until.set()
                await client.take_until(b'"code":"provider_limited"')
                await client.take_until(b"0\r\n\r\n")
            assert not other.connections


async def test_a_cancelled_try_leaves_nothing() -> None:
    """Wherever it is: dialing, waiting for the head, holding, backing off."""
    scripts: tuple[Script, ...] = (
        [],
        [REQUEST],
        [REQUEST, head() + chunk(b": wait\n\n")],
        [REQUEST, BUSY],
        [REQUEST, RST],
    )
    for script in scripts:
        for rounds in (0, 1, 2, 3, 5, 8, 13, 30):
            async with standing(script, retry=Retry(base_seconds=2.0)) as stand:
                of = exchange(stand.app)
                trying = asyncio.ensure_future(obtain(of, of.plan))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                trying.cancel()
                with pytest.raises(asyncio.CancelledError):
                    (await trying).close()
                place = stand.app._spine.places.get("lab/m")
                assert place is None or (place.target.in_flight, place.counter.running) == (0, 0)
