"""Listening sockets: modes, stale files, whose file it is, inherited descriptors, and errors that name the address."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.config import Server as Settings
from sidecar.server.sockets import bind, bind_all, named, unbind

SETTINGS = Settings()


@pytest.mark.parametrize(
    ("address", "shown"), [("127.0.0.1:0", "127.0.0.1:"), ("[::1]:0", "[::1]:"), ("localhost:0", "127.0.0.1:")]
)
def test_tcp(address: str, shown: str) -> None:
    with bind(address, SETTINGS) as sock:
        assert named(sock) == f"{shown}{sock.getsockname()[1]}"


def test_a_port_can_be_had_again_at_once() -> None:
    with bind("127.0.0.1:0", SETTINGS) as sock:
        sock.listen()
        address = named(sock)
        with socket.create_connection(sock.getsockname()) as client, sock.accept()[0]:
            assert client.fileno() > 0
    bind(address, SETTINGS).close()


def test_a_port_in_use() -> None:
    with bind("127.0.0.1:0", SETTINGS) as sock:
        sock.listen()
        with pytest.raises(OSError, match=f"^.*cannot listen on {named(sock)}: address already in use$"):
            bind(named(sock), SETTINGS)


def test_a_port_can_be_shared_on_purpose() -> None:
    with bind("127.0.0.1:0", SETTINGS, reuse_port=True) as one, bind(named(one), SETTINGS, reuse_port=True) as other:
        one.listen()
        other.listen()
        assert named(one) == named(other)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("192.0.2.1:0", "cannot assign requested address"),
        ("unix:{place}/no/such/s", "no such file or directory"),
        ("unix:{place}/" + "x" * 200, "af_unix path too long"),
        ("unix:{place}", "a file that is no socket is there"),
        ("fd:9999", "bad file descriptor"),
    ],
)
def test_an_error_names_the_address(place: Path, address: str, words: str) -> None:
    address = address.format(place=place)
    with pytest.raises(OSError, match=f"cannot listen on {address.replace('[', '.')}: ({words})"):
        bind(address, SETTINGS)


def test_all_or_none(place: Path) -> None:
    with pytest.raises(OSError, match="no such file"):
        bind_all(Settings(listen=(f"unix:{place}/a", f"unix:{place}/no/b")))
    assert os.listdir(place) == []


# -- unix


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666])
def test_the_mode_is_right_before_anyone_can_connect(place: Path, mode: int) -> None:
    path = place / "s"
    mask = os.umask(0o022)
    try:
        with bind(f"unix:{path}", Settings(socket_mode=mode)) as sock:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
                client.connect(str(path))
            sock.listen()
            assert named(sock) == f"unix:{path}"
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


def test_a_stale_socket_is_replaced(place: Path) -> None:
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    sock = bind(f"unix:{path}", SETTINGS)
    unbind(sock)
    assert not path.exists()


def test_a_socket_in_use_is_left_alone(place: Path) -> None:
    path = place / "s"
    with closing(bind(f"unix:{path}", SETTINGS)) as sock:
        sock.listen()
        with pytest.raises(OSError, match="somebody does already"):
            bind(f"unix:{path}", SETTINGS)
        assert path.is_socket()


def test_a_socket_whose_backlog_is_full_is_in_use_and_nobody_waits(place: Path) -> None:
    path = place / "s"
    with closing(bind(f"unix:{path}", SETTINGS)) as sock:
        sock.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(OSError, match="somebody does already"):
            bind(f"unix:{path}", SETTINGS)
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling"])
def test_what_is_no_socket_is_left_alone(place: Path, kind: str) -> None:
    path, other = place / "s", place / "other"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            other.write_text("precious")
            path.symlink_to(other)
        case "dangling":
            path.symlink_to(other)
    with pytest.raises(OSError, match="a file that is no socket is there"):
        bind(f"unix:{path}", SETTINGS)
    assert path.is_symlink() or path.exists()


def test_another_ones_file_is_left_alone(place: Path) -> None:
    path = place / "s"
    sock = bind(f"unix:{path}", SETTINGS)
    path.unlink()
    other = bind(f"unix:{path}", SETTINGS)
    unbind(sock)
    assert path.is_socket()
    unbind(other)
    assert not path.exists()


def test_a_file_that_is_gone_already_is_nobodys_trouble(place: Path) -> None:
    sock = bind(f"unix:{place}/s", SETTINGS)
    (place / "s").unlink()
    unbind(sock)
    assert sock.fileno() == -1


def test_a_duplicate_does_not_remove_the_file(place: Path) -> None:
    path = place / "s"
    sock = bind(f"unix:{path}", SETTINGS)
    unbind(sock.dup())
    assert path.is_socket()
    unbind(sock)
    assert not path.exists()


# -- inherited


def test_an_inherited_socket_is_used_and_its_file_left(place: Path) -> None:
    path = place / "s"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        sock = bind(f"fd:{os.dup(theirs.fileno())}", SETTINGS)
        assert named(sock) == f"unix:{path}"
        unbind(sock)
        assert path.is_socket()


def test_an_inherited_socket_may_be_bound_only() -> None:
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        with bind(f"fd:{os.dup(theirs.fileno())}", SETTINGS) as sock:
            socket.create_connection(sock.getsockname()).close()


def test_what_cannot_listen_is_refused_and_stays_open(place: Path) -> None:
    one, other = socket.socketpair()
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with one, other, datagram, open(place / "file", "w", encoding="ascii") as file:
        for descriptor, words in ((one, "invalid argument"), (datagram, "not a stream socket"), (file, "non-socket")):
            with pytest.raises(OSError, match=f"cannot listen on fd:{descriptor.fileno()}: .*{words}"):
                bind(f"fd:{descriptor.fileno()}", SETTINGS)
            os.fstat(descriptor.fileno())
