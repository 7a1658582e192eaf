"""The content of chat messages, part by part, read to the neutral form."""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec

from sidecar.dialects.neutral import NOTHING, Document, Image, Part, Text, Thinking, sent
from sidecar.errors import BodyInvalid, Unsupported
from sidecar.wire import body

_DATA_URI: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^;,]*)*;base64,", re.IGNORECASE)
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"


class _Url(msgspec.Struct):
    url: str


class _File(msgspec.Struct):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class _Breakpoint(msgspec.Struct):
    ttl: str | None = None


class _Thought(msgspec.Struct):
    text: str = ""


class Content(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: _Url | str | None = None
    file: _File | None = None
    document_url: _Url | str | None = None  # Mistral's
    thinking: list[_Thought] | str | None = None  # Mistral's
    cache_control: msgspec.Raw = NOTHING  # Anthropic's, as OpenRouter and others take it
    prompt_cache_breakpoint: _Breakpoint | None = None


def parts(content: str | list[Content] | None, path: str) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    return [_part(part, f"{path}.content[{index}]") for index, part in enumerate(content)]


def _part(part: Content, path: str) -> Part:
    if part.type in ("text", "input_text", "output_text"):
        return Text(part.text or "", _cache(part))
    if part.type == "refusal":
        return Text(part.refusal or "")
    if part.type == "image_url" and part.image_url is not None:
        url = _url(part.image_url)
        return _image(*_data_uri(url, f"{path}.image_url.url")) if _is_data(url) else Image(url=url)
    if part.type == "file" and part.file is not None:
        return _file(part.file, f"{path}.file")
    if part.type == "document_url" and part.document_url is not None:
        url = _url(part.document_url)
        return _data_file(url, "", f"{path}.document_url") if _is_data(url) else Document(url=url)
    if part.type == "thinking" and part.thinking is not None:
        thought = part.thinking
        return Thinking(thought if isinstance(thought, str) else "".join(each.text for each in thought))
    raise Unsupported(f"content of type {part.type!r} has no form in the provider's API", param=path)


def _url(value: _Url | str) -> str:
    return value if isinstance(value, str) else value.url


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _cache(part: Content) -> msgspec.Raw | None:
    """A cache marker in Anthropic's words: theirs lives 5 minutes or an hour, OpenAI's own half an hour or 12 hours."""
    own = sent(part.cache_control)
    if own is not None or part.prompt_cache_breakpoint is None:
        return own
    marker = {"type": "ephemeral"}
    return body.raw({**marker, "ttl": "1h"} if part.prompt_cache_breakpoint.ttl == "12h" else marker)


def _file(file: _File, path: str) -> Image | Document:
    title = file.filename or ""
    if file.file_data is None:
        if file.file_id is None:
            raise BodyInvalid("a file needs file_data or a file_id", param=path)
        return Document(file_id=file.file_id, title=title)
    return _data_file(file.file_data, title, f"{path}.file_data")


def _data_file(uri: str, title: str, path: str) -> Image | Document:
    media_type, data = _data_uri(uri, path)
    if media_type.startswith("image/"):
        return _image(media_type, data)
    if media_type.startswith("text/"):
        try:
            return Document(media_type=media_type, text=base64.b64decode(data).decode(), title=title)
        except ValueError:
            raise BodyInvalid("not UTF-8 text in base64", param=path) from None
    return Document(media_type=media_type, data=data, title=title)


def _image(media_type: str, data: str) -> Image:
    return Image(media_type="image/jpeg" if media_type == "image/jpg" else media_type, data=data)


def _data_uri(uri: str, path: str) -> tuple[str, str]:
    """Media type and base64, white space taken out."""
    match = _DATA_URI.match(uri)
    data = "".join(uri[match.end() :].split()) if match is not None else ""
    if match is None or not data.isascii() or data.encode().translate(None, _BASE64):
        raise BodyInvalid("not a base64 data URI", param=path)
    return match[1].lower(), data
