"""What is known of exchanges when they are over: counters, histograms, and lines for the log. Never any content, never a key."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

from sidecar.clock import now, wall
from sidecar.types import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MICROSECONDS = (50, 100, 200, 400, 800, 1600, 5000, 20000, 100000, 1000000)
_QUEUE_LINES = 10_000
_MOST_SERIES = 2_000  # of one metric: labels come from the configuration, so this bounds mistakes, not use


class Histogram:
    """Counts by upper bound, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Series:
    """Numbers of exchanges that share endpoint, provider and model."""

    __slots__ = ("bytes_in", "bytes_out", "first_byte", "overhead", "requests", "seconds", "tokens")

    def __init__(self) -> None:
        self.requests: dict[tuple[int, str], int] = {}  # by status and error code
        self.seconds = Histogram(SECONDS)
        self.first_byte = Histogram(SECONDS)
        self.overhead = Histogram(MICROSECONDS)
        self.tokens = [0, 0, 0, 0]  # input, output, cached, reasoning
        self.bytes_in = self.bytes_out = 0


class Ledger:
    """Takes one record per exchange; gives metrics (Prometheus text) and log lines (JSON), the latter from a bounded queue."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}
        self._queue: deque[Record | dict[str, Any]] = deque()
        self.dropped = 0  # lines that found the queue full

    def record(self, record: Record) -> None:
        """Count an exchange that is over, and queue its line."""
        # A name nobody configured reaches no provider, and is no label: strangers must not make series (D31).
        key = (record.endpoint, record.provider, record.model if record.provider else "other")
        series = self._series.get(key)
        if series is None:
            series = self._new_series(key)
        outcome = (record.status, record.error)
        series.requests[outcome] = series.requests.get(outcome, 0) + 1
        series.seconds.add(record.seconds)
        if record.first_byte_seconds is not None:
            series.first_byte.add(record.first_byte_seconds)
            series.overhead.add(record.overhead_us)
        series.bytes_in += record.bytes_in
        series.bytes_out += record.bytes_out
        if (usage := record.usage) is not None:
            tokens = series.tokens
            tokens[0] += usage.input
            tokens[1] += usage.output
            tokens[2] += usage.cached
            tokens[3] += usage.reasoning
        self._put(record)

    def note(self, event: dict[str, Any]) -> None:
        """Queue a line of another kind: what the server has to say of its peers, a reload, a bug."""
        self._put({"time": _iso(wall()), **event})

    def drain(self) -> bytes:
        """The queued lines, encoded. Called from the log's thread; `deque` takes care of itself."""
        lines: list[bytes] = []
        queue = self._queue
        for _ in range(len(queue)):
            entry = queue.popleft()
            lines.append(line(entry) if isinstance(entry, Record) else orjson.dumps(entry))
        return b"\n".join([*lines, b""]) if lines else b""

    def stats(self) -> dict[str, object]:
        """For /status."""
        series = self._series.values()
        return {
            "total": sum(sum(each.requests.values()) for each in series),
            "input_tokens": sum(each.tokens[0] for each in series),
            "output_tokens": sum(each.tokens[1] for each in series),
            "log_lines_dropped": self.dropped,
        }

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4."""
        out: list[str] = []
        rows = [(_labels(key), series) for key, series in self._series.items()]
        _family(out, "requests_total", "counter", "Exchanges that are over, by status and error code.")
        for labels, series in rows:
            for (status, error), count in series.requests.items():
                out.append(f'sidecar_requests_total{{{labels},status="{status}",error="{error}"}} {count}')
        for name, index in (("input", 0), ("output", 1), ("cached_input", 2), ("reasoning_output", 3)):
            _family(
                out, f"{name}_tokens_total", "counter", f"Tokens as counted by the provider: {name.replace('_', ' ')}."
            )
            out += [f"sidecar_{name}_tokens_total{{{labels}}} {series.tokens[index]}" for labels, series in rows]
        for name in ("bytes_in", "bytes_out"):
            _family(
                out,
                f"{name}_total",
                "counter",
                f"Bytes of bodies, {'of requests' if name[-2:] == 'in' else 'of answers'}.",
            )
            out += [f"sidecar_{name}_total{{{labels}}} {getattr(series, name)}" for labels, series in rows]
        for name, about in (
            ("seconds", "Seconds from the request's head to the last byte of the answer."),
            ("first_byte", "Seconds from the request's head to the first byte of the answer."),
            ("overhead", "Microseconds of the sidecar's own, queueing included."),
        ):
            metric = {
                "seconds": "request_seconds",
                "first_byte": "first_byte_seconds",
                "overhead": "overhead_microseconds",
            }
            _family(out, metric[name], "histogram", about)
            for labels, series in rows:
                out += _histogram(metric[name], labels, getattr(series, name))
        _family(out, "log_lines_dropped_total", "counter", "Log lines dropped because their reader was too slow.")
        out += [f"sidecar_log_lines_dropped_total {self.dropped}", ""]
        return "\n".join(out).encode()

    def _new_series(self, key: tuple[str, str, str]) -> Series:
        if len(self._series) >= _MOST_SERIES:
            key = (key[0], key[1], "other")
        return self._series.setdefault(key, Series())

    def _put(self, entry: Record | dict[str, Any]) -> None:
        if len(self._queue) >= _QUEUE_LINES:
            self.dropped += 1
        else:
            self._queue.append(entry)

    def __repr__(self) -> str:
        return f"<Ledger {len(self._series)} series, {len(self._queue)} lines queued, {self.dropped} dropped>"


def line(record: Record) -> bytes:
    """One line of the access log."""
    usage = record.usage
    return orjson.dumps(
        {
            "time": _iso(wall() - now() + record.started + record.seconds),
            "event": "exchange",
            "id": record.request_id,
            "endpoint": record.endpoint,
            "caller": record.caller,
            "asked_model": record.asked_model[:256],
            "provider": record.provider,
            "model": record.model[:256],
            "status": record.status,
            "error": record.error,
            "attempts": record.attempts,
            "stream": record.stream,
            "seconds": round(record.seconds, 6),
            "first_byte_seconds": None if record.first_byte_seconds is None else round(record.first_byte_seconds, 6),
            "overhead_us": record.overhead_us,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "input_tokens": None if usage is None else usage.input,
            "output_tokens": None if usage is None else usage.output,
            "cached_tokens": None if usage is None else usage.cached,
        }
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _family(out: list[str], name: str, kind: str, about: str) -> None:
    out.append(f"# HELP sidecar_{name} {about}")
    out.append(f"# TYPE sidecar_{name} {kind}")


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(key: tuple[str, str, str]) -> str:
    endpoint, provider, model = map(_escape, key)
    return f'endpoint="{endpoint}",provider="{provider}",model="{model}"'


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterable[str]:
    total = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        yield f'sidecar_{name}_bucket{{{labels},le="{bound}"}} {total}'
    yield f"sidecar_{name}_sum{{{labels}}} {round(histogram.sum, 9)}"
    yield f"sidecar_{name}_count{{{labels}}} {total}"
