"""What OpenAI, and each provider that resembles it, refuses: shapes, order, members it does not know."""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

_DECODER: Final = msgspec.json.Decoder(float_hook=float)  # 1e400 is infinite then, instead of an error
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_SHORT_ID: Final = re.compile(r"[a-zA-Z0-9]{9}")
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_Count = Annotated[int, Meta(ge=1)]


class Refusal(Exception):
    """A request that the provider does not take."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code


def bad(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, "invalid_request_error", message, param)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refusal."""
    try:
        request = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad("the body is not JSON") from None
    if not isinstance(request, dict):
        raise bad("the body is not an object")
    return request


@functools.cache
def _required(shape: type[Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(shape) if field.required]


def shaped(request: dict[str, Any], shape: type[Struct]) -> None:
    """Raises Refusal, naming the member, unless the request has that shape."""
    for name in _required(shape):
        if request.get(name) is None:
            raise bad(f"you must provide a {name} parameter", name)
    try:
        msgspec.convert(request, shape)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        raise bad(str(error), found[1] or None if found else None) from None


# -- OpenAI


class _Text(Struct, tag_field="type", tag="text"):
    text: str


class _ImageUrl(Struct):
    url: Annotated[str, Meta(min_length=1)]


class _Image(Struct, tag_field="type", tag="image_url"):
    image_url: _ImageUrl | str  # the string is Mistral's


class _Audio(Struct, tag_field="type", tag="input_audio"):
    input_audio: dict[str, Any] | str


class _File(Struct, tag_field="type", tag="file"):
    file: dict[str, Any]


class _Refused(Struct, tag_field="type", tag="refusal"):
    refusal: str


class _Thought(Struct, tag_field="type", tag="thinking"):
    thinking: Any


class _Named(Struct):
    name: ToolName


class _Called(Struct):
    name: str
    arguments: str


class _FunctionCall(Struct, tag_field="type", tag="function"):
    id: str
    function: _Called


class _CustomCall(Struct, tag_field="type", tag="custom"):
    id: str
    custom: dict[str, Any]


class _System(Struct, tag_field="role", tag="system"):
    content: str | list[_Text]


class _Developer(Struct, tag_field="role", tag="developer"):
    content: str | list[_Text]


class _User(Struct, tag_field="role", tag="user"):
    content: str | list[_Text | _Image | _Audio | _File]


class _Assistant(Struct, tag_field="role", tag="assistant"):
    content: str | list[_Text | _Refused | _Thought] | None = None
    tool_calls: list[_FunctionCall | _CustomCall] | None = None
    function_call: _Called | None = None


class _Tool(Struct, tag_field="role", tag="tool"):
    tool_call_id: Annotated[str, Meta(min_length=1)]
    content: str | list[_Text]


class _Function(Struct, tag_field="role", tag="function"):
    name: str
    content: str | None


class _FunctionParameters(_Named):
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _FunctionTool(Struct, tag_field="type", tag="function"):
    function: _FunctionParameters


class _CustomTool(Struct, tag_field="type", tag="custom"):
    custom: _Named


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Format(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Chat(Struct):
    """What is read of a request to /v1/chat/completions."""

    model: Annotated[str, Meta(min_length=1)]
    messages: Annotated[
        list[_System | _Developer | _User | _Assistant | _Tool | _Function], Meta(min_length=1, max_length=100_000)
    ]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    tools: Annotated[list[_FunctionTool | _CustomTool], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    reasoning_effort: str | None = None


class Completion(Struct):
    """What is read of a request to /v1/completions."""

    model: Annotated[str, Meta(min_length=1)]
    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=2048)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None


class Embedding(Struct):
    """What is read of a request to /v1/embeddings."""

    model: Annotated[str, Meta(min_length=1)]
    input: (
        Annotated[str, Meta(min_length=1)] | Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=2048)]
    )
    dimensions: Annotated[int, Meta(ge=1, le=4096)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


def check_chat(request: dict[str, Any]) -> None:
    """Raises Refusal unless OpenAI would take it."""
    shaped(request, Chat)
    _check_stream_options(request)
    asked: set[str] = set()
    for index, message in enumerate(request["messages"]):
        at = f"messages[{index}]"
        if message["role"] == "tool":
            if message["tool_call_id"] not in asked:
                raise bad("messages with role 'tool' must answer a preceding message with 'tool_calls'", f"{at}.role")
            asked.discard(message["tool_call_id"])
            continue
        if asked:
            raise bad(f"these tool_call_ids have no answer: {', '.join(sorted(asked))}", at)
        if message["role"] == "assistant":
            asked = {call["id"] for call in message.get("tool_calls") or ()}
            if not asked and message.get("content") is None and not message.get("function_call"):
                raise bad("an assistant message needs content or tool_calls", f"{at}.content")
    if asked:
        raise bad(f"these tool_call_ids have no answer: {', '.join(sorted(asked))}", "messages")


def check_completion(request: dict[str, Any]) -> None:
    """Raises Refusal unless OpenAI would take it."""
    shaped(request, Completion)
    _check_stream_options(request)


def check_embedding(request: dict[str, Any]) -> None:
    """Raises Refusal unless OpenAI would take it."""
    shaped(request, Embedding)


def _check_stream_options(request: dict[str, Any]) -> None:
    if request.get("stream_options") is not None and not request.get("stream"):
        raise bad("the 'stream_options' parameter is only allowed when 'stream' is enabled", "stream_options")


# -- what one of the OpenAI-compatible ones refuses

REFUSED: Final[dict[str, tuple[int, frozenset[str]]]] = {
    "mistral": (422, frozenset(("max_completion_tokens", "seed", "logit_bias", "user", "store"))),
    "groq": (400, frozenset(("logprobs", "top_logprobs", "logit_bias"))),
    "cohere": (422, frozenset(("stream_options",))),
    "cerebras": (422, frozenset(("frequency_penalty", "presence_penalty", "logit_bias"))),
}


def check_flavour(request: dict[str, Any], flavour: str) -> None:
    """Raises Refusal for what that provider is documented to refuse of a chat that OpenAI would take."""
    status, refused = REFUSED.get(flavour, (400, frozenset()))
    for name in request:
        if name in refused:
            raise Refusal(status, "invalid_request_error", "Extra inputs are not permitted", name)
    if flavour in ("groq", "cerebras") and (request.get("n") or 1) != 1:
        raise bad("n must be 1", "n")
    if flavour == "mistral":
        for message in request["messages"]:
            calls = (message.get("tool_calls") or ()) if message["role"] == "assistant" else ()
            answered = [message["tool_call_id"]] if message["role"] == "tool" else []
            for call_id in (*answered, *(call["id"] for call in calls)):
                if not _SHORT_ID.fullmatch(call_id):
                    raise bad(f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9.")
