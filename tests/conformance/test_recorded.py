"""Recorded traffic of real providers, played again: their bytes come to the client, the client's members to them."""

from __future__ import annotations

import base64
import gzip
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import pytest

from sidecar.config import Config, Key, Provider, Retry, Server as ServerSettings
from sidecar.providers import ROWS
from sidecar.secret import Secret
from sidecar.simulator import Settings as SimulatorSettings, Simulator
from tests.conformance.client import Client, Headers
from tests.conformance.ground import serving
from tests.conformance.peer import Peer, peer, pieces, whole

TRAFFIC: Final = Path(__file__).parents[2].parent / "shared" / "traffic"
FILES: Final = sorted(TRAFFIC.glob("*.jsonl.gz"))
KEY: Final = "pk-canary-of-the-provider"
# Names of the recordings that are not names of rows.
KINDS: Final = {"google": "gemini", "vercel_gateway": "vercel", "alibaba": "alibaba"}
# The end of a URL -> dialect, and the path at which the sidecar serves it.
ENDPOINTS: Final = {
    "/chat/completions": ("chat", "/v1/chat/completions"),
    "/completions": ("completions", "/v1/completions"),
    "/embeddings": ("embeddings", "/v1/embeddings"),
    "/messages": ("messages", "/v1/messages"),
    "/messages/count_tokens": ("count_tokens", "/v1/messages/count_tokens"),
}
NATIVE: Final = ("/api/embeddings",)  # Ollama's own API
# What is not passed on, in either direction: RFC 9110 7.6.1, credentials, cookies, and what is each hop's to say.
HOP: Final = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)
UP: Final = HOP | {"host", "authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "accept-encoding"}
DOWN: Final = HOP | {
    "set-cookie", "server", "alt-svc", "via", "date", "cache-control", "content-encoding",
    "access-control-allow-origin", "access-control-allow-credentials",
}  # fmt: skip
_EVENT: Final = re.compile(rb".*?(?:\r\n|\n|\r)(?:\r\n|\n|\r)", re.DOTALL)

pytestmark = pytest.mark.skipif(not FILES, reason="no recorded traffic in ../shared/traffic")


class Row(msgspec.Struct):
    """What is read of a recording."""

    id: str
    provider: str
    kind: str
    url: str
    status: int
    model: str | None = None
    streaming: bool | None = None
    request_headers: dict[str, Any] | list[Any] | None = None
    request_body: msgspec.Raw = msgspec.Raw(b"null")
    request_body_encoding: str | None = None
    response_headers: dict[str, Any] | list[Any] | None = None
    response_body: str | None = None
    response_body_encoding: str | None = None

    @property
    def place(self) -> tuple[str, str] | None:
        """The path before the endpoint with the query, and the endpoint; None for what is of another dialect."""
        parts = urlsplit(self.url)
        for end in sorted(ENDPOINTS, key=len, reverse=True):
            if parts.path.endswith(end) and not parts.path.endswith(NATIVE):
                return parts.path.removesuffix(end) + (f"?{parts.query}" if parts.query else ""), end
        return None

    @property
    def members(self) -> dict[str, msgspec.Raw]:
        if self.request_body_encoding == "json":
            return msgspec.json.decode(self.request_body, type=dict[str, msgspec.Raw])
        made = {"messages": [], "stream": bool(self.streaming)} if "embeddings" not in self.url else {"input": "x"}
        return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in made.items()}

    @property
    def body(self) -> bytes:
        text = self.response_body or ""
        return base64.b64decode(text) if self.response_body_encoding == "base64" else text.encode()


def pairs(headers: dict[str, Any] | list[Any] | None, without: frozenset[str]) -> Headers:
    """Recorded headers, one pair a value, less those of the hop."""
    items = headers.items() if isinstance(headers, dict) else (headers or [])
    flat = [(name.lower(), each) for name, value in items for each in (value if isinstance(value, list) else [value])]
    return [(name, str(value)) for name, value in flat if name not in without and str(value).isprintable()]


_ROWS: Final = msgspec.json.Decoder(Row)


def rows(file: Path) -> Iterator[Row]:
    with gzip.open(file) as lines:
        for line in lines:
            row = _ROWS.decode(line)
            if row.kind in ("chat", "completions", "embeddings", "messages", "count_tokens") and row.place is not None:
                yield row


