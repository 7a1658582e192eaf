"""`sidecar simulate`: the options, the settings they make, and serving until a signal."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys

import uvloop

from sidecar.simulator.server import NAMES, Simulator
from sidecar.simulator.settings import FLAVOURS, MOST_TOKENS, Settings, check_fault


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
        help=f"with probability P, one of: {' '.join(sorted(NAMES))}",
    )
    parser.add_argument("--flavour", choices=FLAVOURS, default="openai", help="whose oddities to have")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same run (default: %(default)s)")
    parser.add_argument("--bench", action="store_true", help="canned answers, for benchmarks")


def settings_from(options: argparse.Namespace) -> Settings:
    """Settings out of the parsed options. Raises ValueError saying which is wrong."""
    if not 0 <= options.tokens <= MOST_TOKENS:
        raise ValueError(f"--tokens {options.tokens}: takes 0 to {MOST_TOKENS}")
    if not 0 <= options.rate <= 1e9:
        raise ValueError(f"--rate {options.rate}: takes tokens a second, or 0 for no pause")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port {options.port}: takes 0 to 65535")
    return Settings(
        host=options.host,
        port=options.port,
        unix=options.unix,
        keys=tuple(options.key),
        models=tuple(options.model),
        latency_ms=_latency(options.latency_ms),
        tokens=options.tokens,
        tokens_per_second=options.rate,
        faults=dict(map(_fault, options.fault)),
        flavour=options.flavour,
        seed=options.seed,
        bench=options.bench,
    )


def _fault(text: str) -> tuple[str, float]:
    """`NAME[:ARG]=P`; without `=P` it is certain."""
    name, equals, probability = text.partition("=")
    try:
        check_fault(name, NAMES)
    except ValueError as error:
        raise ValueError(f"--fault {error}") from None
    try:
        value = float(probability) if equals else 1.0
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"--fault {text}: the probability is not a number from 0 to 1")
    return name, value


def _latency(text: str) -> tuple[float, float, float]:
    """`P50`, or `P50:P90:P99`."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        raise ValueError(f"--latency-ms {text}: takes numbers, as 200 or 200:400:900") from None
    if len(parts) not in (1, 3) or not all(0 <= part < math.inf for part in parts) or sorted(parts) != parts:
        raise ValueError(
            f"--latency-ms {text}: takes one number, or three for p50, p90 and p99, none less than the last"
        )
    return (parts[0], parts[0], parts[0]) if len(parts) == 1 else (parts[0], parts[1], parts[2])


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
