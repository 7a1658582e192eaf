"""Keys by reference, and the permissions of the files they are in."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from sidecar.config.stores import Place, place
from sidecar.config.structs import Key
from sidecar.secret import Secret

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_TEXT: Final = re.compile(r"[!-~]+")  # what may stand in a header's value, without spaces
_MOST_BYTES: Final = 64 * 1024

Tell = Callable[[str], None]
Stamp = tuple[int, int, int, int]


class Source:
    """What keys are read from: the environment, and files beside the configuration."""

    def __init__(self, env: Mapping[str, str], file: Path, *, mode: int) -> None:
        self.env = env
        self.file = file  # relative key files are relative to its folder
        self.mode = mode  # its permissions
        self.files: dict[str, Stamp | None] = {}  # which were read, and what they were; None: they could not be

    def read(self, path: Path, most: int, *, pipes: bool = False) -> tuple[bytes, int]:
        """The first bytes of a file and its mode, remembering which file it was. Raises OSError."""
        self.files[str(path)] = None
        data, found = read_file(path, most, pipes=pipes)
        if stat.S_ISREG(found.st_mode):
            self.files[str(path)] = _stamp(found)
        else:  # a pipe is read once
            del self.files[str(path)]
        return data, found.st_mode

    def public(self) -> str | None:
        """Why no secret may stand in the configuration itself: others may read it."""
        if self.mode & 0o044:
            mode = f"{self.mode & 0o777:04o}"
            return f"{self.file} has mode {mode}, so others may read what is in it: chmod 600 {self.file}"
        return None


def read_key(text: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    """A key from what the file says of it. Tells of what is wrong, by `fault` (refused) or `warn`."""
    kind, colon, rest = text.partition(":")
    if kind == "env" and colon:
        return _from_variable(rest, source, of_caller=of_caller, fault=fault, warn=warn)
    if kind == "file" and colon:
        return _from_file(rest, source, of_caller=of_caller, fault=fault, warn=warn)
    if kind == "sha256" and colon and of_caller:
        if not _DIGEST.fullmatch(rest):
            fault("sha256: takes the 64 hexadecimal digits of the key's SHA-256")
            return None
        return Key(source=text.lower(), digest=bytes.fromhex(rest))
    if text == "caller" and not of_caller:
        return Key(source="caller")
    if problem := _no_key(text, source, of_caller=of_caller):
        fault(problem)
        return None
    return _key("inline", text, of_caller=of_caller)


def _no_key(text: str, source: Source, *, of_caller: bool) -> str | None:
    """Why a text that is no reference is not a key either."""
    if not text:
        return "a key is empty; say where it is: env:NAME or file:/path"
    if text == "caller":
        return (
            '"caller" forwards the key of whoever asks, so it is for providers; say env:NAME, file:/path or sha256:HEX'
        )
    if text.startswith("sha256:"):
        return "sha256: is for callers' keys; a provider's must be known: env:NAME or file:/path"
    if text.startswith("$"):
        return "a variable is named as env:NAME"
    if not _TEXT.fullmatch(text):
        return "a key has no spaces and no characters beyond ASCII"
    if (problem := source.public()) is not None:
        return f"a key stands in the file, and {problem}, or say env:NAME or file:/path instead"
    return None


def _key(source: str, text: str, *, of_caller: bool) -> Key:
    if of_caller:  # only the digest is kept: nothing here ever needs a caller's key again
        return Key(source=source, digest=hashlib.sha256(text.encode()).digest())
    return Key(source=source, secret=Secret(text))


def _from_variable(name: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    if not _VARIABLE.fullmatch(name):  # which may be a key that was pasted here, so it is not repeated
        fault("what stands behind env: is not the name of an environment variable")
        return None
    value = source.env.get(name, "").strip()
    if value and not _TEXT.fullmatch(value):
        fault(f"the environment variable {name} holds spaces or characters beyond ASCII, so it is no key")
        return None
    if value:
        return _key(f"env:{name}", value, of_caller=of_caller)
    missing = f"the environment variable {name} is not set"
    if of_caller:  # and without callers, anybody is let in
        fault(f"{missing}: this caller could never be recognised")
        return None
    warn(missing)
    return Key(source=f"env:{name}", missing=missing)


def _from_file(name: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    value = read_text(name, source, fault=fault, warn=warn)
    return None if value is None else _key(f"file:{name}", value, of_caller=of_caller)


def read_text(name: str, source: Source, *, fault: Tell, warn: Tell) -> str | None:
    """What a file holds for us alone: a key, or a URL that may hold one. Tells of what is wrong."""
    path = source.file.parent / name
    try:
        data, mode = source.read(path, _MOST_BYTES + 1)
    except OSError as error:
        fault(f"the key file {path} cannot be read: {words(error)}")
        return None
    if not stat.S_ISREG(mode):
        fault(f"the key file {path} is not a file")
        return None
    if (problem := writable(path, mode)) is not None:
        fault(f"the key file {problem}")
        return None
    if mode & 0o044:
        warn(f"the key file {path} has mode {mode & 0o777:04o}, so others may read it: chmod 600 {path}")
    if (problem := loose(path)) is not None:
        warn(problem)
    if len(data) > _MOST_BYTES:
        fault(f"the key file {path} is larger than a key can be, which is {_MOST_BYTES} bytes")
        return None
    value = data.decode("utf-8", "replace").strip()
    if not _TEXT.fullmatch(value):
        fault(f"the key file {path} {'holds something that is no key' if value else 'is empty'}")
        return None
    return value


def read_place(text: str, source: Source, *, fault: Tell, warn: Tell) -> Place | None:
    """A store from what the file says of it: its URL, or where that stands. Tells of what is wrong."""
    kind, _, rest = text.partition(":")
    url: str | None = text
    if kind == "env":
        url = source.env.get(rest, "").strip()
        if not url:
            fault(f"the environment variable {rest} is not set" if _VARIABLE.fullmatch(rest) else "env: takes a name")
            return None
    elif kind == "file":
        url = read_text(rest, source, fault=fault, warn=warn)
    if url is None:
        return None
    try:
        found = place(url)
    except ValueError as error:
        fault(str(error))
        return None
    if url is not text:
        return msgspec.structs.replace(found, source=text)
    if found.password is not None and (problem := source.public()) is not None:
        fault(f"a password stands in the file, and {problem}, or say env:NAME or file:/path instead")
        return None
    return found


def stamp(path: str) -> Stamp | None:
    """Which file is at a path, in which state: another when it was written, replaced, or its mode changed."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)


