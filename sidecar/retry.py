"""Why an attempt failed, whether another may help, and when: tables of causes, of words, of delays. Pure.

Errors are read by their status, then by what the named members of their bodies say. Nothing else of a body is looked
at: providers echo requests, and no caller may talk a provider out of its credit. For the same reason spend caps are
matched as the whole of a member, or at a message's start, where the status alone would blame the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

import msgspec

from sidecar import errors
from sidecar.dialects.lenient import mended

Cause = Literal[
    "connect", "timeout", "gateway_timeout", "cut", "protocol", "server", "overloaded", "rate_limit", "spend_cap",
    "auth", "not_found", "context_window", "content_policy", "request", "in_answer", "empty", "ours",
]  # fmt: skip
Way = Literal["retry", "next", "stop"]

# retry: the same target again after a delay, then the next. next: another target may help, the same will not.
# stop: the request is at fault, or we are. Our own deadlines (timeout) have cost the client its wait once already; a
# provider's 504 (gateway_timeout) has not.
WAYS: Final[dict[Cause, Way]] = {
    **dict.fromkeys(("connect", "cut", "protocol", "server", "gateway_timeout", "overloaded", "rate_limit"), "retry"),
    **dict.fromkeys(("in_answer", "empty"), "retry"),
    **dict.fromkeys(("timeout", "spend_cap", "auth", "not_found"), "next"),
    **dict.fromkeys(("request", "context_window", "content_policy", "ours"), "stop"),
}
# What each word of `fallback_on` stands for.
FALLBACKS: Final[dict[str, frozenset[Cause]]] = {
    "any": frozenset(WAYS) - {"ours"},
    "error": frozenset(cause for cause, way in WAYS.items() if way != "stop") - {"rate_limit", "spend_cap"},
    "timeout": frozenset(("timeout", "gateway_timeout")),
    "rate_limit": frozenset(("rate_limit", "spend_cap")),
    "context_window": frozenset(("context_window",)),
    "content_policy": frozenset(("content_policy",)),
}
# Of our own tree; a leaf that is not here is as its nearest parent is.
_OURS: Final[dict[type, Cause]] = {
    errors.CallerError: "request",
    errors.ClientGone: "ours",  # nobody is there to be answered
    errors.ConnectFailed: "connect",
    errors.UpstreamTimeout: "timeout",
    errors.UpstreamProtocol: "protocol",
    errors.UpstreamCut: "cut",
    errors.UpstreamRedirect: "not_found",  # its base_url is not where the API is
    errors.ProviderLimited: "rate_limit",
    errors.PoolExhausted: "overloaded",
    errors.ProviderError: "server",
    errors.Misconfigured: "auth",  # the key that is missing here another target may have
}
_STATUSES: Final[dict[int, Cause]] = {
    **dict.fromkeys((401, 403, 412), "auth"),  # 412: Fireworks' accounts that are suspended
    402: "spend_cap",
    **dict.fromkeys((404, 405, 410), "not_found"),
    **dict.fromkeys((408, 504, 522, 524), "gateway_timeout"),
    **dict.fromkeys((409, 424, 425, 499), "server"),  # OpenAI's lock; Bedrock's model that failed; Google's cancelled
    429: "rate_limit",
    **dict.fromkeys((498, 503, 529), "overloaded"),  # 498: no capacity in Groq's flex tier
}
_HUNDREDS: Final[dict[int, Cause]] = {2: "in_answer", 3: "not_found", 4: "request", 5: "server"}

_MOST_BYTES: Final = 65_536  # of a body; of what it says (a line: a member) much less
_MOST_TEXT: Final = 16_384
_MOST_LINE: Final = 2048
_DEEP: Final = 8
# Members that say what is wrong, or hold such members.
_TELLING: Final = frozenset(
    ("code", "type", "status", "reason", "error_code", "error_type", "__type", "quotaId", "quota_limit", "message",
     "Message", "msg", "detail", "details", "title", "error", "errors", "metadata", "raw", "violations", "innererror",
     "response")
)  # fmt: skip


def _rule(cause: Cause, instead: str, codes: str, *phrases: str) -> tuple[Cause, frozenset[str], re.Pattern[str]]:
    """`cause` in the place of those that the status alone would give, where a line is a code or has a phrase."""
    words = "|".join(map(re.escape, codes.split()))
    pattern = "|".join(([rf"^(?:.*#)?(?:{words})$"] if words else []) + list(phrases))
    return cause, frozenset(instead.split()), re.compile(pattern, re.MULTILINE)


# Read from the top; the first that matches is the cause. All words are lower-case, each member's text is one line.
_RULES: Final = (
    # Google names the quota: one of a day is a cap, one of a minute is not, though the message is of plan and billing.
    _rule("spend_cap", "rate_limit", "", r"^\S*per[-_]?day", r"free-models-per-day", r"tokens per day, please wait",
          r"\blimit: 0(?![\d.])"),
    _rule("rate_limit", "rate_limit", "", r"^\S*per[-_]?minute", r"retry in [\d.]+m?s\b"),
    _rule("spend_cap", "rate_limit auth request in_answer server overloaded",
          "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded "
          "organization_usage_limit_exceeded project_usage_limit_exceeded enforced_spend_limit_reached "
          "contract_spend_limit_reached billing_error billing_hard_limit_reached billing_not_active payment_required "
          "insufficient_balance insufficient_credits insufficient_funds exceeded_current_quota_error quota_exceeded "
          "usage_limit_reached budget_exceeded arrearage accountoverdueerror allocationquota.freetieronly "
          "servicequotaexceededexception",
          r"^your credit balance is too low", r"^you have reached your specified (?:\w+ )?api usage limits",
          r"^you(?: have|'ve)? exceeded your (?:current|monthly) (?:quota|included credits)",
          r"^insufficient (?:account )?(?:balance|credits?|funds|quota)"),
    _rule("spend_cap", "rate_limit auth", "",
          r"insufficient (?:account )?(?:balance|credits?|funds|quota)", r"exceeded your current quota",
          r"spend(?:ing)? (?:limit|cap)", r"credit balance", r"(?:used all|out of|have any) (?:available )?credits",
          r"billing (?:hard )?limit", r"budget has been exceeded", r"key limit exceeded",
          r"(?:daily|weekly|monthly) (?:usage )?(?:quota|limit|cap)\b"),
    _rule("content_policy", "request auth in_answer server overloaded",
          "content_filter contentfilter responsibleaipolicyviolation invalid_prompt bio_policy cyber_policy "
          "moderation_blocked prohibited_content content_blocked safety data_inspection_failed datainspectionfailed",
          r"content_policy_violation", r"content (?:management|filter(?:ing)?|moderation|safety|usage)? ?polic",
          r"safety(?:_check| system| filter| polic| guideline)", r"content exists risk", r"inappropriate content",
          r"deny-?listed", r"violat\w+ (?:our |the )?usage (?:polic|guideline)", r"requires moderation",
          r"\b(?:input|prompt|content|output) (?:\w+ ){0,4}(?:flagged|violat\w+|blocked)"),
    _rule("auth", "request in_answer",
          "invalid_api_key api_key_invalid authentication_error unauthenticated permission_denied",
          r"^(?:incorrect|invalid) api key", r"^api key (?:not valid|expired)", r"^user location is not supported"),
    _rule("rate_limit", "request in_answer server overloaded",
          "rate_limit_error rate_limit_exceeded throttlingexception resource_exhausted too_many_requests"),
    _rule("overloaded", "rate_limit request in_answer server",
          "overloaded overloaded_error engine_overloaded engine_overloaded_error provider_overloaded queue_exceeded "
          "capacity_exceeded service_tier_capacity_exceeded modelnotreadyexception unavailable",
          r"(?:engine|model|server) is (?:currently |temporarily )?overloaded"),
    _rule("not_found", "request in_answer",
          "model_not_found not_found not_found_error deploymentnotfound invalid_model model_not_available "
          "model_decommissioned resourcenotfoundexception",
          r"^the provided model identifier is invalid", r"^model not exist", r"^invalid model\b",
          r"^invocation of model id", r"is not a valid model id",
          r"^(?:the )?(?:requested )?model .{0,100}(?:does not exist|not found)"),
    _rule("context_window", "request in_answer server",
          "too_many_tokens string_above_max_length token_limit_exceeded",
          r"context_(?:length|window)_exceeded", r"exceed_context_size", r"prompt_too_long",
          r"maximum (?:context|prompt|input|model) length", r"context (?:length|window|size|limit) (?:\w+ ){0,3}exceed",
          r"exceed\w* (?:\w+ ){0,2}(?:\w+'s )?(?:\w+ )?context", r"context length is only", r"input tokens exceed",
          r"(?:prompt|input|request|conversation) (?:is )?too long", r"too many (?:input )?tokens",
          r"exceed\w* (?:the )?(?:maximum|max) (?:allowed )?(?:number of )?(?:input )?tokens", r"prompt exceeds",
          r"input token count .{0,40}exceed", r"prompt token count of", r"tokens? limit exceeded",
          r"exceeded model token limit", r"input length .{0,60}exceed", r"too large for model with",
          r"reduce the length of (?:the|your)", r"range of input length should be", r"string with maximum length",
          r"tokens \+ .{0,40}must be <=", r"tokens in request more than max", r"exceed max message"),
)  # fmt: skip


def cause(status: int, data: bytes) -> Cause:
    """Why a provider refused, by the status of its answer (or 200) and what its body says in any dialect's shape."""
    plain = _STATUSES.get(status) or _HUNDREDS.get(status // 100, "protocol")
    text = "\n".join(_lines(data))[:_MOST_TEXT]
    return next((found for found, instead, words in _RULES if plain in instead and words.search(text)), plain)


def cause_of(error: errors.SidecarError) -> Cause:
    """Why an attempt failed that brought no refusal to read, by our own error."""
    if isinstance(error, errors.ErrorInAnswer):
        found = cause(error.status, msgspec.json.encode({"code": error.their_code, "message": error.message}))
        return "in_answer" if found == "server" else found
    return next((_OURS[kind] for kind in type(error).__mro__ if kind in _OURS), "ours")


def may_fall_back(cause: Cause, fallback_on: frozenset[str]) -> bool:
    """Whether the next target is asked after this, by the words of a model's `fallback_on`."""
    return any(cause in FALLBACKS.get(word, ()) for word in fallback_on)


def _lines(data: bytes) -> Iterator[str]:
    """What an error body says, a member a line, lower-case."""
    text = data[:_MOST_BYTES].decode("utf-8", "replace").strip()
    value = None if text.startswith("<") else _decoded(text[max(text.find("{"), 0) :] if text[:1] != "[" else text)
    told = [text] if value is None and not text.startswith("<") else _told(value, _DEEP)  # a page says nothing
    return (" ".join(each[:_MOST_LINE].lower().split()) for each in told)


def _told(value: Any, deep: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        value = _decoded(value) if value.startswith(("{", "[")) else None  # a gateway quotes the error that it got
    if isinstance(value, dict):
        value = [member for name, member in value.items() if name in _TELLING]
    if isinstance(value, list) and deep:
        for each in value:
            yield from _told(each, deep - 1)


def _decoded(text: str) -> Any:
    """The JSON that this is, or None."""
    try:
        return msgspec.json.decode(mended(text.encode()))
    except (msgspec.DecodeError, RecursionError):
        return None


# -- when: what the provider asks for, and what we wait

_DAY: Final = 86_400.0  # the longest that is believed, and what a longer one is taken for
_NUMBER: Final = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)")
_DURATION: Final = re.compile(rf"(?:{_PIECE.pattern})+")
_PATIENCE: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")  # seconds; of the Python and the Node SDK
_POINT: Final = 1e8  # a larger number is a point in time (epoch seconds; above 1e11 milliseconds)
_PAIR: Final = re.compile(r"\b([a-z]+)\s*=\s*(\d+)")
_RETRY_INFO: Final = re.compile(rb'"retryDelay"\s*:\s*"([^"]{1,32})"')
_TRY_AGAIN: Final = re.compile(rb"(?i)(?:try again|retry) (?:in|after) (\d[\d.hms]{0,24})(?<!\.)( seconds?)?")


def after(index: Mapping[bytes, bytes], wall: float) -> float | None:
    """Seconds that a refusing provider asks us to wait: by its word, or until the last of its used up limits is reset.

    `index`: its headers by lower-case name. `wall`: seconds since 1970, now.
    """
    for name, unit in ((b"retry-after-ms", 1e-3), (b"retry-after", 1.0)):
        text = _text(index.get(name))
        if _NUMBER.fullmatch(text):  # never a point in time: RFC 9110 10.2.3
            return min(float(text) * unit, _DAY)
        if unit == 1.0 and (found := _seconds(text, wall)) is not None:
            return found
    return max(_resets(index, wall), default=None)


def after_body(data: bytes) -> float | None:
    """The same out of an error body: Google's RetryInfo, or `try again in 6m0s` of a message."""
    found = _RETRY_INFO.search(data, 0, _MOST_BYTES) or _TRY_AGAIN.search(data, 0, _MOST_BYTES)
    if found is None:
        return None
    text = _text(found[1])
    bare = found.re is _TRY_AGAIN and _NUMBER.fullmatch(text)
    return _seconds(text, 0.0) if not bare or found[2] else None  # "try again in 2" of what?


def delay(
    retry_number: int,
    base_seconds: float,
    cap_seconds: float,
    asked: float | None,
    max_wait_seconds: float,
    random: Callable[[], float],
) -> float | None:
    """Seconds to wait before the retry of this number (from 1); None where the provider asks for longer than we wait.

    Full jitter: anything between nothing and the back-off. `random` gives numbers of [0, 1).
    """
    backoff = min(cap_seconds, max_wait_seconds, base_seconds * 2.0 ** min(retry_number - 1, 64))
    wait = max(random() * backoff, asked or 0.0)
    return wait if wait <= max_wait_seconds else None


def client_patience(index: Mapping[bytes, bytes]) -> float | None:
    """Seconds that the client's SDK waits for a first or a next byte, by its own word. No limit of a whole stream."""
    said = [_text(index.get(name)) for name in _PATIENCE]
    waits = (float(text) for text in said if _NUMBER.fullmatch(text))
    return min((each for each in waits if 0.0 < each <= _DAY), default=None)


def seconds(value: bytes | None, wall: float) -> float | None:
    """The wait that a header's value tells, in any of its spellings; None where it tells none."""
    return _seconds(_text(value), wall)


def _text(value: bytes | None) -> str:
    return (value or b"")[:64].decode("latin-1").strip()


def _seconds(text: str, wall: float) -> float | None:
    """A wait in any of the spellings there are: a number, a duration of Go's, a date of HTTP's or of RFC 3339."""
    if _NUMBER.fullmatch(text):
        number = float(text)
        wait = number if number < _POINT else (number / 1000 if number > 1e11 else number) - wall
    elif _DURATION.fullmatch(text):
        wait = sum(float(number) * _UNITS[unit] for number, unit in _PIECE.findall(text))
    else:
        try:
            when = parsedate_to_datetime(text) if text[:1].isalpha() else datetime.fromisoformat(text.upper())
            wait = when.replace(tzinfo=when.tzinfo or UTC).timestamp() - wall
        except (ValueError, OverflowError, IndexError):
            return None
    return min(max(wait, 0.0), _DAY)


def _resets(index: Mapping[bytes, bytes], wall: float) -> Iterator[float]:
    """Of each limit that has nothing left, or does not say what: seconds to its reset."""
    for name, value in index.items():
        if name == b"ratelimit":  # the draft's structured field, as a dictionary or as a list of items
            text = value[:1024].decode("latin-1").lower()
            for item in (text,) if "remaining" in text else text.split(","):
                pairs = dict(_PAIR.findall(item))
                left, reset = pairs.get("remaining") or pairs.get("r"), pairs.get("reset") or pairs.get("t")
                if left and reset and int(left) == 0:
                    yield min(float(reset), _DAY)
        elif b"ratelimit" in name and b"reset" in name:
            left = _text(index.get(name.replace(b"reset", b"remaining"), b"0"))
            if _NUMBER.fullmatch(left) and float(left) == 0 and (found := _seconds(_text(value), wall)) is not None:
                yield found
