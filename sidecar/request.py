"""The request on its way up: whose it is, and how the target is to see it. Pure."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import msgspec

from sidecar import retry
from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import dropped_line
from sidecar.errors import BodyInvalid, Malformed, MediaTypeUnsupported, Misconfigured, Unauthorized
from sidecar.secret import Secret
from sidecar.types import (
    Auth,
    Caller,
    Client,
    Counting,
    Deadline,
    Endpoint,
    Envelope,
    Headers,
    Outbound,
    Target,
    Upstream,
    View,
)
from sidecar.wire import body, headers as rules
from sidecar.wire.heads import head_lines

ANONYMOUS = Caller(name="")
_JSON = (b"content-type", b"application/json")
_IDENTITY = (b"accept-encoding", b"identity")
_MAX_TIMEOUT_MS = 86_400_000
_REFUSED = re.compile(rb"\s*q\s*=\s*0(?:\.0*)?\s*")
_KEY_PARAMETERS = frozenset((b"key", b"api_key", b"api-key", b"apikey", b"access_token", b"token"))


class Asker(NamedTuple):
    """A caller, and what it has under way."""

    caller: Caller
    counter: Counting


class Asking(msgspec.Struct, frozen=True, eq=False):
    """What the head of a request says to the spine. The same head says the same again, under the same configuration."""

    spine: object
    asker: Asker
    timeout: float  # seconds the client waits, by its own word; infinite where it says nothing
    fallback: bool
    accepts: frozenset[bytes]  # content codings of answers
    patience: float = math.inf  # seconds that its SDK waits for a first byte, by its own word
    priority: str | None = None
    explain: bool = False  # it wants to know of each try
    share: bool = True  # an answer that somebody else with the same key has asked for is good enough
    lines: dict[str, bytes] = {}  # of what goes up, by provider: a head is of one endpoint, so of one dialect at each
    endpoint: Endpoint | None = None  # of the head
    leads: dict[str, Any] = {}  # where the models lead that it has asked for (exchange.lane.Lead)
    prepared: dict[tuple[str, bytes], Any] = {}  # heads of what goes up, by provider and path (pool.outbound.Prepared)


def read_head(
    spine: object, callers: dict[bytes, Asker], anonymous: Asker, client: Client, endpoint: Endpoint | None = None
) -> Asking:
    """Identify who asks, and read what the head says. Raises Unauthorized, MediaTypeUnsupported, BodyInvalid."""
    asker = identify(callers, client.headers, anonymous)
    index = client.index
    if index.get(b"content-encoding") not in (None, b"identity"):
        raise MediaTypeUnsupported("a body with a content coding is not taken; send it as it is")
    asking = Asking(
        spine,
        asker,
        _timeout(index),
        index.get(b"x-sidecar-fallback") != b"off",
        _codings(index.get(b"accept-encoding", b"")),
        retry.client_patience(index) or math.inf,
        _priority(index),
        index.get(b"x-sidecar-explain") == b"1",
        _shares(index),
        endpoint=endpoint,
    )
    client.notes["asking"] = asking
    return asking


def identify(callers: dict[bytes, Asker], headers: Headers, anonymous: Asker) -> Asker:
    """Who asks, by the key in any of the headers a client may send it in. Raises Unauthorized.

    Callers are found by the key's SHA-256, so how long it takes says nothing about any key.
    """
    if not callers:
        return anonymous
    found = presented(headers)
    if found is None:
        raise Unauthorized("no key was sent: send yours as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
    asker = callers.get(found[1].digest())
    if asker is None:
        raise Unauthorized("the key that was sent is not one of this sidecar's callers")
    return asker


def presented(headers: Headers) -> tuple[bytes, Secret] | None:
    """The key that a client sent, in the first of the headers that may hold one, and that header's name."""
    for name, value in headers:
        if name in rules.CREDENTIALS:
            key = value
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    continue
            if key := key.strip():
                return name, Secret(key.decode("latin-1"))
    return None


def translate(
    target: Target,
    endpoint: Endpoint,
    members: Envelope,
    client: Client,
    asking: Asking,
    *,
    stream: bool,
    key: int = 0,
    said: str = "",
    long: bool = False,
) -> tuple[Outbound, bool, bytes]:
    """The request in the target's words: its dialect, its model name, its key, and none of the client's credentials.

    Also answers whether the provider is asked for a usage event that the client did not ask for, and the header line
    of what is left out. `key`: which of the provider's. `said`: the answer so far, which is to be gone on with.
    `long`: the body is not to be copied. Raises BodyInvalid and Unsupported (translation), Unauthorized and
    Misconfigured (the key).
    """
    upstream, spoken = target.upstream, endpoint.dialect
    translated = target.dialect != spoken
    hide_usage = False
    path = target.path
    dropped: list[str] = []
    if translated:
        ask = CONVERSATIONS[spoken].read_request(members)
        written = CONVERSATIONS[target.dialect].write_request(ask, target.model)
        sent, dropped = written.members, list(written.dropped)
    else:
        sent = members.copy()
        sent["model"] = target.raw_model
        hide_usage = stream and upstream.stream_usage and DIALECTS[spoken].ask_usage(sent)
        if client.query and endpoint.model is None:  # Azure's is of Azure's paths
            path = _with_query(path, client.query)
    if said:
        sent["messages"] = _begun(sent["messages"], said, upstream)
    if target.params or upstream.drop or upstream.rename:
        dropped += _adapt(sent, target)
    lines = asking.lines.get(upstream.name)
    if lines is None:
        lines = asking.lines[upstream.name] = _lines(upstream, client.headers, translated=translated)
    auth = upstream.auths[key] if upstream.auths else _auth(upstream, client.headers)
    if long:
        data, *more = body.pieces(sent)
        outbound = Outbound(upstream.origin, b"POST", path, lines, auth, bytes(data), tuple(more))
    else:
        outbound = Outbound(upstream.origin, b"POST", path, lines, auth, body.rebuild(sent))
    return outbound, hide_usage, dropped_line(dropped) if dropped else b""


