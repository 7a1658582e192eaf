"""Legacy completions: relayed, asked for usage, metered."""

from __future__ import annotations

import pytest

from sidecar.dialects import completions
from sidecar.types import Usage
from sidecar.wire import body


def test_completions() -> None:
    members = body.envelope(b'{"model":"davinci-002","prompt":[1,2],"stream":true,"best_of":1.0}')
    assert completions.read_view(members).stream
    assert completions.ask_usage(members)
    assert body.rebuild(members).endswith(b'"best_of":1.0,"stream_options":{"include_usage":true}}')
    assert completions.local(members) is None
    watching = completions.meter(stream=True, hide_usage=False)
    watching.feed(
        b'data: {"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    )
    assert watching.ended
    assert watching.usage == Usage(input=3, output=1)


@pytest.mark.parametrize(
    ("data", "choices"),
    [
        (b'{"prompt":"a"}', 1),
        (b'{"prompt":"a","n":2}', 2),
        (b'{"prompt":["a","b"],"n":2}', 4),
        (b'{"prompt":["a"]}', 1),
        (b'{"prompt":[1,2,3]}', 1),  # the tokens of one
        (b'{"prompt":[[1,2],[3]]}', 2),
        (b'{"prompt":[],"n":2}', 2),
        (b'{"prompt":[{}],"n":2}', 2),
        (b'{"n":2}', 2),
    ],
)
def test_there_is_an_answer_to_each_prompt(data: bytes, choices: int) -> None:
    assert completions.choices(body.envelope(data)) == choices
