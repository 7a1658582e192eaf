"""Configuration files for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.config import Config, ConfigError, Fault, Loaded, examine

CANARY = "sk-canary-7c1f0e"
OPENAI = '[providers.openai]\napi_key = "env:OPENAI_API_KEY"\n'
OWN_KIND = '; one of your own needs kind = "openai-compatible"'
ENV = {"OPENAI_API_KEY": "sk-of-the-environment"}


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def read(folder: Path, text: str | bytes, env: Mapping[str, str] = ENV, mode: int = 0o600) -> Loaded:
    return examine(written(folder / "sidecar.toml", text, mode), env=env)


def config(folder: Path, text: str, env: Mapping[str, str] = ENV) -> Config:
    return read(folder, text, env).config


def refused(folder: Path, text: str | bytes, env: Mapping[str, str] = ENV, mode: int = 0o600) -> list[Fault]:
    """The faults of a file that must be refused."""
    with pytest.raises(ConfigError) as refusal:
        read(folder, text, env, mode)
    return refusal.value.faults


def messages(faults: list[Fault]) -> list[str]:
    return [fault.message for fault in faults]
