"""A secret does not leave by any way but `reveal`."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

import sidecar
from sidecar.config import Config, Key, Provider
from sidecar.secret import Secret

CANARY = "sk-canary-7c1f0e"


@dataclasses.dataclass
class Holder:
    key: Secret


@pytest.fixture
def secret() -> Secret:
    return Secret(CANARY)


def test_it_is_revealed_when_asked(secret: Secret) -> None:
    assert secret.reveal() == CANARY


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        format,
        pprint.pformat,
        "{}".format,
        "{!r:>40}".format,
        "{0:s}".format,
        lambda each: f"{each}",
        lambda each: f"{each!s:20}",
        lambda each: "%s" % each,  # noqa: UP031
        lambda each: "%r" % [each],
        lambda each: repr({"a": (each,)}),
        lambda each: repr(Holder(each)),
        lambda each: repr(Key(source="inline", secret=each)),
        lambda each: repr(Config(providers={"openai": Provider(api_key=Key(source="inline", secret=each))})),
        lambda each: logging.makeLogRecord({"msg": "%s", "args": (each,)}).getMessage(),
        lambda each: str(KeyError(each)),
    ],
)
def test_it_cannot_be_printed_or_formatted(secret: Secret, show: Callable[[object], str]) -> None:
    assert CANARY not in show(secret)


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        lambda each: pickle.dumps(Key(source="inline", secret=each)),
        lambda each: pickle.dumps(each, protocol=0),
        copy.copy,
        copy.deepcopy,
        lambda each: copy.deepcopy([each]),
        json.dumps,
        lambda each: json.dumps(each, default=vars),
        orjson.dumps,
        lambda each: orjson.dumps(Holder(each)),
        msgspec.json.encode,
        msgspec.msgpack.encode,
        msgspec.to_builtins,
        lambda each: msgspec.json.encode(Key(source="inline", secret=each)),
        lambda each: msgspec.json.encode(Holder(each)),
        lambda each: each.__getstate__(),
        bytes,
        len,
        iter,
        list,
        int,
        vars,
        hash,
        lambda each: {each},
        lambda each: {each: 1},
        lambda each: each == CANARY,
        lambda each: CANARY == each,  # noqa: SIM300  # by the other operand
        lambda each: each != CANARY,
        lambda each: each == Secret(CANARY),
        lambda each: [Secret(CANARY)].index(each),
        lambda each: each < CANARY,
        lambda each: each + "",
        lambda each: "" + each,
        lambda each: "".join([each]),
        lambda each: each[0],
        lambda each: CANARY in each,
    ],
)
def test_it_cannot_be_encoded_copied_or_compared(secret: Secret, leak: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refusal:
        leak(secret)
    assert CANARY not in "".join(traceback.format_exception(refusal.value))


def test_it_cannot_be_given_other_members(secret: Secret) -> None:
    with pytest.raises(AttributeError):
        secret.note = CANARY  # type: ignore[attr-defined]


def test_it_is_true_when_there_is_one(secret: Secret) -> None:
    assert secret
    assert not Secret("")


@pytest.mark.parametrize("presented", ["", CANARY[:-1], CANARY + "x", CANARY.upper(), "\u00e9"])
def test_it_matches_itself_only(secret: Secret, presented: str) -> None:
    assert secret.matches(CANARY)
    assert not secret.matches(presented)


def test_its_digest_is_its_sha256(secret: Secret) -> None:
    assert secret.digest().hex() == "ab2fb5b46d7a1286ae4d5dc2e75e02391796fcd162489a347e7719cfdd636486"


def test_it_is_taken_out_of_what_others_wrote(secret: Secret) -> None:
    assert secret.redact(f"a {CANARY} b {CANARY}".encode()) == b"a ********** b **********"
    assert Secret("").redact(b"text") == b"text"


def test_it_is_revealed_in_two_places() -> None:
    """Where the head of a request to a provider is written, and where a connection to the store begins."""
    files = Path(sidecar.__file__).parent.rglob("*.py")
    assert sum(file.read_text().count(".reveal(") for file in files) == 2