def kind(provider: str, end: str) -> str:
    """The row of the table that a recording is played through."""
    if "messages" in end:
        return "anthropic"
    name = KINDS.get(provider, provider)
    return name if name in ROWS else "openai-compatible"


@asynccontextmanager
async def playing(name: str, base: str, end: str) -> AsyncIterator[tuple[Client, Peer]]:
    """A peer that is the recorded provider, and a client at a sidecar before it."""
    base, _, query = base.partition("?")
    spoken = dict(ROWS[name].speaks)[ENDPOINTS[end][0]]
    base = base.removesuffix(spoken.removesuffix(end))  # of Anthropic's, the path begins with /v1
    async with peer() as provider:
        table = Provider(
            kind=name,
            base_url=f"http://127.0.0.1:{provider.port}{base}" + (f"?{query}" if query else ""),
            api_key=Key(source="inline", secret=Secret(KEY)),
        )
        settings = Config(
            server=ServerSettings(listen=("127.0.0.1:0",)), providers={"recorded": table}, retry=Retry(attempts=0)
        )
        async with serving(settings) as (client, _):
            yield client, provider


async def play(client: Client, provider: Peer, row: Row, chance: random.Random) -> None:
    place = row.place
    assert place is not None
    dialect, path = ENDPOINTS[place[1]]
    table = ROWS[kind(row.provider, place[1])]
    members = row.members
    model = msgspec.json.decode(members.get("model", b"null")) or row.model or "recorded-model"  # or only in the path
    members["model"] = msgspec.Raw(msgspec.json.encode(f"recorded/{model}"))
    sent = pairs(row.request_headers, UP)
    if not any(name == "content-type" for name, _ in sent):
        sent.append(("content-type", "application/json"))
    given = pairs(row.response_headers, DOWN)
    if not any(name == "content-type" for name, _ in given):
        given.append(("content-type", "text/event-stream" if row.streaming else "application/json"))
    body = row.body
    cuts = [chance.randrange(len(body) + 1) for _ in range(5)]
    provider.answers.append(pieces(row.status, given, body, cuts) if row.streaming else whole(row.status, given, body))
    reply = await client.ask("POST", path, sent, msgspec.json.encode(members))
    assert reply.status == row.status, (row.id, reply.body[:300])
    streams = bytes(members.get("stream", b"")) == b"true" and dialect in ("chat", "completions")
    hides = streams and table.stream_usage and not _asks_usage(members)
    assert reply.body == (_less_usage(body) if hides else body), row.id
    lost = [pair for pair in given if pair not in reply.headers]
    assert not lost, row.id
    asked = provider.asked[-1]
    assert asked.target == urlsplit(row.url).path + (f"?{urlsplit(row.url).query}" if "?" in row.url else "")
    _check_members(row, asked.body, members | {"model": msgspec.Raw(msgspec.json.encode(model))}, hides=hides)
    missing = [pair for pair in sent if pair not in asked.headers]
    assert not missing, row.id
    assert asked.header("accept-encoding") == ["identity"]


def _check_members(row: Row, body: bytes, members: dict[str, msgspec.Raw], *, hides: bool) -> None:
    """Every member came as it was written, in its order, but for those that the row of the table names."""
    place = row.place
    assert place is not None
    table = ROWS[kind(row.provider, place[1])]
    names = dict(table.rename)
    wanted = {names.get(each, each): bytes(value) for each, value in members.items() if each not in table.drop}
    got = {each: bytes(value) for each, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}
    if hides:
        options = msgspec.json.decode(got.pop("stream_options"))
        old = msgspec.json.decode(wanted.pop("stream_options", b"null")) or {}
        assert options == {**old, "include_usage": True}
    assert got == wanted, row.id
    kept = [each for each in wanted if each not in names.values()]
    assert [each for each in got if each in kept] == kept


def _asks_usage(members: dict[str, msgspec.Raw]) -> bool:
    options = msgspec.json.decode(members["stream_options"]) if "stream_options" in members else None
    return bool((options or {}).get("include_usage"))


