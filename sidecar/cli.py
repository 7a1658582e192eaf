"""The command line: which commands there are and what they take. What they do is in commands.py, loaded when one runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

import sidecar

Parser = argparse.ArgumentParser

COMMANDS: Final = {
    "serve": (
        "serve requests (what `sidecar` alone does)",
        "sidecar serve --config sidecar.toml --listen 127.0.0.1:4000",
    ),
    "demo": ("one streamed chat completion, with no key and no network", "sidecar demo --once"),
    "check": ("validate a configuration file: every fault at once", "sidecar check sidecar.toml --strict"),
    "config": ("the JSON Schema of the file, or the configuration in force", "sidecar config --effective"),
    "explain": ("the plan that a model name gets", "sidecar explain openai/gpt-4o-mini"),
    "simulate": ("the simulated provider alone", "sidecar simulate --port 4999 --rate 50 --fault 429=0.1"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Answers the exit code: 0 ok, 1 failed, 2 usage or configuration."""
    words = list(sys.argv[1:] if argv is None else argv)
    if (
        (words
        and words[0] in ("-h", "--help", "--version"))
        or (words and words[0] not in COMMANDS and not _is_option(words[0]))
    ):
        return _top(words)
    name = words.pop(0) if words and words[0] in COMMANDS else "serve"
    parser = _parser(name)
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module("sidecar.commands"), name)
    return run(options)


def _is_option(word: str) -> bool:
    return word.startswith("-")


def _top(words: list[str]) -> int:
    """Help, the version, or a command that is none."""
    if words[0] == "--version":
        sys.stdout.write(f"sidecar {sidecar.__version__}\n")
        return 0
    lines = ["usage: sidecar [COMMAND] [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<10} {about}" for name, (about, _) in COMMANDS.items()]
    lines += ["", "`sidecar COMMAND --help` tells each one's options.", "example: sidecar demo", ""]
    if words[0] in ("-h", "--help"):
        sys.stdout.write("\n".join(lines))
        return 0
    faults = importlib.import_module("sidecar.config.faults")
    sys.stderr.write(f"sidecar: no command {words[0]!r}{faults.nearest(words[0], COMMANDS)}\n")
    sys.stderr.write("\n".join(lines))
    return 2


def _parser(name: str) -> Parser:
    about, example = COMMANDS[name]
    parser = Parser(
        prog=f"sidecar {name}", description=about[:1].upper() + about[1:] + ".", epilog=f"example: {example}"
    )
    _ARGUMENTS[name](parser)
    return parser


def _serve(parser: Parser) -> None:
    _config_option(parser)
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="host:port, unix:/path or fd:N, instead of [server] listen (may be repeated)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes, instead of [server] workers")


def _config_option(parser: Parser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration; default: $SIDECAR_CONFIG, ./sidecar.toml, or the environment's provider keys",
    )


def _demo(parser: Parser) -> None:
    parser.add_argument("--once", action="store_true", help="exit after the answer, on a terminal too")


def _check(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: as `sidecar serve` finds it")
    parser.add_argument("--strict", action="store_true", help="warnings are faults")


def _config(parser: Parser) -> None:
    _config_option(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--schema", action="store_true", help="the JSON Schema of the file, for editors")
    which.add_argument(
        "--effective", action="store_true", help="the configuration in force, each value with its source"
    )


def _explain(parser: Parser) -> None:
    _config_option(parser)
    parser.add_argument("model", metavar="MODEL", help="provider/model, a name of [models], or a known bare name")
    parser.add_argument(
        "--dialect",
        default="chat",
        choices=("chat", "completions", "embeddings", "messages", "count_tokens"),
        help="of the client that asks (default: %(default)s)",
    )


def _simulate(parser: Parser) -> None:
    importlib.import_module("sidecar.simulator").add_arguments(parser)


_ARGUMENTS: Final[dict[str, Callable[[Parser], None]]] = {
    "serve": _serve,
    "demo": _demo,
    "check": _check,
    "config": _config,
    "explain": _explain,
    "simulate": _simulate,
}
