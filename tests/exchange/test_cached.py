"""The cache on real sockets: what is given again, to whom and for how long, and why something is not."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from sidecar.config import Cache, Caller, Key, Model, OnDisconnect
from sidecar.exchange import hits, lane
from tests.exchange.passing import later, said, stats
from tests.faults.peer import FIN, REQUEST, RST, Again, Pause, Script
from tests.faults.stand import Reply, Stand, ask, comes_true, post, read, standing
from tests.faults.transcripts import BOTH, CHAT, EVERY_WAY, JSON, LAST, WAYS, Way, chunk, head, reply

LAB = WAYS["chat"]
HOUR = Cache(ttl_seconds=3600)
MISS = (200, b"miss", None)
HIT = (200, b"hit", b"0")
OFF = (200, b"off", None)


def caller(name: str, **options: Any) -> Caller:
    return Caller(key=Key(source="sha256:", digest=hashlib.sha256(name.encode()).digest()), **options)


def bearer(name: str) -> bytes:
    return b"authorization: Bearer " + name.encode()


@EVERY_WAY
@BOTH
async def test_the_second_is_given_the_same_bytes_and_no_provider_is_asked(way: Way, stream: bool) -> None:
    script: Script = [Again((REQUEST, way.stream() if stream else way.whole()))]
    async with standing(script, cache=HOUR) as stand:
        request = ask(way, stream=stream)
        first = await stand.ask(request)
        again = [await stand.ask(request) for _ in range(3)]
        assert said(first) == MISS
        assert [said(each) for each in again] == [HIT] * 3
        assert {each.body for each in again} == {first.body}
        assert all(each.ended for each in again)
        assert {each.get(b"transfer-encoding") for each in again} == {b"chunked" if stream else None}
        for name in (b"content-type", b"x-sidecar-provider", b"x-sidecar-model"):
            assert {each.get(name) for each in again} == {first.get(name)} != {None}
        assert {each.get(b"cache-control") for each in (first, *again)} == {b"private, no-store"}
        assert {each.get(b"x-sidecar-attempts") for each in again} == {b"0"}
        assert len({each.get(b"x-request-id") for each in (first, *again)}) == 4
        assert len(stand.peer.requests) == 1
        rows = await stand.recorded(4)
        assert (stats(stand)["hit"], stats(stand)["miss"], stats(stand)["entries"]) == (3, 1, 1)
    spent = (rows[0]["input_tokens"], rows[0]["output_tokens"])
    assert [row["cache"] for row in rows] == ["miss", "hit", "hit", "hit"]
    assert {(row["input_tokens"], row["output_tokens"], row["attempts"]) for row in rows[1:]} == {(None, None, 0)}
    assert {(row["saved_input_tokens"], row["saved_output_tokens"]) for row in rows[1:]} == {
        tuple(tokens or 0 for tokens in spent)
    }
    assert {(row["status"], row["provider"], row["model"], row["bytes_out"]) for row in rows} == {
        (200, way.model.partition("/")[0], "m", len(first.body))
    }


async def test_off_is_not_looked_up_and_not_kept() -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR) as stand:
        off = ask(LAB, b"x-sidecar-cache: off", stream=False)
        assert said(await stand.ask(off)) == OFF
        assert said(await stand.ask(ask(LAB, stream=False))) == MISS
        assert said(await stand.ask(off)) == OFF
        assert len(stand.peer.requests) == 3
        assert stats(stand)["uncached"] == {"asked": 2}


async def test_another_word_than_off_and_refresh_is_refused() -> None:
    async with standing([Again((REQUEST, LAB.whole()))]) as stand:
        answer = await stand.ask(ask(LAB, b"x-sidecar-cache: of", stream=False))
        assert (answer.status, answer.json["error"]["param"]) == (400, "x-sidecar-cache")


async def test_refresh_asks_anew_and_replaces() -> None:
    answers = [reply(CHAT.body.replace(b"one", word)) for word in (b"1st", b"2nd", b"3rd")]
    script: Script = [step for each in answers for step in (REQUEST, each)]
    async with standing(script, cache=HOUR) as stand:
        request, refresh = ask(LAB, stream=False), ask(LAB, b"x-sidecar-cache: refresh", stream=False)
        got = [await stand.ask(each) for each in (request, refresh, request, refresh, request)]
        assert [said(each)[1] for each in got] == [b"miss", b"miss", b"hit", b"miss", b"hit"]
        words = [each.json["choices"][0]["message"]["content"][:3] for each in got]
        assert words == ["1st", "2nd", "2nd", "3rd", "3rd"]


async def test_the_time_to_live_and_the_age(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=Cache(ttl_seconds=60)) as stand:
        request = ask(LAB, stream=False)
        assert said(await stand.ask(request)) == MISS
        later(monkeypatch, stand, 59.0)
        assert said(await stand.ask(request)) == (200, b"hit", b"59")
        later(monkeypatch, stand, 61.0)
        assert said(await stand.ask(request)) == MISS
        assert len(stand.peer.requests) == 2


async def test_a_time_to_live_that_was_lowered_holds_for_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR) as stand:
        request = ask(LAB, stream=False)
        assert said(await stand.ask(request)) == MISS
        stand.app.reload(msgspec.structs.replace(stand.app.config, cache=Cache(ttl_seconds=60)))
        later(monkeypatch, stand, 59.0)
        assert said(await stand.ask(request)) == (200, b"hit", b"59")
        later(monkeypatch, stand, 61.0)
        assert [said(each)[1] for each in await _in_turn(stand, request, request)] == [b"miss", b"hit"]


@pytest.mark.parametrize(
    ("ttl", "own", "cached"), [(3600, None, True), (3600, 0, False), (None, 60, True), (None, None, False)]
)
async def test_a_models_own_time_to_live(ttl: float | None, own: float | None, cached: bool) -> None:
    models = {"one": Model(targets=("lab/m",), cache_ttl_seconds=own)}
    async with standing([Again((REQUEST, LAB.whole()))], models=models, cache=Cache(ttl_seconds=ttl)) as stand:
        request = ask(LAB, model="one", stream=False)
        first, second = await stand.ask(request), await stand.ask(request)
        assert (said(first), said(second)) == ((MISS, HIT) if cached else (OFF, OFF))
        status = (await stand.ask(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n")).json["cache"]
        assert status["state"] == ("off" if ttl is None and own is None else "on")


@pytest.mark.parametrize(
    ("why", "cache", "members"),
    [
        ("temperature", Cache(ttl_seconds=60, temperature_max=0.5), {"temperature": 0.6}),
        ("temperature", Cache(ttl_seconds=60, temperature_max=0.5), {}),
        ("stateful", HOUR, {"store": True}),
    ],
)
async def test_why_a_request_was_not_cached_is_told(why: str, cache: Cache, members: dict[str, Any]) -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=cache) as stand:
        got = [await stand.ask(ask(LAB, b"x-sidecar-explain: 1", stream=False, **members)) for _ in range(2)]
        assert [said(each) for each in got] == [OFF] * 2
        route = got[0].get(b"x-sidecar-route")
        assert route is not None
        assert b"not cached: " in route
        assert stats(stand)["uncached"] == {why: 2}
        status = (await stand.ask(b"GET /status HTTP/1.1\r\nhost: localhost\r\n\r\n")).json["cache"]
        assert status["uncached"] == {why: 2}
        metrics = (await stand.ask(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")).body
        assert b'sidecar_cache_uncached_total{reason="%b"} 2' % why.encode() in metrics


async def test_the_route_tells_of_a_miss_and_of_a_hit() -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR) as stand:
        request = ask(LAB, b"x-sidecar-explain: 1", stream=False)
        miss, hit = (await stand.ask(request)).get(b"x-sidecar-route"), await stand.ask(request)
        assert miss is not None
        assert miss.startswith(b"failover over lab/m: not in the cache; lab/m answered after ")
        assert hit.get(b"x-sidecar-route") == b"answered from the cache, 0 s old"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ask(LAB, bearer("b"), model="one"), id="another caller"),
        pytest.param(ask(LAB, bearer("a"), model="two"), id="another name of the same target"),
        pytest.param(ask(LAB, bearer("a"), model="lab/m"), id="the target itself"),
        pytest.param(ask(LAB, bearer("a"), model="one", stream=False), id="no stream"),
        pytest.param(ask(WAYS["messages from chat"], bearer("a"), model="one"), id="another dialect"),
        pytest.param(ask(LAB, bearer("a"), model="one", max_tokens=10), id="another body"),
        pytest.param(ask(LAB, bearer("a"), model="one", stream_options={"include_usage": True}), id="with usage"),
        pytest.param(ask(LAB, bearer("a"), b"openai-beta: x", model="one"), id="another header that goes up"),
        pytest.param(
            ask(LAB, bearer("a"), model="one").replace(b"/v1/chat/completions", b"/v1/chat/completions?x=1"),
            id="another query",
        ),
    ],
)
async def test_what_is_not_the_same_crosses_nothing(other: bytes) -> None:
    usage = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    stream = head() + b"".join(map(chunk, (*CHAT.events[:-1], usage, CHAT.events[-1]))) + LAST
    models = {name: Model(targets=("lab/m",)) for name in ("one", "two")}
    callers = {name: caller(name) for name in ("a", "b")}
    async with standing([Again((REQUEST, stream))], models=models, callers=callers, cache=HOUR) as stand:
        one = ask(LAB, bearer("a"), model="one")
        assert [said(await stand.ask(each))[1] for each in (one, one)] == [b"miss", b"hit"]
        await stand.ask(other)
        assert len(stand.peer.requests) == 2
        assert said(await stand.ask(one)) == HIT


async def test_strangers_with_keys_of_their_own_share_nothing() -> None:
    """Where there are no callers, an answer is of the key that it was asked with (R10)."""
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR) as stand:
        for name, how in (("mine", b"miss"), ("yours", b"miss"), ("mine", b"hit"), ("yours", b"hit")):
            assert said(await stand.ask(ask(LAB, bearer(name), stream=False)))[1] == how
        assert said(await stand.ask(ask(LAB, stream=False)))[1] == b"miss"


async def test_headers_that_say_nothing_of_the_answer_are_no_difference() -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR) as stand:
        lines = (b"user-agent: curl", b"accept: */*", b"x-stainless-retry-count: 1", b"x-sidecar-timeout-ms: 9000")
        assert said(await stand.ask(ask(LAB, stream=False))) == MISS
        assert said(await stand.ask(ask(LAB, *lines, stream=False))) == HIT


async def test_another_configuration_of_a_name_does_not_answer_for_the_old_one() -> None:
    async with standing([Again((REQUEST, LAB.whole()))], cache=HOUR, models={"one": ("lab/m",)}) as stand:
        request, config = ask(LAB, model="one", stream=False), stand.app.config
        assert said(await stand.ask(request)) == MISS
        stand.app.reload(config)
        assert said(await stand.ask(request)) == HIT
        stand.app.reload(msgspec.structs.replace(config, models={"one": Model(targets=("lab/other",))}))
        assert said(await stand.ask(request)) == MISS
        stand.app.reload(config)
        assert said(await stand.ask(request)) == HIT


# -- what is never kept

GOOD_EVENTS = len(CHAT.events)
FAILS: dict[str, tuple[bytes, bytes, bool]] = {  # why, what the provider sends, in answer to a stream
    "a refusal": (b"failed", reply(b'{"error":{"message":"no"}}', status=b"400 Bad"), False),
    "a rate limit": (b"failed", reply(b'{"error":{"message":"no"}}', status=b"429 Slow"), False),
    "a failure": (b"failed", reply(b'{"error":{"message":"no"}}', status=b"500 Oh"), True),
    "created": (b"failed", reply(CHAT.body, status=b"201 Created"), False),
    "an error in a 200": (b"failed", reply(b'{"error":{"message":"no","code":500}}'), False),
    "half of a body": (b"odd", reply(CHAT.body[:-1]), False),
    "a page": (b"odd", reply(b"<html></html>", kind=b"text/html"), False),
    "a content coding": (b"encoded", reply(gzip.compress(CHAT.body), b"content-encoding: gzip"), False),
    "a filter": (b"filtered", reply(CHAT.body.replace(b'"stop"', b'"content_filter"')), False),
    "an error in a stream": (
        b"failed",
        head() + b"".join(map(chunk, (*CHAT.events[:2], b'data: {"error":{"message":"no"}}\n\n'))) + LAST,
        True,
    ),
    "a stream without its last word": (b"cut", head() + b"".join(map(chunk, CHAT.events[:3])) + LAST, True),
}


@pytest.mark.parametrize(("why", "sent", "stream"), FAILS.values(), ids=FAILS)
async def test_what_did_not_end_well_is_not_kept(why: bytes, sent: bytes, stream: bool) -> None:
    script: Script = [REQUEST, sent, FIN]
    async with standing(lambda number: script if number < 2 else [REQUEST, LAB.whole()], cache=HOUR) as stand:
        request = ask(LAB, b"accept-encoding: gzip", stream=stream)
        for _ in range(2):
            assert said(await stand.ask(request))[1] in (b"miss", None)
        assert len(stand.peer.requests) == 2
        assert (stats(stand)["entries"], stats(stand)["uncached"]) == (0, {why.decode(): 2})


@EVERY_WAY
@pytest.mark.parametrize("ending", [FIN, RST])
@pytest.mark.parametrize("events", [0, 1, 2, 3])
async def test_a_cut_stream_is_never_kept(way: Way, ending: Any, events: int) -> None:
    cut: Script = [REQUEST, way.stream(events), ending]
    async with standing(lambda number: [REQUEST, way.stream()] if number else cut, cache=HOUR) as stand:
        broken = await stand.ask(ask(way))
        assert way.ours.done not in broken.body
        assert stats(stand)["entries"] == 0
        whole = await stand.ask(ask(way))
        assert said(whole) == MISS
        assert (await stand.ask(ask(way))).body == whole.body
        assert len(stand.peer.requests) == 2


async def test_a_body_that_is_cut_is_never_kept() -> None:
    half = head(kind=JSON, framing=b"content-length: %d" % len(CHAT.body)) + CHAT.body[:-20]
    script: Script = [REQUEST, half, FIN]
    async with standing(lambda number: [REQUEST, LAB.whole()] if number else script, cache=HOUR) as stand:
        assert (await stand.ask(ask(LAB, stream=False))).status == 502
        assert said(await stand.ask(ask(LAB, stream=False))) == MISS


async def test_what_is_too_large_is_not_kept() -> None:
    body = CHAT.body.replace(b"one", b"x" * 140_000)
    async with standing([Again((REQUEST, reply(body)))], cache=Cache(ttl_seconds=60, max_bytes=2**20)) as stand:
        for _ in range(2):
            assert (await stand.ask(ask(LAB, stream=False))).body == body
        assert stats(stand)["uncached"] == {"too_large": 2}
        assert len(stand.peer.requests) == 2


@pytest.mark.parametrize("ending", [FIN, RST])
async def test_an_answer_that_its_client_has_left_is_not_kept(ending: Any) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, LAB.stream(2), Pause(go_on), *map(chunk, CHAT.events[2:]), LAST]
    async with standing(script, cache=HOUR) as stand:
        async with stand.client() as client:
            client.write(ask(LAB))
            await client.take_until(b"one")
            await client.run(ending)
        await comes_true(lambda: not stand.peer.open, "left")
        await comes_true(lambda: stats(stand)["uncached"], "told")
        assert (stats(stand)["uncached"], stats(stand)["entries"]) == ({"cut": 1}, 0)
        go_on.set()


async def test_one_that_was_heard_out_is_kept() -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), reply(CHAT.body)]
    drain = OnDisconnect(policy="drain")
    async with standing(script, cache=HOUR, on_disconnect=drain) as stand:
        async with stand.client() as client:
            client.write(ask(LAB, stream=False))
            await stand.peer.requested()
            await client.run(RST)
        await comes_true(lambda: not stand.server.work, "left")
        go_on.set()
        await comes_true(lambda: stats(stand)["entries"] == 1, "kept")
        assert said(await stand.ask(ask(LAB, stream=False))) == HIT
        assert len(stand.peer.requests) == 1


async def test_an_answer_of_two_targets_is_not_kept() -> None:
    models = {"one": Model(targets=("lab/m", "claude/m"), continuation=True)}

    def script(number: int) -> Script:
        return [Again((REQUEST, WAYS["messages"].stream()))] if number == 1 else [REQUEST, LAB.stream(3), RST]

    async with standing(script, models=models, cache=HOUR) as stand:
        for _ in range(2):
            answer = await stand.ask(ask(LAB, model="one"))
            assert b"goes on from claude/m" in answer.body
        assert stats(stand)["uncached"] == {"continued": 2}


# -- together with what else a model may say


@BOTH
async def test_many_at_once_ask_one_time_and_the_next_is_a_hit(stream: bool) -> None:
    go_on = asyncio.Event()
    script: Script = [REQUEST, Pause(go_on), LAB.stream() if stream else LAB.whole()]
    async with standing(script, cache=HOUR) as stand, AsyncExitStack() as stack:
        request = ask(LAB, stream=stream)
        clients = [await stack.enter_async_context(stand.client()) for _ in range(20)]
        for client in clients:
            client.write(request)
        await comes_true(lambda: len(stand.server.work) == 20, "arrived")
        go_on.set()
        answers = [read(await client.response()) for client in clients]
        assert [said(each)[1] for each in answers] == [b"miss", *[b"coalesced"] * 19]
        assert len({each.body for each in answers}) == 1
        assert said(await stand.ask(request)) == HIT
        assert len(stand.peer.requests) == 1
        assert (stats(stand)["miss"], stats(stand)["coalesced"], stats(stand)["hit"]) == (1, 19, 1)
        rows = await stand.recorded(21)
    assert sorted(row["cache"] for row in rows) == [*["coalesced"] * 19, "hit", "miss"]
    assert sum(row["attempts"] for row in rows) == 1


async def test_comments_are_not_kept() -> None:
    go_on = asyncio.Event()
    models = {"one": Model(targets=("lab/m",), keepalive_comment_seconds=0.02)}
    async with standing([REQUEST, Pause(go_on), LAB.stream()], models=models, cache=HOUR) as stand:
        async with stand.client() as client:
            client.write(ask(LAB, model="one"))
            await client.take_until(b": sidecar\n\n")
            go_on.set()
            await client.take_until(LAST)
            first = read(bytes(client.received))
        again = await stand.ask(ask(LAB, model="one"))
        assert said(first)[1] == b"miss"
        assert again.body == first.body.replace(b": sidecar\n\n", b"") == b"".join(CHAT.events)
        assert again.get(b"content-type") == first.get(b"content-type")


async def test_a_hit_spends_the_callers_limit_and_no_providers() -> None:
    callers = {"a": caller("a", requests_per_minute=3)}
    async with standing([Again((REQUEST, LAB.whole()))], callers=callers, cache=HOUR) as stand:
        request = ask(LAB, bearer("a"), stream=False)
        assert [(await stand.ask(request)).status for _ in range(4)] == [200, 200, 200, 429]
        assert len(stand.peer.requests) == 1


async def test_endpoints_without_a_cache_say_so() -> None:
    tokens = reply(b'{"input_tokens":3}')
    async with standing([Again((REQUEST, tokens))], cache=HOUR) as stand:
        request = post("/v1/messages/count_tokens", b'{"model":"claude/m","messages":[]}')
        assert [said(await stand.ask(request)) for _ in range(2)] == [OFF] * 2
        assert stats(stand)["uncached"] == {"dialect": 2}


# -- without a coroutine: on a connection whose last request had the same head


async def _in_turn(stand: Stand, *requests: bytes) -> list[Reply]:
    """One after another on one connection."""
    async with stand.client() as client:
        answers = []
        for request in requests:
            client.write(request)
            answers.append(read(await client.response()))
        return answers


@EVERY_WAY
@BOTH
async def test_at_once_or_in_a_coroutine_is_the_same(way: Way, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Script = [Again((REQUEST, way.stream() if stream else way.whole()))]
    given: list[object] = []
    async with standing(script, cache=HOUR) as stand:
        request = ask(way, stream=stream)
        slow = (await _in_turn(stand, request, request))[1]

        def give(*args: Any) -> Any:
            given.append(hits.give_at_once(*args))
            return given[-1]

        monkeypatch.setattr(lane, "give_at_once", give)
        fast = (await _in_turn(stand, request, request, request))[2]
        assert given == [hits.OVER] * 2
        assert (fast.status, fast.body, fast.ended) == (slow.status, slow.body, slow.ended)
        assert [name for name, _ in fast.headers] == [name for name, _ in slow.headers]
        unlike = (b"x-sidecar-overhead-us", b"x-request-id", b"request-id", b"date", b"age")
        assert [pair for pair in fast.headers if pair[0] not in unlike] == [
            pair for pair in slow.headers if pair[0] not in unlike
        ]
        assert fast.get(b"x-request-id") == fast.get(b"request-id") != slow.get(b"request-id")
        assert len(stand.peer.requests) == 1
        rows = await stand.recorded(5)
        stats_ = stats(stand)
    assert (stats_["hit"], stats_["miss"]) == (4, 1)
    ours = ("time", "id", "seconds", "first_byte_seconds", "overhead_us")
    slowly, fastly = ({name: value for name, value in row.items() if name not in ours} for row in (rows[1], rows[4]))
    assert slowly == fastly
    assert rows[4]["seconds"] >= rows[4]["first_byte_seconds"] >= 0


async def test_what_wants_a_decision_is_not_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, whatever a repeated head says; a limit is a limit."""
    callers = {"a": caller("a", requests_per_minute=7), "b": caller("b", tokens_per_minute=1_000_000)}
    async with standing([Again((REQUEST, LAB.whole()))], callers=callers, cache=HOUR) as stand:
        one = ask(LAB, bearer("a"), stream=False)
        off = ask(LAB, bearer("a"), b"x-sidecar-cache: off", stream=False)
        told = ask(LAB, bearer("a"), b"x-sidecar-explain: 1", stream=False)
        got = await _in_turn(stand, one, one, off, off, told, told, one, one)
        assert [said(each)[:2] for each in got] == [
            (200, b"miss"),
            (200, b"hit"),
            (200, b"off"),
            (200, b"off"),
            (200, b"hit"),
            (200, b"hit"),
            (200, b"hit"),
            (429, None),
        ]
        assert got[5].get(b"x-sidecar-route") == b"answered from the cache, 0 s old"
        assert got[7].get(b"retry-after") is not None
        tokens = ask(LAB, bearer("b"), stream=False)
        assert [said(each)[1] for each in await _in_turn(stand, tokens, tokens, tokens)] == [b"miss", b"hit", b"hit"]


async def test_a_head_that_asks_for_several_models_and_a_reload_between() -> None:
    async with standing([Again((REQUEST, LAB.whole()))], models={"one": ("lab/m",)}, cache=HOUR) as stand:
        one, two = ask(LAB, model="one", stream=False), ask(LAB, model="lab/m", stream=False)
        other = Model(targets=("lab/n",))
        async with stand.client() as client:

            async def asked(request: bytes) -> bytes | None:
                client.write(request)
                return said(read(await client.response()))[1]

            assert [await asked(each) for each in (one, two, one, two)] == [b"miss", b"miss", b"hit", b"hit"]
            stand.app.reload(msgspec.structs.replace(stand.app.config, models={"one": other}))
            assert [await asked(each) for each in (two, one, one)] == [b"hit", b"miss", b"hit"]
            stand.app.reload(msgspec.structs.replace(stand.app.config, cache=Cache()))
            assert [await asked(each) for each in (two, one)] == [b"off", b"off"]
