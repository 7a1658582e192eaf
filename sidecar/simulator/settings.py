"""How a simulated provider behaves, and what one request may ask of it by `x-sim-*` headers."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

FLAVOURS: Final = (
    "openai", "anthropic", "xai", "openrouter", "blackbox", "groq", "mistral", "deepseek", "together", "fireworks",
    "perplexity", "cerebras", "nvidia", "huggingface", "ollama", "vllm", "llamacpp", "openai-compatible", "azure",
)  # fmt: skip


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in milliseconds (`latency_ms` is p50, p90 and p99 of the time to the first byte), rates in tokens a second."""

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
    keep_requests: int = 10_000


def latency_seconds(percentiles: tuple[float, float, float], chance: random.Random) -> float:
    """One latency, log-linear between the percentiles p50, p90 and p99."""
    p50, p90, p99 = percentiles
    if p99 <= 0:
        return 0.0
    at = chance.random()
    points = ((0.0, p50 * 0.5), (0.5, p50), (0.9, p90), (0.99, p99), (1.0, p99 * 1.5))
    for (low, value), (high, above) in zip(points, points[1:], strict=False):
        if at <= high:
            share = (at - low) / (high - low)
            return math.exp(math.log(max(value, 1e-3)) * (1 - share) + math.log(max(above, 1e-3)) * share) / 1000
    return p99 / 1000
