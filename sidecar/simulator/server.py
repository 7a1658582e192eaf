"""The simulated provider's server: requests in, steps played by timers; no task a stream, so thousands may run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections import deque
from pathlib import Path
from typing import Any, Final, cast

from sidecar.clock import now
from sidecar.errors import Malformed
from sidecar.simulator import answers
from sidecar.simulator.answers import Answer, json_answer
from sidecar.simulator.checks import Refusal
from sidecar.simulator.faults import FAULTS, Do, Playing, Step, plain
from sidecar.simulator.provider import Seen, answer_to, digest, log_line, refused, shown
from sidecar.simulator.settings import Asked, Settings, asked_by, changed, check_fault, latency_seconds
from sidecar.wire.framing import END, Limits
from sidecar.wire.heads import RequestHead
from sidecar.wire.http1 import RequestReader

_FAULTS: Final = frozenset(FAULTS)
NAMES: Final = _FAULTS | {"refuse"}  # refuse is of connections: it is done when they come
_LIMITS: Final = Limits()
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # close() then sends RST
_PIPELINED_BYTES: Final = 1024 * 1024  # that may wait behind an answer
_LOGGED: Final = 200_000  # lines
_REMEMBERED: Final = 1000  # keys of `x-sim-key`


class Simulator:
    """`async with Simulator(Settings()) as simulator: simulator.base_url`. The last requests are kept in `requests`.

    Raises ValueError where the settings name a fault that does not exist.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        for fault in self.settings.faults:
            check_fault(fault, NAMES)
        self.requests: deque[Seen] = deque()
        self.log: deque[bytes] = deque(maxlen=_LOGGED)  # of requests with a key (Seen.key) that are over
        self.connections: set[Peer] = set()
        self.accepted = 0
        self.chance = random.Random(self.settings.seed)  # noqa: S311  # to be the same every time
        self.once: dict[str, int] = {}  # faults that `x-sim-times` has used up, by their key
        self.port = 0
        self.stopped = False
        self._count = self._kept_bytes = 0
        self._server: asyncio.Server | None = None
        self._emptied: asyncio.Future[None] | None = None  # no connection is left, while stopping

    @property
    def base_url(self) -> str:
        return f"http://{self.settings.host}:{self.port}/v1"

    async def __aenter__(self) -> Simulator:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self.stopped = False
        if self.settings.unix is not None:
            self._server = await loop.create_unix_server(lambda: Peer(self, loop), self.settings.unix)
            return
        host, port = self.settings.host, self.settings.port
        self._server = await loop.create_server(lambda: Peer(self, loop), host, port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more and reset every connection. When it returns, none is left."""
        if self._server is None:
            return
        self.stopped = True  # what is being accepted at this moment is dropped as it comes
        server, self._server = self._server, None
        server.close()
        for peer in list(self.connections):
            peer.drop()
        await server.wait_closed()
        loop = asyncio.get_running_loop()
        if self.connections:
            self._emptied = loop.create_future()
            await self._emptied
        if self.settings.unix is not None:
            await loop.run_in_executor(None, Path(self.settings.unix).unlink, True)

    def lost(self, peer: Peer) -> None:
        """A connection is no more."""
        self.connections.discard(peer)
        if not self.connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def keep(self, seen: Seen) -> None:
        """Remember a request, and forget the oldest where there are too many."""
        self.requests.append(seen)
        self._kept_bytes += len(seen.body)
        settings = self.settings
        while len(self.requests) > settings.keep_requests or self._kept_bytes > settings.keep_bytes:
            self._kept_bytes -= len(self.requests.popleft().body)

    def over(self, seen: Seen) -> None:
        """A request has had its answer, or its client has left."""
        if seen.key:
            self.log.append(log_line(seen))

    def control(self, path: str, body: bytes) -> Answer:
        """What tests ask: the requests, the log, or other settings from now on, as `{"faults":{"503":0.5}}`."""
        if path == "/__sim/requests":
            return json_answer(200, [shown(seen) for seen in self.requests])
        if path == "/__sim/log":
            return Answer(200, [("content-type", "application/x-ndjson")], b"".join(self.log))
        if path != "/__sim/settings":
            return json_answer(404, {"error": "only /__sim/requests, /__sim/log and /__sim/settings are here"})
        try:
            self.settings = changed(self.settings, body, NAMES)
        except ValueError as error:
            return json_answer(400, {"error": str(error)})
        return json_answer(200, {})

    def number(self) -> int:
        self._count += 1
        return self._count

    def answer(self, seen: Seen) -> list[Step]:
        """What is to be played for a request. Draws of chance come in a fixed order: fault, then latency."""
        settings = self.settings
        try:
            asked = asked_by(dict(seen.headers), _FAULTS)
        except ValueError as error:
            return plain(refused(seen, Refusal(400, "invalid_request_error", str(error))), Playing())
        name, _, argument = self.fault(asked).partition(":")
        seen.fault = name
        latency = asked.latency_seconds
        rate = settings.tokens_per_second if asked.rate is None else asked.rate
        how = Playing(
            latency=latency_seconds(settings.latency_ms, self.chance) if latency is None else latency,
            gap=1 / rate if rate > 0 else 0.0,
            argument=int(argument) if argument else None,
            anthropic=seen.anthropic,
            flavour=asked.flavour or settings.flavour,
            request_id=seen.request_id,
        )
        tokens = settings.tokens if asked.tokens is None else asked.tokens
        answer = answer_to(seen, settings, tokens=tokens, flavour=how.flavour)
        if asked.digest:
            answer.headers.append(digest(answer))
        return FAULTS.get(name, plain)(answer, how)

    def fault(self, asked: Asked) -> str:
        """The fault for this request: asked for (`times`: for so many requests of a key only), or by chance."""
        if asked.fault and asked.times is not None:
            key = asked.key or asked.fault
            used = self.once.get(key, 0)
            if key not in self.once and len(self.once) >= _REMEMBERED:
                del self.once[next(iter(self.once))]
            self.once[key] = used + 1
            return asked.fault if used < asked.times else ""
        if asked.fault is not None:
            return asked.fault
        faults = self.settings.faults
        return next((name for name in faults if name != "refuse" and self.chosen(name)), "")

    def chosen(self, fault: str) -> bool:
        probability = self.settings.faults.get(fault, 0.0)
        return probability > 0 and self.chance.random() < probability

    def __repr__(self) -> str:
        return f"<Simulator {len(self.connections)} connections, {self._count} requests>"


class Peer(asyncio.Protocol):
    """One connection to the simulated provider."""

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._loop = loop
        self._reader = RequestReader(_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._paused = False  # the client does not read
        # of one request:
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._seen: Seen | None = None
        # of one answer:
        self._steps: deque[Step] = deque()
        self._due = 0.0  # loop time of the next step
        self._timer: asyncio.TimerHandle | None = None
        self._playing = False

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._simulator.connections.add(self)
        self._simulator.accepted += 1
        if self._simulator.stopped or self._simulator.chosen("refuse"):
            self.drop()

    def data_received(self, data: bytes) -> None:
        try:
            self._take(self._reader.feed(data))
        except Malformed as error:
            self._refuse(error)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._playing and self._steps and self._timer is None:
            self._timer = self._loop.call_at(self._due, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        self._simulator.lost(self)
        if self._timer is not None:
            self._timer.cancel()
        self._steps.clear()
        if self._seen is not None and self._seen.finished_at is None:
            self._seen.cancelled_at = now()
            self._simulator.over(self._seen)
        self._transport = None

    def drop(self) -> None:
        """Close with a reset. It is we who end it: nothing was cancelled."""
        self._seen = None
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._transport.abort()

    # -- requests

    def _refuse(self, error: Malformed) -> None:
        """What came is not HTTP, or too much of it."""
        self._seen = None
        self._write(b"HTTP/1.1 %d Bad\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % error.status)
        sys.stderr.write(f"simulator: {error.message}\n")
        if self._transport is not None:
            self._transport.close()

    def _take(self, events: list[Any]) -> None:
        """Serve what has come, then what was pipelined behind it, in turn."""
        while events:
            for event in events:
                if isinstance(event, RequestHead):
                    self._begin(event)
                elif event is END:
                    self._serve()
                else:
                    self._body.append(event)
                    self._body_bytes += len(event)
                    if self._body_bytes > self._simulator.settings.max_body_bytes:
                        raise Malformed("the body is too large", 413)
            events = self._next()
        if self._reader.excess > _PIPELINED_BYTES:
            self.drop()

    def _begin(self, head: RequestHead) -> None:
        self._head = head
        self._body = []
        self._body_bytes = 0
        if head.expect_continue and head.has_body:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _next(self) -> list[Any]:
        """What was sent behind a request that has had its answer."""
        if self._playing or not self._reader.done or self._transport is None or self._transport.is_closing():
            return []
        return self._reader.next()

    def _serve(self) -> None:
        head = self._head
        assert head is not None
        simulator = self._simulator
        body = b"".join(self._body)
        self._body = []
        if simulator.settings.bench:
            stream = b'"stream":true' in body or b'"stream": true' in body
            self._play(_BENCH_STREAM if stream else _BENCH_UNARY)
            return
        path = head.target.decode("latin-1")
        if path.startswith("/__sim/"):
            self._play(plain(simulator.control(path, body), Playing()))
            return
        self._seen = Seen(
            number=simulator.number(),
            method=head.method,
            path=path,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers],
            body=body,
            began=now(),
        )
        simulator.keep(self._seen)
        steps = simulator.answer(self._seen)
        self._play(_head_only(steps) if head.method == "HEAD" else steps)

    # -- playing

    def _play(self, steps: list[Step]) -> None:
        self._steps = deque(steps)
        self._playing = True
        if steps[0].delay > 0:
            self._due = self._loop.time()
            self._wait()
        else:
            self._due = 0.0
            self._advance()

    def _tick(self) -> None:
        self._timer = None
        self._advance()
        try:
            self._take(self._next())
        except Malformed as error:
            self._refuse(error)

    def _advance(self) -> None:
        """Do the step that is due, and those behind it that have no delay, in one write; then wait for the next."""
        steps, pieces = self._steps, list[bytes]()
        while steps:
            do = steps.popleft().do
            if isinstance(do, Do):
                self._write(b"".join(pieces))
                self._deed(do)
                return
            pieces.append(do)
            if steps and steps[0].delay > 0:
                break
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if steps:
            self._wait()
        else:
            self._done()

    def _wait(self) -> None:
        """Until the first step is due; counted from when the last one was, so that a late loop slows no stream."""
        self._due = (self._due or self._loop.time()) + self._steps[0].delay
        if not self._paused:
            self._timer = self._loop.call_at(self._due, self._tick)

    def _deed(self, do: Do) -> None:
        if do is Do.STALL:
            return
        if self._seen is not None:
            self._seen.finished_at = now()
            self._simulator.over(self._seen)
        if do is Do.RESET:
            self.drop()
        elif self._transport is not None:
            self._transport.close()

    def _done(self) -> None:
        self._playing = False
        if self._seen is not None:
            self._seen.finished_at = now()
            self._simulator.over(self._seen)
            self._seen = None
        if self._head is not None and not self._head.keep_alive and self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            if self._seen is not None and self._seen.answered_at is None:
                self._seen.answered_at = now()
            self._transport.write(data)


def _head_only(steps: list[Step]) -> list[Step]:
    """The answer to HEAD: no body, whatever it would have been."""
    first = steps[0]
    return (
        [Step(first.delay, first.do.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")] if isinstance(first.do, bytes) else steps
    )


def _bench(*, stream: bool) -> list[Step]:
    request = {"model": "sim-large", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    if stream:
        request["stream_options"] = {"include_usage": True}
        return plain(answers.chat(request, 1, 60), Playing(gap=0.005))
    return plain(answers.chat(request, 1, 120), Playing())


_BENCH_UNARY: Final = _bench(stream=False)
_BENCH_STREAM: Final = _bench(stream=True)
