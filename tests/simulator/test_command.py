from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.simulator import Settings, add_arguments, run, settings_from


def parsed(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from(parser.parse_args(words))


def test_without_options_it_is_the_default_on_its_port() -> None:
    assert parsed() == Settings(port=4999)


def test_each_option_reaches_the_settings() -> None:
    words = (
        "--host 127.0.0.2 --port 0 --unix /tmp/x.sock --key a --key b --model m --latency-ms 200:400:900 --tokens 9"
        " --rate 50 --fault cut_after:3=0.25 --fault 500 --fault refuse=0 --flavour xai --seed 4 --bench"
    )
    assert parsed(*words.split()) == Settings(
        host="127.0.0.2",
        port=0,
        unix="/tmp/x.sock",
        keys=("a", "b"),
        models=("m",),
        latency_ms=(200, 400, 900),
        tokens=9,
        tokens_per_second=50,
        faults={"cut_after:3": 0.25, "500": 1.0, "refuse": 0.0},
        flavour="xai",
        seed=4,
        bench=True,
    )
    assert parsed("--latency-ms", "80").latency_ms == (80, 80, 80)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--fault tornado", "--fault 'tornado': no such fault; they are 400"),
        ("--fault cut_after:x=1", "--fault 'cut_after:x': what stands behind the colon is not a number"),
        ("--fault 500=often", "--fault 500=often: the probability is not a number from 0 to 1"),
        ("--fault 500=1.5", "the probability is not a number from 0 to 1"),
        ("--fault 500=nan", "the probability is not a number from 0 to 1"),
        ("--fault 500=", "the probability is not a number from 0 to 1"),
        ("--latency-ms soon", "--latency-ms soon: takes numbers, as 200 or 200:400:900"),
        ("--latency-ms 1:2", "--latency-ms 1:2: takes one number, or three"),
        ("--latency-ms 3:2:1", "--latency-ms 3:2:1: takes one number, or three"),
        ("--latency-ms inf", "--latency-ms inf: takes one number"),
        ("--latency-ms -1", "--latency-ms -1: takes one number"),
        ("--tokens -1", "--tokens -1: takes 0 to 1000000"),
        ("--rate -1", "--rate -1.0: takes tokens a second"),
        ("--rate nan", "--rate nan: takes tokens a second"),
        ("--port 70000", "--port 70000: takes 0 to 65535"),
    ],
)
def test_a_wrong_option_is_told(words: str, message: str) -> None:
    name, value = words.split()
    with pytest.raises(ValueError, match=re.escape(message)):
        parsed(f"{name}={value}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "sidecar", "simulate", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(rb"simulated provider at http://127\.0\.0\.1:(\d+)/v1\n", line)
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1])), 5) as client:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")
        with socket.create_connection(("127.0.0.1", int(found[1])), 5):
            process.send_signal(number)
            assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=r"address already in use|Errno 98"):
            run(Settings(port=taken.getsockname()[1]))


def test_a_wrong_option_on_the_command_line_ends_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sidecar", "simulate", "--fault", "tornado"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 2
    assert "'tornado': no such fault" in done.stderr
