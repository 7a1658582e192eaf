"""The content of chat messages, part by part."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from sidecar.dialects.chat_parts import Content, parts
from sidecar.dialects.neutral import Document, Image, Part, Text, Thinking
from sidecar.errors import BodyInvalid, Unsupported


def _read(part: dict[str, Any]) -> Part:
    (found,) = parts([msgspec.json.decode(orjson.dumps(part), type=Content)], "messages[0]")
    return found


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"type": "text", "text": "a"}, Text("a")),
        ({"type": "text"}, Text("")),
        ({"type": "output_text", "text": "a"}, Text("a")),
        ({"type": "refusal", "refusal": "no"}, Text("no")),
        ({"type": "image_url", "image_url": "https://example.com/a"}, Image(url="https://example.com/a")),
        ({"type": "image_url", "image_url": {"url": "DATA:Image/JPG;BASE64,AA ==\n"}}, Image("image/jpeg", "AA==")),
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;name=x;charset=utf-8;base64,AAAA"}},
            Image("image/png", "AAAA"),
        ),
        ({"type": "file", "file": {"file_id": "file-1", "filename": "n"}}, Document(file_id="file-1", title="n")),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
            Document("application/pdf", "AAAA"),
        ),
        ({"type": "file", "file": {"file_data": "data:text/csv;base64,w6k="}}, Document("text/csv", text="é")),
        ({"type": "file", "file": {"file_data": "data:image/gif;base64,AAAA"}}, Image("image/gif", "AAAA")),
        (
            {"type": "document_url", "document_url": {"url": "https://example.com/b"}},
            Document(url="https://example.com/b"),
        ),
        ({"type": "document_url", "document_url": "data:application/pdf;base64,AA"}, Document("application/pdf", "AA")),
        ({"type": "thinking", "thinking": [{"type": "text", "text": "a"}, {"text": "b"}]}, Thinking("ab")),
        ({"type": "thinking", "thinking": "a"}, Thinking("a")),
    ],
)
def test_parts(part: dict[str, Any], found: Part) -> None:
    assert _read(part) == found


def test_cache_markers() -> None:
    own = _read({"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "5m"}})
    assert isinstance(own, Text)
    assert own.cache is not None
    assert bytes(own.cache) == b'{"type":"ephemeral","ttl":"5m"}'
    long = _read({"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}})
    assert isinstance(long, Text)
    assert long.cache is not None
    assert bytes(long.cache) == b'{"type":"ephemeral","ttl":"1h"}'


@pytest.mark.parametrize(
    ("part", "error", "param"),
    [
        ({"type": "input_audio", "input_audio": {}}, Unsupported, "messages[0].content[0]"),
        ({"type": "image_url"}, Unsupported, "messages[0].content[0]"),
        (
            {"type": "image_url", "image_url": "data:image/png,plain"},
            BodyInvalid,
            "messages[0].content[0].image_url.url",
        ),
        (
            {"type": "image_url", "image_url": "data:image/png;base64,a*b"},
            BodyInvalid,
            "messages[0].content[0].image_url.url",
        ),
        (
            {"type": "image_url", "image_url": "data:image/png;base64,é"},
            BodyInvalid,
            "messages[0].content[0].image_url.url",
        ),
        ({"type": "file", "file": {}}, BodyInvalid, "messages[0].content[0].file"),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}},
            BodyInvalid,
            "messages[0].content[0].file.file_data",
        ),
        (
            {"type": "file", "file": {"file_data": "data:text/plain;base64,A"}},
            BodyInvalid,
            "messages[0].content[0].file.file_data",
        ),
    ],
)
def test_what_has_no_form(part: dict[str, Any], error: type[Exception], param: str) -> None:
    with pytest.raises(error) as caught:
        _read(part)
    assert getattr(caught.value, "param", None) == param


def test_content_of_any_shape() -> None:
    assert parts(None, "p") == []
    assert parts("a", "p") == [Text("a")]
