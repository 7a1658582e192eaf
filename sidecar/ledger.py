"""What is known of exchanges when they are over: counters, histograms, lines for the log. Never any content or key."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
import orjson

from sidecar.clock import now, wall
from sidecar.types import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MICROSECONDS = (50, 100, 200, 400, 800, 1600, 5000, 20000, 100000, 1000000)
_QUEUE_LINES = 10_000
_MOST_CHARACTERS = 256  # of a model's name that a client chose, in the log
_UNCOUNTED = 1_000
_FEW = 16  # values, which are counted one by one
_MOST_MODELS = 100  # of one provider that are labels
_MOST_SERIES = 2_000  # of one metric: labels come from the configuration, so this bounds mistakes, not use


_last: list[Any] = [0, 0, "", ""]  # millisecond, second, and the words for them


class Histogram:
    """Counts by upper bound, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, values: list[float]) -> None:
        counts, bounds = self.counts, self.bounds
        self.sum += sum(values)
        if len(values) < _FEW:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
            return
        values.sort()
        below = 0
        for number, bound in enumerate(bounds):
            up_to = bisect_right(values, bound)
            counts[number] += up_to - below
            below = up_to
        counts[-1] += len(values) - below


class Series:
    """Numbers of exchanges that share endpoint, provider and model."""

    __slots__ = ("bytes_in", "bytes_out", "first_byte", "overhead", "requests", "saved", "seconds", "tokens")

    def __init__(self) -> None:
        self.requests: dict[tuple[int, str], int] = {}  # by status and error code
        self.seconds = Histogram(SECONDS)
        self.first_byte = Histogram(SECONDS)
        self.overhead = Histogram(MICROSECONDS)
        self.tokens = [0, 0, 0, 0]  # input, output, cached, reasoning
        self.saved = [0, 0]  # input, output: of what our own cache answered
        self.bytes_in = self.bytes_out = 0

    def count(self, outcome: tuple[int, str], records: list[Record]) -> None:
        """Exchanges of one outcome: together, since a column is added up faster than so many rows."""
        rows = list(map(_NUMBERS, records))
        seconds, first_byte, overhead, bytes_in, bytes_out, told, *_ = columns = list(zip(*rows, strict=True))
        self.requests[outcome] = self.requests.get(outcome, 0) + len(records)
        self.seconds.add(list(seconds))
        if None in first_byte:
            overhead = tuple(value for value, first in zip(overhead, first_byte, strict=True) if first is not None)
            first_byte = tuple(first for first in first_byte if first is not None)
        self.first_byte.add(list(first_byte))
        self.overhead.add(list(overhead))
        self.bytes_in += sum(bytes_in)
        self.bytes_out += sum(bytes_out)
        for number, column in enumerate(columns[9:]):
            self.saved[number] += sum(filter(None, column))
        if None in told:
            columns = list(zip(*[row for row in rows if row[5] is not None], strict=True))
        for number, column in enumerate(columns[5:9]):
            self.tokens[number] += sum(filter(None, column))


_NUMBERS = attrgetter(
    *("seconds", "first_byte_seconds", "overhead_us", "bytes_in", "bytes_out"),
    *("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"),
    *("saved_input_tokens", "saved_output_tokens"),
)
_KIND = attrgetter("endpoint", "provider", "model", "status", "error")


