"""One scenario: a simulated provider and a sidecar are started, Locust drives them, thresholds judge what came.

    python -m loadtests.run smoke
    python -m loadtests.run flaky --users 20 --seconds 30 --html flaky.html --json flaky.json
    python -m loadtests.run steady --target http://127.0.0.1:4000 --model gpt-4o-mini   # LOAD_KEY has the caller's key

Exit code 0: all thresholds hold; 1: one does not, or the load could not be driven; 2: used wrongly, or no Locust.
"""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from loadtests import drive, judge, plots, report
from loadtests.scenario import NOT_FOR_ALL, Scenario, names, read

FEWEST_SECONDS = 5


def main() -> int:
    options = _options()
    if importlib.util.find_spec("locust") is None:
        print("locust is not installed: pip install '.[load]'")
        return 2
    wanted = [name for name in names() if name not in NOT_FOR_ALL] if options.scenario == "all" else [options.scenario]
    codes = [_one(name, options) for name in wanted]
    if len(wanted) > 1:
        bad = [name for name, code in zip(wanted, codes, strict=True) if code]
        print(f"{len(wanted) - len(bad)} of {len(wanted)} scenarios hold" + (f"; not: {' '.join(bad)}" if bad else ""))
    return max(codes)


def _one(name: str, options: argparse.Namespace) -> int:
    whole = read(name)
    scenario = resized(whole, options.users, options.seconds)
    limits = judge.thresholds(name, options.thresholds)
    print(f"{name}: {scenario.told()}", flush=True)
    try:
        if options.target is None:
            driven = drive.against_stage(scenario)
            found = judge.figures(scenario, driven)
        else:
            driven = _on_target(scenario, options)
            found = judge.of_clients(scenario, driven)
            limits = {key: limit for key, limit in limits.items() if key in found}
    except (RuntimeError, OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        print(f"{name}: could not be run: {error}")
        return 1
    shares = {"users": scenario.users / whole.users, "seconds": scenario.seconds / whole.seconds}
    result = report.result(name, scenario, judge.verdict(found, limits, **shares))
    plot = plots.of(driven, scenario.seconds)
    print("\n".join([report.table(result), *judge.reasons(driven)]), flush=True)
    if options.html:
        _beside(options, options.html, name).write_text(report.page(result, plot))
    if options.json:
        _beside(options, options.json, name).write_bytes(report.as_json(result))
    if options.keep:
        report.keep(result, plot)
    return 1 if result.breaches else 0


def resized(scenario: Scenario, users: int | None, seconds: int | None) -> Scenario:
    return msgspec.structs.replace(scenario, users=users or scenario.users, seconds=seconds or scenario.seconds)


def _beside(options: argparse.Namespace, path: str, name: str) -> Path:
    """Of `all`, each scenario has a file of its own."""
    file = Path(path)
    return file if options.scenario != "all" else file.with_stem(f"{file.stem}-{name}")


def _on_target(scenario: Scenario, options: argparse.Namespace) -> drive.Drive:
    with tempfile.TemporaryDirectory(prefix="sidecar-load-") as folder:
        key = os.environ.get("LOAD_KEY", "")
        keys = dict.fromkeys(("load", "quiet", "noisy"), key)
        plan = drive.plan(scenario, Path(folder) / "journal", keys=keys, model=options.model, simulated=False)
        return drive.against_target(scenario, options.target.rstrip("/"), plan)


def _options() -> argparse.Namespace:
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=[*names(), "all"])
    parser.add_argument("--users", type=int, help="instead of the scenario's own")
    parser.add_argument("--seconds", type=int, help="instead of the scenario's own")
    parser.add_argument("--html", metavar="FILE", help="write a report with plots")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--thresholds", metavar="FILE", type=Path, default=judge.THRESHOLDS, help="instead of ours")
    parser.add_argument("--keep", action="store_true", help="keep table and plot in loadtests/results and its README")
    parser.add_argument("--target", metavar="URL", help="what is there already, instead of parts of our own")
    parser.add_argument("--model", default="chat", help="to ask the target for (default: %(default)s)")
    parser.add_argument("--yes-load", metavar="HOST", help="confirms that this host may be put under load")
    options = parser.parse_args()
    if options.users is not None and options.users < 1:
        parser.error(f"--users {options.users}: takes 1 or more")
    if options.seconds is not None and options.seconds < FEWEST_SECONDS:
        parser.error(f"--seconds {options.seconds}: takes {FEWEST_SECONDS} or more")
    if options.target is not None and (problem := confirmed(options)):
        parser.error(problem)
    return options


def confirmed(options: argparse.Namespace) -> str:
    """Whether a target may be put under load; else why not."""
    parts = urlsplit(options.target)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        return f"--target {options.target}: takes http://host:port, without a path"
    if options.scenario == "all":
        return "--target: one scenario at a time"
    if loopback(parts.hostname):
        return ""
    scenario = resized(read(options.scenario), options.users, options.seconds)
    print(
        f"""
!!! {parts.hostname} IS NOT THIS MACHINE !!!
{scenario.users} users would ask it as fast as they can for {scenario.seconds} s, and leave connections in the middle.
If a real provider is behind it, EVERY REQUEST COSTS MONEY. If it is not yours, this is an attack.
""",
        flush=True,
    )
    given = options.yes_load
    if given is None and _interactive():
        given = input(f"type {parts.hostname} to go on: ").strip()
    return "" if given == parts.hostname else f"not confirmed: --yes-load {parts.hostname} says that it may be done"


def _interactive() -> bool:
    return sys.stdin.isatty()


def loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
