"""Errors of OpenAI and of everyone who says to be compatible, read and written."""

from __future__ import annotations

import orjson
import pytest

from sidecar.dialects import openai_errors as errors
from sidecar.dialects.neutral import Fault
from sidecar.wire import sse


@pytest.mark.parametrize(
    ("data", "message", "code", "param"),
    [
        (b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', "m", "c", "p"),  # OpenAI
        (b'{"error":{"code":429,"message":"m","metadata":{}}}', "m", "429", None),  # OpenRouter
        (b'{"code":"c","error":"m"}', "m", "c", None),  # xAI
        (b'{"error":"m"}', "m", None, None),  # xAI, Hugging Face
        (b'{"object":"error","message":"m","type":"t","param":null,"code":1}', "m", "1", None),  # vLLM, Mistral
        (b'{"detail":"m"}', "m", None, None),  # FastAPI
        (b'{"detail":[{"loc":["body"],"msg":"m"}]}', '[{"loc":["body"],"msg":"m"}]', None, None),  # Mistral
        (b'{"message":"m","request_id":"r"}', "m", None, None),  # Cohere
        (b'[{"error":{"code":400,"message":"m","status":"S"}}]', "m", "400", None),  # Google
        (b'{"error":{"message":{"deep":1}}}', '{"deep":1}', None, None),
        (b'{"error":{"error":"m"}}', "m", None, None),
        (b" Service Unavailable \n", "Service Unavailable", None, None),
        (b"<html><head><title>502 Bad Gateway</title></head></html>", "502 Bad Gateway", None, None),
        (b"<html></html>", "the provider answered with status 418", None, None),
        (b"", "the provider answered with status 418", None, None),
        (b"null", "the provider answered with status 418", None, None),
        (b"{}", "the provider answered with status 418", None, None),
        (b"[]", "the provider answered with status 418", None, None),
        (b"\xff\xfe", "\ufffd\ufffd", None, None),
    ],
)
def test_read_error(data: bytes, message: str, code: str | None, param: str | None) -> None:
    fault = errors.read_error(418, data)
    assert (fault.status, fault.message, fault.code, fault.param) == (418, message, code, param)


@pytest.mark.parametrize(
    ("data", "status", "message", "code"),
    [
        (b'{"error":{"message":"m","type":"server_error","code":null}}', 502, "m", "provider_error_in_answer"),
        (b'{"error":{"code":429,"message":"m"}}', 429, "m", "429"),
        (b'{"error":{"code":"503","message":"m"}}', 503, "m", "503"),
        (b'{"error":{"message":"m","type":"invalid_request_error","param":"p"}}', 400, "m", "provider_error_in_answer"),
        (
            b'{"error":{"message":"m","metadata":{"error_type":"provider_overloaded"}}}',
            503,
            "m",
            "provider_error_in_answer",
        ),
        (b'{"error":{"message":"m"},"status_code":500}', 500, "m", "500"),  # Cerebras
        (b'{"code":"The service is busy","error":"m"}', 503, "m", "The service is busy"),  # xAI
        (b'{"object":"error","message":"m","code":404}', 404, "m", "404"),  # vLLM
        (b'{"error":"m"}', 502, "m", "provider_error_in_answer"),
        (b'{"error":{"code":9999999999999999999999}}', 502, "an error without a message", "9999999999999999999999"),
    ],
)
def test_read_fault(data: bytes, status: int, message: str, code: str) -> None:
    fault = errors.read_fault(data)
    assert fault is not None
    assert (fault.status, fault.message, fault.code) == (status, message, code)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b'{"message":"Rate limit reached for gpt-5 in organization org-1: too many tokens per min"}', 429),
        (b'"Too Many Requests"', 429),
        (b'{"message":"You exceeded your current quota","type":"insufficient_quota"}', 429),
        (b'{"status":"RESOURCE_EXHAUSTED","message":"m"}', 429),
        (b'{"message":"m","code":"rate_limit_exceeded","type":"tokens"}', 429),
        (b'{"message":"This model\'s maximum context length is 8192 tokens"}', 400),
        (b'{"message":"m","type":"BadRequestError","code":null}', 400),
        (
            b'{"message":"Incorrect API key provided: sk-1","code":"invalid_api_key","type":"invalid_request_error"}',
            401,
        ),
        (b'{"message":"Unauthorized"}', 401),
        (b'{"message":"Access denied"}', 403),
        (b'{"message":"The model `m` does not exist"}', 404),
        (b'{"message":"The engine is currently overloaded, please try again later","type":"server_error"}', 503),
        (b'{"message":"request timed out"}', 504),
        (b'{"message":"Overloaded","code":500}', 500),  # a number beats words
        (b'{"message":"%bquota"}' % (b" " * 2000), 502),
        (b'{"message":"m","type":[]}', 502),
    ],
)
def test_the_status_of_a_fault_is_what_its_words_mean(error: bytes, status: int) -> None:
    fault = errors.read_fault(b'{"error":%b}' % error)
    assert fault is not None
    assert fault.status == status


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b'{"detail":"Invalid API key"}', 401, "Invalid API key"),
        (b'{"message":"m","code":429}', 429, "m"),
        (b'{"msg":"m","status_code":503}', 503, "m"),
        (b'{"message":"m"}', 502, "m"),
    ],
)
def test_read_stray(data: bytes, status: int, message: str) -> None:
    fault = errors.read_stray(data)
    assert fault is not None
    assert (fault.status, fault.message) == (status, message)


def test_nothing_stray() -> None:
    assert errors.read_stray(b'{"id":"1","message":null}') is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"error":null,"choices":[]}',
        b'{"choices":[{"delta":{"content":"\\"error\\""}}]}',
        b'{"choices":[{"error":{"message":"its own"}}]}',
        b'{"error":',
        b"[DONE]",
    ],
)
def test_no_fault(data: bytes) -> None:
    assert errors.read_fault(data) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "insufficient_quota"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (408, "timeout"),
        (413, "invalid_request_error"),
        (422, "invalid_request_error"),
        (424, "server_error"),
        (429, "rate_limit_error"),
        (498, "server_error"),
        (500, "server_error"),
        (504, "timeout"),
        (529, "server_error"),
    ],
)
def test_types(status: int, kind: str) -> None:
    fault = Fault(status=status, message="m", code="c", param="p")
    shape = {"message": "m", "type": kind, "param": "p", "code": "c"}
    assert orjson.loads(errors.write_error(fault)) == {"error": shape}
    (event,) = sse.events(errors.write_stream_error(fault))
    assert orjson.loads(event.data) == {"error": shape}
    own = errors.write_error(Fault(status=status, message="m", type="its own"))
    assert orjson.loads(own)["error"] == {"message": "m", "type": "its own", "param": None, "code": None}
