"""The request on its way up: whose it is, and how the target is to see it. Pure."""

from __future__ import annotations

from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.errors import BodyInvalid, Misconfigured, Unauthorized
from sidecar.secret import Secret
from sidecar.types import Auth, Caller, Deadline, Envelope, Headers, Outbound, Target, Upstream, View
from sidecar.wire import body, headers as rules

ANONYMOUS = Caller(name="")
_JSON = (b"content-type", b"application/json")
_MAX_TIMEOUT_MS = 86_400_000


def identify(callers: dict[bytes, Caller], headers: Headers) -> Caller:
    """Who asks, by the key in any of the headers a client may send it in. Raises Unauthorized.

    Callers are found by the key's SHA-256, so how long it takes says nothing about any key.
    """
    if not callers:
        return ANONYMOUS
    presented = credential(headers)
    if presented is None:
        raise Unauthorized("no key was sent: send yours as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
    caller = callers.get(presented.digest())
    if caller is None:
        raise Unauthorized("the key that was sent is not one of this sidecar's callers")
    return caller


def credential(headers: Headers) -> Secret | None:
    """The key that a client sent, in the first of the headers that may hold one."""
    for name, value in headers:
        if name in rules.CREDENTIALS:
            key = value
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    continue
            if key := key.strip():
                return Secret(key.decode("latin-1"))
    return None


def translate(
    target: Target, spoken: str, members: Envelope, headers: Headers, *, stream: bool
) -> tuple[Outbound, bool]:
    """The request in the target's words: its dialect, its model name, its key, and none of the client's credentials.

    `spoken`: the dialect of the client. Also answers whether the provider is asked for a usage event that the client did
    not ask for. Raises BodyInvalid and Unsupported (translation), Unauthorized and Misconfigured (the key).
    """
    upstream = target.upstream
    translated = target.dialect != spoken
    hide_usage = False
    if translated:
        ask = CONVERSATIONS[spoken].read_request(members)
        sent_members = CONVERSATIONS[target.dialect].write_request(ask, target.model).members
    else:
        sent_members = dict(members)
        sent_members["model"] = body.raw(target.model)
        hide_usage = stream and upstream.stream_usage and DIALECTS[spoken].ask_usage(sent_members)
    for name in upstream.drop:
        sent_members.pop(name, None)
    for old, new in upstream.rename:
        if old in sent_members:
            sent_members[new] = sent_members.pop(old)
    outbound = Outbound(
        origin=upstream.origin,
        method=b"POST",
        path=upstream.paths[target.dialect].encode(),
        host=upstream.host,
        headers=_headers(upstream, headers, translated=translated),
        auth=_auth(upstream, headers),
        body=body.rebuild(sent_members),
    )
    return outbound, hide_usage


def _headers(upstream: Upstream, headers: Headers, *, translated: bool) -> Headers:
    sent = rules.upward(headers, translated=translated)
    names = [name for name, _ in sent]
    sent += [pair for pair in upstream.headers if pair[0] not in names]
    if b"content-type" not in names:
        sent.append(_JSON)
    sent.append((b"accept-encoding", b"identity"))
    return sent


def _auth(upstream: Upstream, headers: Headers) -> Auth | None:
    if upstream.forward_caller_key:
        own = credential(headers)
        if own is None:
            raise Unauthorized(f"provider {upstream.name} is asked with the caller's own key, and none was sent")
        return Auth(header=upstream.auth_header, prefix=upstream.auth_prefix, secret=own)
    if upstream.missing_key is not None:
        raise Misconfigured(f"provider {upstream.name} has no key: {upstream.missing_key}")
    return upstream.auth


def expiry(headers: Headers, started: float) -> float:
    """When the client stops waiting, by its own word (`x-sidecar-timeout-ms`). Raises BodyInvalid when it is no number."""
    asked = rules.get(headers, b"x-sidecar-timeout-ms")
    if asked is None:
        return float("inf")
    if not asked.isdigit() or not 0 < int(asked) <= _MAX_TIMEOUT_MS:
        raise BodyInvalid(
            "the header x-sidecar-timeout-ms is not a number of milliseconds", param="x-sidecar-timeout-ms"
        )
    return started + int(asked) / 1000


def deadline(upstream: Upstream, view: View, now: float, expires: float) -> Deadline:
    """The limits of time of one attempt, as absolute as they can be before it begins."""
    limits = upstream.timeouts
    return Deadline(
        at=min(now + limits.total, expires),
        connect=limits.connect,
        first_byte=limits.first_byte if view.stream else limits.first_byte_unary,
        idle=limits.idle,
    )
