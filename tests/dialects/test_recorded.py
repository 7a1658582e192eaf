"""Every recorded exchange of our dialects, read and translated: nothing raises, usage is found, no byte is touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Begin, Delta, Fault, Finish
from sidecar.errors import BodyInvalid, Unsupported, UpstreamProtocol
from sidecar.wire import body, sse
from tests.dialects import fold
from tests.dialects.golden import OTHER
from tests.dialects.recorded import TRAFFIC, Exchange, exchanges

KINDS = ("chat", "messages", "completions", "embeddings", "count_tokens")
FOREIGN = ("cohere", "google", "vertex", "bedrock-count")  # their own APIs go under the same kinds in the recordings
MODELS = {"messages": "claude-opus-4-7", "chat": "gpt-5.1"}

pytestmark = pytest.mark.skipif(not TRAFFIC.is_dir(), reason="no recorded traffic beside this folder")


def _ours(exchange: Exchange) -> bool:
    """In the words of one of our dialects."""
    return not exchange.id.startswith(FOREIGN) or exchange.kind in CONVERSATIONS


def _answers(*, streaming: bool | None = None, kinds: tuple[str, ...] = KINDS) -> Iterator[Exchange]:
    for exchange in exchanges(KINDS):
        if exchange.kind in kinds and exchange.status < 400 and streaming in (None, exchange.streaming):
            yield exchange


def test_requests_are_read() -> None:
    for exchange in filter(_ours, exchanges(KINDS)):
        if exchange.asked is None:
            continue
        members = body.envelope(exchange.asked)
        if bytes(members.get("model", b"null")) == b"null":  # named by the path
            members["model"] = body.raw("model")
        view = DIALECTS[exchange.kind].read_view(members)
        assert view.model
        if exchange.kind == "count_tokens":
            assert DIALECTS["count_tokens"].local(members) is not None


def test_requests_are_translated() -> None:
    """Or refused, with the member named: the sum of refusals is small, and each is for one of the known reasons."""
    refused: Counter[str] = Counter()
    translated = 0
    for exchange in exchanges(tuple(CONVERSATIONS)):
        if exchange.asked is None:
            continue
        members = body.envelope(exchange.asked)
        if bytes(members.get("model", b"null")) == b"null":
            members["model"] = body.raw("model")
        target = OTHER[exchange.kind]
        try:
            ask = CONVERSATIONS[exchange.kind].read_request(members)
            written = CONVERSATIONS[target].write_request(ask, MODELS[target])
        except (BodyInvalid, Unsupported) as error:
            refused[f"{error.message} ({error.param})"] += 1
            continue
        translated += 1
        # What has been written is a request of that dialect.
        again = CONVERSATIONS[target].read_request(body.envelope(body.rebuild(written.members)))
        assert len(again.tools) == len(ask.tools)
        assert again.stream == ask.stream
    assert sum(refused.values()) * 20 < translated, refused
    assert not any(where.endswith("(None)") for where in refused), refused


def test_whole_answers_are_translated() -> None:
    for exchange in _answers(streaming=False, kinds=tuple(CONVERSATIONS)):
        data = exchange.answered
        if not data.lstrip().startswith(b"{"):  # one recording answers with text
            with pytest.raises(UpstreamProtocol):
                CONVERSATIONS[exchange.kind].read_reply(data)
            continue
        reply = CONVERSATIONS[exchange.kind].read_reply(data)
        assert ("usage" in exchange.tags) == (reply.usage is not None), exchange.id
        target = OTHER[exchange.kind]
        again = CONVERSATIONS[target].read_reply(CONVERSATIONS[target].write_reply(reply))
        assert again.stop == reply.stop, exchange.id
        assert reply.usage is None or again.usage == reply.usage or target == "messages", exchange.id


def _read(exchange: Exchange, size: int) -> list[Delta]:
    data, events = exchange.answered, sse.Reader()
    reader = CONVERSATIONS[exchange.kind].stream_reader()
    deltas: list[Delta] = []
    for at in range(0, len(data), size):
        deltas += reader.feed(events.feed(data[at : at + size]))
    return deltas + reader.feed(events.finish()) + reader.finish()


@pytest.mark.usefixtures("_steady")
def test_streams_are_translated() -> None:
    folds = {"chat": fold.chat, "messages": fold.messages}
    for exchange in _answers(streaming=True, kinds=tuple(CONVERSATIONS)):
        deltas = _read(exchange, 1 << 30)
        assert isinstance(deltas[-1], Finish), exchange.id
        assert "usage" not in exchange.tags or deltas[-1].usage is not None, exchange.id
        assert _read(exchange, 1009) == deltas, exchange.id
        target = OTHER[exchange.kind]
        folds[target](CONVERSATIONS[target].stream_writer(include_usage=True).write(deltas))


def test_streams_pass_untouched() -> None:
    for exchange in _answers(streaming=True):
        meter = DIALECTS[exchange.kind].meter(stream=True, hide_usage=False)
        splitter, data, out = sse.Splitter(), exchange.answered, b""
        for at in range(0, len(data), 997):
            if block := splitter.feed(data[at : at + 997]):
                passed = meter.feed(block)
                assert passed is block
                out += passed
        assert out + splitter.held == data, exchange.id
        if splitter.held:
            meter.feed(splitter.held + b"\n\n")
        assert meter.ended, exchange.id
        assert meter.fault is None, exchange.id
        assert "usage" not in exchange.tags or meter.usage is not None, exchange.id


# Content that has no form in another dialect, so that readers give no delta for it.
SAID = re.compile(
    rb'"(?:finish_reason|text|url|data|cited_text|signature)": ?"[^"]|"type": ?"server_tool_use"|"summary": ?"[^"]'
)


def test_streams_start_with_their_first_content() -> None:
    for exchange in _answers(streaming=True):
        dialect = DIALECTS[exchange.kind]
        events = sse.events(exchange.answered + b"\n\n")
        meter = dialect.meter(stream=True, hide_usage=False)
        reader = CONVERSATIONS[exchange.kind].stream_reader() if exchange.kind in CONVERSATIONS else None
        first: sse.Event | None = None
        said: list[Delta] = []
        for first in events:
            meter.feed(sse.write(first.data, first.name))
            if reader is not None:
                said = [delta for delta in reader.feed([first]) if not isinstance(delta, Begin)]
            if meter.started:
                break
            assert not said, exchange.id
        assert meter.started, exchange.id
        assert first is not None
        assert said or SAID.search(first.data), (exchange.id, first)
        whole = dialect.meter(stream=True, hide_usage=False)
        whole.feed(exchange.answered + b"\n\n")
        assert whole.started, exchange.id


def test_streams_of_several_choices_end_with_the_last_of_them() -> None:
    found = 0
    for exchange in filter(lambda each: each.asked is not None, _answers(streaming=True)):
        choices = DIALECTS[exchange.kind].choices(body.envelope(exchange.asked or b""))
        if choices == 1:
            continue
        found += 1
        meter = DIALECTS[exchange.kind].meter(stream=True, hide_usage=False, choices=choices)
        finished = 0
        for event in sse.events(exchange.answered + b"\n\n"):
            assert meter.ended is (finished == choices), exchange.id
            meter.feed(sse.write(event.data))
            finished += len(re.findall(rb'"finish_reason": ?"', event.data))
        assert meter.ended, exchange.id
    assert found


def test_whole_answers_are_metered() -> None:
    for exchange in filter(_ours, _answers(streaming=False)):
        meter = DIALECTS[exchange.kind].meter(stream=False, hide_usage=False)
        data = exchange.answered
        for at in range(0, len(data), 4096):
            piece = data[at : at + 4096]
            assert meter.feed(piece) is piece
        assert meter.fault is None, exchange.id
        assert "usage" not in exchange.tags or meter.usage is not None, exchange.id


def test_errors_are_read() -> None:
    """Of every provider, whatever its dialect, and by both of our languages of errors: the message is kept."""
    found = 0
    for exchange in exchanges(
        (*KINDS, "responses", "generateContent", "converse", "cohere_chat", "ollama_chat", "rerank")
    ):
        if exchange.status < 400:
            continue
        found += 1
        for name in CONVERSATIONS:
            fault = DIALECTS[name].read_error(exchange.status, exchange.answered)
            assert isinstance(fault, Fault)
            assert fault.status == exchange.status
            assert fault.message
            told = body.encode(fault.message)[1:-1]
            assert "answered with status" in fault.message or told in _spelled(exchange.answered), exchange.id
            for target in CONVERSATIONS.values():
                assert told in target.write_error(fault)
                assert told in target.write_stream_error(fault)
    assert found


def _spelled(data: bytes) -> bytes:
    """The body with its strings spelled as we spell them."""
    try:
        return body.encode(body.document(data))
    except BodyInvalid:
        return body.encode(data.decode())
