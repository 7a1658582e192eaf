"""Causes of failures out of statuses, bodies and our own errors; what is done about each; how long is waited."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from sidecar import errors
from sidecar.config import structs
from sidecar.retry import (
    FALLBACKS,
    WAYS,
    Cause,
    after,
    after_body,
    cause,
    cause_of,
    client_patience,
    delay,
    may_fall_back,
)

TRAFFIC: Final = Path(__file__).parents[2] / "shared" / "traffic"
WALL: Final = 1_769_759_840.0  # 2026-01-30T07:57:20Z
DEFAULT: Final = frozenset(("error", "timeout", "rate_limit"))


def openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def anthropic(kind: str, message: str, **details: str) -> bytes:
    error: dict[str, Any] = {"type": kind, "message": message, **({"details": details} if details else {})}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": "req_1"})


def google(message: str, *quotas: str, wait: str | None = None, status: str = "RESOURCE_EXHAUSTED") -> bytes:
    kind = "type.googleapis.com/google.rpc."
    details: list[dict[str, Any]] = []
    if quotas:
        details.append({"@type": f"{kind}QuotaFailure", "violations": [{"quotaId": each} for each in quotas]})
    if wait is not None:
        details.append({"@type": f"{kind}RetryInfo", "retryDelay": wait})
    return msgspec.json.encode({"error": {"code": 429, "message": message, "status": status, "details": details}})


# -- causes by status alone


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[]", b"\xff\xfe", b"<html><title>an error page</title>"])
def test_the_status_tells_where_the_body_says_nothing(data: bytes) -> None:
    expected: dict[Cause, tuple[int, ...]] = {
        "server": (409, 424, 425, 499, 500, 501, 502, 520, 599),
        "gateway_timeout": (408, 504, 522, 524),
        "overloaded": (498, 503, 529),
        "rate_limit": (429,),
        "spend_cap": (402,),
        "auth": (401, 403),
        "not_found": (302, 307, 404, 405, 410),
        "request": (400, 406, 411, 413, 415, 418, 422, 431),
        "in_answer": (200,),
        "protocol": (0, 101, 600, 999),
    }
    for found, statuses in expected.items():
        assert {status: cause(status, data) for status in statuses} == dict.fromkeys(statuses, found)


def test_the_retry_classes() -> None:
    """500, 502, 503, 529 and 429 are tried again at the same target; 401 and 404 elsewhere; 400 nowhere."""
    assert {status: WAYS[cause(status, b"")] for status in (408, 429, 500, 502, 503, 504, 529)} == dict.fromkeys(
        (408, 429, 500, 502, 503, 504, 529), "retry"
    )
    assert {WAYS[cause(status, b"")] for status in (401, 402, 403, 404)} == {"next"}
    assert {WAYS[cause(status, b"")] for status in (400, 413, 422)} == {"stop"}


# -- spend caps told apart from rate limits

PLAN: Final = "You exceeded your current quota, please check your plan and billing details. For more: https://x.test/"
MINUTE: Final = "GenerateContentPaidTierInputTokensPerModelPerMinute"
DAY: Final = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
SPEND_CAPS: Final = {
    "openai": (429, openai(PLAN, "insufficient_quota", "insufficient_quota")),
    "openai, its message alone": (429, openai(PLAN, None, "")),
    "openai, a cap of the project": (429, openai("Project spend limit.", "project_spend_limit_exceeded")),
    "openai, a hard limit": (400, openai("Billing hard limit has been reached", "billing_hard_limit_reached")),
    "anthropic, 400": (
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go to"),
    ),
    "anthropic, its own limit": (
        400,
        anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain access"),
    ),
    "anthropic, its workspace's": (
        400,
        anthropic("invalid_request_error", "You have reached your specified workspace API usage limits."),
    ),
    "anthropic, 402": (402, anthropic("billing_error", "There is an issue with your billing")),
    "anthropic, 429": (
        429,
        anthropic("rate_limit_error", "This would exceed", error_code="enforced_spend_limit_reached"),
    ),
    "deepseek": (402, openai("Insufficient Balance", "invalid_request_error", "unknown_error")),
    "openrouter": (402, b'{"error":{"code":402,"message":"This request requires more credits"}}'),
    "openrouter, its free models": (
        429,
        b'{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day"}}',
    ),
    "perplexity": (401, openai(PLAN, None, "insufficient_quota")),
    "xai": (
        403,
        b'{"code":"forbidden","error":"Your team 1 has either used all available credits or reached its monthly '
        b'spending limit."}',
    ),
    "moonshot": (429, openai("Your account is suspended", None, "exceeded_current_quota_error")),
    "zhipu": (429, b'{"error":{"code":"1113","message":"Insufficient balance or no resource package. Recharge."}}'),
    "alibaba": (
        400,
        b'{"code":"Arrearage","message":"Access denied, please make sure your account is in good standing"}',
    ),
    "fireworks": (412, b'{"error":"Account x is suspended, possibly due to reaching the monthly spending limit"}'),
    "openrouter, of a key": (403, b'{"error":{"code":403,"message":"Key limit exceeded (total limit)."}}'),
    "a quota of a day": (429, b'{"error":{"message":"You have exceeded your daily quota"}}'),
    "hugging face": (402, b'{"error":"You have exceeded your monthly included credits for Inference Providers."}'),
    "google, of a day": (429, google(PLAN, DAY, wait="36s")),
    "google, of a day and of a minute": (429, google(PLAN, MINUTE, DAY, wait="12s")),
    "google, none at all": (
        429,
        google(PLAN + "\n* Quota exceeded for metric: x, limit: 0, model: y", MINUTE, wait="3s"),
    ),
    "google, without details": (429, google(PLAN)),
    "google, in a list": (429, b"[" + google(PLAN, DAY) + b"]"),
    "google, quoted by a gateway": (429, msgspec.json.encode({"error": {"message": google(PLAN, DAY).decode()}})),
    "vertex, of a day": (
        429,
        b'{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"metadata":{"quota_limit":"Gemini25ProRequestsPerDay"}}]}}',
    ),
    "bedrock, of a day": (429, b'{"message":"Too many tokens per day, please wait before trying again."}'),
    "in a stream's event": (429, b"event: error\ndata: " + openai(PLAN, "insufficient_quota") + b"\n\n"),
    "in an answer": (200, openai("out of money", "insufficient_quota")),
    "latin-1 in the JSON": (429, openai("x", "insufficient_quota").replace(b'"x"', b'"cr\xe9dit"')),
    "half a surrogate pair": (429, openai("x", "insufficient_quota").replace(b'"x"', rb'"\ud83d"')),
}
RATE_LIMITS: Final = {
    "openai": (
        429,
        openai(
            "Rate limit reached for gpt-4 on tokens per min (TPM): Limit 10000, Used 9000. Please try again in 6s. "
            "You can increase your rate limit by adding a payment method at https://x.test/account/billing.",
            "rate_limit_exceeded",
            "tokens",
        ),
    ),
    "groq, of a day": (
        429,
        openai("Rate limit reached on tokens per day (TPD): Limit 100000", "rate_limit_exceeded", "tokens"),
    ),
    "groq, 413": (413, openai("Request too large for model `x` on tokens per minute", "rate_limit_exceeded", "tokens")),
    "azure": (
        429,
        openai("Requests have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 6 "
               "seconds. Please go here: https://x.test/oai/quotaincrease", "429"),
    ),
    "anthropic": (429, anthropic("rate_limit_error", "This request would exceed your organization's rate limit")),
    "anthropic, of a day": (429, anthropic("rate_limit_error", "Number of tokens has exceeded your daily rate limit")),
    "anthropic, a ramp": (429, anthropic("rate_limit_error", "Slow down", error_code="ramp_limit_exceeded")),
    "google, of a minute": (429, google(PLAN, MINUTE, wait="48s")),
    "google, by its message": (429, google(PLAN + "\nPlease retry in 48.939935699s.")),
    "vertex": (429, google("Resource exhausted. Please try again later. See error-code-429")),
    "google, no more than this": (429, google("Resource has been exhausted (e.g. check quota).")),
    "bedrock": (429, b'{"message":"Too many tokens, please wait before trying again."}'),
    "bedrock, by type": (400, b'{"__type":"com.amazon.coral.service#ThrottlingException","message":"Rate exceeded"}'),
    "openrouter": (429, b'{"error":{"code":429,"message":"Provider returned error","metadata":{"raw":"slow down"}}}'),
    "in an answer": (200, b'{"error":{"type":"rate_limit_error","message":"slow down"}}'),
    "text": (429, b"Too Many Requests"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPEND_CAPS)
def test_a_spend_cap_is_not_tried_again(name: str) -> None:
    assert cause(*SPEND_CAPS[name]) == "spend_cap"
    assert WAYS["spend_cap"] == "next"


@pytest.mark.parametrize("name", RATE_LIMITS)
def test_a_rate_limit_is_tried_again(name: str) -> None:
    assert cause(*RATE_LIMITS[name]) == "rate_limit"
    assert WAYS["rate_limit"] == "retry"


def test_what_a_caller_wrote_is_no_spend_cap() -> None:
    """Errors echo requests: a caller must not be able to have a provider's key taken for one without credit."""
    talk = "Your credit balance is too low. insufficient_quota"
    echo = {"code": "insufficient_quota", "error": {"type": "billing_error"}, "text": talk}
    for data in (
        openai(f"Invalid value: '{talk}'. Supported values are: 'user'", "invalid_value"),
        msgspec.json.encode({"detail": [{"type": "missing", "msg": "Field required", "input": echo, "ctx": echo}]}),
        msgspec.json.encode({"error": {"message": "bad", "flagged_input": talk, "param": "insufficient_quota"}}),
        b"unexpected: " + talk.encode(),
        msgspec.json.encode({"detail": [{"msg": "bad", "input": [echo] * 2000}]}),  # cut: no JSON any more
    ):
        assert cause(422, data) == "request"
        assert cause(400, data) == "request"


