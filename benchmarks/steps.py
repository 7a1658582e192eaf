"""Which step of the spine a line of code works for, so that what is counted line by line can be told by step.

The innermost frame that a row is of decides: what is used everywhere (clocks, headers, JSON) counts for who used it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.flame import Frame
from sidecar.exchange.spine import STEPS

PACKAGE: Final = Path(__file__).parents[1] / "sidecar"
LOOP: Final = "loop"  # no step: reading sockets, waiting, timers, and the mock of the micro-benchmark
ORDER: Final = (*STEPS, LOOP)


class Row(NamedTuple):
    """Of a file; of one function of it; of that one's lines from the first with a text on, until the next row's."""

    file: str
    step: str
    function: str = ""
    text: str = ""


ROWS: Final = (
    Row("server", "accept"),
    Row("server/run.py", LOOP),
    Row("app.py", "accept"),
    Row("server/cycle.py", "read", "body"),
    Row("server/cycle.py", "read", "read"),
    *(
        Row("server/cycle.py", "relay", name)
        for name in ("answer", "finish_with", "begin_with", "end", "write", "_send_body", "_write_head")
    ),
    Row("server/sending.py", "relay"),
    Row("exchange/lane.py", "accept", "take"),
    Row("exchange/lane.py", "decode", "_enter"),
    Row("exchange/lane.py", "route", "_enter", "lead = "),
    Row("exchange/lane.py", "translate", "_enter", "sent = "),
    Row("exchange/lane.py", "admit provider", "_enter", "started, place"),
    Row("exchange/lane.py", "send", "_enter", "connection = "),
    Row("exchange/lane.py", "admit caller", "_enter", "_admit("),
    Row("exchange/lane.py", "translate", "_enter", "written, limits"),
    Row("exchange/lane.py", "send", "_enter", "connection.ask"),
    Row("exchange/lane.py", "accept", "_enter", "turn, size"),
    Row("exchange/lane.py", "admit caller", "_admit"),
    Row("exchange/lane.py", "admit provider", "_admit", "provider.enter"),
    Row("exchange/lane.py", "route", "_lead"),
    Row("exchange/lane.py", "hold", "wake"),
    Row("exchange/lane.py", "relay", "_deliver"),
    Row("exchange/lane.py", "relay", "begin_stream"),
    Row("exchange/lane.py", "send", "account", "connection.finish"),
    Row("exchange/lane.py", "account", "account", "in_flight"),
    Row("exchange/lane.py", "hold", "leave"),
    Row("exchange/flow.py", "hold"),
    *(Row("exchange/flow.py", "relay", name) for name in ("_relay", "_pass", "_over")),
    Row("exchange/spine.py", "accept", "run"),
    Row("exchange/spine.py", "account", "_finish"),
    Row("exchange/spine.py", "identify", "_steps", "asking"),
    Row("exchange/spine.py", "read", "_steps", "data = "),
    Row("exchange/spine.py", "decode", "_steps", "body.envelope"),
    Row("exchange/spine.py", "route", "_steps", "plan = "),
    Row("exchange/spine.py", "admit caller", "_steps", "decision = "),
    Row("exchange/spine.py", "route", "_plan"),
    Row("exchange/spine.py", "relay", "_answer"),
    Row("exchange/spine.py", "relay", "_proceed"),
    Row("exchange/spine.py", "account", "_account"),
    *(Row(file, "cache") for file in ("cache", "exchange/cached.py", "exchange/hits.py", "exchange/misses.py")),
    Row("exchange/spine.py", "respond", "_respond"),
    Row("routing.py", "route"),
    Row("request.py", "identify"),
    Row("request.py", "translate", "translate"),
    Row("exchange/tries.py", "admit provider"),
    Row("exchange/attempt.py", "hold"),
    Row("exchange/attempt.py", "admit provider", "begin"),
    Row("exchange/attempt.py", "admit provider", "conclude"),
    Row("exchange/attempt.py", "translate", "conclude", "outbound, "),
    Row("exchange/attempt.py", "send", "conclude", "inbound = "),
    Row("exchange/attempt.py", "hold", "conclude", "inbound.status"),
    Row("exchange/attempt.py", "admit provider", "conclude", "finally"),
    Row("exchange/attempt.py", "translate", "_outbound"),
    Row("exchange/attempt.py", "admit caller", "admit"),
    Row("exchange/state.py", "admit provider"),
    Row("exchange/verdict.py", "admit provider"),
    Row("pool", "send"),
    Row("exchange/deliver.py", "relay"),
    Row("relay.py", "relay"),
    Row("answer.py", "relay"),
    Row("ledger.py", "account"),
    Row("log.py", "account"),
)


def step_of(stack: Iterable[Frame]) -> str:
    """The step that a stack, from the innermost frame to the outermost, is in."""
    for file, line, function in stack:
        if (step := _step(file, line, function)) is not None:
            return step
    return LOOP


def unfound() -> list[Row]:
    """Rows of what is not in the code any more."""
    return [row for row in ROWS if not _there(row)]


def _there(row: Row) -> bool:
    if not row.function:
        return (PACKAGE / row.file).exists()
    return bool(_from(row)) if row.text else bool(_spans(row.file).get(row.function))


@cache
def _step(path: str, line: int, function: str) -> str | None:
    if PACKAGE not in Path(path).parents:
        return None
    file = str(Path(path).relative_to(PACKAGE))
    for row in _texts(file, function):
        if line >= _from(row):
            return row.step
    rows = [row for row in ROWS if row.file == file and not row.text]
    rows += [row for row in ROWS if row.file == file.partition("/")[0] and not row.function]
    ranked = [row.step for row in rows if row.function == function] + [row.step for row in rows if not row.function]
    return ranked[0] if ranked else None


@cache
def _texts(file: str, function: str) -> list[Row]:
    """The rows of a function's parts that are there, the last part first."""
    rows = [row for row in ROWS if row.file == file and row.function == function and row.text and _from(row)]
    return sorted(rows, key=_from, reverse=True)


@cache
def _from(row: Row) -> int:
    """The number of the first line with the text; 0 where there is none."""
    lines = _lines(row.file)
    spans = _spans(row.file).get(row.function, [])
    found = [number for first, last in spans for number in range(first, last + 1) if row.text in lines[number - 1]]
    return min(found, default=0)


@cache
def _lines(file: str) -> list[str]:
    return (PACKAGE / file).read_text().splitlines()


@cache
def _spans(file: str) -> dict[str, list[tuple[int, int]]]:
    """The first and last line of each function, by its name."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for node in ast.walk(ast.parse("\n".join(_lines(file)))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            spans.setdefault(node.name, []).append((node.lineno, node.end_lineno or node.lineno))
    return spans
