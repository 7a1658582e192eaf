"""The simulated provider's server: requests in, steps played by timers; no task a stream, so thousands may run at once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
import uvloop

from sidecar.clock import now
from sidecar.errors import Malformed
from sidecar.simulator import answers
from sidecar.simulator.answers import Answer, Refusal, anthropic_error, json_answer, openai_error
from sidecar.simulator.faults import FAULTS, Do, Playing, Step, plain
from sidecar.simulator.flavours import flavoured
from sidecar.simulator.settings import FLAVOURS, Settings, latency_seconds
from sidecar.wire.http1 import END, Limits, RequestHead, RequestReader

_LIMITS: Final = Limits()
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # close() then sends RST
Serve = Callable[[dict[str, Any], int, int], Answer]
ROUTES: Final[dict[str, tuple[Serve, bool]]] = {
    "/chat/completions": (answers.chat, False),
    "/completions": (answers.completions, False),
    "/embeddings": (answers.embeddings, False),
    "/messages": (answers.messages, True),
    "/messages/count_tokens": (answers.count_tokens, True),
}


class Seen(msgspec.Struct, kw_only=True):
    """One request as it came, and what became of it. Times are of the monotonic clock, in seconds."""

    number: int
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    began: float
    answered_at: float | None = None  # the first byte was written
    finished_at: float | None = None  # the last byte was written
    cancelled_at: float | None = None  # the client left before that


class Simulator:
    """`async with Simulator(Settings()) as simulator: simulator.base_url`. Every request is kept in `requests`."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.requests: deque[Seen] = deque(maxlen=self.settings.keep_requests)
        self.connections: set[Peer] = set()
        self.accepted = 0
        self.chance = random.Random(self.settings.seed)  # noqa: S311  # to be the same every time
        self.once: dict[str, int] = {}  # faults that `x-sim-times` has used up, by their key
        self.port = 0
        self._count = 0
        self._server: asyncio.Server | None = None

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
        if self.settings.unix is not None:
            self._server = await loop.create_unix_server(lambda: Peer(self, loop), self.settings.unix)
            return
        host, port = self.settings.host, self.settings.port
        self._server = await loop.create_server(lambda: Peer(self, loop), host, port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in list(self.connections):
            peer.drop()
        if self._server is not None:
            await self._server.wait_closed()
        await asyncio.sleep(0)

    def number(self) -> int:
        self._count += 1
        return self._count

    def __repr__(self) -> str:
        return f"<Simulator {len(self.connections)} connections, {self._count} requests>"


class Peer(asyncio.Protocol):
    """One connection to the simulated provider."""

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._loop = loop
        self._reader = RequestReader(_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._head: RequestHead | None = None
        self._body: list[bytes] = []
        self._steps: deque[Step] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._seen: Seen | None = None

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._simulator.connections.add(self)
        self._simulator.accepted += 1
        if self._chosen("refuse"):
            self.drop()

    def data_received(self, data: bytes) -> None:
        try:
            self._take(self._reader.feed(data))
        except Malformed as error:
            self._write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            sys.stderr.write(f"simulator: {error.message}\n")
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._simulator.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._seen is not None and self._seen.finished_at is None:
            self._seen.cancelled_at = now()
        self._transport = None

    def drop(self) -> None:
        """Close with a reset."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._transport.abort()

    # -- requests

    def _take(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, RequestHead):
                self._head = event
                self._body = []
                if event.expect_continue:
                    self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif event is END:
                self._serve()
            else:
                self._body.append(event)

    def _serve(self) -> None:
        head = self._head
        assert head is not None
        simulator = self._simulator
        if simulator.settings.bench:
            self._play(_BENCH_STREAM if b'"stream":true' in b"".join(self._body) else _BENCH_UNARY)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers]
        path = head.target.decode("latin-1")
        if path == "/__sim/requests":
            self._play(plain(json_answer(200, [_shown(seen) for seen in simulator.requests]), Playing()))
            return
        seen = Seen(
            number=simulator.number(),
            method=head.method,
            path=path,
            headers=headers,
            body=b"".join(self._body),
            began=now(),
        )
        simulator.requests.append(seen)
        self._seen = seen
        self._play(self._steps_for(seen))

    def _steps_for(self, seen: Seen) -> list[Step]:
        settings, asked = self._simulator.settings, dict(seen.headers)
        path = seen.path.partition("?")[0]
        route = path.removeprefix("/v1") or "/"
        serve, anthropic = ROUTES.get(route, (None, False))
        latency = float(asked["x-sim-latency-ms"]) / 1000 if "x-sim-latency-ms" in asked else None
        rate = float(asked.get("x-sim-rate", settings.tokens_per_second))
        name, _, argument = self._fault(asked).partition(":")
        how = Playing(
            latency=latency_seconds(settings.latency_ms, self._simulator.chance) if latency is None else latency,
            gap=1 / rate if rate > 0 else 0.0,
            argument=int(argument) if argument else None,
            anthropic=anthropic,
        )
        try:
            if route == "/models" and seen.method == "GET":
                answer = _models(settings)
            elif serve is None:
                raise Refusal(404, "not_found_error", f"no such endpoint: {path}")
            else:
                count = int(asked.get("x-sim-tokens", settings.tokens))
                answer = self._checked(serve, seen, asked, count, anthropic=anthropic)
        except Refusal as refusal:
            answer = anthropic_error(refusal) if anthropic else openai_error(refusal)
        answer.headers.append(("request-id" if anthropic else "x-request-id", f"req_sim_{seen.number}"))
        answer = flavoured(answer, asked.get("x-sim-flavour", settings.flavour))
        return FAULTS[name](answer, how) if name in FAULTS else plain(answer, how)

    def _checked(self, serve: Serve, seen: Seen, asked: dict[str, str], count: int, *, anthropic: bool) -> Answer:
        """The answer to a request, if it is one that the real provider would take. Raises Refusal."""
        settings = self._simulator.settings
        key = asked.get("x-api-key") or asked.get("authorization", "").removeprefix("Bearer ")
        if settings.keys and key not in settings.keys:
            raise Refusal(401, "authentication_error", f"Incorrect API key provided: {key}")
        if seen.method != "POST":
            raise Refusal(405, "invalid_request_error", "only POST is served here")
        if asked.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refusal(415, "invalid_request_error", "the content-type must be application/json")
        if anthropic and "anthropic-version" not in asked:
            raise Refusal(400, "invalid_request_error", "anthropic-version: header is required")
        try:
            request = msgspec.json.decode(seen.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refusal(400, "invalid_request_error", "the body is not JSON") from None
        if not isinstance(request, dict):
            raise Refusal(400, "invalid_request_error", "the body is not an object")
        if settings.models and request.get("model") not in settings.models:
            raise Refusal(404, "not_found_error", f"the model {request.get('model')!r} does not exist", "model")
        return serve(request, seen.number, count)

    def _fault(self, asked: dict[str, str]) -> str:
        """The fault for this request: asked for by header (`x-sim-times`: for so many requests only), or by chance."""
        name = asked.get("x-sim-fault", "")
        if name and "x-sim-times" in asked:
            key = asked.get("x-sim-key", name)
            used = self._simulator.once.get(key, 0)
            self._simulator.once[key] = used + 1
            return name if used < int(asked["x-sim-times"]) else ""
        return name or next((fault for fault in self._simulator.settings.faults if self._chosen(fault)), "")

    def _chosen(self, fault: str) -> bool:
        probability = self._simulator.settings.faults.get(fault, 0.0)
        return probability > 0 and self._simulator.chance.random() < probability

    # -- playing

    def _play(self, steps: list[Step]) -> None:
        self._steps = deque(steps)
        self._advance()

    def _advance(self) -> None:
        """Do what is due, in one write where it can be one, then wait for the next step."""
        self._timer = None
        steps = self._steps
        due: list[bytes] = []
        first = True
        while steps:
            step = steps[0]
            if step.delay > 0 and not (first and self._waited):
                break
            first = False
            self._waited = False
            steps.popleft()
            if isinstance(step.do, bytes):
                due.append(step.do)
                if len(due) == 1 and not step.delay and len(steps) > 1 and len(step.do) <= 3:
                    self._write(due.pop())  # small pieces are meant to be small
            else:
                self._write(b"".join(due))
                self._deed(step.do)
                return
        if due:
            self._write(b"".join(due))
        if steps:
            self._waited = True
            self._timer = self._loop.call_later(steps[0].delay, self._advance)
            return
        self._done()

    _waited = False

    def _deed(self, do: Do) -> None:
        if do is Do.RESET:
            self.drop()
        elif do is Do.CLOSE and self._transport is not None:
            self._transport.close()

    def _done(self) -> None:
        if self._seen is not None:
            self._seen.finished_at = now()
        if self._transport is not None and not self._transport.is_closing():
            self._take(self._reader.next())

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            if self._seen is not None and self._seen.answered_at is None:
                self._seen.answered_at = now()
            self._transport.write(data)


def _models(settings: Settings) -> Answer:
    names = settings.models or ("sim-large", "sim-small")
    data = [{"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"} for name in names]
    return json_answer(200, {"object": "list", "data": data})


def _shown(seen: Seen) -> dict[str, Any]:
    """A request for other processes: bodies as text, and no credentials."""
    headers = [pair for pair in seen.headers if pair[0] not in ("authorization", "x-api-key", "api-key")]
    return {**msgspec.structs.asdict(seen), "headers": headers, "body": seen.body.decode("utf-8", "replace")}


def _bench(stream: bool) -> list[Step]:
    request = {"model": "sim-large", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    if stream:
        request["stream_options"] = {"include_usage": True}
        return plain(answers.chat(request, 1, 60), Playing(gap=0.005))
    return plain(answers.chat(request, 1, 120), Playing())


_BENCH_UNARY: Final = _bench(stream=False)
_BENCH_STREAM: Final = _bench(stream=True)


# -- as a command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sidecar simulate`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4999, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument("--unix", metavar="PATH", help="listen on a unix socket instead")
    parser.add_argument("--key", action="append", default=[], help="accept this key only (may be repeated)")
    parser.add_argument("--model", action="append", default=[], help="serve this model only (may be repeated)")
    parser.add_argument("--latency-ms", default="0", metavar="P50[:P90:P99]", help="time to the first byte")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="tokens a second, 0 for no pause (default: %(default)s)"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME[:ARG]=P",
        help=f"with probability P, one of: refuse {' '.join(FAULTS)}",
    )
    parser.add_argument("--flavour", choices=FLAVOURS, default="openai", help="whose oddities to have")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same run (default: %(default)s)")
    parser.add_argument("--bench", action="store_true", help="canned answers, for benchmarks")


def settings_from(options: argparse.Namespace) -> Settings:
    """Settings out of the parsed options. Raises ValueError saying which is wrong."""
    faults: dict[str, float] = {}
    for text in options.fault:
        name, _, probability = text.partition("=")
        if name.partition(":")[0] not in (*FAULTS, "refuse"):
            raise ValueError(f"--fault {text}: no such fault; they are refuse {' '.join(FAULTS)}")
        try:
            faults[name] = float(probability or 1)
        except ValueError:
            raise ValueError(f"--fault {text}: the probability is not a number") from None
    try:
        parts = [float(part) for part in options.latency_ms.split(":")]
    except ValueError:
        raise ValueError(f"--latency-ms {options.latency_ms}: takes numbers, as 200 or 200:400:900") from None
    if len(parts) not in (1, 3) or any(part < 0 for part in parts):
        raise ValueError(f"--latency-ms {options.latency_ms}: takes one number, or three for p50, p90 and p99")
    latency = (parts[0], parts[0], parts[0]) if len(parts) == 1 else (parts[0], parts[1], parts[2])
    return Settings(
        host=options.host,
        port=options.port,
        unix=options.unix,
        keys=tuple(options.key),
        models=tuple(options.model),
        latency_ms=latency,
        tokens=options.tokens,
        tokens_per_second=options.rate,
        faults=faults,
        flavour=options.flavour,
        seed=options.seed,
        bench=options.bench,
    )


def run(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM. Answers the exit code. Raises OSError when the address cannot be had."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_stopped(settings))
    return 0


async def _serve_until_stopped(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with Simulator(settings) as simulator:
        where = f"unix:{settings.unix}" if settings.unix else simulator.base_url
        sys.stderr.write(f"simulated provider at {where}\n")
        sys.stderr.flush()
        await stopped
