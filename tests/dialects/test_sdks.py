"""The official SDKs read what we write: every transcript and recorded answer, translated, and its errors raised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from sidecar.dialects import CONVERSATIONS
from tests.dialects import fold
from tests.dialects.golden import OTHER, TRANSCRIPTS
from tests.dialects.recorded import TRAFFIC, exchanges
from tests.dialects.test_transcripts import BROKEN, RECORDED, dialect_of, read

pytestmark = pytest.mark.usefixtures("_steady")


class Sdks:
    """Both clients, answered with whatever bytes were last put here."""

    def __init__(self) -> None:
        self.answer = b""
        self.http = httpx2.Client(transport=httpx2.MockTransport(self._respond))
        self.openai = openai.OpenAI(api_key="k", base_url="http://host/v1", http_client=self.http, max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key="k", base_url="http://host", http_client=self.http, max_retries=0)

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        kind = "application/json" if self.answer.startswith(b"{") else "text/event-stream"
        return httpx2.Response(200, headers={"content-type": kind}, content=self.answer)

    def read(self, dialect: str, answer: bytes) -> dict[str, Any]:
        """The answer as the dialect's SDK folds and models it."""
        self.answer = answer
        stream = not answer.startswith(b"{")
        if dialect == "chat":
            return self._chat(stream=stream)
        ask: Any = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "a"}]}
        if not stream:
            return dict(self.anthropic.messages.create(**ask).model_dump())
        with self.anthropic.messages.stream(**ask) as events:
            return events.get_final_message().model_dump()

    def _chat(self, *, stream: bool) -> dict[str, Any]:
        ask: Any = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
        if not stream:
            return dict(self.openai.chat.completions.create(**ask).model_dump())
        with self.openai.chat.completions.stream(**ask) as events:
            completion: Any
            try:
                completion = events.get_final_completion()
            except (openai.LengthFinishReasonError, openai.ContentFilterFinishReasonError) as unparsed:
                completion = unparsed.completion
            return dict(completion.model_dump())


@pytest.fixture
def sdks() -> Iterator[Sdks]:
    clients = Sdks()
    with clients.http:
        yield clients


def _translated(path: Path) -> bytes:
    return path.with_suffix(f".{OTHER[dialect_of(path)]}.sse").read_bytes()


@pytest.mark.parametrize("path", [path for path in RECORDED if path.stem not in BROKEN], ids=lambda path: path.stem)
def test_transcripts(path: Path, sdks: Sdks) -> None:
    target = OTHER[dialect_of(path)]
    answer = _translated(path)
    got = sdks.read(target, answer)
    if target == "messages":
        folded = fold.messages(answer)
        assert got["stop_reason"] == folded["stop_reason"]
        assert [block["type"] for block in got["content"]] == [block["type"] for block in folded["content"]]
        assert got["usage"]["output_tokens"] == folded["usage"]["output_tokens"]
    else:
        message, folded = got["choices"][0]["message"], fold.chat(answer)
        assert got["choices"][0]["finish_reason"] == folded["finish_reason"]
        assert (message["content"] or "") == folded["message"]["content"]
        assert len(message["tool_calls"] or ()) == len(folded["message"].get("tool_calls", ()))
        assert len(message.get("thinking_blocks", ())) == len(folded["message"].get("thinking_blocks", ()))


@pytest.mark.parametrize("path", [TRANSCRIPTS / f"{name}.sse" for name in sorted(BROKEN)], ids=lambda path: path.stem)
def test_broken_streams_raise(path: Path, sdks: Sdks) -> None:
    target = OTHER[dialect_of(path)]
    with pytest.raises(openai.APIError if target == "chat" else anthropic.APIError):
        sdks.read(target, _translated(path))


@pytest.mark.skipif(not TRAFFIC.is_dir(), reason="no recorded traffic beside this folder")
def test_recorded(sdks: Sdks) -> None:
    for exchange in exchanges(tuple(CONVERSATIONS)):
        data, target = exchange.answered, OTHER[exchange.kind]
        if exchange.status >= 400 or not data.lstrip().startswith((b"{", b"data:", b"event:", b":")):
            continue
        if exchange.streaming:
            writer = CONVERSATIONS[target].stream_writer(include_usage=True)
            answer = writer.write(read(exchange.kind, [data]))
        else:
            answer = CONVERSATIONS[target].write_reply(CONVERSATIONS[exchange.kind].read_reply(data))
        got = sdks.read(target, answer)
        assert got.get("stop_reason") or got["choices"][0]["finish_reason"], exchange.id
