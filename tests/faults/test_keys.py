"""Several keys of one provider: a refusal is one key's, at one model; the others are asked at once."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import AbstractAsyncContextManager

import pytest
from msgspec.structs import replace

from sidecar.config import Key, Provider, Retry
from sidecar.secret import Secret
from tests.faults.peer import REQUEST, Again, RawServer, Script
from tests.faults.stand import NEVER, Stand, ask, standing
from tests.faults.transcripts import CHAT_BODY, WAYS, reply as answer

CHAT = WAYS["chat"]
KEYS = ("sk-first-of-three", "sk-second-of-three", "sk-third-of-three")
SENT = re.compile(rb"(?i)\r\nauthorization: bearer ([^\r]+)\r\n")


def keyed(script: Script, count: int = 2, **config: object) -> AbstractAsyncContextManager[Stand]:
    """The sidecar before a provider with that many keys, whose name is "many"."""
    keys = tuple(Key(source="inline", secret=Secret(key)) for key in KEYS[:count])

    def more(raw: RawServer) -> dict[str, Provider]:
        url = f"http://127.0.0.1:{raw.port}/v1"
        return {"many": Provider(kind="openai-compatible", base_url=url, api_keys=keys, breaker=NEVER)}

    return standing(script, more=more, **{"retry": Retry(base_seconds=4.0), **config})  # type: ignore[arg-type]


def sent(stand: Stand) -> list[str]:
    """The keys of all requests, in the order of their arrival on one connection after another."""
    found = [SENT.search(request) for request in stand.peer.requests]
    return [match[1].decode() for match in found if match is not None]


def limited(*lines: bytes) -> bytes:
    return answer(b'{"error":{"message":"slow down"}}', *lines, status=b"429 Slow")


async def test_keys_are_used_in_turn() -> None:
    async with keyed([Again((REQUEST, CHAT.whole()))], 3) as stand:
        for _ in range(6):
            assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 200
        assert sent(stand) == [*KEYS, *KEYS]


async def test_when_one_is_refused_the_other_is_asked_at_once_and_it_rests() -> None:
    script: Script = [REQUEST, limited(b"retry-after: 60"), Again((REQUEST, CHAT.whole()))]
    async with keyed(script) as stand:
        async with asyncio.timeout(0.5):  # a back-off of up to 4 s is not for this
            reply = await stand.ask(ask(CHAT, stream=False, model="many/m"))
        assert (reply.status, reply.body, reply.get(b"x-sidecar-attempts")) == (200, CHAT_BODY, b"2")
        assert len({request.partition(b"\r\n\r\n")[2] for request in stand.peer.requests}) == 1
        for _ in range(4):
            assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 200
        assert Counter(sent(stand)) == {KEYS[0]: 1, KEYS[1]: 5}


async def test_without_a_word_on_when_it_rests_for_a_second() -> None:
    async with keyed([REQUEST, limited(), Again((REQUEST, CHAT.whole()))]) as stand:
        for _ in range(4):
            assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 200
        assert Counter(sent(stand)) == {KEYS[0]: 1, KEYS[1]: 4}


async def test_each_of_them_is_asked_once_and_the_last_refusal_told() -> None:
    async with keyed([Again((REQUEST, limited(b"retry-after: 60")))], 3) as stand:
        async with asyncio.timeout(0.5):
            reply = await stand.ask(ask(CHAT, stream=False, model="many/m"))
        assert (reply.status, reply.get(b"retry-after"), reply.get(b"x-sidecar-attempts")) == (429, b"60", b"3")
        assert reply.get(b"x-should-retry") == b"false"
        assert sent(stand) == [*KEYS]
        reply = await stand.ask(ask(CHAT, stream=False, model="many/m"))  # all rest: nobody is asked
        assert (reply.status, reply.get(b"x-sidecar-error")) == (429, b"provider_limited")
        assert 59_000 < int(reply.get(b"retry-after-ms") or 0) <= 60_000
        assert len(stand.peer.requests) == 3


async def test_when_all_rest_the_first_to_come_back_is_waited_for() -> None:
    script: Script = [
        REQUEST,
        limited(b"retry-after: 60"),
        REQUEST,
        limited(b"retry-after-ms: 150"),
        REQUEST,
        CHAT.whole(),
    ]
    async with keyed(script, retry=Retry(base_seconds=0.01)) as stand:
        loop = asyncio.get_running_loop()
        began = loop.time()
        reply = await stand.ask(ask(CHAT, stream=False, model="many/m"))
        assert (reply.status, sent(stand)) == (200, [KEYS[0], KEYS[1], KEYS[1]])
        assert 0.15 <= loop.time() - began < 0.4


@pytest.mark.parametrize("count", [1, 2])
async def test_a_key_that_rests_at_one_model_is_used_at_another(count: int) -> None:
    """Providers limit each model by itself."""
    script: Script = [*(REQUEST, limited(b"retry-after: 60")) * count, Again((REQUEST, CHAT.whole()))]
    async with keyed(script, count, retry=Retry(max_wait_seconds=0.1)) as stand:
        assert (await stand.ask(ask(CHAT, stream=False, model="many/big"))).status == 429
        assert (await stand.ask(ask(CHAT, stream=False, model="many/big"))).get(
            b"x-sidecar-error"
        ) == b"provider_limited"
        assert (await stand.ask(ask(CHAT, stream=False, model="many/small"))).status == 200
        assert len(stand.peer.requests) == count + 1


async def test_no_key_is_asked_again_where_nothing_is() -> None:
    async with keyed([Again((REQUEST, limited(b"retry-after: 60")))], retry=Retry(attempts=0)) as stand:
        reply = await stand.ask(ask(CHAT, stream=False, model="many/m"))
        assert (reply.status, len(stand.peer.requests)) == (429, 1)


async def test_a_reload_with_other_keys_forgets_who_rested() -> None:
    script: Script = [REQUEST, limited(b"retry-after: 60"), Again((REQUEST, CHAT.whole()))]
    async with keyed(script, 1) as stand:
        assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 429
        assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 429
        config = stand.app.config
        table = config.providers["many"]
        keys = tuple(Key(source="inline", secret=Secret(key)) for key in KEYS)
        stand.app.reload(replace(config, providers={**config.providers, "many": replace(table, api_keys=keys)}))
        assert (await stand.ask(ask(CHAT, stream=False, model="many/m"))).status == 200
        assert len(stand.peer.requests) == 2


async def test_a_callers_own_key_is_not_everybodys() -> None:
    """`api_key = "caller"`: one caller's account is refused; another's is not told so unasked."""
    script: Script = [REQUEST, limited(b"retry-after: 60"), Again((REQUEST, CHAT.whole()))]

    def more(raw: RawServer) -> dict[str, Provider]:
        url = f"http://127.0.0.1:{raw.port}/v1"
        return {"many": Provider(kind="openai-compatible", base_url=url, api_key=Key(source="caller"), breaker=NEVER)}

    async with standing(script, more=more, retry=Retry()) as stand:
        for key, status in ((b"mine", 429), (b"yours", 200), (b"mine", 200)):
            own = b"authorization: Bearer sk-" + key
            assert (await stand.ask(ask(CHAT, own, stream=False, model="many/m"))).status == status
        assert sent(stand) == ["sk-mine", "sk-yours", "sk-mine"]