def _adapt(sent: Envelope, target: Target) -> list[str]:
    """What the configuration and the provider's row change of the members. Answers those that are left out."""
    sent.update(target.params)
    dropped = [name for name in target.upstream.drop if sent.pop(name, None) is not None]
    for old, new in target.upstream.rename:
        if old in sent:
            sent[new] = sent.pop(old)
    return dropped


def _begun(messages: msgspec.Raw, said: str, upstream: Upstream) -> msgspec.Raw:
    """The conversation with the answer so far as its last message (prefill): in the same words in each dialect."""
    message: dict[str, object] = {"role": "assistant", "content": said.rstrip()}  # Anthropic refuses white space there
    if upstream.prefill == "prefix":
        message["prefix"] = True
    return body.raw([*body.view(messages, list[msgspec.Raw], "messages"), message])


def _with_query(path: bytes, query: bytes) -> bytes:
    """The client's query string goes along, but for keys: some APIs take them there."""
    kept = [pair for pair in query.split(b"&") if pair.partition(b"=")[0].lower() not in _KEY_PARAMETERS]
    if not kept:
        return path
    return b"%b%b%b" % (path, b"&" if b"?" in path else b"?", b"&".join(kept))


def _lines(upstream: Upstream, headers: Headers, *, translated: bool) -> bytes:
    sent = [(b"host", upstream.host), *rules.upward(headers, translated=translated)]
    names = {name for name, _ in sent}
    sent += [pair for pair in upstream.headers if pair[0] not in names]
    if b"content-type" not in names:
        sent.append(_JSON)
    sent.append(_IDENTITY)
    try:
        return head_lines(sent)
    except Malformed as error:
        raise BodyInvalid(f"the headers cannot be sent on: {error.message}") from None


def _auth(upstream: Upstream, headers: Headers) -> Auth | None:
    """The credential of a provider that has none of its own: the caller's, or nothing."""
    if upstream.forward_caller_key:
        found = presented(headers)
        if found is None:
            raise Unauthorized(f"provider {upstream.name} is asked with the caller's own key, and none was sent")
        name, own = found
        if name == b"authorization" and upstream.auth_header == b"x-api-key":  # Anthropic takes both; not each is a key
            return Auth(header=name, prefix=b"Bearer ", secret=own)
        return Auth(header=upstream.auth_header, prefix=upstream.auth_prefix, secret=own)
    if upstream.missing_key is not None:
        raise Misconfigured(f"provider {upstream.name} has no key: {upstream.missing_key}")
    return None


def _codings(accepted: bytes) -> frozenset[bytes]:
    """The content codings that an Accept-Encoding names, but for those it refuses by `q=0` (RFC 9110 12.5.3)."""
    pairs = [each.partition(b";") for each in accepted.lower().split(b",")]
    return frozenset(name.strip() for name, _, weight in pairs if not _REFUSED.fullmatch(weight))


def _priority(index: dict[bytes, bytes]) -> str | None:
    asked = index.get(b"x-sidecar-priority")
    if asked is None:
        return None
    if asked not in (b"high", b"normal", b"low"):
        raise BodyInvalid("the header x-sidecar-priority is none of high, normal, low", param="x-sidecar-priority")
    return asked.decode()


def _shares(index: dict[bytes, bytes]) -> bool:
    asked = index.get(b"x-sidecar-cache")
    if asked not in (None, b"off", b"refresh"):
        raise BodyInvalid("the header x-sidecar-cache is none of off, refresh", param="x-sidecar-cache")
    return asked is None


def _timeout(index: dict[bytes, bytes]) -> float:
    """How long the client waits, in seconds, by `x-sidecar-timeout-ms`. Raises BodyInvalid when it is no number."""
    asked = index.get(b"x-sidecar-timeout-ms")
    if asked is None:
        return math.inf
    if not asked.isdigit() or len(asked) > 8 or not 0 < int(asked) <= _MAX_TIMEOUT_MS:
        raise BodyInvalid(
            "the header x-sidecar-timeout-ms is not a number of milliseconds", param="x-sidecar-timeout-ms"
        )
    return int(asked) / 1000


def deadline(upstream: Upstream, view: View, now: float, expires: float) -> Deadline:
    """The limits of time of one attempt, as absolute as they can be before it begins."""
    limits = upstream.timeouts
    at = now + limits.total
    first_byte = limits.first_byte if view.stream else limits.first_byte_unary
    return Deadline(min(expires, at), limits.connect, first_byte, limits.idle)
