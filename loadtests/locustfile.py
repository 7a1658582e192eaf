"""Who uses the sidecar: clients of whole answers, of streams, and such as leave in the middle. No product code.

Rows of its own beside Locust's: `ttft` (asked to first content), `itl` (between two events), `stream` (the whole).
A stream fails unless it ends as the API says: its usage, then [DONE].
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from locust import FastHttpUser, constant_throughput, task

PATH = "/v1/chat/completions"
HEADERS = {"authorization": f"Bearer {os.environ.get('LOAD_KEY', '')}", "content-type": "application/json"}
LEAVES_AFTER = 3  # events


def ask(*, stream: bool) -> dict[str, Any]:
    how: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {"model": "openai/sim-large", "messages": [{"role": "user", "content": "hello " * 100}], **how}


class Client(FastHttpUser):
    abstract = True
    network_timeout = 10.0
    connection_timeout = 5.0

    def fire(self, name: str, began: float, *, size: int = 0, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=(perf_counter() - began) * 1000,
            response_length=size,
            exception=error,
            context={},
        )


class Unary(Client):
    """Asks for whole answers, five a second."""

    weight = 4.0
    wait_time = constant_throughput(5)

    @task
    def chat(self) -> None:
        with self.client.post(
            PATH, json=ask(stream=False), headers=HEADERS, catch_response=True, name="unary"
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
            elif b'"finish_reason"' not in (answer.content or b""):
                answer.failure("not a whole answer")


class Streaming(Client):
    """Reads streams to their end, one after another."""

    weight = 5.0

    @task
    def chat(self) -> None:
        began = perf_counter()
        size, last = 0, [b"", b""]
        error: Exception | None = None
        try:
            for event in self.events(began):
                size += len(event)
                last = [last[1], event]
            if last[1] != b"data: [DONE]\n\n" or b'"usage"' not in last[0]:
                error = ValueError("the stream ended too soon")
        except Exception as failed:  # noqa: BLE001  # whatever it is, it is a failed request, and told as one
            error = failed
        self.fire("stream", began, size=size, error=error)

    def events(self, began: float) -> Iterator[bytes]:
        """The events of one stream, each told of as it comes."""
        with self.client.post(
            PATH, json=ask(stream=True), headers=HEADERS, stream=True, catch_response=True, name="stream head"
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                raise ValueError(f"status {answer.status_code}")
            reader = answer._response  # its iter_content(n) waits for n bytes
            before: float | None = None
            while event := bytes(reader.readline(b"\n\n")):
                if before is not None:
                    self.fire("itl", before)
                    before = perf_counter()
                elif b'"content":"' in event and b'"content":""' not in event:
                    self.fire("ttft", began)
                    before = perf_counter()
                yield event


class Leaving(Streaming):
    """Closes the connection in the middle of a stream, as impatient people do."""

    weight = 1.0
    wait_time = constant_throughput(2)

    @task
    def chat(self) -> None:
        began = perf_counter()
        with self.client.post(
            PATH, json=ask(stream=True), headers=HEADERS, stream=True, catch_response=True, name="left head"
        ) as answer:
            seen = sum(1 for _ in range(LEAVES_AFTER) if answer._response.readline(b"\n\n"))
            answer._response._sock.close()
        self.fire("left", began, error=None if seen == LEAVES_AFTER else ValueError("the stream ended too soon"))