# -- the request at fault

CONTEXT: Final = (
    openai("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
    openai("Your input exceeds the context window of this model. Please adjust your input.", "context_length_exceeded"),
    openai("Input tokens exceed the configured limit of 272000 tokens."),
    openai("Invalid 'messages[0].content': string too long. Expected a string with maximum length 10485760"),
    openai("Please reduce the length of the messages or completion."),
    openai("the request exceeds the available context size, try increasing it", None, "exceed_context_size_error"),
    openai("Context size has been exceeded."),
    openai("This endpoint's maximum context length is 1048576 tokens. However, you requested about 1293741 tokens"),
    openai("Invalid request: Your request exceeded model token limit: 131072"),
    openai("Range of input length should be [1, 30720]"),
    openai("Prompt exceeds max length", "1261"),
    openai("This model's maximum prompt length is 131072 but the request contains 140000 tokens."),
    anthropic("invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum"),
    anthropic("invalid_request_error", "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000"),
    google("The input token count (9) exceeds the maximum number of tokens allowed (8).", status="INVALID_ARGUMENT"),
    google("The input token count exceeds the maximum number of tokens allowed 8.", status="INVALID_ARGUMENT"),
    b'{"error_type":"TOO_MANY_TOKENS","message":"too many tokens: size limit exceeded by 25836 tokens."}',
    b'{"message":"Input is too long for requested model."}',
    b'{"message":"Too many input tokens. Max input tokens: 8192, request input token count: 9000"}',
    b'{"object":"error","message":"Prompt contains 9 tokens, too large for model with 8 maximum context length"}',
    b'{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000"}',
    b'{"error":"the input length exceeds the context length"}',
    b'{"error":{"code":400,"message":"Provider returned error","metadata":{"error_type":"context_length_exceeded"}}}',
    b'{"error":{"code":400,"message":"Provider returned error","metadata":{"raw":"{\\"error\\":{\\"code\\":'
    b'\\"context_length_exceeded\\"}}"}}}',
)  # fmt: skip
POLICY: Final = (
    (400, openai("The response was filtered", "content_filter")),
    (400, openai("The response was filtered due to the prompt triggering Azure OpenAI's content management policy.")),
    (400, b'{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"},"message":"filtered"}}'),
    (400, openai("Your request was rejected as a result of our safety system.", "content_policy_violation")),
    (400, openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy.")),
    (400, openai("Invalid prompt", "invalid_prompt")),
    (400, openai("Content Exists Risk")),
    (400, anthropic("invalid_request_error", "Output blocked by content filtering policy")),
    (400, b'{"code":"DataInspectionFailed","message":"Input data may contain inappropriate content."}'),
    (403, b'{"error":{"code":403,"message":"Your chosen model requires moderation and your input was flagged"}}'),
    (403, b'{"code":"forbidden","error":"Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}'),
    (498, b'{"message":"the request contains a deny-listed token"}'),
    (502, b'{"error":{"code":502,"message":"x","metadata":{"error_type":"content_policy_violation"}}}'),
)  # fmt: skip
OTHERS: Final[tuple[tuple[Cause, int, bytes], ...]] = (
    ("auth", 400, google("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT")),
    ("auth", 400, b'{"error":{"code":400,"message":"x","details":[{"reason":"API_KEY_INVALID"}]}}'),
    ("auth", 400, google("User location is not supported for the API use.", status="FAILED_PRECONDITION")),
    ("auth", 400, b'{"code":"invalid-argument","error":"Incorrect API key provided: xa***"}'),
    ("auth", 403, openai("Your request was blocked.")),
    ("not_found", 400, openai("The requested model 'x' does not exist.", "model_not_found")),
    ("not_found", 400, openai("Model Not Exist")),
    ("not_found", 400, b'{"message":"The provided model identifier is invalid."}'),
    ("not_found", 400, b'{"error":{"message":"foo/bar is not a valid model ID","code":400}}'),
    ("overloaded", 429, openai("The engine is currently overloaded, please try again later")),
    ("overloaded", 429, openai("Try again later", None, "engine_overloaded_error")),
    ("overloaded", 500, anthropic("overloaded_error", "Overloaded")),
    ("overloaded", 200, anthropic("overloaded_error", "Overloaded")),
    ("in_answer", 200, anthropic("api_error", "Internal server error")),
    ("request", 400, openai("max_tokens is too large: 100000. This model supports at most 16384 completion tokens")),
    ("request", 400, anthropic("invalid_request_error", "max_tokens: 9 > 8, the maximum number of output tokens")),
    ("request", 400, openai("Unsupported parameter: 'temperature' is not supported with this model.")),
    ("request", 400, b'{"error":{"code":"invalid_request","message":"Model x does not support interactions."}}'),
    ("request", 422, b'{"detail":[{"type":"missing","loc":["body","model"],"msg":"Field required","input":{}}]}'),
    ("server", 500, openai("The server had an error while processing your request.", None, "server_error")),
    ("auth", 403, b"<html><body>blocked by our usage policy, insufficient credits</body></html>"),
)  # fmt: skip


@pytest.mark.parametrize("data", CONTEXT)
@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_context_window_that_is_too_small(status: int, data: bytes) -> None:
    assert cause(status, data) == "context_window"


@pytest.mark.parametrize(("status", "data"), POLICY)
def test_a_content_policy(status: int, data: bytes) -> None:
    assert cause(status, data) == "content_policy"


@pytest.mark.parametrize(("expected", "status", "data"), OTHERS)
def test_what_the_body_says_against_its_status(expected: Cause, status: int, data: bytes) -> None:
    assert cause(status, data) == expected


# -- any bytes, bounded work


@given(st.integers(0, 1000), st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
@example(400, b"[" * 100_000)
@example(429, b'{"error":' * 50_000)
@example(429, b'{"error":{"code":1e999}}')
@example(429, rb'{"error":{"message":"\ud800"}}')
def test_causes_of_any_bytes(status: int, data: bytes) -> None:
    assert cause(status, data) in WAYS
    after_body(data)


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "message", "details", "metadata", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.sampled_from([200, 400, 401, 402, 404, 429, 500, 503]), JSON)
def test_causes_of_any_json(status: int, value: object) -> None:
    assert cause(status, msgspec.json.encode(value)) in WAYS


@pytest.mark.parametrize(
    "unit",
    [b'"', b'{"error":', b'[{"code":"', b"exceeds the ", b"per day", b"try again in 1", b"\\", b"a b ", b"model "],
)
def test_work_is_bounded(unit: bytes) -> None:
    """The same for a body of 64 KB and for one of 4 MB; no word list is slow on any of them."""
    from time import perf_counter

    data = unit * (4_000_000 // len(unit))
    started = perf_counter()
    assert cause(429, data) in WAYS
    cause(400, data)
    after_body(data)
    assert perf_counter() - started < 0.5


def test_what_is_said_late_is_not_read() -> None:
    late = b'{"pad":"' + b"x" * 70_000 + b'","error":{"code":"insufficient_quota"}}'
    assert cause(429, late) == "rate_limit"
    assert after_body(b'{"pad":"' + b"x" * 70_000 + b'","retryDelay":"5s"}') is None


# -- recordings


def recorded() -> list[dict[str, Any]]:
    rows = []
    for path in sorted(TRAFFIC.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            rows += [
                msgspec.json.decode(line) for line in lines if b'"status": 2' not in line and b'"status":2' not in line
            ]
    return [row for row in rows if isinstance(row["status"], int) and row["status"] >= 400]


@pytest.mark.skipif(not TRAFFIC.exists(), reason="no recorded traffic in ../shared/traffic")
def test_every_recorded_error_has_its_cause() -> None:
    """What a refusal may be by its status; a request that is at fault by words that it has to have."""
    plausible: dict[int, set[Cause]] = {
        400: {"request", "auth", "not_found", "context_window", "content_policy"},
        401: {"auth"},
        403: {"auth", "content_policy"},
        404: {"not_found"},
        429: {"rate_limit"},
    }
    words = {"auth": "key", "not_found": "model", "context_window": "token context", "content_policy": "policy"}
    rows = recorded()
    assert len(rows) > 40
    for row in rows:
        text = row["response_body"] if row["response_body_encoding"] == "text" else ""
        found = cause(row["status"], text.encode())
        assert found in plausible.get(row["status"], WAYS), (row["id"], text)
        if row["status"] == 400 and found != "request":
            assert any(word in text.lower() for word in words[found].split()), (row["id"], found)
        if row["status"] == 429:
            assert after_body(text.encode()) is not None


@pytest.mark.skipif(not TRAFFIC.exists(), reason="no recorded traffic in ../shared/traffic")
def test_every_recorded_reset_is_read() -> None:
    """Each spelling of a reset that providers sent, as if its limit were used up."""
    seen: set[tuple[str, str]] = set()
    for path in sorted(TRAFFIC.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            for line in lines:
                if b"reset" in line:
                    headers = msgspec.json.decode(line)["response_headers"] or {}
                    pairs = headers.items() if isinstance(headers, dict) else headers
                    seen |= {(name.lower(), str(value)) for name, value in pairs if "reset" in name.lower()}
    limits = {(name, value) for name, value in seen if "ratelimit" in name}
    assert len({name for name, _ in limits}) > 8
    for name, value in limits:
        wait = after({name.encode(): value.encode()}, WALL)
        assert wait is not None, (name, value)
        assert 0.0 <= wait <= 86_400.0


# -- our own errors


def test_causes_of_our_own_errors() -> None:
    expected: dict[type[errors.SidecarError], Cause] = {
        errors.ConnectFailed: "connect",
        errors.TlsFailed: "connect",
        errors.UpstreamProtocol: "protocol",
        errors.UpstreamCut: "cut",
        errors.UpstreamRedirect: "not_found",
        errors.ProviderLimited: "rate_limit",
        errors.PoolExhausted: "overloaded",
        errors.ProviderError: "server",
        errors.Misconfigured: "auth",
        errors.Draining: "ours",
        errors.Overloaded: "ours",
        errors.InternalError: "ours",
        errors.RateLimited: "ours",
        errors.ClientGone: "ours",
        errors.Unsupported: "request",
        errors.BodyInvalid: "request",
    }
    assert {kind: cause_of(kind("x")) for kind in expected} == expected
    for phase in ("connect", "first_byte", "idle", "total"):
        assert cause_of(errors.UpstreamTimeout("x", phase=phase)) == "timeout"


def test_an_error_in_an_answer_has_the_cause_that_it_names() -> None:
    expected: tuple[tuple[Cause, int, str | None, str], ...] = (
        ("in_answer", 502, "provider_error_in_answer", "something broke"),
        ("in_answer", 500, None, "something broke"),
        ("overloaded", 529, "overloaded_error", "Overloaded"),
        ("rate_limit", 429, "rate_limit_exceeded", "slow down"),
        ("spend_cap", 429, "insufficient_quota", "no money"),
        ("spend_cap", 402, None, "no credits"),
        ("context_window", 400, "context_length_exceeded", "x"),
        ("context_window", 400, None, "prompt is too long: 9 tokens > 8 maximum"),
        ("request", 400, "invalid_request_error", "x"),
        ("auth", 401, None, "x"),
    )
    for found, status, code, message in expected:
        assert cause_of(errors.ErrorInAnswer(message, status=status, their_code=code)) == found


def leaves(kind: type[errors.SidecarError]) -> list[type[errors.SidecarError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in leaves(below))]


def test_no_leaf_of_the_tree_is_forgotten() -> None:
    """What calls itself retryable is tried somewhere; what does not is not. But a redirect: others are elsewhere."""
    for kind in leaves(errors.SidecarError):
        if kind is errors.ErrorInAnswer:  # may be either
            continue
        error = kind.__new__(kind)  # some take more than a message
        assert (WAYS[cause_of(error)] != "stop") == (kind.retryable or kind is errors.UpstreamRedirect), kind


# -- ways and fallbacks


def test_every_cause_has_its_way() -> None:
    assert set(WAYS) == set(get_args(Cause))
    assert {each for causes in FALLBACKS.values() for each in causes} <= set(WAYS)


def test_the_words_of_a_configuration_are_known() -> None:
    assert set(FALLBACKS) == set(get_args(structs.Cause))
    assert frozenset(structs.Model(targets=()).fallback_on) == DEFAULT


def test_falling_back() -> None:
    for each in WAYS:
        assert may_fall_back(each, frozenset()) is False
        assert may_fall_back(each, frozenset(("any",))) is (each != "ours")
        assert may_fall_back(each, DEFAULT) is (WAYS[each] != "stop")
    assert may_fall_back("context_window", DEFAULT | {"context_window"})
    assert may_fall_back("content_policy", frozenset(("content_policy",)))
    assert not may_fall_back("request", DEFAULT | {"context_window", "content_policy"})
    assert may_fall_back("spend_cap", frozenset(("rate_limit",)))
    assert not may_fall_back("rate_limit", frozenset(("error", "timeout")))
    assert may_fall_back("gateway_timeout", frozenset(("timeout",)))
    assert not may_fall_back("server", frozenset(("timeout",)))
    assert not may_fall_back("server", frozenset(("no such word",)))


# -- how long the provider asks us to wait


def waits(**headers: str) -> float | None:
    return after({name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}, WALL)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1.0),
        ("0", 0.0),
        (" 2 ", 2.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("30s", 30.0),
        ("3600", 3600.0),
        ("86401", 86_400.0),
        ("1769759900", 86_400.0),  # of this header never a point in time
        ("9" * 400, 86_400.0),
        ("Fri, 30 Jan 2026 07:57:50 GMT", 30.0),
        ("Friday, 30-Jan-26 07:57:50 GMT", 30.0),
        ("Fri Jan 30 07:57:50 2026", 30.0),
        ("Fri, 30 Jan 2026 07:57:00 GMT", 0.0),  # gone by
        ("Thu, 30 Jan 2999 07:57:00 GMT", 86_400.0),
        ("2026-01-30T07:57:50Z", 30.0),
        *((bad, None) for bad in ("", "-1", "-0.5", "soon", "inf", "nan", "1e3", "1,5", "0x10", "Fri, 99 Jan 2026")),
        *((bad, None) for bad in ("Fri", "Fri, ", "+1", "1 2", "--", "²", "2026-13-45T00:00:00Z")),
        ("0001-01-01T00:00", 0.0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert after({b"retry-after": value.encode("latin-1")}, WALL) == seconds


def test_milliseconds_come_first_and_limits_last() -> None:
    assert waits(retry_after_ms="1500", retry_after="9") == 1.5
    assert waits(retry_after_ms="12.5") == 0.0125
    assert waits(retry_after_ms="99999999999") == 86_400.0
    assert waits(retry_after_ms="-5", retry_after="9") == 9.0
    assert waits(retry_after_ms="1s", retry_after="9") == 9.0
    assert waits(retry_after="3", x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="60s") == 3.0
    assert waits(retry_after="soon", x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="60s") == 60.0
    assert waits() is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("24m28.8s", 1468.8),
        ("0s", 0.0),
        ("7", 7.0),
        ("0.25", 0.25),
        ("1769759870", 30.0),
        ("1769759870000", 30.0),
        ("1769759870123", 30.123),
        ("1769759800", 0.0),
        ("2026-01-30T07:57:50Z", 30.0),
        ("2026-01-30T07:57:50.250Z", 30.25),
        ("2026-01-30t07:57:50.123456789z", 30.123456),
        ("2026-01-30T09:57:50+02:00", 30.0),
        ("2026-01-30T07:57:50", 30.0),
        ("Fri, 30 Jan 2026 07:57:50 GMT", 30.0),
        *((bad, None) for bad in ("", "-1s", "s", "1x", "1s2", "tomorrow", "-5")),
    ],
)
@pytest.mark.parametrize(
    ("left", "reset"),
    [
        ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
        ("x-ratelimit-remaining", "x-ratelimit-reset"),
        ("ratelimit-remaining", "ratelimit-reset"),
        ("ratelimitbysize-remaining", "ratelimitbysize-reset"),
    ],
)
def test_resets(left: str, reset: str, value: str, seconds: float | None) -> None:
    expected = None if seconds is None else pytest.approx(seconds, abs=1e-5)
    assert after({left.encode(): b"0", reset.encode(): value.encode()}, WALL) == expected
    assert after({left.encode(): b"7", reset.encode(): value.encode()}, WALL) is None  # there is some left
    assert after({reset.encode(): value.encode()}, WALL) == expected  # alone it is meant


def test_the_last_of_the_used_up_limits() -> None:
    headers = {
        b"anthropic-ratelimit-requests-remaining": b"49",
        b"anthropic-ratelimit-requests-reset": b"2026-01-30T08:57:20Z",
        b"anthropic-ratelimit-input-tokens-remaining": b"0",
        b"anthropic-ratelimit-input-tokens-reset": b"2026-01-30T07:57:25Z",
        b"anthropic-ratelimit-tokens-remaining": b"0",
        b"anthropic-ratelimit-tokens-reset": b"2026-01-30T07:57:32Z",
        b"x-ratelimit-remaining-x": b"none",
        b"x-ratelimit-reset-x": b"600",
    }
    assert after(headers, WALL) == 12.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("limit=100, remaining=0, reset=5", 5.0),
        ("reset=5, limit=100, remaining=0", 5.0),
        ("limit=100;w=60, remaining=0, reset=5", 5.0),
        ("limit=100, remaining=1, reset=5", None),
        ('"default";r=0;t=5', 5.0),
        ('"default"; r=0; t=5', 5.0),
        ('"default";t=5;r=0', 5.0),
        ('"default";r=9;t=5', None),
        ('"minute";r=0;t=5, "day";r=0;t=500, "hour";r=3;t=50000', 500.0),
        ('"default";r=0', None),
        ('"default";r=0;t=99999999999999', 86_400.0),
        ("", None),
        (";;;,,,=", None),
    ],
)
def test_the_structured_field(value: str, seconds: float | None) -> None:
    assert waits(ratelimit=value) == seconds


NAMES: Final = [b"retry-after", b"retry-after-ms", b"ratelimit", b"x-ratelimit-reset", b"x-ratelimit-remaining"]


@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=80)), st.floats(0, 4e9))
@example({b"retry-after": b"Fri, 30 Jan 99999999999 07:57:50 GMT"}, WALL)
@example({b"retry-after": b"Fri, 30 Jan 2026 99:99:99 +9999"}, WALL)
@example({b"retry-after": b"9999-12-31T23:59:59-23:59"}, WALL)
def test_a_wait_of_any_headers_is_none_or_within_a_day(headers: dict[bytes, bytes], wall: float) -> None:
    wait = after(headers, wall)
    assert wait is None or 0.0 <= wait <= 86_400.0


DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "January", "Sunday,", "Fri,")


@given(
    st.lists(
        st.sampled_from((*DAYS, "30", "Jan", "30-Jan-26", "2026", "07:57:50", "GMT", "+9999", ":", "-", "0")),
        max_size=7,
    )
)
@settings(max_examples=300)
def test_a_date_that_is_none_is_no_error(words: list[str]) -> None:
    wait = waits(retry_after=" ".join(words))
    assert wait is None or 0.0 <= wait <= 86_400.0


@given(st.integers(0, 4_000_000_000), st.integers(0, 86_400))
def test_a_date_is_the_same_in_every_format(wall: int, seconds: int) -> None:
    values = (formatdate(wall + seconds, usegmt=True), f"{wall + seconds}000" if wall > 1e9 else str(seconds))
    for value in values:
        assert after({b"x-ratelimit-reset": value.encode()}, float(wall)) == seconds


def duration(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}h{minutes % 60}m{rest / 1000}s"


@given(st.integers(0, 86_400_000))
def test_durations_are_what_they_say(milliseconds: int) -> None:
    wait = after({b"x-ratelimit-reset": duration(milliseconds).encode()}, WALL)
    assert wait == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (google(PLAN, MINUTE, wait="48s"), 48.0),
        (google(PLAN + " Please retry in 9s.", wait="3.5s"), 3.5),
        (b'{ "retryDelay" : "0.5s" }', 0.5),
        (google("x", wait="soon"), None),
        (google("x", wait="999999s"), 86_400.0),
        (google(PLAN + "\nPlease retry in 48.939935699s."), 48.939935699),
        (openai("Rate limit reached. Please try again in 6m0s. Visit"), 360.0),
        (openai("Rate limit reached. Please try again in 120ms. Visit"), 0.12),
        (openai("Please retry after 6 seconds."), 6.0),
        (openai("Please retry after 1 second."), 1.0),
        (openai("Please try again in 2 hours"), None),
        (openai("Please try again later"), None),
        (b"", None),
    ],
)
def test_the_wait_that_a_body_asks_for(data: bytes, seconds: float | None) -> None:
    assert after_body(data) == seconds


