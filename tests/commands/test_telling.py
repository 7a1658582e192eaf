"""Flags over the configuration are held to what the file would be."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from sidecar.commands.telling import fail, flagged, flags, warn
from sidecar.config import Caller, Config, Fault, Key, Server

CALLERS = {"web": Caller(key=Key(source="inline", digest=b"d"))}


def test_only_given_flags_change_anything() -> None:
    assert flags(Namespace(listen=None, workers=None)) == {}
    assert flags(Namespace(listen=["127.0.0.1:1"], workers=0)) == {"listen": ("127.0.0.1:1",), "workers": 0}
    config, problems = flagged(Config(), {"listen": ("127.0.0.1:1", "unix:/a"), "workers": 3})
    assert (config.server, problems) == (Server(listen=("127.0.0.1:1", "unix:/a"), workers=3), [])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"listen": ("4000",)}, "'4000' is not an address: host:port, unix:/path or fd:N"),
        ({"listen": ("0.0.0.0:1",)}, "0.0.0.0:1 can be reached from other machines, and no [callers] are configured"),
        ({"workers": 0}, "--workers takes a number from 1 to 256"),
        ({"workers": 257}, "--workers takes a number from 1 to 256"),
    ],
)
def test_flags_are_bounded_too(changes: dict[str, Any], problem: str) -> None:
    (told,) = flagged(Config(), changes)[1]
    assert told.startswith(problem)


def test_with_callers_others_may_reach_it() -> None:
    assert flagged(Config(callers=CALLERS), {"listen": ("0.0.0.0:1",)})[1] == []


def test_what_is_told_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn([Fault(file="f", message="is odd")])
    assert fail("it failed", 1) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: f: is odd\nsidecar: it failed\n")
