"""One request as a client sees it: sent, read to its end, judged, and told as a line of the journal. No product code.

Locust has rows of its own beside its plain ones (`... head`: until the answer's head): KIND (the whole), `KIND ttft`
(asked to first content), `KIND itl` (between two events of content). What was asked of the provider directly begins
with `direct `.
"""

from __future__ import annotations

import itertools
import os
import random
import time
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import gevent  # type: ignore[import-untyped]  # has no types of its own
import msgspec
from geventhttpclient.response import HTTPParseError
from locust import FastHttpUser, events

from loadtests.scenario import Plan, Row

PLAN = msgspec.json.decode(os.environ.get("LOAD_PLAN", "{}"), type=Plan)
CHAT = "/v1/chat/completions"
SIP_BYTES = 16 * 1024
_numbers = itertools.count(1)
_encoder = msgspec.json.Encoder()
_journal: list[IO[bytes]] = []


class Left(BaseException):
    """The client has had enough. Not an Exception: no library is to take it for a failure of the network."""


class Asked(NamedTuple):
    """What is asked, and how it is read."""

    kind: str
    body: str
    path: str = CHAT
    stream: bool = False
    who: str = "load"
    takes: tuple[int, ...] = (200,)
    headers: tuple[tuple[str, str], ...] = ()
    end: bytes = b"data: [DONE]"
    same: bool = True  # the provider speaks this dialect: the bytes are its own
    sip_seconds: float = 0.0  # to wait after each 16 KB
    leaves_after: int | float | None = None  # events, or seconds
    key: str = (
        "x-sim-key"  # the header that tells this request from others; a cache knows it for one that tells nothing
    )


class Failed(Exception):
    """The outcome of a request that was no good, by its class; and more of it."""

    def __init__(self, outcome: str, why: object = "") -> None:
        super().__init__(outcome)
        self.why = str(why)[:200]


def begin(**_: Any) -> None:
    if PLAN.journal:
        _journal.append(open(PLAN.journal, "ab"))  # noqa: SIM115  # until the run is over
        _journal[0].write(b"%r\n" % time.monotonic())
        _journal[0].flush()


def end(**_: Any) -> None:
    for file in _journal:
        file.close()


events.test_start.add_listener(begin)  # type: ignore[no-untyped-call]
events.quitting.add_listener(end)  # type: ignore[no-untyped-call]


class Client(FastHttpUser):
    """Whoever asks."""

    abstract = True
    network_timeout = 30.0
    connection_timeout = 5.0

    def ask(self, asked: Asked) -> None:
        """Send it, read the answer, tell of it. Never raises for what a sidecar may do."""
        direct = bool(PLAN.direct) and asked.takes == (200,) and random.random() * 100 < PLAN.direct_percent
        row = Row(kind=asked.kind, direct=direct, key=f"{os.getpid()}-{next(_numbers)}", began=time.monotonic())
        limit = asked.leaves_after if isinstance(asked.leaves_after, float) else None
        timer = gevent.Timeout.start_new(limit, Left) if limit is not None else None
        try:
            self._send(asked, row)
        except Failed as failed:
            row.outcome, row.why = str(failed), failed.why
        except Left:
            row.left = time.monotonic()
        finally:
            if timer is not None:
                timer.close()
        row.ms = (time.monotonic() - row.began) * 1000
        self._tell(row)

    def _send(self, asked: Asked, row: Row) -> None:
        url = PLAN.direct + asked.path if row.direct else asked.path
        model = PLAN.direct_model if row.direct else PLAN.model
        name = ("direct " if row.direct else "") + asked.kind
        with self.client.post(
            url,
            data=asked.body.replace("MODEL", model, 1),
            headers=_headers(asked, row),
            stream=True,
            catch_response=True,
            name=f"{name} head",
        ) as answer:
            try:
                self._read(asked, row, answer)
            except Failed as failed:
                answer.failure(str(failed))
                raise
            except Left:
                _hang_up(answer)
                raise
            answer.success()

    def _read(self, asked: Asked, row: Row, answer: Any) -> None:
        """The whole answer. Raises Failed with its class, or Left."""
        if answer.status_code == 0:
            raise Failed(_class_of(answer.error), repr(answer.error))
        reader = answer._response  # its iter_content(n) waits for n bytes
        row.cache = answer.headers.get("x-sidecar-cache", "")
        try:
            if answer.status_code != 200:
                body = reader.read()
                if answer.status_code in asked.takes:
                    return
                raise Failed(_class_by(answer), f"{answer.status_code} {bytes(body[:200])!r}")
            row.first_ms = None if asked.stream else (time.monotonic() - row.began) * 1000
            body = b"".join(_events(asked, row, reader)) if asked.stream else bytes(reader.read())
        except (OSError, HTTPParseError) as error:
            raise Failed("timeout" if isinstance(error, TimeoutError) else "cut", repr(error)) from error
        row.size = len(body)
        promised = answer.headers.get("x-sim-digest") if asked.same else None
        problem = judged(asked, body, promised)
        if problem:
            raise Failed(problem, bytes(body[-200:]))

    def _tell(self, row: Row) -> None:
        if _journal:
            _journal[0].write(_encoder.encode(row) + b"\n")
        name = ("direct " if row.direct else "") + row.kind
        error = None if row.outcome == "ok" else Failed(row.outcome)
        self._fire(name, row.ms, row.size, error)
        if row.first_ms is not None:
            self._fire(f"{name} ttft", row.first_ms, 0, None)
        for gap in row.gaps:
            self._fire(f"{name} itl", gap, 0, None)

    def _fire(self, name: str, took: float, size: int, error: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type="LLM", name=name, response_time=took, response_length=size, exception=error, context={}
        )


