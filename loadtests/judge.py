"""What a run is judged by: figures out of what clients, providers and the sidecar told, and their thresholds."""

from __future__ import annotations

import math
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.drive import MB, Drive, under_way
from loadtests.scenario import HERE, Row, Scenario

CLASSES = ("429", "429_bare", "4xx", "5xx", "told", "cut", "dropped", "timeout", "undone")
THRESHOLDS = HERE / "thresholds.toml"
MOST_REASONS = 6
UNTOLD_SECONDS = 1.0  # an answer that ends so long after its client left was not for anybody
CACHED = ("hit", "stale", "coalesced")  # answers that nobody was asked for anew
EARLY = 0.2  # of the run
LATE = 0.75  # of the run: the share after which a storm must be over


class Line(NamedTuple):
    """A figure beside its threshold."""

    name: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        return not (
            (self.most is not None and not self.value <= self.most)
            or (self.least is not None and not self.value >= self.least)
        )

    @property
    def limit(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return "" if self.least is None else f">= {self.least:g}"


def figures(scenario: Scenario, drive: Drive) -> dict[str, float]:
    """All that can be said of a run on parts of our own."""
    found = of_clients(scenario, drive)
    found |= _of_upstream(scenario, drive)
    found |= _of_sidecar(drive, sum(not row.direct for row in drive.rows), len(drive.upstream))
    found |= _of_cache(drive, scenario) | _of_store(drive.status.get("store", {}))
    return found


def of_clients(scenario: Scenario, drive: Drive) -> dict[str, float]:
    """What clients saw; percentiles also as ratios to those of the provider itself in the same run."""
    rows = [row for row in drive.rows if not row.direct]
    stayed = [row for row in rows if row.left is None]
    late = [row for row in stayed if row.began - drive.started > LATE * scenario.seconds]
    classes = Counter(row.outcome for row in stayed)
    found = {
        "requests": float(len(rows)),
        "per_second": len(rows) / scenario.seconds,
        "failed_percent": _percent(sum(row.outcome != "ok" for row in stayed), len(stayed)),
        "late_failed_percent": _percent(sum(row.outcome != "ok" for row in late), len(late)),
        **{f"{each}_percent": _percent(classes[each], len(stayed)) for each in CLASSES},
        "lost": float(classes["lost"]),
    }
    for name, kind, share in (("unary_p50", "unary", 0.5), ("unary_p95", "unary", 0.95)):
        _compare(found, name, _times(drive.rows, kind, direct=False), _times(drive.rows, kind, direct=True), share)
    for name, share in (("ttft_p50", 0.5), ("ttft_p95", 0.95)):
        _compare(found, name, _firsts(drive.rows, direct=False), _firsts(drive.rows, direct=True), share)
    for name, share in (("itl_p95", 0.95), ("itl_p99", 0.99)):
        _compare(found, name, _gaps(drive.rows, direct=False), _gaps(drive.rows, direct=True), share)
    wholes = [[row.ms for row in drive.rows if _streamed(row, direct)] for direct in (False, True)]
    _compare(found, "total_p95", wholes[0], wholes[1], 0.95)
    return found


def _compare(found: dict[str, float], name: str, ours: list[float], theirs: list[float], share: float) -> None:
    if ours:
        found[f"{name}_ms"] = percentile(ours, share)
        if theirs:
            found[f"{name}_added_ms"] = found[f"{name}_ms"] - percentile(theirs, share)
            found[f"{name}_ratio"] = found[f"{name}_ms"] / max(percentile(theirs, share), 0.1)


def _times(rows: Iterable[Row], kind: str, *, direct: bool) -> list[float]:
    return [row.ms for row in rows if row.kind == kind and row.direct is direct and _good(row)]


def _firsts(rows: Iterable[Row], *, direct: bool) -> list[float]:
    return [row.first_ms for row in rows if _streamed(row, direct) and row.first_ms is not None]


def _gaps(rows: Iterable[Row], *, direct: bool) -> list[float]:
    return [gap for row in rows if _streamed(row, direct) for gap in row.gaps]


def _streamed(row: Row, direct: bool) -> bool:
    return row.direct is direct and bool(row.gaps) and row.kind != "slow" and _good(row)


def _good(row: Row) -> bool:
    return row.outcome == "ok" and row.left is None


def _of_upstream(scenario: Scenario, drive: Drive) -> dict[str, float]:
    """What the providers got for each request, and when they were let go."""
    tries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in sorted(drive.upstream, key=lambda each: float(each["began"])):
        tries[line["key"]].append(line)
    rows = {row.key: row for row in drive.rows if not row.direct}
    ours = {key: lines for key, lines in tries.items() if key in rows}
    asked = sum(map(len, ours.values()))
    found = {
        "duplicates": float(sum(duplicates(lines) for lines in ours.values())),
        "tries_most": float(max(map(len, ours.values()), default=0)),
        "tries_over": float(sum(len(each) > (1 + scenario.attempts) * scenario.providers for each in ours.values())),
        "amplification": asked / max(len(ours), 1),
    }
    for name, share in (("own_p50_ms", 0.5), ("own_p95_ms", 0.95)):
        ours_took, theirs_took = (_beyond(drive.rows, tries, direct=direct) for direct in (False, True))
        if ours_took and theirs_took:
            found[name] = percentile(ours_took, share) - percentile(theirs_took, share)
    left = [(row.left, tries[row.key]) for row in rows.values() if row.left is not None and row.key in tries]
    if left:
        late = [_late_ms(moment, lines) for moment, lines in left]
        found["left"] = float(len(left))
        found["left_untold"] = float(sum(map(math.isinf, late)))
        found["cancel_p99_ms"] = percentile(late, 0.99)
    return found


def _beyond(rows: list[Row], tries: dict[str, list[dict[str, Any]]], *, direct: bool) -> list[float]:
    """How much longer each stream's first content took than its provider did, to its first byte: one clock has both."""
    return [
        row.first_ms - (tries[row.key][0]["answered_at"] - tries[row.key][0]["began"]) * 1000
        for row in rows
        if _streamed(row, direct) and row.first_ms is not None and len(tries.get(row.key, ())) == 1
    ]


def duplicates(lines: list[dict[str, Any]]) -> int:
    """How often a request was sent again though the try before had been answered, or was being, as it should be."""
    return sum(
        not before["fault"] and (before["answered_at"] is not None or before["finished_at"] is not None)
        for before in lines[:-1]
    )


def _late_ms(left: float, lines: list[dict[str, Any]]) -> float:
    """Milliseconds from a client's leaving until its provider was let go, or had ended; endless where it went on."""
    last = lines[-1]
    over = last["cancelled_at"] or last["finished_at"] or math.inf
    late = max(float(over) - left, 0.0)
    return late * 1000 if last["cancelled_at"] is not None or late <= UNTOLD_SECONDS else math.inf


def _of_sidecar(drive: Drive, requests: int, asked_of_providers: int) -> dict[str, float]:
    samples = drive.samples
    early = [each.rss_mb for each in samples[: max(len(samples) // 4, 1)]]
    cpu = (samples[-1].cpu_seconds - samples[0].cpu_seconds) * 1000 / max(requests, 1)
    theirs = drive.provider_cpu_seconds * 1000 / max(asked_of_providers, 1)
    reloads = [line for line in drive.log if line.get("event") == "reload"]
    return {
        "under_way_at_end": float(under_way(drive.status)),
        "descriptors_grown": float(max(drive.descriptors_grown, 0)),
        "rss_mb": max(each.rss_mb for each in samples),
        "rss_grown_mb": samples[-1].rss_mb - max(early),
        "cpu_ms": cpu,
        "cpu_ratio": cpu / max(theirs, 0.001),
        "health_p95_ms": percentile([each.health_ms for each in samples], 0.95),
        "bugs": float(sum(line.get("event") == "bug" for line in drive.log)),
        "bad_exits": float(sum(code != 0 for code in drive.exits)),
        "reloads": float(drive.reloads),
        "reloads_failed": float(sum(not line["ok"] for line in reloads)),
        "start_ms": drive.start_ms,
    }


def _of_cache(drive: Drive, scenario: Scenario) -> dict[str, float]:
    """What the cache gave, and what it took: by its own count, and by the memory of the process.

    The bound is what the process had besides, early in the same load, and all that the cache may hold. What grows
    beyond that are holes, copies and leaks: `cache_bound_percent` is the most memory that there ever was, by it.
    """
    rows = [row for row in drive.rows if not row.direct and row.left is None and row.outcome == "ok"]
    hits = [row.ms for row in rows if row.cache in CACHED]
    samples = [each for each in drive.samples if each.cache_mb is not None]
    if not samples:
        return {}
    most = tomllib.loads(scenario.config)["cache"]["max_bytes"] / MB
    full = max(each.cache_mb or 0.0 for each in samples)
    early = [
        each.rss_mb - (each.cache_mb or 0.0) for each in samples if each.at - drive.started < EARLY * scenario.seconds
    ]
    return {
        "missed_percent": 100 - _percent(len(hits), len(rows)),
        "hit_p50_ms": percentile(hits, 0.5),
        "hit_p95_ms": percentile(hits, 0.95),
        "asked_percent": _percent(len({line["key"] for line in drive.upstream} & {row.key for row in rows}), len(rows)),
        "cache_mb": full,
        "cache_full_percent": 100 * full / most,
        "cache_bound_percent": 100 * max(each.rss_mb for each in samples) / (percentile(early, 0.5) + most),
    }


def _of_store(status: dict[str, Any]) -> dict[str, float]:
    """What the sidecar tells of the store that limits share."""
    if not status:
        return {}
    return {
        "store_up_at_end": float(status["up"]),
        "store_answered": float(status["calls"]["answered"]),
        "store_local": float(status["local_decisions"]),
        "store_longest_ms": status["longest_wait_seconds"] * 1000,
    }


def reasons(drive: Drive) -> list[str]:
    """The commonest failures, in the words of whatever told them."""
    failed = Counter((row.kind, row.outcome, row.why) for row in drive.rows if row.outcome != "ok" and not row.direct)
    return [f"{count} x {kind}: {outcome} {why}" for (kind, outcome, why), count in failed.most_common(MOST_REASONS)]


def percentile(values: list[float], share: float) -> float:
    """Of all values; endless where there are none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.inf


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def thresholds(name: str, file: Path = THRESHOLDS) -> dict[str, Any]:
    """Of one scenario: those of all, and its own instead where it has some."""
    tables = tomllib.loads(file.read_text())
    return {**tables.get("all", {}), **tables.get(name, {})}


def verdict(found: dict[str, float], limits: dict[str, Any], *, users: float = 1.0, seconds: float = 1.0) -> list[Line]:
    """Each figure beside its threshold. `users`, `seconds`: shares of the scenario's own, where a run is smaller.

    A threshold for what was not measured is a breach: else a misspelt one would hold for ever.
    """
    lines = []
    for name, limit in limits.items():
        value = found.get(name, math.nan)
        if isinstance(limit, dict):
            share = min(users, 1.0) * (1.0 if name == "per_second" else min(seconds, 1.0))
            lines.append(Line(name, value, least=limit["least"] * share))
        else:
            lines.append(Line(name, value, most=limit))
    return lines + [Line(name, value) for name, value in found.items() if name not in limits]
