"""`sidecar simulate`: exit codes; what it serves is tested where the simulator is."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import pytest

from sidecar.cli import main
from tests.commands.process import started


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    with started("simulate", "--port", "0", folder=tmp_path) as process:
        base_url = process.line("simulated provider at ").split()[-1]
        ask = {"model": "sim-large", "messages": [{"role": "user", "content": "hello"}]}
        answer = httpx.post(f"{base_url}/chat/completions", json=ask, headers={"authorization": "Bearer k"})
        assert answer.status_code == 200
        assert process.end(signal.SIGINT) == 0
    assert "Traceback" not in "".join(process.told)


def test_an_option_that_is_wrong_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--fault", "tornado"]) == 2
    assert capsys.readouterr().err.startswith("sidecar: --fault 'tornado': no such fault")


def test_an_address_that_cannot_be_had_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["simulate", "--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err.startswith("sidecar: cannot listen: ")