# -- how long we wait


def test_backoff_doubles_up_to_its_cap() -> None:
    most = [delay(number, 0.25, 4.0, None, 5.0, lambda: 1.0) for number in range(1, 8)]
    assert most == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert delay(10**9, 0.25, 4.0, None, 5.0, lambda: 1.0) == 4.0
    assert delay(3, 0.25, 4.0, None, 5.0, lambda: 0.0) == 0.0


def test_what_is_asked_for_is_the_least() -> None:
    half: Callable[[], float] = lambda: 0.5  # noqa: E731
    assert delay(1, 0.25, 4.0, 1.0, 5.0, half) == 1.0
    assert delay(5, 0.25, 4.0, 1.0, 5.0, half) == 2.0  # the back-off is longer
    assert delay(1, 0.25, 4.0, 5.0, 5.0, half) == 5.0
    assert delay(1, 0.25, 4.0, 5.001, 5.0, half) is None
    assert delay(1, 0.25, 4.0, 0.0, 0.0, half) == 0.0
    assert delay(4, 0.25, 4.0, None, 1.0, lambda: 1.0) == 1.0  # ours is never too long for us


@given(
    st.integers(1, 100), st.floats(0.001, 10), st.floats(0.001, 100), st.none() | st.floats(0, 200), st.floats(0, 100),
    st.integers(),
)  # fmt: skip
def test_a_delay_is_within_its_bounds(
    number: int, base: float, cap: float, asked: float | None, longest: float, seed: int
) -> None:
    wait = delay(number, base, cap, asked, longest, random.Random(seed).random)
    if asked is not None and asked > longest:
        assert wait is None
    else:
        assert wait is not None
        assert (asked or 0.0) <= wait <= max(asked or 0.0, min(cap, base * 2 ** (number - 1)))
        assert wait <= longest


