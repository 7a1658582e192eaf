"""Who uses the sidecar. `python -m loadtests.run` picks from these; no product code.

By hand: LOAD_PLAN='{"keys":{"load":"sk-..."},"model":"gpt-4o-mini","simulated":false}' locust -f
loadtests/locustfile.py Streaming --host http://127.0.0.1:4000 (spends real tokens where the provider is real).
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import msgspec
from locust import between, constant_throughput, task

from loadtests.client import Asked, Client

WORDS = "hello " * 100
USAGE = {"stream_options": {"include_usage": True}}


def body(messages: list[dict[str, Any]], **more: Any) -> str:
    return msgspec.json.encode({"model": "MODEL", "messages": messages, **more}).decode()


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def conversation(size: int, *, ends_with_result: bool) -> str:
    """What a coding agent sends: instructions, tools, a long history with calls and what came of them.

    Behind a tool's result a model speaks; behind a person's word it calls tools.
    """
    parameters = {"type": "object", "properties": {"path": {"type": "string"}, "line": {"type": "integer"}}}
    tools = [
        {
            "type": "function",
            "function": {"name": f"tool_{n}", "description": "reads a file. " * 20, "parameters": parameters},
        }
        for n in range(12)
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "you are careful. " * 200}]
    while len(msgspec.json.encode(messages)) + 6000 < size:
        call = {"id": f"call_{len(messages)}", "type": "function", "function": {"name": "tool_1", "arguments": "{}"}}
        messages += said("look at this, please. " * 20)
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "def f(x):\n    return x\n" * 80})
    if not ends_with_result:
        messages += said("go on")
    return body(messages, tools=tools, stream=True, **USAGE)


UNARY = body(said(WORDS), stream=False)
STREAM = body(said(WORDS), stream=True, **USAGE)
MESSAGES = body(said(WORDS), stream=True, max_tokens=1000)
TEXTS = msgspec.json.encode({"model": "MODEL", "input": [WORDS[:200]] * 16}).decode()
AGENTS = [conversation(size * 1000, ends_with_result=size % 10 == 0) for size in (30, 45, 60, 75, 80)]
SILENT = "x-client-request-id"  # OpenAI's own: it changes nothing of an answer
VERSION = (("anthropic-version", "2023-06-01"),)
KINDS = {
    "unary": Asked("unary", UNARY),
    "stream": Asked("stream", STREAM, stream=True),
    "messages": Asked("messages", MESSAGES, "/v1/messages", True, headers=VERSION, same=False,
                      end=b"event: message_stop"),
    "embeddings": Asked("embeddings", TEXTS, "/v1/embeddings"),
}  # fmt: skip


class Unary(Client):
    """Asks for whole answers, five a second."""

    wait_time = constant_throughput(5)

    @task
    def chat(self) -> None:
        self.ask(KINDS["unary"])


class Streaming(Client):
    """Reads streams to their end, one after another."""

    @task
    def chat(self) -> None:
        self.ask(KINDS["stream"])


class Embeddings(Client):
    """Embeds sixteen texts at once, ten times a second."""

    wait_time = constant_throughput(10)

    @task
    def embed(self) -> None:
        self.ask(KINDS["embeddings"])


class Mixed(Client):
    """An application: mostly streams, in both dialects, some whole answers, some embeddings; thinks in between."""

    wait_time = between(0.05, 0.5)

    @task
    def any(self) -> None:
        kind = random.choices(("stream", "messages", "unary", "embeddings"), (5, 2, 2, 1))[0]
        self.ask(KINDS[kind])


class Agents(Client):
    """Coding agents: 30 to 80 KB with tools, streamed, and again as soon as the answer is there."""

    @task
    def step(self) -> None:
        self.ask(Asked("agent", random.choice(AGENTS), stream=True))


class Quiet(Client):
    """A tenant within its limits: it must not notice the noisy one."""

    wait_time = constant_throughput(4)

    @task
    def chat(self) -> None:
        self.ask(KINDS[random.choice(("unary", "stream"))]._replace(who="quiet"))


class Noisy(Client):
    """A tenant that asks for far more than it may have: a 429 that says when to come again is right."""

    wait_time = constant_throughput(20)

    @task
    def chat(self) -> None:
        self.ask(KINDS["unary"]._replace(kind="noisy", who="noisy", takes=(200, 429)))


class Leaving(Client):
    """Goes away in any phase: before the first byte, after some events, and of a whole answer, too."""

    wait_time = constant_throughput(10)

    @task
    def chat(self) -> None:
        soon = random.uniform(0.001, 0.1)
        kind, after = random.choice((("stream", soon), ("stream", random.randint(1, 8)), ("unary", soon)))
        self.ask(KINDS[kind]._replace(kind="left", leaves_after=after))


class Repeating(Client):
    """Asks one of twenty questions, some far oftener than others, as users of one application do."""

    wait_time = constant_throughput(8)
    asked: ClassVar = [
        Asked("again", body(said(f"{number}: {WORDS}"), stream=stream, **(USAGE if stream else {})),
              stream=stream, key=SILENT)
        for number in range(10) for stream in (False, True)
    ]  # fmt: skip
    often: ClassVar = [1 / (1 + at) for at in range(len(asked))]

    @task
    def chat(self) -> None:
        self.ask(random.choices(self.asked, self.often)[0])


class Churning(Client):
    """Asks what nobody has asked before, for some thirty kilobytes: what is cached, nobody asks for again."""

    wait_time = constant_throughput(2)
    long: ClassVar = {stream: (("x-sim-tokens", "150" if stream else "6000"), ("x-sim-rate", "0"))
                      for stream in (False, True)}  # fmt: skip

    @task
    def chat(self) -> None:
        stream = random.random() < 0.25
        text = body(said(f"{random.getrandbits(64)} {WORDS}"), stream=stream, **(USAGE if stream else {}))
        self.ask(Asked("new", text, stream=stream, headers=self.long[stream], key=SILENT))


class Slow(Client):
    """Reads an answer of two megabytes in sips of 16 KB."""

    network_timeout = 60.0

    @task
    def chat(self) -> None:
        long = (("x-sim-tokens", "8000"), ("x-sim-rate", "0"))
        self.ask(KINDS["stream"]._replace(kind="slow", sip_seconds=0.05, headers=long))


class Big(Client):
    """Sends one, four, or sixteen megabytes, and now and then more than is taken."""

    wait_time = constant_throughput(1)
    texts: ClassVar = {size: body(said("x " * (size * 500_000)), stream=False) for size in (1, 4, 16)}
    too_big = body(said("x" * 33 * 1024 * 1024), stream=False)

    @task
    def chat(self) -> None:
        size = random.choices((1, 4, 16, 33), (60, 25, 10, 5))[0]
        if size == 33:
            self.ask(Asked("too big", self.too_big, takes=(413,)))
        else:
            self.ask(Asked(f"{size} MB", self.texts[size]))
