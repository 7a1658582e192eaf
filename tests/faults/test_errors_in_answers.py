"""An error in the place of a translated answer, under status 200: it has its own status; others are asked or not."""

from __future__ import annotations

import pytest

from tests.faults.peer import REQUEST, Script
from tests.faults.stand import ask, standing
from tests.faults.transcripts import WAYS, reply as answer

WORDS = {
    "chat from messages": (
        (b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}', 429),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}', 529),
        (b'{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}', 401),
        (b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}', 400),
    ),
    "messages from chat": (
        (b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}', 429),
        (b'{"error":{"message":"The engine is overloaded","type":"server_error"}}', 503),
        (b'{"error":{"message":"no such key","code":"invalid_api_key"}}', 401),
        (b'{"error":{"message":"m","code":"context_length_exceeded","type":"invalid_request_error"}}', 400),
    ),
}
CASES = [(name, body, status) for name, cases in WORDS.items() for body, status in cases]
EACH = pytest.mark.parametrize(("name", "body", "status"), CASES)


@EACH
async def test_it_has_the_status_that_its_words_mean(name: str, body: bytes, status: int) -> None:
    async with standing([REQUEST, answer(body)]) as stand:
        reply = await stand.ask(ask(WAYS[name], stream=False))
    assert reply.status == status
    assert reply.get(b"x-sidecar-error") == b"provider_error_in_answer"


@EACH
async def test_another_target_is_asked_unless_the_request_is_at_fault(name: str, body: bytes, status: int) -> None:
    way = WAYS[name]
    script: Script = [REQUEST, answer(body), REQUEST, way.whole()]  # both come by one connection
    provider = way.model.partition("/")[0]
    async with standing(script, models={"both": (f"{provider}/a", f"{provider}/b")}) as stand:
        reply = await stand.ask(ask(way, stream=False, model="both"))
        asked = len(stand.peer.requests)
    assert (reply.status, asked) == ((400, 1) if status == 400 else (200, 2))
