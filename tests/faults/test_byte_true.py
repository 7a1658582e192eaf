"""Byte-true, from end to end through the app: what a client writes reaches the provider, what comes back the client.

The pool is replaced by one in memory, so that every cut can be tried: an answer comes in exactly the pieces of a test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given, settings, strategies as st

from sidecar.app import Sidecar
from sidecar.config import Config, Key, Provider, Retry
from sidecar.errors import UpstreamCut
from sidecar.pool import Pool
from sidecar.secret import Secret
from sidecar.types import Headers, Outbound, Sink
from sidecar.wire.body import LONG_BYTES
from tests.asgi import Answer, ask
from tests.faults.stand import NEVER
from tests.faults.transcripts import CHAT, CHAT_EVENTS, EVENTS, JSON, MESSAGES, MESSAGES_EVENTS
from tests.wire.test_body import NUMBERS, SPACES, TEXTS, VALUES
from tests.wire.test_sse import STREAMS

TRANSCRIPTS: Final = Path(__file__).parents[1] / "transcripts"
# Endpoint, and the model that is asked for there: of the same language always.
ENDPOINTS: Final = {
    "/v1/chat/completions": "lab/m",
    "/chat/completions": "lab/m",
    "/v1/completions": "lab/m",
    "/v1/embeddings": "lab/m",
    "/v1/messages": "claude/m",
    "/v1/messages/count_tokens": "claude/m",
}
UNKNOWN: Final = st.sampled_from(
    ["x", "temperature", "logit_bias", "\u00e9", "a b", "", "Messages", "n", "seed", "\U0001f600"]
)


class Inbound:
    """An answer in the pieces it is made of, and how it ends."""

    def __init__(self, status: int, headers: Headers, pieces: list[bytes], *, cut: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.index = dict(headers)
        self._pieces = [piece for piece in pieces if piece]
        self._cut = cut

    def whole(self) -> bytes | None:
        """All at once, where it is one piece and not cut: as when it comes in one segment."""
        return self._pieces.pop() if len(self._pieces) == 1 and not self._cut else None

    def here(self) -> bytes:
        return b""

    def unread(self, data: bytes) -> None:
        self._pieces.insert(0, data)

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        if self._pieces:
            return self._pieces.pop(0)
        if self._cut:
            raise UpstreamCut("provider lab closed the connection inside the answer")
        return b""

    def interrupt(self) -> None: ...

    async def pump(self, sink: Sink, through: object = None) -> Awaitable[None] | None:
        while data := await self.read():
            if (wait := sink(data)) is not None:
                return wait
        return None

    def close(self) -> None:
        self._pieces = []


class Loop:
    """The app before a provider in memory: `through` sends one request through both."""

    def __init__(self) -> None:
        key = Key(source="inline", secret=Secret("sk"))
        url = "http://127.0.0.1:9"
        self.app = Sidecar(
            Config(
                providers={
                    "lab": Provider(kind="openai-compatible", base_url=url, api_key=key, breaker=NEVER),
                    "claude": Provider(kind="anthropic", base_url=url, api_key=key, breaker=NEVER),
                },
                retry=Retry(attempts=0),
            )
        )
        self.sent: list[Outbound] = []
        self.answer = Inbound(200, [], [])
        self.runner = asyncio.Runner()

    async def send(self, outbound: Outbound) -> Inbound:
        self.sent.append(outbound)
        return self.answer

    def through(self, path: str, body: bytes, answer: Inbound, **headers: str) -> Answer:
        self.answer = answer
        sent = {"content-type": "application/json", **headers}
        return self.runner.run(ask(self.app, "POST", path, sent, body))


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with pytest.MonkeyPatch.context() as patch:
        loop = Loop()
        patch.setattr(Pool, "send", lambda _, outbound, *__: loop.send(outbound))
        yield loop
        loop.runner.close()


def whole(*pieces: bytes, status: int = 200, cut: bool = False) -> Inbound:
    return Inbound(status, [(b"content-type", JSON)], list(pieces), cut=cut)


def stream(pieces: list[bytes], *, cut: bool = False) -> Inbound:
    return Inbound(200, [(b"content-type", EVENTS)], pieces, cut=cut)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


# -- up


def _written(members: list[tuple[str, str, str]], space: str) -> bytes:
    return (
        "{" + ",".join(f"{s}{json.dumps(name)}{space}:{space}{value}" for name, value, s in members) + space + "}"
    ).encode()


def _expected(members: list[tuple[str, str, str]]) -> bytes:
    """The last of each name where the first of it stood, nothing between members, and the provider's model."""
    last = {name: value for name, value, _ in members} | {"model": '"m"'}
    return (
        "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{value}" for name, value in last.items()) + "}"
    ).encode()


