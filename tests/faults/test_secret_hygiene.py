"""No key, no prompt and no answer is anywhere but where it goes: in no log, metric, error or repr (D28, D29)."""

from __future__ import annotations

import ast
import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sidecar
from sidecar.config import Caller, Key, effective, examine
from tests.faults.ground import closed_port
from tests.faults.peer import CLOSE, REQUEST
from tests.faults.stand import KEY, Stand, ask, post, provider, standing
from tests.faults.transcripts import EVERY_WAY, LAST, WAYS, Way, chunk, head, reply as answer

CALLER = "sk-canary-of-the-caller-0123456789"
PROMPT = "canary-prompt"
COMPLETION = "canary-completion"
CANARIES = (KEY, CALLER, PROMPT, COMPLETION, "canary")
CHAT = WAYS["chat"]


def callers(*keys: str) -> dict[str, Caller]:
    return {
        f"c{n}": Caller(key=Key(source="inline", digest=hashlib.sha256(key.encode()).digest()))
        for n, key in enumerate(keys)
    }


def _key(key: str) -> bytes:
    return b"authorization: Bearer " + key.encode()


async def _everywhere(stand: Stand) -> str:
    """All that the sidecar says of itself."""
    status = await stand.ask(b"GET /status HTTP/1.1\r\nhost: localhost\r\n" + _key(CALLER) + b"\r\n\r\n")
    metrics = await stand.ask(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
    models = await stand.ask(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + _key(CALLER) + b"\r\n\r\n")
    assert (status.status, metrics.status, models.status) == (200, 200, 200)
    app = stand.app
    shown = [status.body, metrics.body, models.body, stand.lines(), app, app.config, app.pool, app._limits]
    return "".join(map(repr, (*shown, app._ledger, app._spine.callers, stand.server)))


@EVERY_WAY
async def test_whatever_goes_wrong_nothing_is_told(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    echo = b'{"error":{"message":"bad key ' + KEY.encode() + b'"}}'
    answers = [
        way.stream(),
        way.stream(2) + chunk(COMPLETION.encode()),
        answer(echo, status=b"401 No"),
        answer(COMPLETION.encode(), status=b"500 Oh"),
        b"220 canary\r\n",
        head(b"x: canary\rcanary"),
        head() + chunk(b"data: canary\n\n") + LAST,
        answer(b"", b"location: http://canary/", status=b"307 Moved"),
        answer(b'{"canary"', b"content-encoding: gzip"),
    ]
    gone = provider(closed_port(), headers={"x-key": KEY})
    async with standing(
        lambda number: [REQUEST, answers[number], CLOSE],
        callers=callers(CALLER),
        options={"headers": {"x-extra-key": KEY}},
        more=lambda _: {"gone": gone},
    ) as stand:
        messages = [{"role": "user", "content": PROMPT}]
        for number in range(len(answers)):
            reply = await stand.ask(ask(way, _key(CALLER), messages=messages, stream=number != 8))
            said = repr(reply.headers) + ("" if reply.status == 200 else reply.body.decode())
            assert KEY not in said + reply.body.decode("latin-1")
            assert CALLER not in said
            assert PROMPT not in said
        for request in (
            ask(CHAT, _key(CALLER), model="gone/m", messages=messages),
            ask(CHAT, _key(CALLER + "x"), messages=messages),
            post(CHAT.path, b'{"model":"lab/m","messages":"' + PROMPT.encode(), _key(CALLER)),
            post(CHAT.path, b'{"model":1,"' + PROMPT.encode() + b'":1}', _key(CALLER)),
            post("/v1/canary-prompt", b"{}", _key(CALLER)),
        ):
            reply = await stand.ask(request)
            assert reply.status >= 400
            assert KEY not in reply.body.decode()
            assert CALLER not in reply.body.decode()
        shown = await _everywhere(stand)
        for canary in CANARIES:
            assert canary not in shown
    assert "canary" not in caplog.text


async def test_nor_by_the_repr_of_what_routes() -> None:
    async with standing([], options={"headers": {"x-extra-key": KEY}}) as stand:
        assert KEY not in repr(stand.app._spine)


async def test_a_key_that_is_refused_is_not_repeated() -> None:
    async with standing([], callers=callers(CALLER)) as stand:
        for key in (CALLER[:-1], CALLER + "x", CALLER[:20], CALLER.upper(), "", "canary", "\u00e9\u4e16"):
            for name in (b"authorization: Bearer ", b"x-api-key: ", b"api-key: ", b"x-goog-api-key: "):
                reply = await stand.ask(ask(CHAT, name + key.encode()))
                assert (reply.status, reply.json["error"]["code"]) == (401, "caller_key_invalid")
                assert b"canary" not in reply.body
                assert "canary" not in repr(reply.headers)
        assert stand.peer.connections == []


async def test_keys_that_begin_alike_are_different_callers() -> None:
    """D29. Callers are told apart by the whole key's digest, not by a prefix of it."""
    keys = [CALLER + "a", CALLER + "b", CALLER]
    async with standing(lambda _: [REQUEST, CHAT.whole(), CLOSE], callers=callers(*keys)) as stand:
        for key in keys:
            assert (await stand.ask(ask(CHAT, _key(key), stream=False))).status == 200
        assert [row["caller"] for row in await stand.recorded(3)] == ["c0", "c1", "c2"]


async def test_without_a_key_not_a_byte_of_the_body_is_read() -> None:
    async with standing([], callers=callers(CALLER)) as stand, stand.client() as client:
        client.write(post(CHAT.path, b"", length=30_000_000))
        async with asyncio.timeout(1):
            assert (await client.response()).startswith(b"HTTP/1.1 401 ")


# -- of the code and its objects


def test_the_configuration_shows_stars(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('[providers.openai]\napi_key = "canary"\n[callers.web]\nkey = "canary2"\n')
    file.chmod(0o600)
    loaded = examine(file, env={})
    assert "canary" not in repr(loaded) + effective(loaded, {})


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    assert sidecar.__file__
    for path in Path(sidecar.__file__).parent.rglob("*.py"):
        yield path, ast.parse(path.read_text())


def test_no_secret_is_compared_with_equals() -> None:
    """D29. Looked up by digest, or compared in constant time: a comparison that stops early tells how far it got."""
    telling = ("secret", "digest", "password", "token", "credential", "presented", "api_key")
    for path, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                text = ast.unparse(node).lower()
                assert not any(f"{word} ==" in text or f"{word} !=" in text for word in telling), f"{path}: {text}"
