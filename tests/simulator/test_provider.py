from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sidecar.simulator import Seen, Settings
from sidecar.simulator.provider import answer_to, shown
from tests.simulator.raw import CHAT, MESSAGES

JSON = ("content-type", "application/json")
VERSION = ("anthropic-version", "2023-06-01")
OPEN = Settings()
KEYED = Settings(keys=("sk-good-key-123456",), models=("good",))


def ask(
    path: str,
    value: object = CHAT,
    *headers: tuple[str, str],
    settings: Settings = OPEN,
    method: str = "POST",
) -> tuple[int, Any]:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    seen = Seen(number=4, method=method, path=path, headers=list(headers), body=body, began=0.0)
    answer = answer_to(seen, settings, tokens=2, flavour="openai")
    return answer.status, msgspec.json.decode(answer.body)


def openai(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic(status: int, message: str, kind: str) -> tuple[int, Any]:
    return status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sim_4"}


BAD = "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/chat/completions?api-version=1"])
def test_paths_with_and_without_v1(path: str) -> None:
    assert ask(path, CHAT, JSON)[0] == 200


def test_what_openai_answers_to_a_bad_request() -> None:
    chat = "/v1/chat/completions"
    assert ask(chat, {}, JSON) == openai(400, "you must provide a model parameter", BAD, "model")
    assert ask(chat, b"{", JSON) == openai(400, "the body is not JSON", BAD)
    assert ask(chat, CHAT) == openai(415, "the content-type must be application/json", BAD)
    assert ask(chat, CHAT, ("content-type", "text/plain"))[0] == 415
    assert ask(chat, CHAT, JSON, method="PUT") == openai(405, "only POST is served here", BAD)
    assert ask("/v1/audio?x=1", CHAT, JSON) == openai(404, "no such endpoint: /v1/audio", BAD, code="unknown_url")


def test_what_anthropic_answers_to_a_bad_request() -> None:
    path = "/v1/messages"
    assert ask(path, CHAT, JSON, VERSION) == anthropic(400, "you must provide a max_tokens parameter", BAD)
    assert ask(path, MESSAGES, JSON) == anthropic(400, "anthropic-version: header is required", BAD)
    wrong = ("anthropic-version", "2019-01-01")
    assert ask(path, MESSAGES, JSON, wrong) == anthropic(
        400, "anthropic-version: '2019-01-01' is not a valid version", BAD
    )
    newest = ("anthropic-version", "2026-10-21")
    assert ask(path, {**MESSAGES, "top_k": 1}, JSON, newest)[0] == 400
    assert ask(path, {**MESSAGES, "top_k": 1}, JSON, VERSION)[0] == 200
    assert ask("/v1/messages/count_tokens", CHAT, JSON, VERSION) == (200, {"input_tokens": 3})
    assert ask("/v1/nothing", CHAT, JSON, VERSION) == anthropic(404, "no such endpoint: /v1/nothing", "not_found_error")


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer sk-good-key-123456"),
        ("authorization", "bearer sk-good-key-123456"),
        ("x-api-key", "sk-good-key-123456"),
        ("api-key", "sk-good-key-123456"),
    ],
)
def test_keys_are_taken_from_each_header(header: tuple[str, str]) -> None:
    assert ask("/v1/chat/completions", {**CHAT, "model": "good"}, JSON, header, settings=KEYED)[0] == 200


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ((), "***"),
        ((("authorization", "Bearer sk-bad-key-654321"),), "sk-***21"),
        ((("authorization", "Basic sk-good-key-123456"),), "***"),
        ((("x-api-key", "short"),), "***"),
    ],
)
def test_a_wrong_key_is_refused_and_never_told_whole(headers: tuple[tuple[str, str], ...], told: str) -> None:
    message = f"Incorrect API key provided: {told}"
    for path in ("/v1/chat/completions", "/v1/models"):
        method = "GET" if path == "/v1/models" else "POST"
        found = ask(path, CHAT, JSON, *headers, settings=KEYED, method=method)
        assert found == openai(401, message, BAD, code="invalid_api_key")
    found = ask("/v1/messages", MESSAGES, JSON, VERSION, *headers, settings=KEYED)
    assert found == anthropic(401, message, "authentication_error")


def test_an_unknown_model_is_not_found() -> None:
    key = ("x-api-key", "sk-good-key-123456")
    message = "the model 'sim-large' does not exist"
    found = ask("/v1/chat/completions", CHAT, JSON, key, settings=KEYED)
    assert found == openai(404, message, BAD, "model", "model_not_found")
    found = ask("/v1/messages", MESSAGES, JSON, VERSION, key, settings=KEYED)
    assert found == anthropic(404, message, "not_found_error")


def test_models_in_either_form() -> None:
    row = {"id": "good", "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
    key = ("x-api-key", "sk-good-key-123456")
    assert ask("/v1/models", b"", key, settings=KEYED, method="GET") == (200, {"object": "list", "data": [row]})
    assert ask("/models/good", b"", key, settings=KEYED, method="GET") == (200, row)
    assert ask("/v1/models/bad", b"", key, settings=KEYED, method="GET")[0] == 404
    other = {"id": "good", "type": "model", "display_name": "good", "created_at": "2026-01-01T00:00:00Z"}
    listed = {"data": [other], "has_more": False, "first_id": "good", "last_id": "good"}
    assert ask("/v1/models", b"", key, VERSION, settings=KEYED, method="GET") == (200, listed)


def test_a_body_that_is_not_utf8_can_be_shown() -> None:
    seen = Seen(number=1, method="POST", path="/", headers=[("cookie", "c"), ("a", "b")], body=b"\xff", began=1.0)
    assert (shown(seen)["body"], shown(seen)["headers"]) == ("\ufffd", [("a", "b")])