MEMBERS: Final = st.lists(st.tuples(UNKNOWN, VALUES, SPACES), max_size=7)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(ENDPOINTS)), MEMBERS, st.integers(0, 7), SPACES)
def test_every_member_reaches_the_provider_as_it_was_written(
    loop: Loop, path: str, members: list[tuple[str, str, str]], at: int, space: str
) -> None:
    members = [*members[:at], ("model", json.dumps(ENDPOINTS[path]), ""), *members[at:]]
    answer = loop.through(path, _written(members, space), whole(b"{}"))
    assert (answer.status, answer.body) == (200, b"{}")
    assert loop.sent.pop().body == _expected(members)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_spelling_of_a_number_and_a_text(loop: Loop, path: str) -> None:
    members = [(f"x{n}", value, "") for n, value in enumerate([*NUMBERS, *TEXTS])]
    members.append(("model", json.dumps(ENDPOINTS[path]), ""))
    loop.through(path, _written(members, ""), whole(b"{}"))
    assert loop.sent.pop().body == _expected(members)


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.permutations(["lab/m", "claude/m", "lab/m", "claude/m"]), st.sampled_from(["model", r"mod\u0065l"]))
def test_what_is_routed_is_what_is_sent(
    loop: Loop, members: list[tuple[str, str, str]], models: list[str], name: str
) -> None:
    """Of members with one name the last counts, for us and for the provider (R12)."""
    asked = [f'"{name}":{json.dumps(model)}' for model in models]
    rest = [f"{json.dumps(key)}:{value}" for key, value, _ in members]
    body = "{" + ",".join([*asked[:2], *rest, *asked[2:-1], f'"model":{json.dumps(models[-1])}']) + "}"
    path = "/v1/messages" if models[-1].startswith("claude") else "/v1/chat/completions"
    loop.through(path, body.encode(), whole(b"{}"))
    sent = loop.sent.pop()
    assert sent.origin.name == models[-1].partition("/")[0]
    assert sent.body.startswith(b'{"model":"m"')
    assert list(json.loads(sent.body)).count("model") == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(UNKNOWN.filter(lambda name: name != ""), VALUES), max_size=4),
    st.sampled_from(["true", "false", "null", None]),
)
def test_the_usage_that_we_ask_for_changes_nothing_else(
    loop: Loop, options: list[tuple[str, str]], include: str | None
) -> None:
    own = dict(options) | ({"include_usage": include} if include else {})
    text = "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{value}" for name, value in own.items()) + "}"
    body = f'{{"z":1.0,"model":"lab/m","stream":true,"stream_options":{text},"a":1e400}}'
    loop.through("/v1/chat/completions", body.encode(), stream([b"".join(CHAT_EVENTS)]))
    asked = {**own, "include_usage": "true"}
    text = "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{value}" for name, value in asked.items()) + "}"
    expected = f'{{"z":1.0,"model":"m","stream":true,"stream_options":{text},"a":1e400}}'
    assert loop.sent.pop().body.decode() == expected


@pytest.mark.parametrize("size", [131_000, 131_072, 2_000_000])
def test_a_long_body_goes_up_in_pieces_byte_for_byte(loop: Loop, size: int) -> None:
    text = "x" * size
    body = f'{{"z":1.0,"model":"lab/m", "messages": [{{"role":"user","content":"{text}"}}],"a":1e400}}'
    loop.through("/v1/chat/completions", body.encode(), whole(b"{}"))
    sent = loop.sent.pop()
    assert bool(sent.more) == (size >= LONG_BYTES)
    expected = f'{{"z":1.0,"model":"m","messages":[{{"role":"user","content":"{text}"}}],"a":1e400}}'
    assert b"".join((sent.body, *sent.more)).decode() == expected


# -- down, in one body


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(ENDPOINTS)),
    VALUES.map(str.encode) | st.binary(max_size=300),
    st.lists(st.integers(0, 300), max_size=6),
    st.sampled_from([200, 201, 400, 404, 429, 500, 529]),
)
def test_every_byte_of_a_body_reaches_the_client(
    loop: Loop, path: str, data: bytes, cuts: list[int], status: int
) -> None:
    body = f'{{"model":"{ENDPOINTS[path]}"}}'.encode()
    answer = loop.through(path, body, whole(*pieces_of(data, cuts), status=status))
    assert (answer.status, answer.body) == (status, data)
    assert answer.get(b"content-length") == b"%d" % len(data)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
