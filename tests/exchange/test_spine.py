"""The spine's order, seen from outside: what an earlier step refuses costs nothing of a later one."""

from __future__ import annotations

import hashlib

import pytest

from sidecar.config import Caller, Key
from sidecar.exchange import STEPS
from tests.faults.peer import REQUEST
from tests.faults.stand import ask, post, standing
from tests.faults.transcripts import WAYS

CHAT = WAYS["chat"]
MINE = b"authorization: Bearer sk-of-a-caller"
CALLERS = {
    "web": Caller(
        key=Key(source="sha256:", digest=hashlib.sha256(b"sk-of-a-caller").digest()),
        models=("lab/*", "nowhere/*"),
        requests_per_minute=1,
    )
}


def test_the_steps_are_told_once_each() -> None:
    assert len(set(STEPS)) == len(STEPS)
    assert STEPS[0] == "accept"
    assert STEPS[-2:] == ("account", "respond")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post(CHAT.path, b"{", b"authorization: Bearer sk-wrong"), 401, b"caller_key_invalid"),  # not the body's fault
        (post(CHAT.path, b'{"model":7}', MINE), 400, b"caller_body_invalid"),
        (ask(CHAT, MINE, model="claude/m"), 403, b"policy_model_forbidden"),
        (ask(CHAT, MINE, model="nowhere/m"), 404, b"caller_model_unknown"),
    ],
    ids=["identify", "decode", "models of the caller", "route"],
)
async def test_what_is_refused_early_costs_no_limit_and_asks_nobody(request_: bytes, status: int, code: bytes) -> None:
    async with standing([REQUEST, CHAT.whole()], callers=CALLERS) as stand:
        refused = await stand.ask(request_)
        assert (refused.status, refused.get(b"x-sidecar-error")) == (status, code)
        assert not stand.peer.connections
        good = await stand.ask(ask(CHAT, MINE, stream=False))  # the one that this minute allows
        assert (good.status, good.body) == (200, CHAT.theirs.body)
        spent = await stand.ask(ask(CHAT, MINE, stream=False))
        assert (spent.status, spent.get(b"x-sidecar-error")) == (429, b"policy_rate_limited")
        assert len(stand.peer.requests) == 1


async def test_every_exchange_is_accounted_for_once() -> None:
    async with standing([REQUEST, CHAT.stream()], callers=CALLERS) as stand:
        await stand.ask(post(CHAT.path, b"{", b"x-api-key: sk-wrong"))
        await stand.ask(ask(CHAT, MINE))
        rows = await stand.recorded(2)
    assert [(row["status"], row["caller"], row["error"]) for row in rows] == [
        (401, "", "caller_key_invalid"),
        (200, "web", ""),
    ]
