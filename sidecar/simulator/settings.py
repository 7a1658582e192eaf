"""How a simulated provider behaves, and what one request may ask of it by `x-sim-*` headers."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any, Final

import msgspec

FLAVOURS: Final = (
    "openai", "anthropic", "xai", "openrouter", "blackbox", "groq", "mistral", "deepseek", "together", "fireworks",
    "perplexity", "cerebras", "nvidia", "huggingface", "ollama", "vllm", "llamacpp", "openai-compatible", "azure",
    "cohere",
)  # fmt: skip
MOST_TOKENS: Final = 1_000_000  # of one answer


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies are in milliseconds (p50, p90 and p99 of the time to the first byte), rates in tokens a second."""

    host: str = "127.0.0.1"
    port: int = 0
    unix: str | None = None
    keys: tuple[str, ...] = ()  # accepted credentials; empty = any, or none
    models: tuple[str, ...] = ()  # served names; empty = any
    latency_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tokens: int = 16  # of an answer
    tokens_per_second: float = 0.0  # 0 = as fast as they can be written
    faults: dict[str, float] = {}  # name (or name:argument) -> probability
    flavour: str = "openai"
    seed: int = 0
    bench: bool = False  # canned answers of 1 KB, nothing looked at but the path and "stream"
    keep_requests: int = 10_000  # the last so many, and
    keep_bytes: int = 64 * 1024 * 1024  # of their bodies
    max_body_bytes: int = 64 * 1024 * 1024


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks for, by its `x-sim-*` headers; None = as the settings have it."""

    fault: str | None = None  # name, or name:argument; "" = none
    times: int | None = None  # the fault only for so many requests
    key: str | None = None  # of the same key
    latency_seconds: float | None = None
    rate: float | None = None
    tokens: int | None = None
    flavour: str | None = None
    digest: bool = False  # tell what the body is to be, by `x-sim-digest: CRC32-LENGTH`


def asked_by(headers: dict[str, str], faults: frozenset[str]) -> Asked:
    """Read `x-sim-*` headers. Raises ValueError saying which is wrong."""
    if not any(name.startswith("x-sim-") for name in headers):
        return _NOTHING
    fault = headers.get("x-sim-fault")
    if fault:
        check_fault(fault, faults)
    flavour = headers.get("x-sim-flavour")
    if flavour is not None and flavour not in FLAVOURS:
        raise ValueError(f"x-sim-flavour: {flavour!r} is none of {' '.join(FLAVOURS)}")
    tokens, times = _number(headers, "x-sim-tokens", MOST_TOKENS), _number(headers, "x-sim-times", 1e9)
    latency = _number(headers, "x-sim-latency-ms", 3_600_000)
    return Asked(
        fault=fault,
        times=None if times is None else int(times),
        key=headers.get("x-sim-key"),
        latency_seconds=None if latency is None else latency / 1000,
        rate=_number(headers, "x-sim-rate", 1e9),
        tokens=None if tokens is None else int(tokens),
        flavour=flavour,
        digest="x-sim-digest" in headers,
    )


_NOTHING: Final = Asked()


def changed(settings: Settings, body: bytes, faults: frozenset[str]) -> Settings:
    """The settings with some of them as a JSON object says. Raises ValueError saying which is wrong."""
    given = msgspec.structs.asdict(settings)
    found = msgspec.json.decode(body, type=dict[str, Any])
    if unknown := found.keys() - given.keys():
        raise ValueError(f"no such settings: {' '.join(sorted(unknown))}")
    new = msgspec.convert({**given, **found}, Settings)
    for fault in new.faults:
        check_fault(fault, faults)
    return new


def check_fault(text: str, faults: frozenset[str]) -> None:
    """Raises ValueError unless it is `name` or `name:number`."""
    name, colon, argument = text.partition(":")
    if name not in faults:
        raise ValueError(f"{text!r}: no such fault; they are {' '.join(sorted(faults))}")
    if colon and not (argument.isascii() and argument.isdigit() and len(argument) < 10):
        raise ValueError(f"{text!r}: what stands behind the colon is not a number")


def _number(headers: dict[str, str], name: str, most: float) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ValueError(f"{name}: {text!r} is not a number from 0 to {most:g}")
    return value


def latency_seconds(percentiles: tuple[float, float, float], chance: random.Random) -> float:
    """One latency, log-linear between the percentiles p50, p90 and p99; always the same where these are."""
    p50, p90, p99 = percentiles
    if p99 <= 0 or p50 == p99:
        return p99 / 1000
    at = chance.random()
    points = ((0.0, p50 * 0.5), (0.5, p50), (0.9, p90), (0.99, p99), (1.0, p99 * 1.5))
    (low, value), (high, above) = next(pair for pair in itertools.pairwise(points) if at <= pair[1][0])
    share = (at - low) / (high - low)
    return math.exp(math.log(max(value, 1e-3)) * (1 - share) + math.log(max(above, 1e-3)) * share) / 1000
