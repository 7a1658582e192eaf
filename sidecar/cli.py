"""The command line: which commands there are and what they take. What they do is in commands/, loaded when one runs."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

import sidecar

_INTERRUPTED: Final = 130  # 128 and the signal's number, as shells have it; `serve` and `demo`, once up, end with 0

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


class Parser(argparse.ArgumentParser):
    """Tells the option that was meant. Takes no abbreviations: a new option would change what they mean."""

    def __init__(self, command: str) -> None:
        about, example = COMMANDS[command]
        super().__init__(
            prog=f"sidecar {command}",
            description=about[:1].upper() + about[1:] + ".",
            epilog=f"example: {example}",
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"^unrecognized arguments: ([^\s=]*)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from ([^)]*)\)", message)
        if unknown and unknown[1].endswith(".toml"):
            message += f'; did you mean "--config {unknown[1]}"?'
        elif unknown:
            message += _nearest(unknown[1], self._option_string_actions)
        elif choice:
            message += _nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Answers the exit code: 0 ok, 1 failed, 2 usage or configuration."""
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # We are the process: until a command takes Ctrl-C itself, it just ends us. A KeyboardInterrupt may come up in
        # the middle of an import, and there becomes any other exception.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that cannot be shown must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough; the interpreter's own flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _open_standard_streams() -> None:
    """Those that were closed at the start lead nowhere: else a socket gets their number, and then the log."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w"))  # noqa: SIM115  # for as long as we live


def _run(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in ("-h", "--help", "help", "--version") or (first not in COMMANDS and first and first[0] != "-"):
        return _top(first)
    name = words.pop(0) if first in COMMANDS else "serve"
    parser = Parser(name)
    _ARGUMENTS[name](parser)
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = importlib.import_module(f"sidecar.commands.{name}").run
    return run(options)


def _top(word: str) -> int:
    """Help, the version, or a command that is none."""
    if word == "--version":
        sys.stdout.write(f"sidecar {sidecar.__version__}\n")
        return 0
    lines = ["usage: sidecar [COMMAND] [OPTIONS]", "", "commands:"]
    lines += [f"  {name:<10} {about}" for name, (about, _) in COMMANDS.items()]
    lines += ["", "`sidecar COMMAND --help` tells each one's options.", "example: sidecar demo", ""]
    if word in ("-h", "--help", "help"):
        sys.stdout.write("\n".join(lines))
        return 0
    meant = f'; did you mean "serve --config {word}"?' if word.endswith(".toml") else _nearest(word, COMMANDS)
    sys.stderr.write(f"sidecar: no command {word!r}{meant}\n\n")
    sys.stderr.write("\n".join(lines))
    return 2


def _nearest(word: str, words: Iterable[str]) -> str:
    return str(importlib.import_module("sidecar.config.faults").nearest(word, words))


# -- the options of each command


def _config_option(parser: Parser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="configuration; default: $SIDECAR_CONFIG, ./sidecar.toml, or the environment's provider keys",
    )


def _serve(parser: Parser) -> None:
    _config_option(parser)
    parser.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="host:port, unix:/path or fd:N, instead of [server] listen (may be repeated)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes, instead of [server] workers")


def _demo(parser: Parser) -> None:
    parser.add_argument("--once", action="store_true", help="exit after the answer, on a terminal too")


def _check(parser: Parser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="default: as `sidecar serve` finds it")
    parser.add_argument("--strict", action="store_true", help="warnings are faults")


def _config(parser: Parser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--schema", action="store_true", help="the JSON Schema of the file, for editors")
    which.add_argument(
        "--effective", action="store_true", help="the configuration in force, each value with its source; as TOML"
    )
    _serve(parser)


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
