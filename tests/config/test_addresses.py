"""Addresses: what they are, who reaches what listens there, and how a URL is shown."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar.config.addresses import address_problem, exposed, secretive, shown_url, url_problem


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:0", "localhost:65535", "[::1]:4000", ":4000", "0.0.0.0:1", "unix:/a", "unix:/" + "a" * 106, "fd:3"],
)
def test_addresses(address: str) -> None:
    assert address_problem(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "",
        "4000",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "::1:4000",
        "127.1:4000",
        "example.com:80",
        "127.0.0.1.example.com:80",
        "[::1]",
        "unix:",
        "unix:a",
        "unix:/a\0b",
        "unix:/" + "a" * 107,
        "unix:/" + "ä" * 54,
        "fd:",
        "fd:-1",
        "fd:x",
    ],
)
def test_what_is_none(address: str) -> None:
    assert address_problem(address) is not None


def test_an_inherited_socket_is_judged_by_what_it_is_bound_to(tmp_path: Path) -> None:
    with socket.socket() as inside, socket.socket() as outside, socket.socket(socket.AF_UNIX) as unix:
        inside.bind(("127.0.0.1", 0))
        outside.bind(("0.0.0.0", 0))
        unix.bind(f"{tmp_path}/s")
        (tmp_path / "s").chmod(0o666)
        assert exposed(f"fd:{inside.fileno()}", 0o660) is None
        assert "can be reached from other machines" in (exposed(f"fd:{outside.fileno()}", 0o660) or "")
        assert "anybody may use it" in (exposed(f"fd:{unix.fileno()}", 0o660) or "")
        (tmp_path / "s").chmod(0o660)
        assert exposed(f"fd:{unix.fileno()}", 0o666) is None
        os.unlink(tmp_path / "s")
        assert exposed(f"fd:{unix.fileno()}", 0o660) is None
    assert exposed("fd:999999", 0o660) is None  # binding will say that there is none


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/v1", "https://host/v1"),
        ("https://host/v1?api-version=2024-10-21", "https://host/v1?api-version=2024-10-21"),
        ("https://host/v1?key=k&api-version=1&b=", "https://host/v1?key=**********&api-version=1&b="),
        ("https://host/v1?k", "https://host/v1?**********"),
        ("http://u:k@host:1", "http://**********@host:1"),
        ("http://u:k/k@host:1", "http://**********@host:1"),
        ("http://u:k@k@host:1", "http://**********@host:1"),
        ("//u:k@host", "//**********@host"),
        ("u:k@host", "**********@host"),
        ("k\nk@host", "**********@host"),
    ],
)
def test_a_url_is_shown_without_what_may_be_a_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_an_at_sign_in_a_path_is_no_password() -> None:
    assert not secretive("https://host/v4/@cf/v1")
    assert secretive("http://u:k@host")
    assert secretive("http://host/?key=k")


@pytest.mark.parametrize("url", ["https://host:1", "http://host/?a=1", "unix:/run/proxy.sock", "host:3128"])
def test_a_proxy_is_plain_http(url: str) -> None:
    assert url_problem(url, proxy=True) is not None
    assert url_problem("http://user:word@host:3128", proxy=True) is None
