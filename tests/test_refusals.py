"""Errors told outside of the spine: the dialect that was called, the id of the record, the methods that there are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from sidecar import refusals
from sidecar.errors import MethodNotAllowed, Overloaded
from sidecar.types import Headers, Message

ERROR = Overloaded("no memory; ask again", retry_after=1.0)


async def told(path: str, headers: Headers, **more: Any) -> tuple[int, dict[bytes, bytes], Any]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await refusals.send_error(ERROR, {"headers": headers}, path, send, (b"x-more", b"1"), **more)
    start, body = sent
    assert not body.get("more_body")
    return start["status"], dict(start["headers"]), msgspec.json.decode(body["body"])


@pytest.mark.parametrize(
    ("path", "headers", "anthropic"),
    [
        ("/v1/chat/completions", [], False),
        ("/v1/messages", [], True),
        ("/v1/models", [(b"anthropic-version", b"2023-06-01")], True),
    ],
)
async def test_an_error_is_told_in_the_dialect_that_was_called(path: str, headers: Headers, anthropic: bool) -> None:
    status, sent, body = await told(path, headers)
    assert (status, sent[b"x-sidecar-error"], sent[b"retry-after"]) == (503, b"sidecar_overloaded", b"1")
    assert sent[b"x-more"] == b"1"
    assert ("type" in body) is anthropic
    assert body["error"]["message"].startswith("no memory; ask again")
    assert sent[b"x-request-id"].startswith(b"req_")


async def test_a_record_has_the_id_that_the_client_is_told() -> None:
    record = refusals.record_of(ERROR, "/v1/messages", 7.0)
    _, sent, _ = await told("/v1/messages", [], record=record)
    assert sent[b"x-request-id"].decode() == record.request_id
    assert (record.time, record.endpoint, record.status) == (7.0, "/v1/messages", 503)
    assert record.error == "sidecar_overloaded"


async def test_of_a_cold_route_the_methods_are_told() -> None:
    request = Request({"type": "http", "method": "PUT", "path": "/livez", "headers": []})
    response = await refusals.wrong_method(request, MethodNotAllowed("x"))
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    body = msgspec.json.decode(bytes(response.body))
    assert body["error"]["message"].startswith("/livez does not take PUT")
    assert int(response.headers["content-length"]) == len(response.body)