def test_jitter_is_full() -> None:
    draw = random.Random(7).random
    found = [delay(3, 0.25, 4.0, None, 5.0, draw) or 0.0 for _ in range(2000)]
    assert sum(found) / len(found) == pytest.approx(0.5, rel=0.05)
    assert min(found) < 0.01
    assert max(found) > 0.99


# -- how long the client waits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"x-sidecar-timeout-ms": "1500"}, None),
        ({"x-stainless-read-timeout": "600"}, 600.0),
        ({"x-stainless-read-timeout": "0.5"}, 0.5),
        ({"x-stainless-read-timeout": "600.0", "x-sidecar-timeout-ms": "2000"}, 600.0),
        ({"x-stainless-read-timeout": "1", "x-stainless-timeout": "2"}, 1.0),
        ({"x-stainless-timeout": "30"}, 30.0),
        *(({"x-stainless-read-timeout": bad}, None) for bad in ("None", "inf", "nan", "0", "-1", "1e3", "\u00b2", "")),
        ({"x-stainless-read-timeout": "99999999"}, None),
        ({"x-stainless-read-timeout": "inf", "x-stainless-timeout": "30"}, 30.0),
    ],
)
def test_the_client_s_patience(headers: dict[str, str], seconds: float | None) -> None:
    assert client_patience({name.encode(): value.encode("latin-1") for name, value in headers.items()}) == seconds


def test_patience_is_no_deadline() -> None:
    """The SDKs send their read timeout with every request: it bounds the wait for a byte, not a stream."""
    assert client_patience({b"x-stainless-read-timeout": b"600", b"x-sidecar-timeout-ms": b"5"}) == 600.0
    assert client_patience({b"x-sidecar-timeout-ms": b"5"}) is None
