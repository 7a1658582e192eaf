"""M3: CPU per event of a translated stream against our own pass-through, in one run, in both directions."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from typing import Final, NamedTuple

import msgspec
import uvloop

from benchmarks import harness
from benchmarks.bench_stream import Reader, body

BAR: Final = 2.0  # of our own pass-through's CPU per event, with the same client
STREAMS: Final = 128
SECONDS: Final = 60.0  # the most that a round may take
TOKENS: Final = 60
SIMULATE: Final = ("--tokens", str(TOKENS), "--rate", "200")
CONFIG: Final = harness.SIDECAR.replace('models = ["openai/*"]', 'models = ["openai/*", "anthropic/*"]') + (
    '[providers.anthropic]\nbase_url = "http://127.0.0.1:{upstream}/v1"\napi_key = "env:BENCH_PROVIDER_KEY"\n'
    "[providers.anthropic.limits]\nrequests_per_minute = 100_000_000\nconcurrency = 100_000\n"
)
REQUEST: Final = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    "accept: text/event-stream\r\nuser-agent: bench\r\ncontent-length: {length}\r\n\r\n"
)


class Way(NamedTuple):
    """The language of the client, and of its provider."""

    client: str
    provider: str

    @property
    def name(self) -> str:
        return f"{self.client} client, {self.provider} provider"

    def request(self) -> bytes:
        model = "openai/sim-large" if self.provider == "chat" else "anthropic/claude-sim"
        path = "/v1/chat/completions" if self.client == "chat" else "/v1/messages"
        more = '"stream_options":{"include_usage":true}' if self.client == "chat" else '"max_tokens":1000'
        data = (
            f'{{"model":"{model}","stream":true,{more},"temperature":0.7,'
            f'"messages":[{{"role":"user","content":"{"x" * 1900}"}}]}}'
        ).encode()
        return REQUEST.format(path=path, key=harness.KEY, length=len(data)).encode() + data

    def right(self, answer: bytes) -> bool:
        """A wrong answer is not a fast answer: all its words are there, and the end that its language has."""
        said = [msgspec.json.decode(line[6:]) for line in answer.splitlines() if line.startswith(b"data: {")]
        if self.client == "chat":
            texts = [each["choices"][0]["delta"].get("content") or "" for each in said if each.get("choices")]
            tokens, ended = (said[-1].get("usage") or {}).get("completion_tokens"), answer.endswith(b"data: [DONE]\n\n")
        else:
            texts = [each["delta"]["text"] for each in said if each["type"] == "content_block_delta"]
            tokens, ended = said[-2].get("usage", {}).get("output_tokens"), said[-1]["type"] == "message_stop"
        return bool(ended and tokens) and len("".join(texts).split()) == TOKENS


THROUGH: Final = {client: Way(client, client) for client in ("chat", "messages")}
ACROSS: Final = (Way("chat", "messages"), Way("messages", "chat"))
WAYS: Final = (*THROUGH.values(), *ACROSS)


def main() -> int:
    options = harness.options(__doc__ or "")
    rounds, each = (3, 3) if options.quick else (7, 8)
    cpu: dict[str, list[float]] = {way.name: [] for way in WAYS}
    events: dict[str, int] = {}
    with harness.parts(["sidecar"], simulate=SIMULATE, config=CONFIG) as parts:
        sidecar = parts["sidecar"]
        for number in range(rounds + 1):
            for way in WAYS:
                before = sidecar.cpu_seconds()
                answers = load(sidecar.port, way, each)
                took = sidecar.cpu_seconds() - before
                if wrong := [answer for answer in answers if not way.right(answer)]:
                    print(f"{way.name}: {len(wrong)} wrong answers, as {wrong[0][-300:]!r}")
                    return 1
                events[way.name] = answers[0].count(b"\n\n")
                if number:  # the first round warms up
                    cpu[way.name].append(took / sum(answer.count(b"\n\n") for answer in answers) * 1e6)
    ratios = {way: harness.median_ratio(cpu, way.name, THROUGH[way.client].name) or 0.0 for way in WAYS}
    rows = [
        {
            "way": way.name,
            "events": events[way.name],
            "CPU us/event": statistics.median(cpu[way.name]),
            "of pass-through": ratios[way],
        }
        for way in WAYS
    ]
    checks = {
        f"translated stream, {way.name}: CPU per event <= {BAR} x pass-through ({ratios[way]:.2f})": ratios[way] <= BAR
        for way in ACROSS
    }
    about = (
        f"{STREAMS} streams of {TOKENS} tokens, an event each 5 ms, {each} after another, {rounds} rounds; the"
        f" sidecar's CPU by events that its client gets; pass-through: the same client's, untranslated;"
        f" {harness.METHOD}"
    )
    return harness.report("bench_translate", about, rows, checks, options.json)


def load(port: int, way: Way, times: int) -> list[bytes]:
    """The bodies of the answers, on the load's core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {harness.cores()[1]})
    try:
        answers = uvloop.run(_load(port, way.request(), times))
    finally:
        os.sched_setaffinity(0, everywhere)
    return [body(answer) for answer in answers]


async def _load(port: int, request: bytes, times: int) -> list[bytes]:
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[list[bytes]]] = []
    async with asyncio.timeout(SECONDS):
        for _ in range(STREAMS):
            done: asyncio.Future[list[bytes]] = loop.create_future()
            waiting.append(done)
            await loop.create_connection(lambda done=done: Reader(request, times, done), "127.0.0.1", port)  # type: ignore[misc]
        return [answer for answers in await asyncio.gather(*waiting) for answer in answers]


if __name__ == "__main__":
    sys.exit(main())
