"""Whatever is asked in whatever order: the cache answers as a dictionary would, and no stream is other than it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidecar.config import Cache, Model
from tests.exchange.passing import later, said, stats
from tests.exchange.test_cached import bearer, caller
from tests.faults.peer import REQUEST, RST, Script
from tests.faults.stand import ask, comes_true, standing
from tests.faults.transcripts import BOTH, CHAT, LAST, WAYS, chunk, head, reply

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TTL = 60
asked = st.tuples(
    st.sampled_from(["a", "b"]),  # callers
    st.sampled_from(["chat", "messages from chat"]),  # dialects
    st.sampled_from(["one", "two", "lab/m"]),  # names of the same target
    st.sampled_from(["x", "y"]),  # bodies
)
waits = st.integers(1, 40)


@FEW
@given(st.lists(asked | waits, min_size=5, max_size=25))
async def test_nothing_crosses_callers_dialects_models_bodies_or_time(steps: list[Any]) -> None:
    """Each answer of the provider has a number of its own, by which it is known again."""
    serial = itertools.count()
    answers: Script = [
        step
        for _ in range(len(steps))
        for step in (REQUEST, reply(CHAT.body.replace(b"one", b"no. %d" % next(serial))))
    ]
    models = {name: Model(targets=("lab/m",)) for name in ("one", "two")}
    callers = {name: caller(name) for name in ("a", "b")}
    kept: dict[tuple[str, ...], tuple[int, bytes]] = {}
    now, misses = 0, 0
    with pytest.MonkeyPatch.context() as patch:
        async with standing(answers, models=models, callers=callers, cache=Cache(ttl_seconds=TTL)) as stand:
            for step in steps:
                if isinstance(step, int):
                    now += step
                    later(patch, stand, now)
                    continue
                name, way, model, user = step
                answer = await stand.ask(ask(WAYS[way], bearer(name), model=model, stream=False, user=user))
                made, body = kept.get(step, (0, b""))
                if body and now - made < TTL:
                    assert said(answer)[:2] == (200, b"hit")
                    assert now - made <= int(answer.get(b"age") or -1) <= now - made + 1
                    assert answer.body == body
                else:
                    assert said(answer) == (200, b"miss", None)
                    assert b"no. %d" % misses in answer.body
                    misses += 1
                    kept[step] = (now, answer.body)
            assert len(stand.peer.requests) == misses


@FEW
@given(st.lists(st.integers(1, sum(map(len, CHAT.events)) - 1), max_size=12, unique=True))
async def test_a_stream_is_given_again_as_it_was_however_it_came(cuts: list[int]) -> None:
    whole = b"".join(CHAT.events)
    bounds = [0, *sorted(cuts), len(whole)]
    pieces = [chunk(whole[start:end]) for start, end in itertools.pairwise(bounds)]
    async with standing([REQUEST, head(), *pieces, LAST], cache=Cache(ttl_seconds=TTL)) as stand:
        first, again = [await stand.ask(ask(WAYS["chat"])) for _ in range(2)]
        assert (first.body, again.body, again.ended) == (whole, whole, True)
        assert [said(each)[1] for each in (first, again)] == [b"miss", b"hit"]


@BOTH
@FEW
@given(at=st.integers(0, sum(map(len, CHAT.events))))
async def test_what_was_cut_anywhere_is_kept_only_behind_its_last_word(stream: bool, at: int) -> None:
    whole = b"".join(CHAT.events) if stream else CHAT.body
    part = whole[: at % (len(whole) + 1)]
    sent = head(kind=b"text/event-stream" if stream else b"application/json")
    script: Script = [REQUEST, sent, *([chunk(part)] if part else []), RST]
    async with standing(script, cache=Cache(ttl_seconds=TTL)) as stand:
        answer = await stand.ask(ask(WAYS["chat"], stream=stream))
        await comes_true(lambda: stats(stand)["entries"] or stats(stand)["uncached"], "over")
        assert bool(stats(stand)["entries"]) == (CHAT.done in answer.body)
        assert not stats(stand)["entries"] or (stream and part.endswith(b"[DONE]\n\n"))
