"""Requests that are like the one before them: whatever a kept-alive client repeats or changes is read anew (R1, R12).

A server may serve a repeated head without parsing it; that must not be seen. So the sidecar itself is served, each
request is sent once on a fresh connection and once behind others like it: the provider is asked the same both times.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import uvloop

from sidecar import Config, Sidecar
from sidecar.config import Provider
from sidecar.types import Receive, Scope, Send
from tests.faults.peer import RawClient
from tests.server.apps import answer, body_of, http, serving

_VARIES = re.compile(rb"(date|x-request-id|request-id|x-sidecar-overhead-us): [^\r]*\r\n| after [0-9]+ ms")


def body(number: int, padding: int = 0) -> bytes:
    return b'{"model":"lab/m","n":%d,"pad":"%b","messages":[{"role":"user","content":"hi"}]}' % (number, b"x" * padding)


def ask(data: bytes, *lines: bytes, length: bytes | None = None, path: bytes = b"/v1/chat/completions") -> bytes:
    size = b"%d" % len(data) if length is None else length
    head = [
        b"POST %b HTTP/1.1" % path,
        b"Host: localhost",
        b"Content-Length: " + size,
        b"Content-Type: application/json",
    ]
    return b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + data


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """One loop: what is compared is what two requests mean on it."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


class Provided:
    """A provider that tells what it was asked, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(await body_of(receive))
        said = b'{"id":"x","object":"chat.completion","choices":[],"bytes":%d}' % len(self.asked[-1])
        await answer(send, said, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(said)))


@asynccontextmanager
async def relaying() -> AsyncIterator[tuple[int, Provided]]:
    provided = Provided()
    async with serving(http(provided)) as provider:
        table = Provider(kind="openai-compatible", base_url=f"http://127.0.0.1:{provider.port}/v1")
        async with serving(Sidecar(Config(providers={"lab": table}))) as ground:
            yield ground.port, provided


async def told(port: int, segments: Sequence[bytes], *, before: int) -> list[bytes]:
    """What is answered to these segments, behind so many ordinary requests, until the server closes or is silent."""
    async with RawClient(port) as client:
        for number in range(before):
            await client.run(ask(body(number)))
            assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")
        for segment in segments:
            await client.run(segment)
            await asyncio.sleep(0.005)
        seen = -1
        for _ in range(10):  # on a busy machine an answer takes its time; silence behind one is the end
            if client.taken < len(client.received) == seen:
                break
            seen = len(client.received)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.08):
                    await client.gone()
                    break
        got = bytes(client.received[client.taken :])
    return [_in_order(_VARIES.sub(b"", each)) for each in got.split(b"HTTP/1.1 ")[1:]]


def _in_order(message: bytes) -> bytes:
    """In what order the headers of different names come means nothing (RFC 9110 5.3)."""
    head, _, data = message.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    return b"\r\n".join([line, *sorted(lines), b"", data])


ONE = ask(body(7))
CASES: dict[str, list[bytes]] = {
    "the same": [ONE],
    "another body": [ask(body(8))],
    "another length": [ask(body(7, 1000))],
    "a shorter one": [ask(b'{"model":"lab/m"}')],
    "zeros in front of the length": [ask(body(7), length=b"000%d" % len(body(7)))],
    "no body": [ask(b"")],
    "in two segments, cut in the head": [ONE[:40], ONE[40:]],
    "in two segments, cut in the length": [ONE[:72], ONE[72:]],
    "in two segments, cut in the body": [ONE[:-5], ONE[-5:]],
    "two in a segment": [ONE + ask(body(8))],
    "one and a half in a segment": [ONE + ONE[:50], ONE[50:]],
    "an empty line before it": [b"\r\n" + ONE],
    "a header more": [ask(body(7), b"X-Sidecar-Explain: 1")],
    "another path": [ask(body(7), path=b"/v1/nothing")],
    "a last one": [ask(body(7), b"Connection: close"), ONE],
    "a length that is none": [ask(body(7), length=b"x")],
    "a length with a plus": [ask(body(7), length=b"+%d" % len(body(7)))],
    "a length with a space": [ask(body(7), length=b"1 2")],
    "a length with a line break": [ask(body(7), length=b"5\r\nContent-Length: %d" % len(body(7)))],
    "a length and chunks": [ask(body(7), length=b"5\r\nTransfer-Encoding: chunked")],
    "a second length": [ask(body(7), b"Content-Length: 5")],
    "a body longer than its length": [
        ask(body(7) + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", length=b"%d" % len(body(7)))
    ],
    "a body that looks like a request": [ask(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n")],
    "a body that is not JSON": [ask(b"{")],
    "another method": [ONE.replace(b"POST", b"GET ", 1).replace(b"GET  ", b"GET ", 1)],
    "another version": [ONE.replace(b"HTTP/1.1", b"HTTP/1.2", 1)],
    "a bare line feed": [ONE.replace(b"\r\nContent-Type", b"\nContent-Type", 1)],
    "without a host": [ONE.replace(b"Host: localhost\r\n", b"", 1)],
    "for somebody else": [ONE.replace(b"lab/m", b"lab/n", 1)],
}


@pytest.mark.parametrize("segments", CASES.values(), ids=CASES)
async def test_behind_others_like_it_a_request_means_what_it_means_alone(segments: list[bytes]) -> None:
    async with relaying() as (port, provided):
        alone = await told(port, segments, before=0)
        asked = list(provided.asked)
        provided.asked.clear()
        assert await told(port, segments, before=3) == alone
        assert provided.asked[3:] == asked


async def test_many_that_differ_only_in_body_and_length() -> None:
    async with relaying() as (port, provided), RawClient(port) as client:
        bodies = [body(number, number * 37 % 500) for number in range(40)]
        for number, data in enumerate(bodies):
            request = ask(data)
            cut = number * 13 % len(request) if number % 3 else 0
            for part in filter(None, (request[:cut], request[cut:])):
                await client.run(part)
                await asyncio.sleep(0)
            assert (await client.response()).startswith(b"HTTP/1.1 200 OK\r\n")
        assert [data.replace(b'"m"', b'"lab/m"') for data in provided.asked] == bodies