def read_file(path: Path, most: int, *, pipes: bool = False) -> tuple[bytes, os.stat_result]:
    """The first bytes of a file and what it is, surely of the same file; nothing of what is no file. Raises OSError."""
    try:  # a pipe that nobody writes to must not hold us up, unless one was asked for
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipes else os.O_NONBLOCK))
    except ValueError:
        raise OSError(errno.EINVAL, "its name cannot be one") from None
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode) and not pipes:
            return b"", found
        with open(fd, "rb", closefd=False) as file:
            return file.read(most), found
    finally:
        os.close(fd)


def words(error: OSError) -> str:
    return (error.strerror or "unknown").lower()


def writable(path: Path, mode: int) -> str | None:
    """Why a file is not to be trusted: others may write it."""
    if mode & 0o022:
        real = os.path.realpath(path)
        return f"{real} has mode {mode & 0o777:04o}, so others may change it: chmod go-w {real}"
    return None


def loose(path: Path) -> str | None:
    """Why a file may be replaced by others: they may write its folder (and no sticky bit keeps what is not theirs)."""
    folder = os.path.dirname(os.path.realpath(path))
    mode = os.stat(folder).st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return f"the folder {folder} has mode {mode & 0o777:04o}, so others may replace {path}: chmod go-w {folder}"
    return None
