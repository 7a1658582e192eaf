"""The closed tree of errors: each leaf says whose fault it is, its status, and whether another target may try.

    SidecarError
    |- CallerError     the request was at fault            caller_*
    |- PolicyError     the operator's rules said no        policy_*
    |- ProviderError   the provider, or the way to it      provider_*
    `- InternalError   this process                        sidecar_*

Foreign exceptions (OSError, ssl.SSLError, msgspec.DecodeError, ...) become one of these at the border that imports the
foreign library, and nowhere else. One place, the spine's error handler, turns them into the client's dialect.
"""

from __future__ import annotations

from typing import ClassVar

_REQUEST_FAULTS = frozenset((400, 402, 405, 413, 415, 422))  # of the request, or of the account: no target mends them


class SidecarError(Exception):
    """An expected failure. `message` is lower-case, says what was wrong, where and what to do; never a prompt or a key.

    `param`: the JSON path or parameter at fault. `retry_after`: seconds (exact, a float) after which it may work.
    """

    status: int = 500
    code: ClassVar[str] = "sidecar_internal"
    type: str = "api_error"
    retryable: bool = False  # may another target (or another try) succeed with the same request?
    their_code: str | None = None  # the provider's own word, where the error is its

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class CallerError(SidecarError):
    status, code, type = 400, "caller_request_invalid", "invalid_request_error"


class BodyInvalid(CallerError):
    code = "caller_body_invalid"


class BodyTooLarge(CallerError):
    status, code, type = 413, "caller_body_too_large", "request_too_large"


class MediaTypeUnsupported(CallerError):
    status, code = 415, "caller_media_type_unsupported"


class Unsupported(CallerError):
    """The asked feature has no form in the target's dialect, and leaving it out would change the meaning."""

    code = "caller_feature_unsupported"


class Unauthorized(CallerError):
    status, code, type = 401, "caller_key_invalid", "authentication_error"


class UnknownModel(CallerError):
    status, code, type = 404, "caller_model_unknown", "not_found_error"


class UnknownPath(CallerError):
    status, code, type = 404, "caller_path_unknown", "not_found_error"


class MethodNotAllowed(CallerError):
    status, code = 405, "caller_method_not_allowed"


class ClientGone(CallerError):
    """The client left; nobody reads the answer, so 499 is seen in logs only."""

    status, code = 499, "caller_gone"


class PolicyError(SidecarError):
    status, code, type = 403, "policy_forbidden", "permission_error"


class ModelForbidden(PolicyError):
    code = "policy_model_forbidden"


class OriginForbidden(PolicyError):
    code = "policy_origin_forbidden"


class RateLimited(PolicyError):
    """The caller's own requests-per-minute allowance is used up."""

    status, code, type = 429, "policy_rate_limited", "rate_limit_error"


class ConcurrencyLimited(PolicyError):
    """Too many exchanges of this caller are under way, and the queue is full or the wait was too long."""

    status, code, type = 429, "policy_concurrency_limited", "rate_limit_error"


class ProviderError(SidecarError):
    status, code, type, retryable = 502, "provider_error", "upstream_error", True


class ConnectFailed(ProviderError):
    """Refused, unreachable, unresolvable, or the proxy said no: not one byte of the request was sent."""

    code = "provider_connect_failed"


class TlsFailed(ConnectFailed):
    code = "provider_tls_failed"


class UpstreamTimeout(ProviderError):
    """A deadline passed. `phase` is connect, first_byte, idle or total."""

    status, code, type = 504, "provider_timeout", "upstream_timeout"

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class UpstreamProtocol(ProviderError):
    """What came back is not HTTP/1.1 as RFC 9112 has it, or not the dialect it claims to be."""

    code = "provider_protocol_error"


class UpstreamCut(ProviderError):
    """The connection ended before the answer did."""

    code = "provider_cut"


class ErrorInAnswer(ProviderError):
    """An error in the place of an answer, under status 200: it has the status that its own words mean."""

    code = "provider_error_in_answer"

    def __init__(self, message: str, *, status: int, their_code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.type = ""  # each dialect has its word for the status
        self.retryable = status not in _REQUEST_FAULTS
        self.their_code = their_code


class UpstreamRedirect(ProviderError):
    """Redirects are never followed: the provider's key would go where the configuration did not send it."""

    code = "provider_redirect"


class ProviderLimited(ProviderError):
    """The operator's own limit for this provider is reached; the provider was not asked."""

    status, code, type = 429, "provider_limited", "rate_limit_error"


class QuotaShort(ProviderLimited):
    """By its own word the provider has not as much left as this request needs, and would refuse it.

    `guessed`: it has something left, and that this will not do is a guess.
    """

    guessed = False


class TargetDown(ProviderError):
    """It has failed too often, and is not asked for a moment (its breaker is open)."""

    status, code, type = 503, "provider_unavailable", "overloaded_error"


class PoolExhausted(ProviderError):
    """Every connection this provider may have is busy, and the wait was too long."""

    status, code, type = 503, "provider_pool_exhausted", "overloaded_error"


class InternalError(SidecarError):
    """A fault of this process: a bug, or a state in which it cannot serve."""


class Draining(InternalError):
    status, code, type = 503, "sidecar_draining", "overloaded_error"


class Overloaded(InternalError):
    """There is no memory for it now; nothing of it was done."""

    status, code, type = 503, "sidecar_overloaded", "overloaded_error"


class Misconfigured(InternalError):
    """The configuration names something that is not there at run time (an unset key variable, a missing key file)."""

    code, retryable = "sidecar_misconfigured", True  # another target may have its key


class Malformed(Exception):
    """A message whose framing is not plain under RFC 9112. `status` is what a server answers before it closes."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
