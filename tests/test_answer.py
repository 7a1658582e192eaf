"""Answers as the client sees them: our headers beside the provider's, and errors with exact times."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, strategies as st

from sidecar import answer, routing
from sidecar.config import Config, Provider
from sidecar.dialects import DIALECTS
from sidecar.errors import ConnectFailed, RateLimited, SidecarError, Unauthorized, UnknownModel
from sidecar.types import Headers, Record

LAB = Config(providers={"lab": Provider(kind="openai-compatible", base_url="http://127.0.0.1:9/v1")})


def record(**known: object) -> Record:
    return Record(request_id="req_1", endpoint="/v1/chat/completions", **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.3, b"1", b"300"), (0.0, b"1", b"1"), (1.0, b"1", b"1000"), (1.0001, b"2", b"1001"), (59.7, b"60", b"59700")],
)
def test_both_times_to_wait_are_exact_and_never_too_short(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    assert dict(answer.retry_after(seconds)) == {b"retry-after": whole, b"retry-after-ms": milliseconds}


@given(st.floats(0, 1e6))
def test_whoever_waits_as_long_as_told_has_waited_long_enough(seconds: float) -> None:
    told = dict(answer.retry_after(seconds))
    assert int(told[b"retry-after-ms"]) >= seconds * 1000 - 0.001
    assert int(told[b"retry-after-ms"]) <= max(1, math.ceil(seconds * 1000))
    assert int(told[b"retry-after"]) * 1000 >= int(told[b"retry-after-ms"])


@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_an_error_is_in_the_words_of_the_api_that_was_called(dialect: str) -> None:
    error = UnknownModel("the model 'x' is not configured", param="model")
    headers, data = answer.refusal(error, DIALECTS[dialect], record())
    told = dict(headers)
    assert told[b"content-type"] == b"application/json"
    assert told[b"cache-control"] == b"private, no-store"
    assert told[b"x-sidecar-error"] == b"caller_model_unknown"
    assert told[b"x-request-id"] == told[b"request-id"] == b"req_1"
    body = msgspec.json.decode(data)
    assert body["error"]["message"] == "the model 'x' is not configured"
    assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert body.get("type") == (None if dialect == "chat" else "error")


@pytest.mark.parametrize(
    ("error", "known", "expected"),
    [
        (RateLimited("slow", retry_after=0.25), {}, {b"retry-after-ms": b"250", b"retry-after": b"1"}),
        (Unauthorized("no"), {}, {b"www-authenticate": b"Bearer"}),
        (
            ConnectFailed("refused"),
            {"provider": "lab", "attempts": 2},
            {b"x-sidecar-provider": b"lab", b"x-sidecar-attempts": b"2"},
        ),
    ],
)
def test_an_error_has_the_headers_of_its_kind(
    error: SidecarError, known: dict[str, object], expected: dict[bytes, bytes]
) -> None:
    headers, _ = answer.refusal(error, DIALECTS["chat"], record(**known))
    assert expected.items() <= dict(headers).items()


@pytest.mark.parametrize("spent", [False, True])
def test_clients_are_told_when_asking_again_is_of_no_use(spent: bool) -> None:
    headers, _ = answer.refusal(ConnectFailed("refused"), DIALECTS["chat"], record(provider="lab"), spent=spent)
    assert ((b"x-should-retry", b"false") in headers) == spent


@pytest.mark.parametrize("names", [[], [b"x-request-id"], [b"x-request-id", b"request-id"]])
def test_a_providers_own_request_id_stays(names: list[bytes]) -> None:
    theirs: Headers = [(name, b"theirs") for name in names]
    target = routing.plan(routing.build(LAB), "lab/m", "chat")[0]
    lines = answer.lines(record(attempts=1, overhead_us=42), target, dict(theirs))
    ours = [tuple(line.split(b": ", 1)) for line in lines.splitlines()]
    headers = [*theirs, *((name, value) for name, value in ours)]
    for name in (b"x-request-id", b"request-id"):
        assert [value for each, value in headers if each == name] == [b"theirs" if names else b"req_1"]
    assert {
        b"x-sidecar-provider": b"lab",
        b"x-sidecar-model": b"m",
        b"x-sidecar-attempts": b"1",
        b"x-sidecar-cache": b"off",
        b"x-sidecar-overhead-us": b"42",
        b"cache-control": b"private, no-store",
    }.items() <= dict(headers).items()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "provider_rejected_request"),
        (401, "provider_key_rejected"),
        (402, "provider_quota_exhausted"),
        (403, "provider_key_rejected"),
        (404, "provider_rejected_request"),
        (429, "provider_rate_limited"),
        (500, "provider_failed"),
        (503, "provider_overloaded"),
        (529, "provider_overloaded"),
    ],
)
def test_a_providers_status_has_a_word_of_ours(status: int, code: str) -> None:
    assert answer.provider_code(status) == code
