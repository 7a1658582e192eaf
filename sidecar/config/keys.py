"""Keys by reference, and the permissions of the files they are in."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sidecar.config.structs import Key
from sidecar.secret import Secret

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_MOST_BYTES: Final = 64 * 1024

Tell = Callable[[str], None]


class Source:
    """What keys are read from: the environment, and files beside the configuration."""

    def __init__(self, env: Mapping[str, str], folder: Path, *, private: bool) -> None:
        self.env = env
        self.folder = folder  # that relative key files are relative to
        self.private = private  # only its owner can read the configuration file


def read_key(text: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    """A key from what the file says of it. Tells of what is wrong, by `fault` (refused) or `warn`."""
    if text == "caller" and not of_caller:
        return Key(source="caller")
    if text.startswith("sha256:") and of_caller:
        digest = text.removeprefix("sha256:")
        if not _DIGEST.fullmatch(digest):
            fault("sha256: takes the 64 hexadecimal digits of the key's SHA-256")
            return None
        return Key(source=text, digest=bytes.fromhex(digest))
    if text.startswith("env:"):
        return _from_variable(text, source, of_caller=of_caller, fault=fault, warn=warn)
    if text.startswith("file:"):
        return _from_file(text, source, of_caller=of_caller, fault=fault, warn=warn)
    if not text:
        fault("a key is empty; say where it is: env:NAME or file:/path")
        return None
    if not source.private:
        fault("a key stands in a file that others may read: chmod 600 it, or say env:NAME or file:/path instead")
        return None
    return _key("inline", text, of_caller=of_caller)


def _key(source: str, text: str, *, of_caller: bool) -> Key:
    if of_caller:  # only the digest is kept: nothing here ever needs a caller's key again
        return Key(source=source, digest=hashlib.sha256(text.encode()).digest())
    return Key(source=source, secret=Secret(text))


def _from_variable(text: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    name = text.removeprefix("env:")
    if not _VARIABLE.fullmatch(name):
        fault(f"{name!r} is not the name of an environment variable")
        return None
    value = source.env.get(name, "").strip()
    if value:
        return _key(text, value, of_caller=of_caller)
    missing = f"the environment variable {name} is not set"
    if of_caller:
        fault(f"{missing}: this caller could never be recognised")
        return None
    warn(missing)
    return Key(source=text, missing=missing)


def _from_file(text: str, source: Source, *, of_caller: bool, fault: Tell, warn: Tell) -> Key | None:
    path = source.folder / text.removeprefix("file:")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            fault(f"the key file {path} is not a file")
            return None
        if (problem := writable(path, mode)) is not None:
            fault(problem)
            return None
        if mode & 0o077:
            warn(f"the key file {path} has mode {mode & 0o777:04o}, so others may read it: chmod 600 {path}")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        fault(f"the key file {path} cannot be read: {(error.strerror or 'unknown').lower()}")
        return None
    if len(data) > _MOST_BYTES:
        fault(f"the key file {path} is larger than a key can be")
        return None
    value = data.decode("utf-8", "replace").strip()
    if not value or any(ord(each) < 33 or ord(each) > 126 for each in value):
        fault(f"the key file {path} is empty, or holds something that is no key")
        return None
    return _key(text, value, of_caller=of_caller)


def writable(path: Path, mode: int) -> str | None:
    """Why a file is not to be trusted: others may write it."""
    if mode & 0o022 and not path.is_symlink():
        return f"{path} has mode {mode & 0o777:04o}, so others may change it: chmod {mode & 0o755:o} {path}"
    if mode & 0o022:
        return f"{os.path.realpath(path)} has mode {mode & 0o777:04o}, so others may change it: chmod go-w it"
    return None
