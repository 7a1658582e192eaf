"""Streams as providers send them: the same deltas whatever the cuts, the translation last read, and untouched bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from sidecar.dialects import CONVERSATIONS, DIALECTS
from sidecar.dialects.neutral import Delta, Fault, Finish
from sidecar.wire import sse
from tests.dialects.golden import OTHER, TRANSCRIPTS, check
from tests.dialects.patience import examples

RECORDED = [path for path in sorted(TRANSCRIPTS.glob("*.sse")) if "." not in path.stem]
BROKEN = {"chat_openrouter_error", "chat_vllm_error", "chat_cut", "messages_error", "messages_cut"}
CUT = {"chat_cut", "messages_cut"}
NO_USAGE = {"chat_openrouter_error", "chat_vllm_error", "chat_cut", "chat_refusal", "chat_llamacpp"}

transcripts = pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)


def dialect_of(path: Path) -> str:
    return path.stem.partition("_")[0]


def read(dialect: str, pieces: list[bytes]) -> list[Delta]:
    """The deltas of a stream that comes in these pieces."""
    events, reader = sse.Reader(), CONVERSATIONS[dialect].stream_reader()
    deltas = [delta for piece in pieces for delta in reader.feed(events.feed(piece))]
    return deltas + reader.feed(events.finish()) + reader.finish()


@transcripts
@pytest.mark.usefixtures("_steady")
def test_byte_by_byte(path: Path) -> None:
    data = path.read_bytes()
    whole = read(dialect_of(path), [data])
    assert read(dialect_of(path), [data[i : i + 1] for i in range(len(data))]) == whole
    assert isinstance(whole[-1], Fault if path.stem in BROKEN else Finish)
    assert sum(isinstance(delta, Fault | Finish) for delta in whole) == 1


@examples(100)
@given(data=st.data())
def test_random_cuts(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in RECORDED if path.stem != "chat_mistral"]))  # which lacks an id
    recorded = path.read_bytes()
    at = sorted(data.draw(st.lists(st.integers(0, len(recorded)), max_size=8)))
    pieces = [recorded[start:end] for start, end in zip([0, *at], [*at, len(recorded)], strict=True)]
    assert read(dialect_of(path), pieces) == read(dialect_of(path), [recorded])


@transcripts
@pytest.mark.usefixtures("_steady")
def test_translated(path: Path, request: pytest.FixtureRequest) -> None:
    target = OTHER[dialect_of(path)]
    writer = CONVERSATIONS[target].stream_writer(include_usage=True)
    got = writer.write(read(dialect_of(path), [path.read_bytes()]))
    assert writer.finished
    assert writer.write([Finish("stop")]) == b""
    check(path.with_suffix(f".{target}.sse"), got, rewrite=bool(request.config.getoption("--rewrite-golden")))


@transcripts
def test_meter_leaves_every_byte(path: Path) -> None:
    meter = DIALECTS[dialect_of(path)].meter(stream=True, hide_usage=False)
    splitter, out = sse.Splitter(), b""
    recorded = path.read_bytes()
    for i in range(0, len(recorded), 7):
        if block := splitter.feed(recorded[i : i + 7]):
            out += meter.feed(block)
    assert out + splitter.held == recorded
    meter.feed(splitter.held + b"\n\n")
    assert (meter.usage is not None) == (path.stem not in NO_USAGE)
    assert meter.ended == (path.stem not in BROKEN - {"chat_vllm_error", "chat_openrouter_error"})
    assert (meter.fault is not None) == (path.stem in BROKEN - CUT)


@pytest.mark.parametrize("path", [path for path in RECORDED if dialect_of(path) == "chat"], ids=lambda path: path.stem)
def test_hidden_usage_is_all_that_is_hidden(path: Path) -> None:
    recorded = path.read_bytes()
    out = DIALECTS["chat"].meter(stream=True, hide_usage=True).feed(recorded)
    ends = b"\r\n\r\n" if b"\r" in recorded else b"\n\n"
    kept = [event for event in recorded.split(ends) if not (b'"choices":[]' in event and b'"usage":{' in event)]
    assert out == ends.join(kept)
