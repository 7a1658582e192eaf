"""What is known of exchanges: metrics as Prometheus reads them, lines of JSON, and no label that a stranger made."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.clock import now, wall
from sidecar.ledger import Ledger
from sidecar.types import Record


def record(**known: Any) -> Record:
    usual: dict[str, Any] = {
        "request_id": "req_1",
        "endpoint": "/v1/chat/completions",
        "caller": "web",
        "asked_model": "fast",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "status": 200,
        "attempts": 1,
        "time": now(),
        "seconds": 0.2,
        "first_byte_seconds": 0.02,
        "overhead_us": 150,
        "bytes_in": 10,
        "bytes_out": 20,
        "input_tokens": 7,
        "output_tokens": 3,
        "cached_tokens": 2,
        "reasoning_tokens": 1,
    }
    return Record(**{**usual, **known})


def samples(ledger: Ledger) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels -> value, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(ledger.metrics().decode()):
        assert family.documentation
        assert family.type in ("counter", "histogram")
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def total(ledger: Ledger, name: str, **labels: str) -> float:
    return sum(
        value for (each, has), value in samples(ledger).items() if each == name and labels.items() <= dict(has).items()
    )


def test_what_was_counted_is_in_the_metrics() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.record(record())
    ledger.record(record(status=429, error="provider_rate_limited", input_tokens=None, first_byte_seconds=None))
    by = {"endpoint": "/v1/chat/completions", "provider": "openai", "model": "gpt-4o-mini"}
    assert total(ledger, "sidecar_requests_total", status="200", error="", **by) == 2
    assert total(ledger, "sidecar_requests_total", status="429", error="provider_rate_limited", **by) == 1
    assert total(ledger, "sidecar_input_tokens_total", **by) == 14
    assert total(ledger, "sidecar_output_tokens_total", **by) == 6
    assert total(ledger, "sidecar_cached_input_tokens_total", **by) == 4
    assert total(ledger, "sidecar_reasoning_output_tokens_total", **by) == 2
    assert total(ledger, "sidecar_bytes_in_total", **by) == 30
    assert total(ledger, "sidecar_bytes_out_total", **by) == 60
    assert total(ledger, "sidecar_request_seconds_count", **by) == 3
    assert total(ledger, "sidecar_request_seconds_sum", **by) == pytest.approx(0.6)
    assert total(ledger, "sidecar_first_byte_seconds_count", **by) == 2
    assert total(ledger, "sidecar_overhead_microseconds_sum", **by) == 300


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_own() -> None:
    ledger = Ledger()
    for seconds in (0.005, 0.3, 0.5, 700.0):
        ledger.record(record(seconds=seconds))

    def upto(bound: str) -> float:
        return total(ledger, "sidecar_request_seconds_bucket", le=bound)

    assert (upto("0.005"), upto("0.25"), upto("0.5"), upto("600.0"), upto("+Inf")) == (1, 1, 3, 3, 4)


def test_names_are_escaped_as_prometheus_asks() -> None:
    ledger = Ledger()
    ledger.record(record(model='a"b\\c\nd'))
    assert total(ledger, "sidecar_requests_total", model='a"b\\c\nd') == 1


def test_strangers_make_no_series() -> None:
    """D31: names that nobody configured reach no provider, and so are one series."""
    ledger = Ledger()
    for number in range(5000):
        name = f"model-{number}"
        ledger.record(record(asked_model=name, model=name, provider="", status=404, error="caller_model_unknown"))
    assert total(ledger, "sidecar_requests_total", model="other") == 5000
    assert len([name for name, _ in samples(ledger) if name == "sidecar_requests_total"]) == 1


def test_series_are_bounded_whatever_is_configured() -> None:
    ledger = Ledger()
    for number in range(5000):
        ledger.record(record(model=f"model-{number}"))
    counts = [line for line in ledger.metrics().splitlines() if line.startswith(b"sidecar_requests_total{")]
    assert len(counts) <= 2001
    assert sum(int(line.rpartition(b" ")[2]) for line in counts) == 5000


def test_a_line_is_json_with_what_is_known_and_no_more() -> None:
    ledger = Ledger()
    ledger.record(record())
    (line,) = ledger.drain().splitlines()
    found = orjson.loads(line)
    assert abs(datetime.fromisoformat(found.pop("time")).timestamp() - wall()) < 1
    assert found == {
        "event": "exchange",
        "id": "req_1",
        "endpoint": "/v1/chat/completions",
        "caller": "web",
        "asked_model": "fast",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "status": 200,
        "error": "",
        "attempts": 1,
        "stream": False,
        "seconds": 0.2,
        "first_byte_seconds": 0.02,
        "overhead_us": 150,
        "bytes_in": 10,
        "bytes_out": 20,
        "input_tokens": 7,
        "output_tokens": 3,
        "cached_tokens": 2,
        "reasoning_tokens": 1,
        "continued": 0,
        "cache": "off",
        "saved_input_tokens": None,
        "saved_output_tokens": None,
    }
    assert ledger.drain() == b""


def test_a_line_is_one_line_and_bounded_whatever_was_asked_for() -> None:
    ledger = Ledger()
    ledger.record(record(asked_model="a\nb\u2028" + "x" * 100_000, provider="", model=""))
    (line,) = ledger.drain().splitlines()
    assert len(line) < 1000
    assert orjson.loads(line)["asked_model"].startswith("a\nb")


def test_the_queue_is_bounded_and_what_was_dropped_is_counted() -> None:
    ledger = Ledger()
    for number in range(10_005):
        ledger.note({"event": "peer", "number": number})
    first = ledger.drain(1)
    assert first.count(b"\n") == 1
    lines = (first + ledger.drain()).splitlines()
    assert (len(lines), ledger.dropped) == (10_000, 5)
    assert [orjson.loads(lines[at])["number"] for at in (0, -1)] == [0, 9999]
    assert total(ledger, "sidecar_log_lines_dropped_total") == 5
    ledger.note({"event": "peer"})
    assert ledger.drain().count(b"\n") == 1


def test_numbers_for_people() -> None:
    ledger = Ledger()
    ledger.record(record())
    assert ledger.stats() == {
        "total": 1,
        "input_tokens": 7,
        "output_tokens": 3,
        "saved_input_tokens": 0,
        "saved_output_tokens": 0,
        "log_lines_dropped": 0,
    }


def test_tokens_out_of_the_cache_are_saved_and_not_spent() -> None:
    ledger = Ledger()
    ledger.record(record())
    nothing = {"input_tokens": None, "output_tokens": None, "cached_tokens": None, "reasoning_tokens": None}
    for cached in (5, None, 6):
        ledger.record(record(**nothing, cache="hit", saved_input_tokens=cached, saved_output_tokens=cached))
    told = ledger.stats()
    assert (told["input_tokens"], told["output_tokens"]) == (7, 3)
    assert (told["saved_input_tokens"], told["saved_output_tokens"]) == (11, 11)
    text = ledger.metrics().decode()
    labels = 'endpoint="/v1/chat/completions",provider="openai",model="gpt-4o-mini"'
    assert f"sidecar_input_tokens_total{{{labels}}} 7\n" in text
    assert f"sidecar_saved_input_tokens_total{{{labels}}} 11\n" in text
    assert f"sidecar_saved_output_tokens_total{{{labels}}} 11\n" in text
