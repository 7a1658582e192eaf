"""Where each microsecond goes: CPU time and bytecodes by step of the spine, and flame graphs, in one command.

CPU time is that of a sidecar which nobody watches; how it is shared out is seen in samples of another one beside it,
which has the same load in turn. Bytecodes are counted one by one in the micro-benchmark: they are exact, and say
nothing of what C functions and the kernel take.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvloop

from benchmarks import bench_stream, bench_unary, harness, micro
from benchmarks.flame import Frame, Stack, draw, fold, read_samples
from benchmarks.steps import ORDER, PACKAGE, step_of, unfound

RESULTS: Final = Path(__file__).parent / "results"
TRACED: Final = 20  # exchanges whose bytecodes are counted
ENOUGH: Final = 1000  # samples, to tell a share of a tenth to within a hundredth


def main() -> int:
    options = harness.options((__doc__ or "").partition("\n")[0])
    rounds, seconds, streams = (2, 2, 4) if options.quick else (6, 5, 10)
    bytecodes = uvloop.run(count_bytecodes())
    found = {
        "unary": sample(lambda port: _unary(port, seconds), rounds),
        "stream": sample(lambda port: _stream(port, streams), rounds),
    }
    rows = [row(step, found, bytecodes) for step in ORDER]
    rows.append({key: sum(each[key] for each in rows) if key != "step" else "all" for key in rows[0]})
    checks = {}
    for name, (cost, stacks) in found.items():
        title = f"{name}: {cost:.1f} us of CPU {'a request' if name == 'unary' else 'an event'}, by where they went"
        named = Counter({names(stack): 0 for stack in stacks})
        for stack, count in stacks.items():
            named[names(stack)] += count
        (RESULTS / f"flame-{name}.svg").write_text(draw(fold(named, "all"), title))
        total = stacks.total()
        checks[f"{name}: {total} samples, of {ENOUGH} that are needed"] = total >= ENOUGH
    checks["every row of benchmarks/steps.py is of code that is there"] = not unfound()
    about = (
        f"us: CPU time under load (64 connections; {bench_stream.STREAMS} streams), {rounds} rounds, shared out by"
        f" samples of the stack; bytecodes: of the sidecar's own code, counted one by one; {harness.METHOD}"
    )
    return harness.report("profile_spine", about, rows, checks, options.json)


def row(
    step: str, found: dict[str, tuple[float, Counter[Sample]]], bytecodes: dict[str, Counter[str]]
) -> dict[str, Any]:
    """What a step takes of a request and of an event."""
    columns: dict[str, Any] = {"step": step}
    for name, unit in (("unary", "request"), ("stream", "event")):
        cost, stacks = found[name]
        inside = sum(count for stack, count in stacks.items() if step_of(stack) == step)
        columns[f"us/{unit}"] = cost * inside / max(stacks.total(), 1)
        columns[f"bytecodes/{unit}"] = bytecodes[name][step]
    return columns


# -- samples ----------------------------------------------------------------------------------------------------------

Sample = tuple[Frame, ...]  # from the innermost call to the outermost


def sample(load: Callable[[int], int], rounds: int) -> tuple[float, Counter[Sample]]:
    """Microseconds of CPU time by what `load` counts, and the stacks of the same work. `load` takes a port."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-profile-"))
    file = folder / "samples"
    try:
        with harness.parts(["sidecar"]) as parts:
            port = harness.free_port()
            command, env = harness.command_of("sidecar", folder, port, parts["direct"].port)
            watched = [sys.executable, "-m", "benchmarks.launch", "--samples", str(file), *command[3:]]
            other = harness.Part("sidecar", watched, harness.cores()[0], port, env)
            try:
                costs: list[float] = []
                begin = 0
                for number in range(rounds + 1):
                    before = parts["sidecar"].cpu_seconds()
                    done = load(parts["sidecar"].port)
                    costs.append((parts["sidecar"].cpu_seconds() - before) / done * 1e6)
                    load(port)
                    if not number:  # the first round warms up
                        costs.clear()
                        begin = file.stat().st_size
                text = file.read_bytes()[begin:].decode(errors="replace")
            finally:
                other.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return statistics.median(costs), Counter(tuple(stack) for stack in read_samples(text))


def _unary(port: int, seconds: int) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(bench_unary.LUA.format(key=harness.KEY, body=harness.body(stream=False).decode()))
        script.flush()
        done, failed = bench_unary.load(port, script.name, seconds)
    if failed:
        raise RuntimeError(f"{failed} failed requests")
    return done


def _stream(port: int, times: int) -> int:
    bodies = bench_stream.load(port, bench_stream.STREAMS, times)
    if not all(body.endswith(b"data: [DONE]\n\n") for body in bodies):
        raise RuntimeError("a stream has not ended well")
    return sum(body.count(b"\n\n") for body in bodies)


def names(stack: Sample) -> Stack:
    """A stack as a flame graph has it: from the outermost call on, each by its file and function."""
    return tuple(f"{_short(file)} {function}" for file, _, function in reversed(stack))


def _short(file: str) -> str:
    path = Path(file)
    if PACKAGE in path.parents:
        return str(path.relative_to(PACKAGE))
    return "/".join(path.parts[-2:])


# -- bytecodes --------------------------------------------------------------------------------------------------------


async def count_bytecodes() -> dict[str, Counter[str]]:
    """Of a whole answer, and of an event of a stream, by step."""
    bench, cases = micro.Bench(), micro.cases()
    await bench.start()
    counts: dict[str, Counter[str]] = {}
    for name in ("unary", "stream"):
        case = cases[name]
        await bench.repeat(case, 20)
        await asyncio.sleep(0.01)
        tally: Counter[str] = Counter()
        sys.settrace(_tracer(tally))
        try:
            await bench.repeat(case, TRACED)
        finally:
            sys.settrace(None)
        each = TRACED * (len(case.pieces) if name == "stream" else 1)
        counts[name] = Counter({step: round(count / each) for step, count in tally.items()})
    bench.close()
    return counts


def _tracer(tally: Counter[str]) -> Any:
    """A trace function that counts the bytecodes of the sidecar by step."""
    root = str(PACKAGE)

    def opcode(frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            tally[step_of(_frames(frame))] += 1
        return opcode

    def call(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(root):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return opcode

    return call


def _frames(frame: FrameType | None) -> Iterator[Frame]:
    while frame is not None:
        line: int | None = frame.f_lineno  # None in what no line has made
        yield frame.f_code.co_filename, line or frame.f_code.co_firstlineno, frame.f_code.co_name
        frame = frame.f_back


if __name__ == "__main__":
    sys.exit(main())