class Ledger:
    """Takes one record per exchange; gives metrics (Prometheus text) and, from a bounded queue, log lines (JSON)."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}
        self._models: dict[str, set[str]] = {}  # that have answered, by provider
        self._queue: deque[Record | dict[str, Any]] = deque()
        self._over: list[Record] = []  # exchanges that are not counted yet
        self.open = True  # somebody reads the lines; else none are kept
        self.dropped = 0  # lines that found the queue full

    def record(self, record: Record) -> None:
        """Take an exchange that is over. It is counted with others at the next look, or when a thousand wait."""
        over = self._over
        over.append(record)
        if self.open:
            if len(self._queue) < _QUEUE_LINES:
                self._queue.append(record)
            else:
                self.dropped += 1
        if len(over) > _UNCOUNTED:
            self._settle()

    def _settle(self) -> None:
        """Count what is over: those of a kind together. Only the loop's thread does."""
        over, self._over = self._over, []
        kinds: dict[tuple[Series, tuple[int, str]], list[Record]] = {}
        for kind, same in groupby(sorted(over, key=_KIND), key=_KIND):
            records = list(same)
            kinds.setdefault((self._find(records[0]), kind[3:]), []).extend(records)  # many models may be one series
        for (series, outcome), records in kinds.items():
            series.count(outcome, records)

    def _find(self, record: Record) -> Series:
        key = (record.endpoint, record.provider, self._label(record))
        series = self._series.get(key)
        return self._new_series(key) if series is None else series

    def note(self, event: dict[str, Any]) -> None:
        """Queue a line of another kind: what the server has to say of its peers, a reload, a bug."""
        if self.open:
            self._put({"time": _iso(wall()), **event})
        elif event.get("event") == "bug":  # inside another app: its log has it
            logging.getLogger("sidecar").error("%s", event.get("trace"), extra={"sidecar": event})

    def drain(self, most: int = _QUEUE_LINES) -> bytes:
        """The queued lines, so many at most, encoded. Called from the log's thread; `deque` takes care of itself."""
        queue = self._queue
        entries = [queue.popleft() for _ in range(min(len(queue), most))]
        if not entries:
            return b""
        started = wall() - now()
        return _encoder.encode_lines(
            [_dated(entry, started) if type(entry) is Record else msgspec.Raw(orjson.dumps(entry)) for entry in entries]
        )

    def stats(self) -> dict[str, object]:
        """For /status."""
        self._settle()
        series = self._series.values()
        return {
            "total": sum(sum(each.requests.values()) for each in series),
            "input_tokens": sum(each.tokens[0] for each in series),
            "output_tokens": sum(each.tokens[1] for each in series),
            "saved_input_tokens": sum(each.saved[0] for each in series),
            "saved_output_tokens": sum(each.saved[1] for each in series),
            "log_lines_dropped": self.dropped,
        }

    def metrics(self) -> bytes:
        """Prometheus text format 0.0.4."""
        self._settle()
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
        for name, index in (("input", 0), ("output", 1)):
            _family(out, f"saved_{name}_tokens_total", "counter", f"Tokens of answers out of our own cache: {name}.")
            out += [f"sidecar_saved_{name}_tokens_total{{{labels}}} {series.saved[index]}" for labels, series in rows]
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

    def _label(self, record: Record) -> str:
        """The model, as a label: names come from clients, so only those that answered are labels, and few (D31)."""
        known = self._models.get(record.provider)
        if known is not None and record.model in known:
            return record.model
        if not record.provider or record.status >= 400:
            return "other"
        known = self._models.setdefault(record.provider, set())
        if len(known) >= _MOST_MODELS:
            return "other"
        known.add(record.model)
        return record.model

    def _new_series(self, key: tuple[str, str, str]) -> Series:
        if len(self._series) >= _MOST_SERIES:
            key = (key[0], key[1], "other")
        return self._series.setdefault(key, Series())

    def _put(self, entry: Record | dict[str, Any]) -> None:
        if len(self._queue) < _QUEUE_LINES:
            self._queue.append(entry)
        else:
            self.dropped += 1

    def __repr__(self) -> str:
        return f"<Ledger {len(self._series)} series, {len(self._queue)} lines queued, {self.dropped} dropped>"


_encoder = msgspec.json.Encoder()


def _dated(record: Record, started: float) -> Record:
    """A record as it is logged. `started`: when the monotonic clock stood at zero, in seconds since the epoch."""
    assert type(record.time) is float
    record.time = _iso(started + record.time)
    if len(record.asked_model) > _MOST_CHARACTERS:
        record.asked_model = record.asked_model[:_MOST_CHARACTERS]
    record.seconds = round(record.seconds, 6)
    if record.first_byte_seconds is not None:
        record.first_byte_seconds = round(record.first_byte_seconds, 6)
    return record


def _iso(seconds: float) -> str:
    """2026-11-25T10:00:00.123+00:00; made once a millisecond, all but the milliseconds once a second."""
    millisecond = int(seconds * 1000)
    if millisecond != _last[0]:
        second, rest = divmod(millisecond, 1000)
        if second != _last[1]:
            _last[1:3] = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _last[0], _last[3] = millisecond, f"{_last[2]}.{rest:03d}+00:00"
    return str(_last[3])


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
