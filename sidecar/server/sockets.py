"""Sockets to listen on: TCP, unix, and inherited ones; what is made here is also removed here."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import stat
import struct
from typing import Final

from sidecar.config import Server as Settings
from sidecar.memory import bound, connections

BACKLOG: Final = 2048
_MOST_CONNECTIONS: Final = 4096
_FD_SHARE: Final = 0.45  # an exchange holds two descriptors, and something must be left


def most_connections(workers: int) -> int:
    """As many as one of some workers has descriptors for, and memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(_MOST_CONNECTIONS, connections(bound().bytes, workers))
    return min(most, int(soft * _FD_SHARE)) if soft != resource.RLIM_INFINITY else most


class UnixSocket(socket.socket):
    """A unix socket that knows the file it has made, so as to remove that one and no other's.

    A duplicate of it in a worker, and a socket inherited from somebody, know of none.
    """

    made: tuple[int, int] | None = None  # device and inode, which stay taken for as long as the socket is open


def bind(address: str, settings: Settings, *, reuse_port: bool = False) -> socket.socket:
    """A bound socket for `host:port`, `unix:/path` or `fd:N`. Raises OSError saying what is wrong with the address."""
    try:
        if address.startswith("fd:"):
            return _inherited(int(address.removeprefix("fd:")))
        if address.startswith("unix:"):
            return _bind_unix(address.removeprefix("unix:"), settings.socket_mode)
        return _bind_tcp(address, reuse_port=reuse_port)
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise OSError(error.errno, f"cannot listen on {address}: {words}") from None


def bind_all(settings: Settings, *, reuse_port: bool = False) -> list[socket.socket]:
    """All or none: a socket's file must not stay behind because another address could not be had."""
    sockets: list[socket.socket] = []
    try:
        sockets.extend(bind(each, settings, reuse_port=reuse_port) for each in settings.listen)
    except OSError:
        for sock in sockets:
            unbind(sock)
        raise
    return sockets


def unbind(sock: socket.socket) -> None:
    """Close a listening socket; the file that it made goes with it, unless another stands there by now."""
    if isinstance(sock, UnixSocket) and sock.made is not None:
        with contextlib.suppress(OSError):
            path = sock.getsockname()
            if _file(path) == sock.made:
                os.unlink(path)
    sock.close()


def named(sock: socket.socket) -> str:
    """Where it listens, with its real port: `127.0.0.1:4000`, `[::1]:4000`, `unix:/run/sidecar.sock`."""
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def address(name: object) -> tuple[str, int] | None:
    """Host and port of a TCP socket's name."""
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def credentials(sock: socket.socket) -> tuple[int, int, int] | None:
    """(pid, uid, gid) of the process at the other end of a unix socket."""
    if sock.family != socket.AF_UNIX:
        return None
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def _bind_tcp(address: str, *, reuse_port: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host or "0.0.0.0", int(port)))  # noqa: S104  # what ":4000" means; config.load demands callers for it
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, mode: int) -> socket.socket:
    """Its mode is right before anyone can connect, which is when it listens. A socket nobody answers on is removed."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
        if _answered(path):
            raise OSError(errno.EADDRINUSE, "somebody does already")
        os.unlink(path)
    sock = UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        os.chmod(path, mode)
        sock.made = _file(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def _answered(path: str) -> bool:
    """Whether somebody listens there. One whose backlog is full does, and would keep a probe that waits."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
    return True


def _inherited(number: int) -> socket.socket:
    sock = socket.socket(fileno=number)
    try:
        if sock.type != socket.SOCK_STREAM:
            raise OSError(errno.EPROTOTYPE, "not a stream socket")
        sock.listen(BACKLOG)  # tells a connected one apart; does no harm to one that listens already
    except OSError:
        sock.detach()  # not ours to close
        raise
    return sock


def _file(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
