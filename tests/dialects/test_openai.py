"""What OpenAI's dialects have in common: the view, and the asking for usage."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.dialects import openai
from sidecar.errors import BodyInvalid
from sidecar.types import View
from sidecar.wire import body


@pytest.mark.parametrize(
    ("data", "view"),
    [
        (b'{"model":"m"}', View(model="m")),
        (b'{"model":"m","stream":null,"max_tokens":null}', View(model="m")),
        (b'{"model":"m","stream":true}', View(model="m", stream=True)),
        (
            b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}',
            View(model="m", stream=True, include_usage=True),
        ),
        (b'{"model":"m","stream":true,"stream_options":null}', View(model="m", stream=True)),
        (b'{"model":"m","stream_options":{"include_usage":true}}', View(model="m")),
        (b'{"model":"m","max_tokens":5,"max_completion_tokens":7}', View(model="m", max_tokens=7)),
        (b'{"model":"m","max_tokens":5}', View(model="m", max_tokens=5)),
    ],
)
def test_view(data: bytes, view: View) -> None:
    assert openai.read_view(body.envelope(data)) == view


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b"{}", "model"),
        (b'{"model":""}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":"m","stream":"yes"}', "stream"),
        (b'{"model":"m","stream":true,"stream_options":[]}', "stream_options"),
        (b'{"model":"m","max_tokens":"5"}', "max_tokens"),
        (b'{"model":"m","MODEL":"other"}', "MODEL"),
        (b'{"Model":"m"}', "Model"),
        (b'{"model":"m","Stream":true}', "Stream"),
        (b'{"model":"m","N":9}', "N"),
        (b'{"model":"m","Stream_Options":{}}', "Stream_Options"),
        (b'{"model":"m","Max_Tokens":9}', "Max_Tokens"),
        (b'{"model":"m","x":1,"max_completion_tokenS":9}', "max_completion_tokenS"),
    ],
)
def test_bad_views_name_the_member(data: bytes, param: str) -> None:
    with pytest.raises(BodyInvalid) as caught:
        openai.read_view(body.envelope(data))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("options", "after", "added"),
    [
        (None, b'{"include_usage":true}', True),
        (b"null", b'{"include_usage":true}', True),
        (b'{"include_usage":false,"x":1.0}', b'{"include_usage":true,"x":1.0}', True),
        (b'{"x":1.0}', b'{"x":1.0,"include_usage":true}', True),
        (b'{"include_usage":true}', b'{"include_usage":true}', False),
    ],
)
def test_usage_is_asked_for(options: bytes | None, after: bytes, added: bool) -> None:
    members = {"model": msgspec.Raw(b'"m"')} | ({"stream_options": msgspec.Raw(options)} if options else {})
    assert openai.ask_usage(members) is added
    assert bytes(members["stream_options"]) == after


def test_usage_cannot_be_refused_in_another_spelling() -> None:
    options = msgspec.Raw(b'{"include_usage":true,"Include_Usage":false}')
    with pytest.raises(BodyInvalid) as caught:
        openai.ask_usage({"stream_options": options})
    assert caught.value.param == "stream_options.Include_Usage"


@pytest.mark.parametrize(
    ("n", "choices"),
    [(None, 1), (b"null", 1), (b"3", 3), (b"0", 1), (b"-2", 1), (b'"3"', 1), (b"[3]", 1), (b"1e99", 1)],
)
def test_choices(n: bytes | None, choices: int) -> None:
    assert openai.choices({} if n is None else {"n": msgspec.Raw(n)}) == choices


def test_nothing_is_answered_here() -> None:
    assert openai.nothing({}) is None
