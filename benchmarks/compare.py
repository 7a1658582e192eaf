"""The sidecar against other proxies: each in an environment of its own, in front of the same provider, in one run.

A rival runs on one core, provider and load on the other; rivals are measured in turn, round by round, while the others
are held still (SIGSTOP). Every answer is judged by what it says. What cannot be had, or fails, is in the table as such.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks import answers, harness, rivals, table
from benchmarks.rivals import Rival, Unavailable
from benchmarks.rounds import EVENTS, FULL, QUICK, Run, Runner, Size, ask, measure
from benchmarks.table import Found


def main() -> int:
    asked = _options()
    size = QUICK if asked.quick else FULL
    chosen = [rival for rival in rivals.RIVALS if not asked.only or rival.name in asked.only.split(",")]
    found = {
        rival.name: Found(name=rival.name, version=rivals.version(rival), about=rival.about)
        for rival in (rivals.DIRECT, *chosen)
    }
    homes = install(chosen, found, asked.envs)
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sidecar-compare-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        direct = stack.enter_context(_direct(folder, found["direct"]))
        run = Run(size, direct.part.port, *_wanted(direct))
        runners = [direct]
        for rival in chosen:
            if rival.name in homes:
                runners += stack.enter_context(_started(rival, homes[rival.name], folder, found[rival.name], run))
        measure(runners, run)
        for runner in runners:
            runner.found.loaded_mb = runner.part.rss_mb()
    told = _told(size, time.perf_counter() - began)
    name = "compare-part" if asked.only else "compare"  # the README is made from a run of all
    for panel, text in table.plots(found).items():
        (Path(__file__).parent / "results" / f"{name}-{panel}.svg").write_text(text)
    more = {"proxies": msgspec.to_builtins(list(found.values()))}
    return harness.report(name, told, table.rows(found), table.checks(found), asked.json, more=more)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", metavar="NAME,NAME", help=", ".join(rival.name for rival in rivals.RIVALS))
    parser.add_argument("--envs", type=Path, default=rivals.ENVS, help="where rivals are installed (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the result there too")
    asked = parser.parse_args()
    names = {rival.name for rival in rivals.RIVALS}
    if harness.binary("wrk") is None:
        parser.error("wrk is not installed (Debian package wrk)")
    if asked.only and (unknown := set(asked.only.split(",")) - names):
        parser.error(f"--only: no such rivals: {', '.join(sorted(unknown))}")
    return asked


def _told(size: Size, seconds: float) -> str:
    return (
        f"Medians of {size.rounds['unary']} rounds ({size.rounds['stream']} of latencies and streams), in turn, in one"
        f" run of {seconds / 60:.1f} minutes; each proxy on one core, the simulated provider and the load on another;"
        " CPU of the whole process tree; every answer judged. Unary: wrk, 64 connections, 2 KB asked, 1 KB answered."
        " Latencies:"
        " open loop at a constant rate, from the moment a request was due, less what is measured without a proxy in the"
        f" same round. Streams: {EVENTS} events 5 ms apart. Slow proxies get lower rates, fewer streams, longer rounds."
    )


def install(chosen: list[Rival], found: dict[str, Found], envs: Path) -> dict[str, Path]:
    """Where each is installed; the others get a note."""
    homes = {}
    for rival in chosen:
        try:
            homes[rival.name] = rivals.install(rival, envs)
            print(f"{rival.name} {found[rival.name].version}", flush=True)
        except Unavailable as error:
            found[rival.name].note = str(error)
            print(f"{rival.name}: not available: {error}", flush=True)
    return homes


@contextlib.contextmanager
def _direct(folder: Path, found: Found) -> Iterator[Runner]:
    port = harness.free_port()
    command = [sys.executable, "-m", "sidecar", "simulate", "--bench", "--port", str(port)]
    place = folder / "direct"
    place.mkdir()
    part = harness.Part("direct", command, harness.cores()[1], port, folder=place)
    try:
        yield Runner(rivals.DIRECT, part, place, found, {})
    finally:
        part.stop()


@contextlib.contextmanager
def _started(rival: Rival, home: Path, folder: Path, found: Found, run: Run) -> Iterator[list[Runner]]:
    """Started as often as is measured; the last one is held still until its turn. None where it does not start."""
    place = folder / rival.name
    place.mkdir()
    runner = None
    try:
        for number in range(run.size.starts):
            if runner is not None:
                runner.part.stop()
            where = rivals.Place(place, home, harness.free_port(), run.upstream)
            part = rivals.start(rival, where, harness.cores()[0])
            runner = Runner(rival, part, place, found, {})
            with harness.on_load_core():
                _first_answer(runner, run)
            if number or run.size.starts == 1:  # the first one brings it from the disk
                found.start_seconds.append(time.perf_counter() - part.began)
        assert runner is not None
        time.sleep(1)
        found.idle_mb = runner.part.rss_mb()
        runner.part.send(signal.SIGSTOP)
        print(f"{rival.name}: started in {found.start_seconds[-1]:.2f} s", flush=True)
    except Unavailable as error:
        found.note = str(error)
        print(f"{rival.name}: not available: {error}", flush=True)
        if runner is not None:
            runner.part.stop()
        runner = None
    try:
        yield [] if runner is None else [runner]
    finally:
        if runner is not None:
            runner.part.stop()


def _first_answer(runner: Runner, run: Run) -> None:
    """Until it answers rightly. Raises Unavailable when it does not."""
    said = None
    while time.perf_counter() - runner.part.began < rivals.START_SECONDS:
        said = ask(runner, run.upstream)
        if answers.whole(said) == run.whole:
            return
        time.sleep(0.01)
    runner.part.stop()
    raise Unavailable(f"gives no right answer: {said!r:.200}")


def _wanted(direct: Runner) -> tuple[answers.Said, answers.Said]:
    """What the provider says."""
    whole = answers.whole(ask(direct, direct.part.port))
    streamed = answers.stream(ask(direct, direct.part.port, stream=True))
    if whole is None or streamed is None:
        raise RuntimeError("the simulated provider gives no answer")
    return whole, streamed


if __name__ == "__main__":
    sys.exit(main())