def test_a_body_cut_in_two_everywhere(loop: Loop, dialect: Any) -> None:
    body = f'{{"model":"{ENDPOINTS[dialect.path]}"}}'.encode()
    for at in range(len(dialect.body)):
        answer = loop.through(dialect.path, body, whole(dialect.body[:at], dialect.body[at:]))
        assert answer.body == dialect.body


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 1_000_000])
def test_a_long_body(loop: Loop, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    answer = loop.through(
        "/v1/embeddings", b'{"model":"lab/m"}', whole(*pieces_of(data[:size], list(range(0, size, 9999))))
    )
    assert answer.body == data[:size]


# -- down, in events

CHAT_ASK: Final = b'{"model":"lab/m","stream":true,"stream_options":{"include_usage":true}}'
MESSAGES_ASK: Final = b'{"model":"claude/m","stream":true}'
USAGE: Final = b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'


def _through(loop: Loop, name: str, data: bytes, cuts: list[int]) -> bytes:
    path, body = ("/v1/messages", MESSAGES_ASK) if name.startswith("messages") else ("/v1/chat/completions", CHAT_ASK)
    answer = loop.through(path, body, stream(pieces_of(data, cuts)))
    assert answer.status == 200
    return answer.body


def _recorded() -> dict[str, bytes]:
    """Whole streams: our own, in every line end and with comments, and those of the transcripts."""
    found = {}
    for name, events in (("chat", CHAT_EVENTS), ("messages", MESSAGES_EVENTS)):
        body = b"".join(events)
        found[name] = body
        found[f"{name} CRLF"] = body.replace(b"\n", b"\r\n")
        found[f"{name} CR"] = body.replace(b"\n", b"\r")
        found[f"{name} pings"] = b"\xef\xbb\xbf: hi\n\n" + body.replace(b"\n\n", b"\n\n: ping\n\n\n", 2)
    for file in sorted(TRANSCRIPTS.glob("*.sse")):
        name, *others = file.name.split(".")
        if others == ["sse"] and "cut" not in name and "error" not in name:
            found[name] = file.read_bytes()
    return found


RECORDED: Final = _recorded()


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_cut_in_two_everywhere(loop: Loop, name: str) -> None:
    data = RECORDED[name]
    step = 1 if name in ("chat", "messages", "messages CRLF") else 17
    for at in range(1, len(data), step):
        assert _through(loop, name, data, [at]) == data


@pytest.mark.parametrize("name", RECORDED)
def test_a_stream_byte_by_byte(loop: Loop, name: str) -> None:
    assert _through(loop, name, RECORDED[name], list(range(len(RECORDED[name])))) == RECORDED[name]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["chat", "messages"]),
    st.lists(STREAMS, max_size=4),
    st.lists(st.integers(0, 900), max_size=20),
)
@example("chat", [b"data: a\r\r", b"\r\n\r\n", b":\n"], [3, 8, 9])
def test_whatever_stands_between_the_events(loop: Loop, name: str, noise: list[bytes], cuts: list[int]) -> None:
    events = CHAT_EVENTS if name == "chat" else MESSAGES_EVENTS
    data = b"".join(event + b"".join(noise[n : n + 1]) + b"\n\n" for n, event in enumerate(events))
    assert _through(loop, name, data, cuts) == data


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 900), max_size=12))
def test_a_usage_event_that_nobody_asked_for_is_all_that_is_taken_out(loop: Loop, end: bytes, cuts: list[int]) -> None:
    ends = [event.replace(b"\n", end) for event in (*CHAT_EVENTS[:-1], USAGE, b": ping\n\n", CHAT_EVENTS[-1])]
    body = b'{"model":"lab/m","stream":true}'
    answer = loop.through("/v1/chat/completions", body, stream(pieces_of(b"".join(ends), cuts)))
    assert answer.body == b"".join(each for each in ends if b'"usage"' not in each)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_a_stream_that_is_cut_is_whole_events_and_an_error(loop: Loop, name: str, chance: st.DataObject) -> None:
    """Every byte up to the last whole event; and behind it that it was cut, unless the answer had ended."""
    data = RECORDED[name]
    at = chance.draw(st.integers(0, len(data) - 1))
    cuts = chance.draw(st.lists(st.integers(0, len(data)), max_size=5))
    path, body = ("/v1/messages", MESSAGES_ASK) if name.startswith("messages") else ("/v1/chat/completions", CHAT_ASK)
    answer = loop.through(path, body, stream(pieces_of(data[:at], cuts), cut=True))
    if answer.status != 200:
        assert (answer.status, answer.json["error"]["code"]) == (502, "provider_cut")
        return
    mark = b"event: error\ndata: " if path == "/v1/messages" else b'data: {"error"'
    sent, found, fault = answer.body.rpartition(mark)
    assert data.startswith(sent)
    assert (found, fault.endswith(b"\n\n")) == (mark, True)
    assert b'"provider_cut"' in fault