def _less_usage(stream: bytes) -> bytes:
    """Less the events that hold usage and no choice; comments before one stay."""
    kept: list[bytes] = []
    done = 0
    for match in _EVENT.finditer(stream):
        event = match[0]
        done = match.end()
        at = event.find(b"data:")
        data = event[at + 5 :].strip() if at >= 0 else b""
        if data.startswith(b"{"):
            value = msgspec.json.decode(data)
            if isinstance(value, dict) and value.get("choices") == [] and value.get("usage"):
                event = event[:at]
        kept.append(event)
    return b"".join(kept) + stream[done:]


def spent(row: Row) -> tuple[int, int]:
    """Tokens in and out, by what the provider told: its API reference read anew, with no meter's shortcuts."""
    usage: dict[str, Any] = {}
    for value in _told(row):
        found = value.get("usage") or (value.get("x_groq") or {}).get("usage")
        usage |= (value.get("message") or {}).get("usage") or {}  # a message's is cumulative: what comes later stands
        usage = {**usage, **{name: count for name, count in (found or {}).items() if count is not None}}
    if "input_tokens" in usage and "count" not in row.kind:
        caches = (usage.get("cache_creation_input_tokens") or 0) + (usage.get("cache_read_input_tokens") or 0)
        return usage["input_tokens"] + caches, usage["output_tokens"]
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    prompt += cached if cached > prompt else 0  # what is more than the whole is no part of it (seen of Grok's models)
    if row.provider == "xai" and usage:
        return prompt, usage["total_tokens"] - usage["prompt_tokens"]  # reasoning is beside the completion
    return prompt, completion


def _told(row: Row) -> Iterator[dict[str, Any]]:
    body = row.body
    if row.status != 200:
        return
    texts = re.findall(rb"^data: ?(\{.*)$", body, re.MULTILINE) if row.streaming else [body]
    for text in texts:
        if text.lstrip().startswith(b"{"):
            yield msgspec.json.decode(text)


async def counted(client: Client) -> tuple[int, int]:
    """Tokens in and out, by the metrics."""
    text = (await client.ask("GET", "/metrics", [])).body.decode()
    found = re.findall(r"^sidecar_(input|output)_tokens_total\{.*\} (\d+)$", text, re.MULTILINE)
    return sum(int(count) for way, count in found if way == "input"), sum(int(n) for way, n in found if way == "output")


@pytest.mark.parametrize("file", FILES, ids=[file.name.partition(".")[0] for file in FILES])
async def test_what_was_recorded_comes_through(file: Path) -> None:
    chance = random.Random(7)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows(file):
        assert row.place is not None
        base, end = row.place
        groups.setdefault((kind(row.provider, end), base, end), []).append(row)
    for (name, base, end), group in groups.items():
        async with playing(name, base, end) as (client, provider):
            before = (0, 0)
            for row in group:
                await play(client, provider, row, chance)
                now = await counted(client)
                assert (now[0] - before[0], now[1] - before[1]) == spent(row), row.id
                before = now


async def test_recorded_requests_are_taken_in_the_other_language() -> None:
    """By the simulated provider, which refuses what the real one would; or refused here, where it cannot be said."""
    taken, refused = 0, []
    async with Simulator(SimulatorSettings()) as simulator:
        for name, served, path in (
            ("anthropic", "chat", "/v1/chat/completions"),
            ("openai", "messages", "/v1/messages"),
        ):
            url = f"http://127.0.0.1:{simulator.port}" + ("/v1" if name == "openai" else "")
            table = Provider(base_url=url, api_key=Key(source="inline", secret=Secret(KEY)))
            settings = Config(
                server=ServerSettings(listen=("127.0.0.1:0",)), providers={name: table}, retry=Retry(attempts=0)
            )
            async with serving(settings) as (client, _):
                for row in (row for file in FILES for row in rows(file) if row.request_body_encoding == "json"):
                    assert row.place is not None
                    if ENDPOINTS[row.place[1]][0] != served or row.status != 200:
                        continue
                    members = row.members | {"model": msgspec.Raw(b'"%b/m"' % name.encode())}
                    headers = [("content-type", "application/json")]
                    reply = await client.ask("POST", path, headers, msgspec.json.encode(members))
                    taken += reply.status == 200
                    if reply.status != 200:
                        assert reply.status == 400, row.id
                        refused.append((row.id, reply.header("x-sidecar-error")))
    assert taken > 25 * len(refused), refused
    assert len([each for each in refused if not (each[1] or "").startswith("caller_")]) * 100 < taken, refused