def judged(asked: Asked, body: bytes, promised: str | None) -> str:
    """The class of an answer that came with 200 and ended as HTTP ends: empty where it is whole."""
    told = body.rfind(b'data: {"error":') >= 0 or body.rfind(b"event: error\n") >= 0 or body.startswith(b'{"error":')
    if told:
        return "lost" if asked.stream and asked.end in body[-200:] else "told"  # an error and then [DONE] is a lie
    if promised is not None and promised != _digest(body):
        return "undone" if asked.stream and promised == _digest(body + asked.end + b"\n\n") else "lost"
    if asked.stream and not (asked.end in body[-200:] and b'"usage"' in body[-2000:]):
        return "lost"
    return "" if asked.stream or body.endswith(b"}") else "lost"


def _digest(body: bytes) -> str:
    """As the simulated provider writes it."""
    return f"{zlib.crc32(body):08x}-{len(body)}"


def _headers(asked: Asked, row: Row) -> dict[str, str]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {PLAN.keys.get(asked.who, '')}"}
    if PLAN.simulated:
        headers |= {asked.key: row.key, **({"x-sim-digest": "1"} if asked.same else {})}
        if row.direct and not PLAN.direct_faults:
            headers["x-sim-fault"] = ""
    return headers | {name: value for name, value in asked.headers if PLAN.simulated or not name.startswith("x-sim-")}


def _events(asked: Asked, row: Row, reader: Any) -> Iterator[bytes]:
    """The events of one stream, timed. What has come of an unfinished one is given, too."""
    count = sipped = 0
    last = 0.0
    while event := bytes(reader.readline(b"\n\n")):
        count += 1
        sipped += len(event)
        if b'"content":"' in event or b'"text_delta"' in event or b'"arguments"' in event:
            moment = time.monotonic()
            if row.first_ms is not None:
                row.gaps.append(round((moment - last) * 1000, 2))
                last = moment
            elif b'"content":""' not in event:
                row.first_ms, last = (moment - row.began) * 1000, moment
        yield event
        if isinstance(asked.leaves_after, int) and count >= asked.leaves_after:
            raise Left
        if asked.sip_seconds and sipped >= SIP_BYTES:
            sipped = 0
            gevent.sleep(asked.sip_seconds)
    yield bytes(reader._body_buffer)


def _hang_up(answer: Any) -> None:
    """Close the connection, not only give it back: whoever leaves takes it along."""
    sock = getattr(answer._response, "_sock", None)
    if sock is not None:
        sock.close()


def _class_of(error: Exception | None) -> str:
    return "timeout" if isinstance(error, TimeoutError) or "timed out" in str(error) else "dropped"


def _class_by(answer: Any) -> str:
    status = answer.status_code
    if status == 429:
        return "429" if answer.headers.get("retry-after") else "429_bare"
    return "5xx" if status >= 500 else "4xx"
