"""What the simulated provider makes of one request: its endpoints, whom it lets in, what it answers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sidecar.simulator import answers, checks, checks_messages
from sidecar.simulator.answers import Answer, anthropic_error, json_answer, openai_error
from sidecar.simulator.checks import Refusal, read_object
from sidecar.simulator.flavours import flavoured, limit_headers
from sidecar.simulator.settings import Settings


class Route(msgspec.Struct, frozen=True):
    """An endpoint. `check` raises Refusal for what the provider does not take; `serve` answers the rest."""

    check: Callable[[dict[str, Any]], None]
    serve: Callable[[dict[str, Any], int, int], Answer]
    anthropic: bool = False


ROUTES: Final[dict[str, Route]] = {
    "/chat/completions": Route(checks.check_chat, answers.chat),
    "/chat": Route(checks.check_chat, answers.chat),  # Writer's
    "/completions": Route(checks.check_completion, answers.completions),
    "/embeddings": Route(checks.check_embedding, answers.embeddings),
    "/messages": Route(checks_messages.check_messages, answers.messages, anthropic=True),
    "/messages/count_tokens": Route(checks_messages.check_count, answers.count_tokens, anthropic=True),
}
_LONGEST_FIRST: Final = sorted(ROUTES, key=len, reverse=True)
_CREDENTIALS: Final = frozenset(("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"))


class Seen(msgspec.Struct, kw_only=True):
    """One request as it came, and what became of it. Times are of the monotonic clock, in seconds."""

    number: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    began: float
    fault: str = ""  # that was played
    answered_at: float | None = None  # the first byte was written
    finished_at: float | None = None  # the last byte was written, or the fault done that ended it
    cancelled_at: float | None = None  # the client left before that

    @property
    def route(self) -> str:
        """The endpoint, without the query, and without the base path before it: each provider has its own."""
        path = self.path.partition("?")[0]
        return next((name for name in _LONGEST_FIRST if path.endswith(name)), path.removeprefix("/v1") or "/")

    @property
    def request_id(self) -> str:
        return f"req_sim_{self.number}"

    def header(self, name: str) -> str:
        return next((value for each, value in self.headers if each == name), "")

    @property
    def key(self) -> str:
        """What tells it apart: of tests, or as OpenAI's clients tell it, by which a request is like any other."""
        return self.header("x-sim-key") or self.header("x-client-request-id")

    @property
    def anthropic(self) -> bool:
        """Whether it is to be answered in Anthropic's form."""
        route = ROUTES.get(self.route)
        return route.anthropic if route is not None else bool(self.header("anthropic-version"))


def shown(seen: Seen) -> dict[str, Any]:
    """A request for other processes: the body as text, and no credentials."""
    headers = [pair for pair in seen.headers if pair[0] not in _CREDENTIALS]
    return {**msgspec.structs.asdict(seen), "headers": headers, "body": seen.body.decode("utf-8", "replace")}


def log_line(seen: Seen) -> bytes:
    """What became of a request, for a log: none of its body, nor of its headers but the key that tells it apart."""
    told = {name: getattr(seen, name) for name in _LOGGED}
    return msgspec.json.encode({**told, "key": seen.key}) + b"\n"


_LOGGED: Final = ("number", "path", "fault", "began", "answered_at", "finished_at", "cancelled_at")


def digest(answer: Answer) -> tuple[str, str]:
    """A header that tells what the whole body is to be, so that a client can see whether it has it."""
    body = answer.body if answer.events is None else b"".join(answer.events)
    return "x-sim-digest", f"{zlib.crc32(body):08x}-{len(body)}"


def answer_to(seen: Seen, settings: Settings, *, tokens: int, flavour: str) -> Answer:
    """The answer, in the form and with the headers of the provider that it plays."""
    anthropic = seen.anthropic
    try:
        answer = _answer(seen, settings, tokens, flavour)
    except Refusal as refusal:
        answer = refused(seen, refusal)
    answer.headers.append(("request-id" if anthropic else "x-request-id", seen.request_id))
    if anthropic:
        answer.headers += limit_headers(flavour, anthropic=True)
        return answer
    if flavour != "openrouter":  # tells of limits only when they are reached
        answer.headers += limit_headers(flavour, anthropic=False)
    return flavoured(answer, flavour)


def refused(seen: Seen, refusal: Refusal) -> Answer:
    return anthropic_error(refusal, seen.request_id) if seen.anthropic else openai_error(refusal)


def _answer(seen: Seen, settings: Settings, tokens: int, flavour: str) -> Answer:
    """The plain answer to a request that the real provider would take. Raises Refusal."""
    _check_key(seen, settings)
    if seen.method == "GET" and (seen.route == "/models" or seen.route.startswith("/models/")):
        return _models(seen, settings)
    route = ROUTES.get(seen.route)
    if route is None:
        raise Refusal(404, "not_found_error", f"no such endpoint: {seen.path.partition('?')[0]}", code="unknown_url")
    if seen.method != "POST":
        raise Refusal(405, "invalid_request_error", "only POST is served here")
    if seen.header("content-type").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "invalid_request_error", "the content-type must be application/json")
    version = seen.header("anthropic-version")
    if route.anthropic and version not in checks_messages.VERSIONS:
        problem = f"{version!r} is not a valid version" if version else "header is required"
        raise Refusal(400, "invalid_request_error", f"anthropic-version: {problem}")
    request = read_object(seen.body)
    route.check(request)
    if route.anthropic:
        checks_messages.check_version(request, version)
    elif route.serve is answers.chat:
        checks.check_flavour(request, flavour)
    _check_model(request["model"], settings)
    return route.serve(request, seen.number, tokens)


def _check_key(seen: Seen, settings: Settings) -> None:
    key = seen.header("x-api-key") or seen.header("api-key")
    if not key:
        scheme, _, key = seen.header("authorization").partition(" ")
        key = key if scheme.lower() == "bearer" else ""
    if settings.keys and key not in settings.keys:
        told = f"{key[:3]}***{key[-2:]}" if len(key) > 12 else "***"  # as OpenAI does; never the whole of it
        raise Refusal(401, "authentication_error", f"Incorrect API key provided: {told}")


def _check_model(name: str, settings: Settings) -> None:
    if settings.models and name not in settings.models:
        raise Refusal(404, "not_found_error", f"the model {name!r} does not exist", "model")


def _models(seen: Seen, settings: Settings) -> Answer:
    """GET /v1/models and /v1/models/{id}, in the form of the API whose headers came with it."""
    names = settings.models or ("sim-large", "sim-small")
    form = _anthropic_model if seen.anthropic else _openai_model
    if seen.route.startswith("/models/"):
        name = seen.route.removeprefix("/models/")
        if name not in names:
            raise Refusal(404, "not_found_error", f"the model {name!r} does not exist", "model")
        return json_answer(200, form(name))
    data = [form(name) for name in names]
    if seen.anthropic:
        return json_answer(200, {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})
    return json_answer(200, {"object": "list", "data": data})


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"id": name, "type": "model", "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
